package autopilot

import (
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
)

// A pool's VMs stay where they may cost what they do, and its plans say what would be the
// cheapest; VMs that cost too much go where they do not, though clients are farther away.
func TestPoolBudget(t *testing.T) {
	for name, c := range map[string]struct {
		usd   float64
		price float64 // of a vCPU at eu, where clients are
		at    string
		says  string
	}{
		"enough":   {1, 0.05, "eu", "the moves gain"},
		"too dear": {0.12, 0.05, "us", "within the budget of USD 0.12/h"},
		"nowhere":  {0.05, 0.3, "us", "the cheapest place for these VMs that was found costs USD 0.102/h, and the budget is USD 0.05/h"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlanet("web")
			p.pool(heliotrope.AutopilotAuto, heliotrope.Pace{})
			pool := p.topology.Pools["all"]
			pool.Budget = c.usd
			p.topology.Pools["all"] = pool
			eu := p.topology.Sites["eu"]
			eu.PricePerVCPUHour = c.price + 0.1
			p.topology.Sites["eu"] = eu
			p.traffic = serves("web", "eu", 1e6)
			fly(t, p, func(t *testing.T, a *Autopilot) {
				plan, err := a.SimulatePlan(t.Context(), api.PlanRequest{Pool: "all", WindowS: 60})
				if err != nil || !strings.Contains(plan.Reason, c.says) {
					t.Errorf("%v: %s", err, plan.Reason)
				}
				time.Sleep(5 * time.Minute)
				if at := p.topology.Hosts[p.at("web")].Site; string(at) != c.at {
					t.Errorf("web is at %s: %v", at, p.told)
				}
			})
		})
	}
}

// Moves cost no more in a day than they may.
func TestMoveBudget(t *testing.T) {
	p := newPlanet("web")
	p.pool(heliotrope.AutopilotAuto, heliotrope.Pace{})
	pool := p.topology.Pools["all"]
	pool.Interval = heliotrope.Duration(time.Minute)
	pool.MoveUSD = 0.007 // a copy costs USD 0.005 by its size, 0.002 once it was measured
	p.topology.Pools["all"] = pool
	p.traffic = serves("web", "eu", 1e6)
	fly(t, p, func(t *testing.T, a *Autopilot) {
		for i, site := range []string{"us", "eu", "us", "us"} {
			time.Sleep(5 * time.Minute)
			if want := min(i+1, 3); p.count() != want {
				t.Fatalf("%d moves, want %d: %v", p.count(), want, p.told)
			}
			p.turn(serves("web", site, 1e6))
		}
		view, err := a.Pool(t.Context(), "all")
		if err != nil || !strings.Contains(view.Says, "moves may cost in 24 hours") {
			t.Errorf("%+v, %v", view, err)
		}
		time.Sleep(23*time.Hour + 50*time.Minute)
		if p.count() < 4 {
			t.Errorf("%d moves", p.count())
		}
	})
}
