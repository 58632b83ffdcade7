package cli

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler"
	"heliotrope/scheduler/pace"
	"heliotrope/scheduler/survey"
)

// The fake's plans: one that waits, one that is done and measured, one that failed.
func (f *fake) plans() []api.Plan {
	move := scheduler.Move{Step: 1, VM: "web", From: "us-1", FromSite: "us", To: "eu-1", ToSite: "eu", USDPerHour: 0.36, Ms: 80, Seconds: 6.1, PauseMs: 781, Confidence: 1,
		Why:       "clients in eu, who get 1 MB/s, are 80 ms nearer, for USD 0.36/h less",
		PaidUntil: noon.Add(time.Hour), WastesUSD: 0.03, Better: noon.Add(58 * time.Minute),
		Evidence: []scheduler.Evidence{{USDPerHour: 0.36, Text: "clients in eu, who get 1 MB/s, are 80 ms nearer, for USD 0.36/h less"}, {USDPerHour: -0.0011, Text: "the move itself, spread over 24 hours, costs USD 0.0011/h"}}}
	plan := scheduler.Plan{At: noon, Policy: "balanced", Moves: []scheduler.Move{move}, Reason: "the moves gain USD 0.359/h (85.3 %), what they cost included", Bounded: true, Bound: 0.062,
		Before: scheduler.Cost{Compute: 0.06, Clients: 0.36}, After: scheduler.Cost{Compute: 0.06, Moves: 0.0011},
		Ways:    []scheduler.Path{{From: "eu", To: "us", RTTMs: 80.31, Source: survey.Measured}},
		Blocked: []scheduler.Blocked{{VM: "db", To: "eu-1", Why: "eu-1 is full"}}}
	waits := api.Plan{ID: "p-1", Revision: 4, Pool: "shop", By: "autopilot", State: api.PlanProposed, Note: plan.Reason, CreatedAt: noon, WindowS: 600, Plan: plan, Policy: scheduler.Policy{Name: "balanced"}}
	done := waits
	done.ID, done.State, done.Note = "p-2", api.PlanDone, "promised USD 0.3590/h, gained USD 0.3412/h by the traffic of the 10m0s after it"
	done.Moves = []api.PlanMove{{Migration: "m-2-1", Phase: api.PhaseSucceeded, PauseMs: 412, Bytes: 131_000_000}}
	done.Measured = &api.PlanGain{From: noon, To: noon.Add(10 * time.Minute), Promised: 0.359, Gained: 0.3412, VMs: map[heliotrope.VMID]scheduler.Share{"web": {USDPerHour: 0.3412, Ms: 79}}}
	failed := waits
	failed.ID, failed.State, failed.Note = "p-3", api.PlanFailed, "0 of 1 moves were made; web to eu-1 RolledBack: the way is cut"
	failed.Moves = []api.PlanMove{{Migration: "m-3-1", Phase: api.PhaseRolledBack, Error: "the way is cut"}}
	return []api.Plan{waits, done, failed}
}

func (f *fake) SimulatePlan(ctx context.Context, r api.PlanRequest) (scheduler.Plan, error) {
	m, err := f.Matrix(ctx, api.TrafficQuery{})
	if err != nil {
		return scheduler.Plan{}, err
	}
	policy, err := survey.Policy(f.topology, r.Pool)
	if r.Policy != "" {
		policy, err = survey.Named(f.topology, r.Policy)
	}
	if err != nil {
		return scheduler.Plan{}, err
	}
	policy.MaxMoves = r.MaxMoves
	placements := map[heliotrope.VMID]heliotrope.Placement{}
	for id, vm := range f.topology.VMs {
		placements[id] = heliotrope.Placement{VM: id, Host: vm.Host, Epoch: 1}
	}
	return scheduler.Solve(survey.Take(noon, f.topology, survey.Facts{Placements: placements, Traffic: m}), policy, scheduler.Options{Seed: r.Seed, Iterations: 1000})
}

func (f *fake) CreatePlan(context.Context, heliotrope.PlanID, api.PlanRequest) (api.Plan, error) {
	return f.plans()[0], nil
}

func (f *fake) Plans(context.Context) ([]api.Plan, error) { return f.plans(), nil }

