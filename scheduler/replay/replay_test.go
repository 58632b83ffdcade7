package replay

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/forecast"
	"heliotrope/scheduler/pace"
)

var (
	begin = time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
	quick = scheduler.Options{Seed: 1, Iterations: 512, Passes: 5}
)

// earth is sites of one host each, where clients are too, and one VM.
func earth(ms, usdPerGB [][]float64, start heliotrope.HostID) scheduler.Snapshot {
	s := scheduler.Snapshot{VMs: []scheduler.VM{{ID: "v", VCPUs: 2, Host: start, CopyBytes: 9e9, PauseMs: 500}}}
	for k := range ms {
		id := heliotrope.SiteID(fmt.Sprintf("s%d", k))
		s.Sites = append(s.Sites, scheduler.Site{ID: id})
		s.Hosts = append(s.Hosts, scheduler.Host{ID: heliotrope.HostID("h" + fmt.Sprint(k)), Site: id, VCPUs: 4, MemoryMiB: 1})
		for l := range ms {
			to := heliotrope.SiteID(fmt.Sprintf("s%d", l))
			s.Reaches = append(s.Reaches, scheduler.Reach{Region: scheduler.RegionID(id), Site: to, RTTMs: ms[k][l]})
			if k != l {
				s.Paths = append(s.Paths, scheduler.Path{From: id, To: to, RTTMs: ms[k][l], USDPerGB: usdPerGB[k][l]})
			}
		}
	}
	return s
}

// priced is a snapshot with prices of vCPUs and requests of each site's clients.
func priced(s scheduler.Snapshot, usdPerVCPUHour, requestsPerSecond []float64) scheduler.Snapshot {
	s.Sites = append([]scheduler.Site(nil), s.Sites...)
	s.Demands = nil
	for k := range s.Sites {
		s.Sites[k].USDPerVCPUHour = usdPerVCPUHour[k]
		s.Demands = append(s.Demands, scheduler.Demand{VM: "v", Region: scheduler.RegionID(s.Sites[k].ID), RequestsPerSecond: requestsPerSecond[k]})
	}
	return s
}

// hourly has a tick an hour.
func hourly(p scheduler.Policy, snapshots ...scheduler.Snapshot) Scenario {
	s := Scenario{Policy: p, Billing: time.Hour, End: begin.Add(time.Duration(len(snapshots)) * time.Hour)}
	for i, now := range snapshots {
		s.Ticks = append(s.Ticks, Tick{At: begin.Add(time.Duration(i) * time.Hour), Now: now})
	}
	return s
}

