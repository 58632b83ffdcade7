package store

import (
	"context"
	"errors"
	"testing"
	"time"

	"heliotrope/scheduler/perf"
)

// Measurements outlive the process that kept them, and only who leads keeps them.
func TestBenchmarks(t *testing.T) {
	dir := t.TempDir()
	day := func(n int) perf.Measurement {
		return perf.Measurement{At: time.Date(2026, 11, n, 12, 0, 0, 0, time.UTC), VCPUs: 2, Values: map[perf.Metric]float64{perf.CPUAll: 4e8}}
	}
	s, err := Open(t.Context(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	lead(t, s, func(ctx context.Context, term uint64) {
		for n := range 2 {
			if err := s.SetBenchmarks(ctx, term, "us-1", []perf.Measurement{day(1), day(2 + n)}); err != nil {
				t.Error(err)
			}
		}
		if err := errors.Join(s.SetBenchmarks(ctx, term, "us-2", []perf.Measurement{day(1)}), s.SetBenchmarks(ctx, term, "us-2", nil)); err != nil {
			t.Error(err)
		}
		if err := s.SetBenchmarks(ctx, term+1, "us-1", nil); err == nil {
			t.Error("who does not lead keeps something")
		}
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := open(t, dir).Benchmarks(t.Context())
	if err != nil || len(all) != 1 || len(all["us-1"]) != 2 || !all["us-1"][1].At.Equal(day(3).At) || all["us-1"][1].Values[perf.CPUAll] != 4e8 {
		t.Errorf("%+v, %v", all, err)
	}
}
