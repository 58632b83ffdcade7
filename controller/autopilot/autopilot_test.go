package autopilot

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/store"
	"heliotrope/scheduler"
	"heliotrope/scheduler/traffic"
)

// An autopilot that may moves a VM to its clients once they have been there for a whole
// window, and tells what that gained.
func TestAutoFollowsClients(t *testing.T) {
	p := newPlanet("web", "idle")
	p.pool(heliotrope.AutopilotAuto, heliotrope.Pace{})
	p.traffic = serves("web", "us", 1e6)
	fly(t, p, func(t *testing.T, a *Autopilot) {
		time.Sleep(5 * time.Minute)
		if p.count() > 0 {
			t.Fatalf("it moved what is where it ought to be: %v", p.told)
		}
		p.turn(serves("web", "eu", 1e6))
		time.Sleep(time.Minute)
		if p.count() > 0 {
			t.Error("it moves before a window is over")
		}
		time.Sleep(20 * time.Second)
		if got := p.at("web"); got != "eu-1" && got != "eu-2" || p.at("idle") != "us-1" {
			t.Fatalf("web is at %s: %v", got, p.told)
		}
		plan := only(t, a)
		if plan.State != api.PlanMeasuring || plan.By != "autopilot" || plan.Pool != "all" || plan.Moves[0].PauseMs != 200 {
			t.Errorf("%+v", plan)
		}
		seen := plan.Revision
		later, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		plan, err := a.WaitPlan(later, plan.ID, seen)
		if err != nil || plan.State != api.PlanDone || plan.Measured == nil {
			t.Fatalf("%+v, %v", plan, err)
		}
		// It sends 3.6 GB/h: 80 ms at USD 0.001 per GB and ms, and USD 0.02 per GB.
		if g := plan.Measured; math.Abs(g.Gained-3.6*(80*0.001+0.02)) > 0.005 || math.Abs(g.Gained-g.Promised) > 0.005 || math.Abs(g.VMs["web"].Ms-80) > 0.01 {
			t.Errorf("promised %f, gained %f, %+v", g.Promised, g.Gained, g.VMs)
		}
		time.Sleep(time.Hour)
		if p.count() != 1 {
			t.Errorf("%d moves: %v", p.count(), p.told)
		}
	})
}

// What was promised and did not come true is told as it is.
func TestGainIsMeasured(t *testing.T) {
	p := newPlanet("web")
	p.pool(heliotrope.AutopilotAuto, heliotrope.Pace{CoolDownPerVM: heliotrope.Duration(time.Hour)})
	p.traffic = serves("web", "eu", 1e6)
	fly(t, p, func(t *testing.T, a *Autopilot) {
		for p.count() == 0 {
			time.Sleep(time.Second)
		}
		p.turn(serves("web", "us", 5e5)) // they are back, half as many
		time.Sleep(2 * time.Minute)
		if plan := only(t, a); plan.Measured == nil || plan.Measured.Gained > -0.15 || plan.Measured.Promised < 0.3 || !strings.Contains(plan.Note, "gained USD -0.") {
			t.Errorf("%+v", plan)
		}
		if p.at("web") == "us-1" || p.count() != 1 {
			t.Error("it moved back while it was to cool down")
		}
		time.Sleep(time.Hour)
		if p.count() != 2 {
			t.Errorf("%d moves", p.count())
		}
	})
}