// One move, reckoned by hand.
func TestMoveIsReckoned(t *testing.T) {
	world := earth([][]float64{{10, 100}, {100, 10}}, [][]float64{{0, 0.1}, {0.1, 0}}, "h0")
	now := priced(world, []float64{1, 2}, []float64{1000, 0})
	then := priced(world, []float64{1, 2}, []float64{0, 1000})
	s := hourly(scheduler.Policy{ClientUSDPerMillionRequestsMs: 0.1, MoveUSD: 0.5, PauseUSDPerSecond: 2, AmortisationHours: 5}, now, then)
	r, err := Run(s, Follow("v", []heliotrope.SiteID{"s0", "s1"}))
	if err != nil {
		t.Fatal(err)
	}
	const pause = 0.5 + 3.5*0.1 // seconds
	const took = 9e9*8/1e9 + pause
	const requests = 3.6 // million an hour
	const far, near = 100, 10
	want := scheduler.Cost{
		Compute: 2*1 + 2*1*took/3600 + 2*2*(3600-took)/3600,
		Clients: 0.1 * requests * (near + far*took/3600 + near*(3600-took)/3600),
		Moves:   0.5 + 9*0.1 + 2*pause,
	}
	if math.Abs(r.Cost.Compute-want.Compute)+math.Abs(r.Cost.Clients-want.Clients)+math.Abs(r.Cost.Moves-want.Moves) > 1e-6 {
		t.Errorf("%+v, want %+v", r.Cost, want)
	}
	// The new place from the move's beginning, the old one to the end of its second hour.
	if twice := 2*2*took/3600 + 2*1*(3600-took)/3600; math.Abs(r.TwiceUSD-twice) > 1e-6 {
		t.Errorf("USD %v are paid twice, want %v", r.TwiceUSD, twice)
	}
	if len(r.Moves) != 1 || r.MostMovesPerDay() != 1 || math.Abs(r.Paused.Seconds()-pause) > 1e-6 {
		t.Errorf("moves %v, %v paused", r.Moves, r.Paused)
	}
	mean := (near + far*took/3600 + near*(3600-took)/3600) / 2
	if math.Abs(r.Reached.MeanMs()-mean) > 1e-6 || r.Reached.QuantileMs(0.5) != near || r.Reached.QuantileMs(0.999) != far {
		t.Errorf("mean %v, want %v; median %v, p99.9 %v", r.Reached.MeanMs(), mean, r.Reached.QuantileMs(0.5), r.Reached.QuantileMs(0.999))
	}
	if last := r.Curve[len(r.Curve)-1]; math.Abs(last.USD-r.USD()) > 1e-9 || !last.At.Equal(s.End) {
		t.Errorf("the curve ends with %+v, paid were %v", last, r.USD())
	}
}

// A host that ends without notice interrupts; one that says so first does not, if the move
// is quick enough.
func TestInterruptions(t *testing.T) {
	world := priced(earth([][]float64{{10, 100}, {100, 10}}, [][]float64{{0, 0.1}, {0.1, 0}}, "h0"), []float64{1, 2}, []float64{1, 1})
	gone := world
	gone.Hosts = []scheduler.Host{{ID: "h0", Site: "s0", VCPUs: 4, MemoryMiB: 1, Drained: true}, world.Hosts[1]}
	for _, c := range []struct {
		notice time.Duration
		want   int
	}{{0, 1}, {30 * time.Second, 1}, {2 * time.Minute, 0}} {
		s := Scenario{Policy: scheduler.Policy{}, Billing: time.Hour, End: begin.Add(3 * time.Hour), Ticks: []Tick{
			{At: begin, Now: world},
			{At: begin.Add(time.Hour - c.notice), Now: gone},
			{At: begin.Add(time.Hour), Now: gone, Gone: []heliotrope.HostID{"h0"}},
		}}
		if c.notice == 0 {
			s.Ticks = append(s.Ticks[:1], s.Ticks[2])
		}
		r, err := Run(s, Scheduler(scheduler.Policy{Name: "cheap"}, pace.Pace{CoolDownPerVM: heliotrope.Duration(time.Hour)}, quick))
		if err != nil {
			t.Fatal(err)
		}
		if r.Interruptions != c.want || r.Sites[len(r.Sites)-1]["v"] != "s1" {
			t.Errorf("notice %v: %d interruptions, want %d; at %v in the end", c.notice, r.Interruptions, c.want, r.Sites[len(r.Sites)-1])
		}
	}
}

func drawScenario(t *rapid.T) (Scenario, []heliotrope.HostID) {
	places := rapid.IntRange(2, 4).Draw(t, "places")
	table := func(most float64) [][]float64 {
		g := make([][]float64, places)
		for k := range g {
			for range places {
				g[k] = append(g[k], rapid.Float64Range(most/100, most).Draw(t, "way"))
			}
		}
		return g
	}
	row := func(most float64) []float64 {
		var list []float64
		for range places {
			list = append(list, rapid.Float64Range(0, most).Draw(t, "value"))
		}
		return list
	}
	world := earth(table(200), table(0.2), "")
	var all []scheduler.Snapshot
	for range rapid.IntRange(1, 8).Draw(t, "ticks") {
		all = append(all, priced(world, row(1), row(500)))
	}
	p := scheduler.Policy{ClientUSDPerMillionRequestsMs: rapid.Float64Range(0, 0.1).Draw(t, "lambda"), MoveUSD: rapid.Float64Range(0, 1).Draw(t, "move"),
		PauseUSDPerSecond: 1, AmortisationHours: rapid.Float64Range(1, 6).Draw(t, "amortisation")}
	var hosts []heliotrope.HostID
	for _, h := range world.Hosts {
		hosts = append(hosts, h.ID)
	}
	return hourly(p, all...), hosts
}

