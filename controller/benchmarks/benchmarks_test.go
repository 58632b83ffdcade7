package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
	"heliotrope/scheduler/perf"
)

// world is a topology of one site with hosts h0 to h6, and what was told.
type world struct {
	leads bool
	paths []agentapi.Path
	told  []string
}

func (w *world) Topology() heliotrope.Topology {
	t := heliotrope.Topology{Sites: map[heliotrope.SiteID]heliotrope.Site{"us": {Provider: "aws"}}, Hosts: map[heliotrope.HostID]heliotrope.Host{}}
	for i := range 7 {
		t.Hosts[heliotrope.HostID(fmt.Sprintf("h%d", i))] = heliotrope.Host{Site: "us", InstanceType: "m5"}
	}
	return t
}

func (w *world) Paths(heliotrope.HostID) []agentapi.Path { return w.paths }

func (w *world) Leads() bool { return w.leads }

func (w *world) Tell(kind, subject, message string) {
	w.told = append(w.told, fmt.Sprintf("%s %s: %s", kind, subject, message))
}

// records is a store with one leader's term.
type records struct {
	term uint64
	kept map[heliotrope.HostID][]perf.Measurement
}

func (r *records) Benchmarks(context.Context) (map[heliotrope.HostID][]perf.Measurement, error) {
	return r.kept, nil
}

func (r *records) SetBenchmarks(_ context.Context, term uint64, h heliotrope.HostID, all []perf.Measurement) error {
	if term != r.term {
		return errors.New("another controller leads")
	}
	if r.kept[h] = all; len(all) == 0 {
		delete(r.kept, h)
	}
	return nil
}

// agent measures what it was told to.
type agent struct {
	host   heliotrope.HostID
	tells  []perf.Measurement
	answer perf.Measurement
	err    error
	term   uint64
}

func (a *agent) Host() heliotrope.HostID { return a.host }

func (a *agent) Measure(_ context.Context, o agentapi.BenchOrder) (perf.Measurement, error) {
	a.term = o.Term
	return a.answer, a.err
}

func (a *agent) Measurements(ctx context.Context, f func(perf.Measurement) error) error {
	for _, m := range a.tells {
		if err := f(m); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// day is a measurement of the nth day.
func day(n int, score float64) perf.Measurement {
	at := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when synctest's clock begins
	return perf.Measurement{At: at.AddDate(0, 0, n-100), VCPUs: 2, Values: map[perf.Metric]float64{perf.CPUAll: score}}
}

// serve runs Serve over an agent until end is called, and waits until it has told.
func serve(t *testing.T, b *Benchmarks, a *agent) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx, a, 7) }()
	synctest.Wait()
	return func() { cancel(); <-done }
}

func open(t *testing.T, w *world, r *records) *Benchmarks {
	b := New(w, r, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err := b.Load(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	return b
}

// What agents tell is kept, also for the next leader; a host that becomes an anomaly is
// told once, and once when it is none any more.
func TestTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, r := &world{leads: true}, &records{term: 7, kept: map[heliotrope.HostID][]perf.Measurement{}}
		b := open(t, w, r)
		for i := range 6 {
			serve(t, b, &agent{host: heliotrope.HostID(fmt.Sprintf("h%d", i)), tells: []perf.Measurement{day(0, 4e8)}})()
		}
		if len(w.told) > 0 {
			t.Errorf("nothing is odd: %v", w.told)
		}
		slow := &agent{host: "h6", tells: []perf.Measurement{day(0, 1e8), day(1, 1e8), day(1, 1e8)}}
		serve(t, b, slow)()
		serve(t, b, slow)() // it connects again, and tells its newest again
		if len(w.told) != 1 || !strings.HasPrefix(w.told[0], "host h6: each of all vCPUs is 100 M/s, 75 % below") {
			t.Errorf("told %q", w.told)
		}
		if s := b.Speeds(); s["h6"] != 0.5 || s["h0"] != 1 {
			t.Errorf("speeds %v", s)
		}

		// The next leader knows what was told, and goes on from there.
		w.told = nil
		b = open(t, w, r)
		serve(t, b, &agent{host: "h6", tells: []perf.Measurement{day(1, 1e8), day(2, 4e8), day(3, 4e8), day(4, 4e8)}})()
		if !slices.Equal(w.told, []string{"host h6: each of all vCPUs is as usual again"}) {
			t.Errorf("told %q", w.told)
		}
		if len(r.kept["h6"]) != 5 {
			t.Errorf("kept %v", r.kept["h6"])
		}
	})
}

