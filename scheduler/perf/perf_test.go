package perf_test

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/scheduler/perf"
)

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// day is a measurement of the nth day with a few metrics.
func day(n int, values map[perf.Metric]float64) perf.Measurement {
	return perf.Measurement{At: noon.AddDate(0, 0, n), VCPUs: 4, CPUSeconds: 1, Values: values}
}

// host is one whose CPU was measured like that, a day each.
func host(id string, class perf.Class, scores ...float64) perf.Host {
	h := perf.Host{ID: heliotrope.HostID(id), Class: class}
	for i, s := range scores {
		h.History = append(h.History, day(i, map[perf.Metric]float64{perf.CPUAll: s}))
	}
	return h
}

var m5 = perf.Class{Provider: "aws", InstanceType: "m5.large", Site: "us"}

func TestSpeeds(t *testing.T) {
	for _, x := range []struct {
		name  string
		hosts []perf.Host
		want  map[heliotrope.HostID]float64
	}{
		{"nothing measured", []perf.Host{host("a", m5), host("b", m5)}, map[heliotrope.HostID]float64{}},
		{"one host is the reference", []perf.Host{host("a", m5, 3e8), host("b", m5)}, map[heliotrope.HostID]float64{"a": 1}},
		{"one measurement counts half", []perf.Host{host("a", m5, 4e8), host("b", m5, 4e8), host("c", m5, 1e8)},
			map[heliotrope.HostID]float64{"a": 1, "b": 1, "c": 0.5}},
		{"five count for most", []perf.Host{host("a", m5, 4e8), host("b", m5, 4e8), host("c", m5, 3e8, 3e8, 3e8, 3e8, 3e8)},
			map[heliotrope.HostID]float64{"a": 1, "b": 1, "c": 0.8}}, // (3/4)^(5/6)
		{"those that disagree count for less", []perf.Host{host("a", m5, 4e8), host("b", m5, 4e8), host("c", m5, 2e8, 4e8, 3e8, 5e8, 2.5e8)},
			map[heliotrope.HostID]float64{"a": 1, "b": 1, "c": 0.9}},
		{"no farther than twice", []perf.Host{host("a", m5, 1e8), host("b", m5, 1e8), host("c", m5, 9e9, 9e9, 9e9)},
			map[heliotrope.HostID]float64{"a": 1, "b": 1, "c": 2}},
		{"only the newest five", []perf.Host{host("a", m5, 4e8), host("b", m5, 4e8), host("c", m5, 1e8, 1e8, 1e8, 4e8, 4e8, 4e8, 4e8, 4e8)},
			map[heliotrope.HostID]float64{"a": 1, "b": 1, "c": 1}},
	} {
		if got := perf.Speeds(x.hosts); !reflect.DeepEqual(got, x.want) {
			t.Errorf("%s: got %v, want %v", x.name, got, x.want)
		}
	}
}

// fleets are hosts of two classes with histories of any length.
func fleets(t *rapid.T) []perf.Host {
	var hosts []perf.Host
	for i := range rapid.IntRange(0, 9).Draw(t, "hosts") {
		class := perf.Class{Provider: "p", InstanceType: rapid.SampledFrom([]string{"small", "large"}).Draw(t, "type"), Site: "s"}
		scores := rapid.SliceOfN(rapid.Float64Range(1e7, 1e9), 0, 12).Draw(t, "scores")
		h := host(fmt.Sprintf("h%d", i), class, scores...)
		for k := range h.History {
			h.History[k].Values[perf.MemoryLatency] = rapid.Float64Range(1e-8, 1e-3).Draw(t, "latency")
		}
		hosts = append(hosts, h)
	}
	return hosts
}

// What matters is the ratio: other units, or another order, give the same speeds; and no
// speed leaves its bounds.
func TestSpeedsAreRelative(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hosts := fleets(t)
		speeds := perf.Speeds(hosts)
		for id, s := range speeds {
			if s < 0.5 || s > 2 {
				t.Fatalf("%s: speed %v", id, s)
			}
		}
		turned := slices.Clone(hosts)
		slices.Reverse(turned)
		for i, h := range turned {
			history := slices.Clone(h.History)
			for k, m := range history {
				history[k].Values = map[perf.Metric]float64{perf.CPUAll: 4 * m.Values[perf.CPUAll]}
			}
			turned[i].History = history
		}
		for id, s := range perf.Speeds(turned) {
			if math.Abs(s-speeds[id]) > 0.101 { // one step: logarithms are not exact
				t.Fatalf("%s: %v, and %v in other units", id, speeds[id], s)
			}
		}
	})
}