// bySite is a scenario in which the sites say in which periods they are paid.
func bySite(s Scenario) Scenario {
	ticks := slices.Clone(s.Ticks)
	for i := range ticks {
		ticks[i].Now.Sites = slices.Clone(ticks[i].Now.Sites)
		for k := range ticks[i].Now.Sites {
			ticks[i].Now.Sites[k].BillingSeconds = s.Billing.Seconds()
		}
	}
	s.Ticks, s.Billing = ticks, 0
	return s
}

// Nobody does better than who knows the future; what he does costs what he reckoned; and
// staying is one of the things that he could do.
func TestOptimumIsTheLeast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, hosts := drawScenario(t)
		c, err := Choices(s, "v", hosts)
		if err != nil {
			t.Fatal(err)
		}
		path, usd := Optimum(c)
		var sites []heliotrope.SiteID
		for _, k := range path {
			sites = append(sites, s.Ticks[0].Now.Sites[k].ID)
		}
		followed, err := Run(s, Follow("v", sites))
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(followed.USD()-usd) > 1e-6*max(1, usd) {
			t.Fatalf("it costs %v to follow what was reckoned to cost %v", followed.USD(), usd)
		}
		billed := bySite(s)
		if same, err := Run(billed, Follow("v", sites)); err != nil || math.Abs(same.USD()-usd) > 1e-6*max(1, usd) {
			t.Fatalf("it costs %v where sites say how they are paid, must cost %v (%v)", same.USD(), usd, err)
		}
		if c, err := Choices(billed, "v", hosts); err != nil {
			t.Fatal(err)
		} else if _, same := Optimum(c); math.Abs(same-usd) > 1e-6*max(1, usd) {
			t.Fatalf("where sites say how they are paid, %v is reckoned, must be %v", same, usd)
		}
		ours, err := Run(s, Scheduler(s.Policy, pace.Pace{}, quick))
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := Run(s, Scheduler(s.Policy, pace.Pace{}, quick)); !reflect.DeepEqual(ours, again) {
			t.Fatal("twice the same, and two results")
		}
		if ours.USD() < usd-1e-6 {
			t.Fatalf("the scheduler pays %v, the optimum is %v", ours.USD(), usd)
		}
		for k, h := range hosts {
			stay := s
			stay.Ticks = append([]Tick(nil), s.Ticks...)
			stay.Ticks[0].Now = put(s.Ticks[0].Now, nil, "v", h)
			r, err := Run(stay, Still)
			if err != nil {
				t.Fatal(err)
			}
			var sum float64
			for _, row := range c.Stay {
				sum += row[k]
			}
			if math.Abs(sum-r.USD()) > 1e-6 || r.USD() < usd-1e-6 {
				t.Fatalf("it costs %v to stay at %s, reckoned as %v; the optimum is %v", r.USD(), h, sum, usd)
			}
		}
	})
}