// A day of noise moves nothing.
func TestNoiseMovesNothing(t *testing.T) {
	vms := []heliotrope.VMID{"a", "b", "c", "d"}
	p := newPlanet(vms...)
	p.placements["c"] = heliotrope.Placement{VM: "c", Host: "eu-1", Epoch: 1}
	p.placements["d"] = heliotrope.Placement{VM: "d", Host: "eu-1", Epoch: 1}
	p.topology.Pools["all"] = heliotrope.Pool{Autopilot: heliotrope.AutopilotAuto, Window: heliotrope.Duration(5 * time.Minute), Interval: heliotrope.Duration(time.Minute)}
	random := rand.New(rand.NewPCG(1, 2))
	// Each is as near to its clients as can be, on average; around that, everything varies
	// by a factor of e in each window.
	p.traffic = func(from, to time.Time) []traffic.Cell {
		var cells []traffic.Cell
		add := func(src, dst traffic.End, rate float64) {
			b := rate * to.Sub(from).Seconds() * math.Exp(random.NormFloat64())
			cells = append(cells, traffic.Cell{Src: src, Dst: dst, Bytes: b, Low: b, High: b})
		}
		for i, vm := range vms {
			near, far := clients["us"], clients["eu"]
			if i >= 2 {
				near, far = far, near
			}
			add(traffic.VM(vm), near, 3e5)
			add(traffic.VM(vm), far, 1e5)
			for _, other := range vms {
				if other != vm {
					add(traffic.VM(vm), traffic.VM(other), 2e4)
				}
			}
		}
		return cells
	}
	fly(t, p, func(t *testing.T, a *Autopilot) {
		time.Sleep(24 * time.Hour)
		if p.count() > 0 {
			t.Errorf("%d moves: %v", p.count(), p.told[:min(9, len(p.told))])
		}
		pool, err := a.Pool(t.Context(), "all")
		if err != nil || time.Since(pool.ConsideredAt) > time.Minute || pool.Says == "" {
			t.Errorf("it does not look: %+v, %v", pool, err)
		}
	})
}

