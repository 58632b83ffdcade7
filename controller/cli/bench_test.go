package cli

import (
	"context"
	"fmt"
	"testing"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler/perf"
)

// measured is a fleet of us with one slow host, and eu-1 of which nothing is known.
func measured() perf.Report {
	class := perf.Class{Provider: "cloud-a", InstanceType: "m5.large", Site: "us"}
	hosts := []perf.Host{{ID: "eu-1", Class: perf.Class{Site: "eu"}}}
	for i, speed := range []float64{1, 1.02, 0.98, 1, 1.05, 0.55} {
		h := perf.Host{ID: heliotrope.HostID(fmt.Sprintf("us-%d", i+1)), Class: class}
		for day := range 4 {
			x := speed * (1 + 0.01*float64(day))
			h.History = append(h.History, perf.Measurement{At: noon.AddDate(0, 0, day), VCPUs: 2, CPUSeconds: 1.6,
				Values: map[perf.Metric]float64{perf.CPUSingle: 4.1e8 * x, perf.CPUAll: 4e8 * x, perf.MemoryLatency: 9e-8 / x}})
		}
		if i == 1 {
			const why = "the file system has no O_DIRECT: its cache would be measured"
			h.History[3].Missing = map[perf.Metric]string{perf.DiskRead: why, perf.DiskRandomRead: why, perf.MemoryBandwidth: "there was no time left"}
		}
		hosts = append(hosts, h)
	}
	return perf.Build(hosts)
}

func (f *fake) HostModels(_ context.Context, host heliotrope.HostID) (perf.Report, error) {
	switch host {
	case "":
		return measured(), nil
	case "us-1", "eu-1":
		return measured().Of(host), nil
	}
	return perf.Report{}, api.NotFound("host", string(host))
}

func (f *fake) MeasureHost(_ context.Context, host heliotrope.HostID) (perf.Measurement, error) {
	switch host {
	case "us-1":
		return perf.Measurement{At: noon, VCPUs: 2, Values: map[perf.Metric]float64{perf.CPUAll: 4e8}}, nil
	case "eu-1":
		return perf.Measurement{}, api.Conflict("eu-1 is not connected", "heliotrope host show eu-1 says since when")
	}
	return perf.Measurement{}, api.NotFound("host", string(host))
}

func TestBars(t *testing.T) {
	for want, counts := range map[string][]int{"█": {7}, "▁·█": {1, 0, 8}, "▄█▁": {4, 8, 1}, "▁█": {1, 100}} {
		if got := bars(counts); got != want {
			t.Errorf("%v: got %s, want %s", counts, got, want)
		}
	}
}
