// Package scheduler decides where each VM ought to run, and says why.
//
// It is a function: from a Snapshot (what there is, what it costs, who talks to whom) and a
// Policy (what a millisecond is worth, what may never be) to a Plan (what to move where, in
// which order, what that saves and how sure it is that nothing much better exists). It does
// no I/O and has no clock: the same arguments give the same plan.
//
// # One definition of cost
//
// All is USD per hour. Evaluate adds up a placement by the terms of cost.go, and nothing
// else in the package knows what anything costs: the tables of the search are filled by
// calling the same terms, and tests hold the two against each other.
//
// # Two levels
//
// Where a VM runs matters twice: which site (prices, distances, egress) and which host
// there (room). The first is decided in a field: units, which are VMs that must stay
// together, times sites, with a linear price for each unit at each site and a price for
// each pair that talks. That is a quadratic assignment with capacities. The second is
// vector bin packing (pack.go) that disturbs what already stands as little as it can: where a
// VM finds no host, those of the site change places (squeeze.go), and what does not pack then
// goes to the next best site. In the end the search goes on from host to host.
//
// # Search and bound
//
// Package assign searches the field and bounds it: no placement that keeps all constraints
// costs less than a plan's Bound, which is certain, however bad the search was. The budget
// is a number of iterations, never time, so that a seed gives one plan.
//
// # From a placement to a plan
//
// order.go finds an order in which no step makes any constraint worse, a VM occupying room
// at both ends while it moves. Cycles are broken by temporary places, at any host with room;
// where none is, the plan says what is blocked, and its costs are those of what it does reach. A plan that
// gains too little is no plan: that nothing is to be done is an answer, with its reason.
//
// # From plan to plan
//
// Package pace says how much may move now, given the moves of the past; package forecast what
// demand and prices will be; and package replay what a policy comes to over time.
package scheduler
