package store

import (
	"context"

	"heliotrope"
	"heliotrope/scheduler/perf"
)

const benchmarksPrefix = "benchmarks/"

// Benchmarks are the measurements of each host that are kept, oldest first.
func (s *Store) Benchmarks(ctx context.Context) (map[heliotrope.HostID][]perf.Measurement, error) {
	list, _, err := List[[]perf.Measurement](ctx, s, benchmarksPrefix)
	if err != nil {
		return nil, err
	}
	all := make(map[heliotrope.HostID][]perf.Measurement, len(list))
	for _, kv := range list {
		all[heliotrope.HostID(kv.Name())] = kv.Value
	}
	return all, nil
}

// SetBenchmarks keeps a host's measurements in place of those before, or, if there are none,
// nothing of the host, if the leader of term still leads.
func (s *Store) SetBenchmarks(ctx context.Context, term uint64, h heliotrope.HostID, all []perf.Measurement) error {
	op := Set(benchmarksPrefix+string(h), all)
	if len(all) == 0 {
		op = Delete(benchmarksPrefix + string(h))
	}
	_, err := s.Txn(ctx, []Cond{s.Fenced(term)}, op)
	return err
}
