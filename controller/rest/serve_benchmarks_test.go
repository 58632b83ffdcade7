package rest

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler/perf"
)

// HostModels are of a class that is called like the host that was asked for.
func (m *memory) HostModels(_ context.Context, host heliotrope.HostID) (perf.Report, error) {
	end, err := m.begin()
	defer end()
	if _, ok := m.topology.Hosts[host]; host != "" && !ok {
		return perf.Report{}, api.NotFound("host", string(host))
	}
	return perf.Build([]perf.Host{{ID: "a", Class: perf.Class{InstanceType: string(host)},
		History: []perf.Measurement{{At: noon, Values: map[perf.Metric]float64{perf.DiskSync: 1e-3}}}}}), err
}

func (m *memory) MeasureHost(_ context.Context, host heliotrope.HostID) (perf.Measurement, error) {
	end, err := m.begin()
	defer end()
	if m.topology.Hosts[host].Site == "" {
		return perf.Measurement{}, api.Conflict(string(host)+" is not connected", "")
	}
	return perf.Measurement{At: noon, VCPUs: 2, Values: map[perf.Metric]float64{perf.CPUAll: 4e8}}, err
}

// A question about hosts' speeds and an order to measure arrive, and their answers come
// back whole.
func TestBenchmarks(t *testing.T) {
	s := serve(t, Options{})
	s.example(t)
	c, ctx := s.client(t), t.Context()
	hosts, err := c.Hosts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []heliotrope.HostID{"", hosts[0].Name} {
		r, err := c.Benchmarks(ctx, host)
		if err != nil || len(r.Classes) != 1 || r.Classes[0].InstanceType != string(host) || r.Classes[0].Metrics[0].Histogram.Counts[0] != 1 || len(r.Anomalies) != 0 {
			t.Errorf("%q: got %+v, %v", host, r, err)
		}
	}
	m, err := c.MeasureHost(ctx, hosts[0].Name)
	if err != nil || m.Values[perf.CPUAll] != 4e8 || !m.At.Equal(noon) {
		t.Errorf("got %+v, %v", m, err)
	}
	var p *api.Problem
	if _, err := c.Benchmarks(ctx, "mars"); !errors.As(err, &p) || p.Status != http.StatusNotFound {
		t.Errorf("got %v, want 404", err)
	}
	if _, err := c.MeasureHost(ctx, "mars"); !errors.As(err, &p) || p.Status != http.StatusConflict {
		t.Errorf("got %v, want 409", err)
	}
}
