// Package replay lets time pass: it asks a policy at each tick of a series of snapshots what
// to move, carries that out, and adds up what it all cost.
//
// What decides is the code of production: Scheduler makes its plans with scheduler.Solve and
// keeps to a pace.Pace. What anything costs is scheduler.Evaluate's word; this package
// only knows for how long.
//
// # How a move passes
//
// The steps of a plan go one after another, each as long as its slowest move is predicted to
// take. Until it has landed a VM runs at its old place, with all that this costs its clients,
// while the new place is paid too; and the old place is paid until its billing period ends.
// Moves that have not landed at the next tick go on, and nothing is decided until they have.
//
// A host that is gone takes what still runs there with it: that is an interruption, and the
// VM has no place until the next plan gives it one.
//
// # What it is held against
//
// Still never moves; Run of it from each place gives every static choice. Optimum is what
// somebody who knew the future would have done, by dynamic programming, with the same costs;
// Guarded is a policy with forecasts that forecast.Guard watches over. Picture draws what
// was accumulated.
package replay