// A plan that waits for somebody is kept up to date: it stays while the same ought to move,
// is withdrawn when that is no longer so, and moves once applied.
func TestConfirm(t *testing.T) {
	p := newPlanet("web")
	p.pool(heliotrope.AutopilotConfirm, heliotrope.Pace{})
	p.traffic = serves("web", "eu", 1e6)
	fly(t, p, func(t *testing.T, a *Autopilot) {
		time.Sleep(10 * time.Minute)
		first := only(t, a)
		if first.State != api.PlanProposed || p.count() > 0 {
			t.Fatalf("%+v, %d moves", first, p.count())
		}
		p.turn(serves("web", "us", 1e6))
		time.Sleep(2 * time.Minute)
		if first = only(t, a); first.State != api.PlanSuperseded {
			t.Errorf("%+v", first)
		}
		if _, err := a.ApplyPlan(t.Context(), first.ID); !isConflict(err) {
			t.Errorf("what is withdrawn is applied: %v", err)
		}
		p.turn(serves("web", "eu", 1e6))
		time.Sleep(2 * time.Minute)
		pool, err := a.Pool(t.Context(), "all")
		if err != nil || pool.Plan == "" {
			t.Fatalf("%+v, %v", pool, err)
		}
		for range 2 { // twice is as once
			if _, err := a.ApplyPlan(t.Context(), pool.Plan); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		if p.at("web") == "us-1" || p.count() != 1 {
			t.Errorf("web is at %s after %d moves", p.at("web"), p.count())
		}
	})
}

// Advice is an event when it changes, and no plan.
func TestAdvise(t *testing.T) {
	p := newPlanet("web")
	p.pool(heliotrope.AutopilotAdvise, heliotrope.Pace{})
	p.traffic = serves("web", "eu", 1e6)
	fly(t, p, func(t *testing.T, a *Autopilot) {
		time.Sleep(10 * time.Minute)
		list, err := a.Plans(t.Context())
		if err != nil || len(list) > 0 || p.count() > 0 || len(p.told) != 1 || !strings.Contains(p.told[0], "pool all: the moves gain") {
			t.Errorf("%v, %v, told %q", list, err, p.told)
		}
	})
}

// As much moves as the pace allows, and the rest later.
func TestPace(t *testing.T) {
	p := newPlanet("a", "b", "c")
	p.pool(heliotrope.AutopilotAuto, heliotrope.Pace{MaxMovesPerHour: 2})
	p.traffic = func(from, to time.Time) []traffic.Cell {
		var all []traffic.Cell
		for _, vm := range []heliotrope.VMID{"a", "b", "c"} {
			all = append(all, serves(vm, "eu", 1e6)(from, to)...)
		}
		return all
	}
	fly(t, p, func(t *testing.T, _ *Autopilot) {
		for _, want := range []int{2, 3} {
			time.Sleep(50 * time.Minute)
			if p.count() != want {
				t.Errorf("%d moves, want %d: %v", p.count(), want, p.told)
			}
		}
	})
}

// A VM that only makes room for another, and loses by that, moves with it.
func TestMakesRoom(t *testing.T) {
	p := newPlanet("a", "b")
	p.pool(heliotrope.AutopilotAuto, heliotrope.Pace{})
	delete(p.topology.Hosts, "eu-2")
	for id, h := range p.topology.Hosts {
		h.CPUs = 1
		p.topology.Hosts[id] = h
	}
	p.placements["b"] = heliotrope.Placement{VM: "b", Host: "eu-1", Epoch: 1}
	p.traffic = func(from, to time.Time) []traffic.Cell {
		return append(serves("a", "eu", 1e6)(from, to), serves("b", "eu", 1e5)(from, to)...)
	}
	fly(t, p, func(t *testing.T, a *Autopilot) {
		time.Sleep(3 * time.Minute)
		if p.at("a") != "eu-1" || p.at("b") != "us-2" {
			t.Errorf("a is at %s, b at %s: %v", p.at("a"), p.at("b"), p.told)
		}
	})
}

func isConflict(err error) bool {
	var p *api.Problem
	return errors.As(err, &p) && p.Status == 409
}

// chain makes a plan of moves to two hosts in two steps.
func chain(t *testing.T, a *Autopilot) api.Plan {
	t.Helper()
	p, err := a.propose(t.Context(), api.Plan{By: "request", WindowS: 60, Policy: scheduler.Policy{Name: "balanced", AmortisationHours: 1}, Plan: scheduler.Plan{Moves: []scheduler.Move{
		{Step: 1, VM: "a", From: "us-1", To: "eu-1"}, {Step: 1, VM: "b", From: "us-1", To: "eu-1"}, {Step: 2, VM: "c", From: "us-1", To: "us-2"}}}})
	if err != nil {
		t.Fatal(err)
	}
	if p, err = a.ApplyPlan(t.Context(), p.ID); err != nil || p.State != api.PlanRunning {
		t.Fatalf("%+v, %v", p, err)
	}
	return p
}

// Steps follow each other; a move that fails is the last, and an abort undoes what it can.
func TestSteps(t *testing.T) {
	for name, c := range map[string]struct {
		disturb func(p *planet, a *Autopilot, plan api.Plan)
		state   string
		moves   int
		note    string
	}{
		"all is well": {func(*planet, *Autopilot, api.Plan) {}, api.PlanMeasuring, 3, ""},
		"a move fails": {func(p *planet, _ *Autopilot, _ api.Plan) { p.refuses["b"] = true }, api.PlanFailed, 2,
			"1 of 3 moves were made; b to eu-1 RolledBack: the way is cut"},
		"aborted": {func(_ *planet, a *Autopilot, plan api.Plan) { _, _ = a.AbortPlan(context.Background(), plan.ID) }, api.PlanAborted, 2, "0 of 3 moves were made"},
		"a VM is moved by hand": {func(p *planet, _ *Autopilot, _ api.Plan) {
			_, _ = p.StartMigration(context.Background(), "by-hand", api.MigrationRequest{VM: "c", To: "eu-2"})
		}, api.PlanFailed, 3, "2 of 3 moves were made; c to us-2 Failed: c is "},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlanet("a", "b", "c")
			fly(t, p, func(t *testing.T, a *Autopilot) {
				plan := chain(t, a)
				time.Sleep(time.Second)
				if p.count() != 2 {
					t.Errorf("%d moves in the first step", p.count())
				}
				c.disturb(p, a, plan)
				time.Sleep(10 * time.Second)
				if plan = only(t, a); plan.State != c.state || p.count() != c.moves || !strings.Contains(plan.Note, c.note) {
					t.Errorf("%s %q after %d moves, want %s %q after %d", plan.State, plan.Note, p.count(), c.state, c.note, c.moves)
				}
				if _, err := a.AbortPlan(t.Context(), plan.ID); c.state != api.PlanAborted && !isConflict(err) {
					t.Errorf("what has ended is aborted: %v", err)
				}
			})
		})
	}
}

