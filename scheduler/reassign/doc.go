// Package reassign solves the machine reassignment problem that Google set for the ROADEF/EURO
// challenge 2012, which has public instances with published results.
//
// It is how the scheduler's search is held against other people's: processes are on machines,
// each machine has room of several resources, and other places would be cheaper. That is what
// placing VMs at hosts is, in a field of its own: what a machine costs is not linear, and of
// a process that goes a transient resource stays taken where it was. So the model, the tables and the moves are
// its own, and the walk (package anneal) is the product's: its random source, its choice what is
// taken, its cooling, and that rules may be broken at a toll which rises until none is.
//
// # The model
//
// Each machine pays for load, what it holds of a resource over its safety capacity, and
// for imbalance, what it has too little free of one resource to go with what is free of another.
// Moves cost by process, by the two machines, and by the service of which most processes
// moved. Never may a machine hold more than its capacity, two processes of a service share a machine, a
// service be in fewer locations than its spread, or a process be in a neighbourhood without a process
// of each service that its own depends on.
//
// # The search
//
// Both costs of a machine are positive parts of sums, so that a machine is a row of sums and a
// process a row of numbers to add: what a change of place costs is O(resources + balances). A step
// is a chain of up to three processes, each to the next one's machine, the last to any or to the
// first's. Where a machine has a process of the same service already, that one must go on.
//
// Room, spread and dependencies may be broken at tolls that rise until four fifths of a walk are
// done; room that there can never be, since what is transient stays, is barred from the beginning. Each
// walk begins so hot that most of where it began is forgotten. The first ones cool evenly, each twice as
// long as the one before: what is easy is solved. Then they are slow where large processes find their
// places, and most that are away are sent home, which frees room. Where a large one ends up is chance
// and decides most: so after each walk, kicks put a large one of a machine that pays for nothing elsewhere, and a lukewarm
// walk finds out what that is worth. The cheapest of all is kept.
//
// Check is the judge: it knows nothing of the search, and reckons from the problem alone.
package reassign
