package webreport

import (
	"fmt"
	"math"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler"
	"heliotrope/scheduler/atlas"
)

// samplePlan is a shop that goes to its clients and brings its database along; it was
// carried out, and measured.
func samplePlan() api.Plan {
	m := &atlas.Map{
		Sites: []atlas.SiteVMs{{ID: "eu", VMs: 2, After: 5}, {ID: "internet"}, {ID: "sa", VMs: 4, After: 4}, {ID: "us", VMs: 6, After: 3}},
		Ways: []atlas.Way{
			{From: "eu", To: "eu", RTTMs: 0.3, Before: 2e5, After: 4.1e6}, {From: "eu", To: "internet", RTTMs: 10.3, Before: 3e4, After: 1.2e6},
			{From: "eu", To: "sa", RTTMs: 188, Before: 4e3, After: 4e3}, {From: "eu", To: "us", RTTMs: 80.3, Before: 1e4, After: 6e4},
			{From: "internet", To: "sa", RTTMs: 190}, {From: "internet", To: "us", RTTMs: 90.3},
			{From: "sa", To: "us", RTTMs: 120.3, Before: 2e4, After: 2e4}, {From: "sa", To: "sa", RTTMs: 0.3, Before: 9e5, After: 9e5},
			{From: "us", To: "eu", RTTMs: 80.3, Before: 1e4, After: 2.5e4}, {From: "us", To: "internet", RTTMs: 90.3, Before: 1.17e6},
			{From: "us", To: "us", RTTMs: 0.3, Before: 4e6, After: 1e5},
		},
		Before: atlas.Means{ClientsMs: 88.3, EastWestMs: 2.12}, After: atlas.Means{ClientsMs: 10.3, EastWestMs: 3.4},
	}
	for i, vm := range []heliotrope.VMID{"app", "batch", "cache", "db", "indexer", "logs", "search", "web"} {
		at := atlas.PlacedVM{ID: vm, Before: "us", After: "us"}
		switch {
		case vm == "app" || vm == "db" || vm == "web":
			at.After = "eu"
		case vm == "batch" || vm == "cache":
			at.Before, at.After = "eu", "eu"
		case i > 3:
			at.Before, at.After = "sa", "sa"
		}
		m.VMs = append(m.VMs, at)
	}
	for _, p := range []struct {
		a, b      int
		out, back float64
	}{{0, 3, 1.6e6, 2.2e6}, {0, 7, 1.1e6, 3e5}, {0, 2, 4e4, 9e5}, {2, 3, 3e3, 8e4}, {1, 3, 2e3, 7e4}, {4, 5, 2e5, 3e4}, {4, 6, 5e5, 4e5}, {5, 6, 1e4, 8e3}, {0, 6, 2e4, 4e3}} {
		m.Pairs = append(m.Pairs, atlas.VMPair{From: p.a, To: p.b, BytesPerSecond: p.out}, atlas.VMPair{From: p.b, To: p.a, BytesPerSecond: p.back})
	}
	m.Rest = 1.2e4
	move := func(step int, vm heliotrope.VMID, usd, ms float64) scheduler.Move {
		return scheduler.Move{Step: step, VM: vm, From: "us-1", FromSite: "us", To: "eu-1", ToSite: "eu", USDPerHour: usd, Ms: ms, Seconds: 6.1, PauseMs: 781, Confidence: 0.9,
			Why:      fmt.Sprintf("clients in internet, who get %s, are 80 ms nearer, for USD %.2f/h less", rate(1e6*usd), usd),
			Evidence: []scheduler.Evidence{{USDPerHour: usd + 0.0011, Text: "clients in internet are 80 ms nearer"}, {USDPerHour: -0.0011, Text: "the move itself, spread over 24 hours, costs USD 0.0011/h"}}}
	}
	aside := move(1, "batch", 0.002, 0)
	aside.From, aside.FromSite, aside.To, aside.ToSite = "eu-1", "eu", "eu-2", "eu"
	plan := scheduler.Plan{At: noon, Policy: "balanced", Moves: []scheduler.Move{aside, move(2, "web", 0.36, 80), move(2, "app", 0.11, 21.4), move(2, "db", 0.05, -2)},
		Reason: "the moves gain USD 0.522/h (71.6 %), what they cost included", Bounded: true, Bound: 0.2043, Gap: 0.0127, Map: m,
		Before: scheduler.Cost{Compute: 0.16, Egress: 0.12, Clients: 0.44, EastWest: 0.009}, After: scheduler.Cost{Compute: 0.162, Egress: 0.01, Clients: 0.03, EastWest: 0.0016, Moves: 0.0033},
		Blocked: []scheduler.Blocked{{VM: "cache", To: "eu-1", Why: "eu-1 is full"}}}
	p := api.Plan{ID: "p-4t7a", Revision: 9, Pool: "shop", By: "autopilot", State: api.PlanDone, Note: "promised USD 0.5221/h, gained USD 0.4893/h by the traffic of the 10m0s after it",
		CreatedAt: noon, AppliedAt: noon.Add(time.Second), WindowS: 600, Plan: plan, Policy: scheduler.Policy{Name: "balanced"}}
	p.Measured = &api.PlanGain{From: noon.Add(time.Minute), To: noon.Add(11 * time.Minute), Promised: plan.Gain(), Gained: 0.4893, VMs: map[heliotrope.VMID]scheduler.Share{},
		Before: scheduler.Cost{Compute: 0.16, Egress: 0.11, Clients: 0.41, EastWest: 0.009}, After: scheduler.Cost{Compute: 0.162, Egress: 0.01, Clients: 0.0277, EastWest: 0.0016, Moves: 0.0004}}
	for i, m := range plan.Moves {
		p.Moves = append(p.Moves, api.PlanMove{Migration: heliotrope.MoveID(fmt.Sprintf("m-4t7a-%d", i+1)), Phase: api.PhaseSucceeded, PauseMs: 412, Bytes: 131_000_000})
		p.Measured.VMs[m.VM] = scheduler.Share{USDPerHour: 0.93 * m.USDPerHour, Ms: m.Ms}
	}
	return p
}

// samplePool is that shop, from before the move until after it, with a gap.
func samplePool() (api.Pool, []api.Plan) {
	plan := samplePlan()
	later := plan
	later.ID, later.AppliedAt, later.Measured, later.State = "p-9k2m", noon.Add(3*time.Hour), nil, api.PlanFailed
	other := plan
	other.ID, other.Pool = "p-other", "others"
	p := api.Pool{Name: "shop", VMs: []heliotrope.VMID{"app", "db", "web"}, Autopilot: "auto", Policy: "balanced", ConsideredAt: noon.Add(4 * time.Hour),
		Says: "no beneficial move: none adds USD 0.001/h or more", Newest: &plan.Plan}
	for i := range 360 {
		at := noon.Add(time.Duration(i-120) * time.Minute)
		c, m, wave := plan.Plan.Before, plan.Plan.Map.Before, 1+0.2*math.Sin(float64(i)/20)
		if !at.Before(plan.AppliedAt) {
			c, m = plan.Plan.After, plan.Plan.Map.After
		}
		c.Clients *= wave
		c.Egress *= wave
		if i < 200 || i > 230 {
			p.History = append(p.History, api.Look{At: at, Cost: c, Means: m})
		}
	}
	return p, []api.Plan{later, other, plan}
}