// What cannot be believed or kept is not taken, and the connection goes on.
func TestNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, r := &world{leads: true}, &records{term: 7, kept: map[heliotrope.HostID][]perf.Measurement{}}
		b := open(t, w, r)
		serve(t, b, &agent{host: "h0", tells: []perf.Measurement{day(200, 4e8), day(0, 4e8)}})()
		if len(r.kept["h0"]) != 1 || !r.kept["h0"][0].At.Equal(day(0, 0).At) {
			t.Errorf("a clock far ahead: kept %v", r.kept["h0"])
		}
		r.term = 8 // somebody else leads now
		serve(t, b, &agent{host: "h0", tells: []perf.Measurement{day(1, 4e8)}})()
		if m, err := b.HostModels(t.Context(), "h0"); err != nil || m.Hosts[0].Measurements != 1 {
			t.Errorf("what is not in the store is not known: %+v, %v", m.Hosts, err)
		}
	})
}

// The round trip to the others of the site is part of a measurement; who is farther, or did
// not answer yet, is not.
func TestRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, r := &world{leads: true}, &records{term: 7, kept: map[heliotrope.HostID][]perf.Measurement{}}
		w.paths = []agentapi.Path{{Peer: "h1"}, {Peer: "h2", RTT: 300 * time.Microsecond}, {Peer: "h3", RTT: 200 * time.Microsecond}, {Peer: "h4", RTT: time.Second},
			{Peer: "mars", RTT: 5 * time.Second}, {Peer: "venus", RTT: 5 * time.Second}}
		serve(t, open(t, w, r), &agent{host: "h0", tells: []perf.Measurement{day(0, 4e8)}})()
		if got := r.kept["h0"][0].Values[perf.NetworkRTT]; got != 3e-4 {
			t.Errorf("got %v, want the median of three", got)
		}
	})
}

// What is known of a host that is gone is forgotten, but not at once.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &records{term: 7, kept: map[heliotrope.HostID][]perf.Measurement{"h0": {day(0, 4e8)}, "gone": {day(0, 4e8)}, "away": {day(0, 4e8), day(50, 4e8)}}}
		open(t, &world{leads: true}, r)
		if _, ok := r.kept["gone"]; ok || len(r.kept) != 2 {
			t.Errorf("kept %v", r.kept)
		}
	})
}

func TestMeasureHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, r := &world{leads: true}, &records{term: 7, kept: map[heliotrope.HostID][]perf.Measurement{}}
		b := open(t, w, r)
		status := func(err error) int {
			var p *api.Problem
			if errors.As(err, &p) {
				return p.Status
			}
			return 0
		}
		measure := func(h heliotrope.HostID) int {
			_, err := b.MeasureHost(t.Context(), h)
			return status(err)
		}
		if got := measure("h0"); got != http.StatusConflict {
			t.Errorf("not connected: %d", got)
		}
		if got := measure("mars"); got != http.StatusNotFound {
			t.Errorf("no such host: %d", got)
		}
		a := &agent{host: "h0", answer: day(0, 4e8)}
		end := serve(t, b, a)
		if m, err := b.MeasureHost(t.Context(), "h0"); err != nil || m.Values[perf.CPUAll] != 4e8 || a.term != 7 || len(r.kept["h0"]) != 1 {
			t.Errorf("%+v, %v, term %d, kept %v", m, err, a.term, r.kept)
		}
		a.err = fmt.Errorf("%w: a move is under way", agentapi.ErrBusy)
		if got := measure("h0"); got != http.StatusConflict {
			t.Errorf("busy: %d", got)
		}
		again := serve(t, b, &agent{host: "h0", answer: day(1, 4e8)})
		end() // of the connection before is not that of this one
		if got := measure("h0"); got != 0 {
			t.Errorf("connected again: %d", got)
		}
		again()
		if got := measure("h0"); got != http.StatusConflict {
			t.Errorf("gone: %d", got)
		}
		w.leads = false
		if got := measure("h0"); got != http.StatusServiceUnavailable || b.Gauges() != nil {
			t.Errorf("who does not lead: %d, %v", got, b.Gauges())
		}
	})
}

// What is watched has its unit in its name, and stays bounded.
func TestGauges(t *testing.T) {
	w := &world{leads: true}
	b := open(t, w, &records{kept: map[heliotrope.HostID][]perf.Measurement{"h0": {day(0, 4e8)}, "h1": {day(0, 2e8)}}})
	got := b.Gauges()
	if len(got) != 2 || got[0].Value != 0 || got[1].Name != "heliotrope_host_cpu_all_rounds_per_second_per_vcpu" ||
		!slices.Equal(got[1].Values, []string{"aws", "m5", "us"}) || got[1].Value < 2.8e8 || got[1].Value > 2.9e8 {
		t.Errorf("%+v", got)
	}
}