// The programme finds what trying everything finds, with so many moves a day.
func TestOptimumAgainstAllPaths(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ticks, places := rapid.IntRange(1, 6).Draw(t, "ticks"), rapid.IntRange(1, 3).Draw(t, "places")
		c := Costs{Most: rapid.IntRange(0, 3).Draw(t, "most"), Day: func(t int) int { return t / 3 }}
		for range ticks {
			var row []float64
			for range places {
				row = append(row, rapid.Float64Range(0, 10).Draw(t, "stay"))
			}
			c.Stay = append(c.Stay, row)
		}
		price := rapid.Float64Range(0, 5).Draw(t, "move")
		c.Move = func(t, a, b int) float64 { return price * float64(1+t+2*a+b) / 4 }
		least := math.Inf(1)
		path := make([]int, ticks)
		var try func(t int, usd float64, made int)
		try = func(t int, usd float64, made int) {
			if t == ticks {
				least = min(least, usd)
				return
			}
			if t%3 == 0 {
				made = 0
			}
			for k := range places {
				path[t] = k
				moves, sum := made, usd+c.Stay[t][k]
				if t > 0 && path[t-1] != k {
					moves++
					sum += c.Move(t, path[t-1], k)
				}
				if c.Most == 0 || moves <= c.Most {
					try(t+1, sum, moves)
				}
			}
		}
		try(0, 0, 0)
		found, usd := Optimum(c)
		var again float64
		for t, k := range found {
			again += c.Stay[t][k]
			if t > 0 && found[t-1] != k {
				again += c.Move(t, found[t-1], k)
			}
		}
		if math.Abs(usd-least) > 1e-9 || math.Abs(again-usd) > 1e-9 {
			t.Fatalf("%v says %v, comes to %v, and the least is %v", found, usd, again, least)
		}
	})
}

// A pace is kept over the whole of a replay.
func TestReplayKeepsThePace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, _ := drawScenario(t)
		most := rapid.IntRange(1, 4).Draw(t, "most")
		r, err := Run(s, Scheduler(s.Policy, pace.Pace{MaxMovesPerDay: most, CoolDownPerVM: heliotrope.Duration(2 * time.Hour)}, quick))
		if err != nil {
			t.Fatal(err)
		}
		if r.MostMovesPerDay() > most {
			t.Fatalf("%d moves in a day, at most %d may be", r.MostMovesPerDay(), most)
		}
		for i, m := range r.Moves[min(1, len(r.Moves)):] {
			if m.At.Sub(r.Moves[i].At) < 2*time.Hour {
				t.Fatalf("it moves at %v and at %v", r.Moves[i].At, m.At)
			}
		}
	})
}

// Forecasts that are anything cost no more than the bound above the reactive policy.
func TestGuardedReplayKeepsTheBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, hosts := drawScenario(t)
		c, err := Choices(s, "v", hosts)
		if err != nil {
			t.Fatal(err)
		}
		predictive := Seeing(func(int) scheduler.Snapshot {
			return s.Ticks[rapid.IntRange(0, len(s.Ticks)-1).Draw(t, "forecast")].Now
		}, Scheduler(s.Policy, pace.Pace{}, quick))
		reactive := rapid.SampledFrom([]Decide{Scheduler(s.Policy, pace.Pace{}, quick), Still}).Draw(t, "reactive")
		s.Ticks[0].Now = put(s.Ticks[0].Now, nil, "v", hosts[0])
		g, err := forecast.NewGuard(rapid.Float64Range(0, 30).Draw(t, "bound"), 100*time.Hour, 3*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		var most, least, move float64
		least = math.Inf(1)
		for tick, row := range c.Stay {
			for a, usd := range row {
				most, least = max(most, usd), min(least, usd)
				for b := range row {
					if a != b {
						move = max(move, c.Move(tick, a, b)+most)
					}
				}
			}
		}
		w, err := Guarded(s, reactive, predictive, g, func(int) (float64, float64) { return most - least + move, most - least + move })
		if err != nil {
			t.Fatal(err)
		}
		if w.MostLostUSD > g.BoundUSD+1e-9 || w.Real.USD()-w.Reactive.USD() > g.BoundUSD+1e-9 {
			t.Fatalf("it lost %v, in all %v; the bound is %v", w.MostLostUSD, w.Real.USD()-w.Reactive.USD(), g.BoundUSD)
		}
	})
}
