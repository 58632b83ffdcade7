// Package store keeps what the controller must not forget, in etcd: one embedded in the
// process with its data in a directory, or an external cluster, with the same client code.
//
// Everything is JSON under /heliotrope/v1/:
//
//	topology                 the one in force (Applied)
//	topology-history/<rev>   the ten before it
//	placements/<vm>          heliotrope.Placement: who owns the VM, in which epoch
//	tombstones/<vm>          the last Placement of a VM that is gone: its epochs are never used again
//	moves/<id>               a move, as its driver writes it
//	moving/<vm>              the id of the VM's move that has not ended: at most one
//	hosts/<host>             Host: joined, revoked, last status
//	benchmarks/<host>        the newest measurements of the host (perf.Measurement)
//	tokens/<id>              Token: lets a host join once
//	secrets/<name>           the CA's key and certificate, hashes of API tokens
//	events/<id>              what happened; an event's number is the revision that wrote it
//	events-trimmed           the highest number of an event that is no longer kept
//	idempotency/<key>        answers given to Idempotency-Keys
//	leader/<lease>           the election
//
// Revisions are etcd's: one counter for all keys, which grows with every transaction. The
// leader's term is the revision that created its election key, so it grows too, and
// Fenced makes any transaction fail once that key is gone: a leader that was asleep
// cannot write over its successor's work. What must hold together is one transaction,
// never two.
//
// An operation that the store does not answer in time fails with ErrUnavailable; whether
// it took effect is then unknown, and the caller reads again.
package store