// Every measurement is in one bucket, of bounds that grow, and the quantiles are in order.
func TestDistributions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hosts := fleets(t)
		r := perf.Build(hosts)
		total := 0
		for _, h := range hosts {
			total += 2 * len(h.History)
		}
		for _, c := range r.Classes {
			for _, d := range c.Metrics {
				q := []float64{d.Min, d.P10, d.Median, d.P90, d.Max}
				if !slices.IsSorted(q) || !slices.IsSorted(d.Histogram.Bounds) || len(d.Histogram.Bounds) != len(d.Histogram.Counts)+1 || len(d.Histogram.Counts) > 24 {
					t.Fatalf("%+v", d)
				}
				sum := 0
				for _, n := range d.Histogram.Counts {
					sum += n
				}
				if sum != d.Count || d.Min < d.Histogram.Bounds[0]*(1-1e-3) || d.Max > d.Histogram.Bounds[len(d.Histogram.Bounds)-1]*(1+1e-3) {
					t.Fatalf("%d in buckets: %+v", sum, d)
				}
				total -= sum
			}
		}
		if total != 0 {
			t.Fatalf("%d values are in no histogram", total)
		}
		if len(r.Hosts) != len(hosts) {
			t.Fatalf("%d hosts, want %d", len(r.Hosts), len(hosts))
		}
	})
}

// Of hosts that are alike within noise none is an anomaly; one that is half as fast as they
// are is, and nothing else.
func TestAnomalyOfClass(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		noise := rapid.Float64Range(0.93, 1.07)
		var hosts []perf.Host
		for i := range rapid.IntRange(6, 20).Draw(t, "hosts") {
			scores := rapid.SliceOfN(rapid.Map(noise, func(x float64) float64 { return 4e8 * x }), 1, 12).Draw(t, "scores")
			hosts = append(hosts, host(fmt.Sprintf("h%02d", i), m5, scores...))
		}
		if a := perf.Build(hosts).Anomalies; len(a) > 0 {
			t.Fatalf("noise is no anomaly: %+v", a)
		}
		odd := rapid.IntRange(0, len(hosts)-1).Draw(t, "odd")
		history := hosts[odd].History
		for i := range history {
			history[i].Values = map[perf.Metric]float64{perf.CPUAll: history[i].Values[perf.CPUAll] / 2}
		}
		a := perf.Build(hosts).Anomalies
		if len(a) != 1 || a[0].Host != hosts[odd].ID || a[0].Against != perf.AgainstClass || !a[0].Worse || a[0].Score > -3.5 {
			t.Fatalf("%+v", a)
		}
	})
}

func TestAnomalyOfPast(t *testing.T) {
	steady := []float64{4e8, 4.1e8, 3.9e8, 4e8, 4.1e8, 4e8, 4e8}
	for _, x := range []struct {
		name  string
		now   []float64
		worse []bool
	}{
		{"as before", []float64{4e8, 4e8}, nil},
		{"one bad day", []float64{1e8, 4e8, 4e8}, nil},
		{"the first bad day", []float64{4e8, 4e8, 1e8}, nil},
		{"the second", []float64{4e8, 2e8, 2e8}, []bool{true}},
		{"better", []float64{4e8, 9e8, 9e8}, []bool{false}},
	} {
		h := host("a", m5, append(slices.Clone(steady), x.now...)...)
		var worse []bool
		for _, a := range perf.Build([]perf.Host{h}).Anomalies {
			if a.Against != perf.AgainstPast || !strings.Contains(a.What, a.Metric.Text(a.Value)) {
				t.Errorf("%s: %+v", x.name, a)
			}
			worse = append(worse, a.Worse)
		}
		if !slices.Equal(worse, x.worse) {
			t.Errorf("%s: got %v, want %v", x.name, worse, x.worse)
		}
	}
	// Of a latency the large value is the bad one, and a few measurements are no past.
	h := perf.Host{ID: "a", Class: m5}
	for i := range 9 {
		h.History = append(h.History, day(i, map[perf.Metric]float64{perf.MemoryLatency: map[bool]float64{true: 3e-7, false: 9e-8}[i > 6]}))
	}
	a := perf.Build([]perf.Host{h}).Anomalies
	want := "memory latency is 300 ns, 233 % above the median 90 ns (75.6 ns to 107 ns is usual), of its own 6 measurements before"
	if len(a) != 1 || !a[0].Worse || a[0].What != want {
		t.Errorf("%+v, want %q", a, want)
	}
	h.History = h.History[4:]
	if a := perf.Build([]perf.Host{h}).Anomalies; len(a) > 0 {
		t.Errorf("of so few: %+v", a)
	}
}