// What one leader began the next ends, and begins nothing twice; the old one can write no
// more.
func TestNextLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := newPlanet("a", "b", "c"), &shelf{}
		lead(t, p, s, 1, func(t *testing.T, a *Autopilot) {
			chain(t, a)
			time.Sleep(time.Second)
		})
		lead(t, p, s, 2, func(t *testing.T, a *Autopilot) {
			time.Sleep(10 * time.Second)
			if plan := only(t, a); plan.State != api.PlanMeasuring || p.count() != 3 {
				t.Errorf("%s after %d moves", plan.State, p.count())
			}
		})
		old := New(p, s, nil)
		old.term, old.plans = 1, map[heliotrope.PlanID]*api.Plan{}
		if _, err := old.propose(t.Context(), api.Plan{}); !errors.Is(err, store.ErrStaleTerm) {
			t.Errorf("the old leader writes: %v", err)
		}
		if _, err := New(p, s, nil).Plans(t.Context()); err == nil {
			t.Error("who does not lead answers")
		}
	})
}

// A host that is drained is empty soon, though no pool lets anything move; VMs that it is
// to get go elsewhere, and nothing comes before it is undrained.
func TestDrain(t *testing.T) {
	var vms []heliotrope.VMID
	for i := range 6 {
		vms = append(vms, heliotrope.VMID(fmt.Sprint("vm-", i)))
	}
	p := newPlanet(vms...)
	p.pool(heliotrope.AutopilotOff, heliotrope.Pace{Quiet: []heliotrope.Hours{{}}})
	p.topology.Rules = map[heliotrope.RuleID]heliotrope.Rule{"in": {VMs: vms[:1], Sites: []heliotrope.SiteID{"us"}}}
	fly(t, p, func(t *testing.T, a *Autopilot) {
		p.drained["us-1"] = true
		time.Sleep(10 * time.Second)
		for _, vm := range vms {
			if p.at(vm) == "us-1" {
				t.Errorf("%s is still there: %v", vm, p.told)
			}
		}
		if plan := only(t, a); len(plan.Plan.Steps()) != 2 || plan.By != "drain" || p.at(vms[0]) != "us-2" {
			t.Errorf("%+v, %s is at %s", plan, vms[0], p.at(vms[0]))
		}
	})
}

// What cannot leave is told.
func TestDrainIsBlocked(t *testing.T) {
	p := newPlanet("web")
	p.topology.Rules = map[heliotrope.RuleID]heliotrope.Rule{"in": {VMs: []heliotrope.VMID{"web"}, Sites: []heliotrope.SiteID{"us"}}}
	p.away["us-2"] = true
	fly(t, p, func(t *testing.T, _ *Autopilot) {
		p.drained["us-1"] = true
		time.Sleep(12 * time.Second)
		if p.count() > 0 || len(p.told) == 0 || !strings.Contains(p.told[0], "host us-1: is drained, and web cannot leave") {
			t.Errorf("%d moves, told %q", p.count(), p.told)
		}
		delete(p.away, "us-2")
		time.Sleep(12 * time.Second)
		if p.at("web") != "us-2" {
			t.Errorf("web is at %s", p.at("web"))
		}
	})
}

