package autopilot

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler"
)

// What a pool's autopilot saw is kept: what VMs cost, and how far their traffic went, before
// the move and after it. The next leader begins with what the kept plans say.
func TestLooksAreKept(t *testing.T) {
	p, s := newPlanet("web"), &shelf{}
	p.pool(heliotrope.AutopilotAuto, heliotrope.Pace{})
	p.traffic = serves("web", "eu", 1e6)
	history := func(t *testing.T, a *Autopilot) []api.Look {
		t.Helper()
		pool, err := a.Pool(t.Context(), "all")
		if err != nil {
			t.Fatal(err)
		}
		return pool.History
	}
	synctest.Test(t, func(t *testing.T) {
		lead(t, p, s, 1, func(t *testing.T, a *Autopilot) {
			time.Sleep(30 * time.Minute)
			looks := history(t, a)
			if len(looks) < 10 {
				t.Fatalf("%d looks", len(looks))
			}
			first, last := looks[0], looks[len(looks)-1]
			if first.Means.ClientsMs-last.Means.ClientsMs < 79 || first.Cost.Total()-last.Cost.Total() < 0.3 || !first.At.Before(last.At) {
				t.Errorf("first %+v, then %+v", first, last)
			}
			plan := only(t, a)
			if m := plan.Plan.Map; m == nil || math.Abs(m.Before.ClientsMs-first.Means.ClientsMs) > 0.01 || m.After.ClientsMs > 1 || len(m.Sites) == 0 {
				t.Errorf("its plan has the map %+v", m)
			}
			if all, err := a.Pools(t.Context()); err != nil || all[0].History != nil {
				t.Errorf("the list has histories: %v", err)
			}
		})
		lead(t, p, s, 2, func(t *testing.T, a *Autopilot) {
			time.Sleep(30 * time.Minute)
			if looks := history(t, a); len(looks) < 2 || !looks[0].At.Equal(only(t, a).CreatedAt) {
				t.Errorf("the next leader has %d looks", len(looks))
			}
		})
	})
}

func TestLooksAreBounded(t *testing.T) {
	var looks []api.Look
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 2 * looksKept {
		looks = remember(looks, lookOf(begin.Add(time.Duration(i)*time.Minute), scheduler.Plan{Before: scheduler.Cost{Compute: float64(i)}}))
	}
	if len(looks) != looksKept || looks[0].Cost.Compute != looksKept || cap(looks) > 4*looksKept {
		t.Errorf("%d looks, of room for %d, from %v", len(looks), cap(looks), looks[0])
	}
}

// A simulated plan has a map as well.
func TestSimulatedPlanHasItsMap(t *testing.T) {
	p := newPlanet("web")
	p.traffic = serves("web", "eu", 1e6)
	fly(t, p, func(t *testing.T, a *Autopilot) {
		time.Sleep(11 * time.Minute)
		plan, err := a.SimulatePlan(t.Context(), api.PlanRequest{})
		if err != nil || plan.Map == nil || plan.Map.Before.ClientsMs < 80 || plan.Map.After.ClientsMs > 1 {
			t.Errorf("%+v, %v", plan.Map, err)
		}
	})
}