func TestChanged(t *testing.T) {
	a, b, c := perf.Anomaly{Host: "a", Metric: perf.CPUAll, Value: 1}, perf.Anomaly{Host: "b", Metric: perf.CPUAll}, perf.Anomaly{Host: "b", Metric: perf.DiskRead}
	later := a
	later.Value = 2
	begun, ended := perf.Changed([]perf.Anomaly{a, b}, []perf.Anomaly{later, c})
	if len(begun) != 1 || begun[0] != c || len(ended) != 1 || ended[0] != b {
		t.Errorf("begun %+v, ended %+v", begun, ended)
	}
}

func TestKeep(t *testing.T) {
	var h []perf.Measurement
	for i := range 40 {
		h = perf.Keep(h, day(i, nil))
		h = perf.Keep(h, day(i, nil)) // twice is once
	}
	if len(h) != perf.Kept || !h[0].At.Equal(noon.AddDate(0, 0, 8)) {
		t.Errorf("%d kept, from %v", len(h), h[0].At)
	}
}

func TestText(t *testing.T) {
	for m, values := range map[perf.Metric]map[float64]string{
		perf.CPUAll:          {4.56e8: "456 M/s"},
		perf.MemoryBandwidth: {8.64e9: "8.64 GB/s", 9.999e8: "1 GB/s"},
		perf.MemoryLatency:   {9.1e-8: "91 ns"},
		perf.DiskSync:        {1.3e-3: "1.3 ms", 2: "2 s"},
		perf.DiskRandomRead:  {12: "12 /s", 54321: "54.3 k/s"},
	} {
		for v, want := range values {
			if got := m.Text(v); got != want {
				t.Errorf("%s of %v: got %q, want %q", m, v, got, want)
			}
		}
	}
}

func TestClassOf(t *testing.T) {
	top := heliotrope.Topology{Sites: map[heliotrope.SiteID]heliotrope.Site{"us": {Provider: "aws"}},
		Hosts: map[heliotrope.HostID]heliotrope.Host{"a": {Site: "us", InstanceType: "m5.large"}}}
	if c := perf.ClassOf(top, "a"); c != m5 || c.String() != "aws m5.large us" {
		t.Errorf("%+v", c)
	}
}

// What an agent sends is a measurement, or an error; and what is one stays one.
func FuzzParse(f *testing.F) {
	good, err := json.Marshal(day(1, map[perf.Metric]float64{perf.CPUAll: 4e8, perf.DiskSync: 1e-3}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"at":"2026-11-28T12:00:00Z","vcpus":1,"values":{"cpu":1}}`))
	f.Add([]byte(`{"at":"2026-11-28T12:00:00Z","vcpus":1,"values":{"disk_sync_seconds":-1}}`))
	f.Add([]byte(`{"at":"2026-11-28T12:00:00Z","vcpus":1,"missing":{"disk_sync_seconds":"the disk is full"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := perf.Parse(data)
		if err != nil {
			return
		}
		r := perf.Build([]perf.Host{{ID: "a", History: []perf.Measurement{m}}})
		if _, err := json.Marshal(r); err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
	})
}

// A value is told with four digits, none of which is made up.
func TestFourDigits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := math.Exp(rapid.Float64Range(-27, 34).Draw(t, "log"))
		r := perf.Build([]perf.Host{{ID: "a", History: []perf.Measurement{day(0, map[perf.Metric]float64{perf.DiskSync: x})}}})
		got := r.Hosts[0].Values[perf.DiskSync]
		if text := fmt.Sprintf("%.3e", x); math.Abs(got/x-1) > 6e-4 || fmt.Sprintf("%.3e", got) != text && math.Abs(got/x-1) > 5e-4+1e-9 || len(fmt.Sprint(got)) > 11 {
			t.Fatalf("%v became %v, want about %s", x, got, text)
		}
	})
}