// A host whose agent is away gets nothing and gives nothing.
func TestAwayHosts(t *testing.T) {
	p := newPlanet("web")
	p.traffic = serves("web", "eu", 1e6)
	for _, c := range []struct {
		away []heliotrope.HostID
		to   string
	}{{nil, "eu-"}, {[]heliotrope.HostID{"eu-1"}, "eu-2"}, {[]heliotrope.HostID{"eu-2"}, "eu-1"}, {[]heliotrope.HostID{"eu-1", "eu-2"}, ""}, {[]heliotrope.HostID{"us-1"}, ""}} {
		clear(p.away)
		for _, h := range c.away {
			p.away[h] = true
		}
		fly(t, p, func(t *testing.T, a *Autopilot) {
			plan, err := a.SimulatePlan(t.Context(), api.PlanRequest{})
			if err != nil || len(plan.Moves) > 1 || len(plan.Moves) == 1 != (c.to != "") || len(plan.Moves) == 1 && !strings.HasPrefix(string(plan.Moves[0].To), c.to) {
				t.Errorf("without %v: %v, %v", c.away, plan, err)
			}
		})
	}
}

// A simulation asks what if, and keeps nothing.
func TestSimulate(t *testing.T) {
	p := newPlanet("web", "db")
	p.traffic = serves("web", "us", 1e6)
	p.topology.Pools["shop"] = heliotrope.Pool{VMs: []heliotrope.VMID{"db"}, Policy: "cheapest"}
	for name, c := range map[string]struct {
		ask  api.PlanRequest
		want []heliotrope.VMID
	}{
		"as it is":            {api.PlanRequest{}, nil},
		"without us":          {api.PlanRequest{Down: []heliotrope.SiteID{"us"}}, []heliotrope.VMID{"db", "web"}},
		"cheaper elsewhere":   {api.PlanRequest{Policy: "cheapest", Prices: map[heliotrope.SiteID]float64{"eu": 0.001}}, []heliotrope.VMID{"db"}},
		"free elsewhere":      {api.PlanRequest{Policy: "cheapest", Prices: map[heliotrope.SiteID]float64{"us": 1}}, []heliotrope.VMID{"db", "web"}},
		"only one at most":    {api.PlanRequest{Policy: "cheapest", Prices: map[heliotrope.SiteID]float64{"us": 1}, MaxMoves: 1}, []heliotrope.VMID{"db"}},
		"a pool moves itself": {api.PlanRequest{Pool: "shop", Down: []heliotrope.SiteID{"us"}}, []heliotrope.VMID{"db"}},
	} {
		t.Run(name, func(t *testing.T) {
			fly(t, p, func(t *testing.T, a *Autopilot) {
				plan, err := a.SimulatePlan(t.Context(), c.ask)
				if err != nil {
					t.Fatal(err)
				}
				moved := map[heliotrope.VMID]bool{}
				for _, m := range plan.Moves {
					moved[m.VM] = true
				}
				if len(moved) != len(c.want) {
					t.Errorf("got %v, want %v\n%v", moved, c.want, plan)
				}
				for _, vm := range c.want {
					if !moved[vm] {
						t.Errorf("%s stays\n%v", vm, plan)
					}
				}
				if list, err := a.Plans(t.Context()); err != nil || len(list) > 0 {
					t.Errorf("kept: %v, %v", list, err)
				}
			})
		})
	}
}

// Old plans are forgotten, the newest and those under way are not.
func TestTrim(t *testing.T) {
	p := newPlanet("a", "b", "c")
	fly(t, p, func(t *testing.T, a *Autopilot) {
		for i := range plansKept + 10 {
			if _, err := a.CreatePlan(t.Context(), heliotrope.PlanID(fmt.Sprint("p-", i)), api.PlanRequest{}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		list, err := a.Plans(t.Context())
		if err != nil || len(list) != plansKept || list[0].ID != heliotrope.PlanID(fmt.Sprint("p-", plansKept+9)) || list[0].State != api.PlanDone {
			t.Errorf("%d plans, %v, newest %+v", len(list), err, list[0])
		}
		if again, err := a.CreatePlan(t.Context(), list[0].ID, api.PlanRequest{Policy: "closest"}); err != nil || again.Policy.Name != "balanced" {
			t.Errorf("the same id made another plan: %+v, %v", again, err)
		}
	})
}
