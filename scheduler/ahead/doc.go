// Package ahead plans for the demand of the next hours, and keeps the books of what that cost.
//
// Demands learn what clients of each region ask of each VM, hour by hour (package forecast).
// A plan made with what they expect on average over a horizon, in place of what is asked now,
// moves VMs before a peak. It is Sure only of moves that gain at that end of each interval
// which speaks against them.
//
// Books hold two policies against each other that nobody carries out: the reactive one, which
// knows what is now, and the predictive one. Each has a place for every VM, moves on paper,
// and pays for it by the traffic that really is. A forecast.Guard says which of them the VMs
// are to follow, so that what a wrong forecast costs is bounded.
package ahead