func (f *fake) WaitPlan(_ context.Context, id heliotrope.PlanID, _ int64) (api.Plan, error) {
	for _, p := range f.plans() {
		if p.ID == id {
			return p, nil
		}
	}
	return api.Plan{}, api.NotFound("plan", string(id))
}

func (f *fake) ApplyPlan(ctx context.Context, id heliotrope.PlanID) (api.Plan, error) {
	p, err := f.WaitPlan(ctx, id, -1)
	if err == nil && p.State == api.PlanFailed {
		err = api.Conflict(string(id)+" is failed: "+p.Note, "make a new one: heliotrope plan create")
	}
	if p.State == api.PlanProposed {
		p.State = api.PlanRunning
	}
	return p, err
}

func (f *fake) AbortPlan(ctx context.Context, id heliotrope.PlanID) (api.Plan, error) {
	p, err := f.WaitPlan(ctx, id, -1)
	p.State = api.PlanAborted
	return p, err
}

func (f *fake) Pools(context.Context) ([]api.Pool, error) {
	newest := f.plans()[0].Plan
	return []api.Pool{{Name: "shop", VMs: []heliotrope.VMID{"db", "web"}, Autopilot: "confirm", Policy: "balanced", ConsideredAt: noon, Says: newest.Reason, Plan: "p-1",
		Pace: pace.Allowance{Moves: 2, Stay: []heliotrope.VMID{"db"}, Next: noon.Add(time.Hour)}, Newest: &newest}}, nil
}

func (f *fake) Stubs(context.Context) ([]api.Stub, error) {
	return []api.Stub{{Name: "scanner", Description: "the microscope", Host: "eu-1", Site: "eu", Port: "eth2", Network: "web", Address: netip.MustParseAddr("10.1.0.200"),
		MAC: "02:00:00:00:00:01", Access: "auto", Uses: []api.StubUse{{VM: "web", Site: "us", State: api.UseCarried, Since: noon, Last: noon.Add(time.Minute), BytesPerSecond: 96100,
			GainUSDPerHour: 0.021, SpentUSD: 0.0002, MoveUSD: 0.0119, BreakEvenBytesPerHour: 8.28e6, Says: "carried from us over the mesh"}}},
		{Name: "tape", Host: "us-1", Site: "us", Port: "eth3", Network: "web", Address: netip.MustParseAddr("10.1.0.201"), MAC: "02:00:00:00:00:02", Access: "local", Uses: []api.StubUse{}}}, nil
}

func (f *fake) Stub(ctx context.Context, name heliotrope.StubID) (api.Stub, error) {
	all, err := f.Stubs(ctx)
	for _, s := range all {
		if s.Name == name {
			return s, err
		}
	}
	return api.Stub{}, api.NotFound("stub", string(name))
}

func (f *fake) Pool(ctx context.Context, name heliotrope.PoolID) (api.Pool, error) {
	all, err := f.Pools(ctx)
	if name != "shop" {
		return api.Pool{}, api.NotFound("pool", string(name))
	}
	return all[0], err
}

// Plans and pools can be had as pages, and other things not.
func TestPages(t *testing.T) {
	root := shortDir(t)
	serve(t, &fake{}, root)
	if r := execute(t.Context(), root, "", "topology", "apply", "testdata/small.yaml"); r.code != 0 {
		t.Fatal(r.err)
	}
	if r := execute(t.Context(), root, "", "vm", "migrate", "web", "--to", "eu"); r.code != 0 {
		t.Fatal(r.err)
	}
	for _, line := range []string{"plan show p-2 -o html", "migration show m-1 -o html", "plan simulate -o html", "pool show shop -o html"} {
		r := execute(t.Context(), root, "", strings.Fields(line)...)
		if r.code != 0 || !strings.HasPrefix(r.out, "<!doctype html>") || !strings.HasSuffix(r.out, "</html>\n") {
			t.Errorf("%s: %d, %s%.80s", line, r.code, r.err, r.out)
		}
	}
	if r := execute(t.Context(), root, "", "plan", "list", "-o", "html"); r.code != codeUsage || !strings.Contains(r.err, "there are table, json and yaml") {
		t.Errorf("%d, %s", r.code, r.err)
	}
}
