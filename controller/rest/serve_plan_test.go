package rest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler"
)

// SimulatePlan tells what it was asked by what it answers.
func (m *memory) SimulatePlan(_ context.Context, r api.PlanRequest) (scheduler.Plan, error) {
	return scheduler.Plan{At: noon, Policy: string(r.Policy), Seed: r.Seed, Moves: make([]scheduler.Move, r.MaxMoves), Reason: fmt.Sprintf("%v %s %v %v", r.Window(), r.Pool, r.Down, r.Prices)}, nil
}

func (m *memory) CreatePlan(ctx context.Context, id heliotrope.PlanID, r api.PlanRequest) (api.Plan, error) {
	end, err := m.begin()
	defer end()
	if i := slices.IndexFunc(m.plans, func(p api.Plan) bool { return p.ID == id }); i >= 0 {
		return m.plans[i], err
	}
	plan, _ := m.SimulatePlan(ctx, r)
	p := api.Plan{ID: id, Revision: int64(len(m.plans) + 1), Pool: r.Pool, By: "request", State: api.PlanProposed, CreatedAt: noon, Plan: plan}
	m.plans = append(m.plans, p)
	return p, err
}

func (m *memory) Plans(context.Context) ([]api.Plan, error) { return m.plans, nil }

func (m *memory) WaitPlan(_ context.Context, id heliotrope.PlanID, _ int64) (api.Plan, error) {
	for _, p := range m.plans {
		if p.ID == id {
			return p, nil
		}
	}
	return api.Plan{}, api.NotFound("plan", string(id))
}

func (m *memory) turn(ctx context.Context, id heliotrope.PlanID, state string) (api.Plan, error) {
	p, err := m.WaitPlan(ctx, id, -1)
	if err != nil {
		return p, err
	}
	if p.Ended() {
		return p, api.Conflict(string(id)+" is "+p.State, "")
	}
	i := slices.IndexFunc(m.plans, func(p api.Plan) bool { return p.ID == id })
	m.plans[i].State = state
	return m.plans[i], nil
}

func (m *memory) ApplyPlan(ctx context.Context, id heliotrope.PlanID) (api.Plan, error) {
	return m.turn(ctx, id, api.PlanRunning)
}

func (m *memory) AbortPlan(ctx context.Context, id heliotrope.PlanID) (api.Plan, error) {
	return m.turn(ctx, id, api.PlanAborted)
}

func (m *memory) Pools(context.Context) ([]api.Pool, error) {
	return []api.Pool{{Name: "shop", VMs: []heliotrope.VMID{"web"}, Autopilot: "confirm", Policy: "closest"}}, nil
}

func (m *memory) Pool(ctx context.Context, name heliotrope.PoolID) (api.Pool, error) {
	all, err := m.Pools(ctx)
	if name != "shop" {
		return api.Pool{}, api.NotFound("pool", string(name))
	}
	return all[0], err
}

func (m *memory) Stubs(context.Context) ([]api.Stub, error) {
	return []api.Stub{{Name: "scanner", Site: "us", Access: "local", Uses: []api.StubUse{}}}, nil
}

func (m *memory) Stub(ctx context.Context, name heliotrope.StubID) (api.Stub, error) {
	all, err := m.Stubs(ctx)
	if name != all[0].Name {
		return api.Stub{}, api.NotFound("stub", string(name))
	}
	return all[0], err
}

// A question about a plan arrives as it was asked, and a plan is made, applied and aborted.
func TestPlans(t *testing.T) {
	s := serve(t, Options{})
	s.example(t)
	c, ctx := s.client(t), t.Context()
	ask := api.PlanRequest{Policy: "cheapest", WindowS: 3600, MaxMoves: 3, Seed: 7, Down: []heliotrope.SiteID{"us"}, Prices: map[heliotrope.SiteID]float64{"eu": 0.5}, At: noon}
	if p, err := c.SimulatePlan(ctx, ask); err != nil || p.Policy != "cheapest" || p.Reason != "1h0m0s  [us] map[eu:0.5]" || len(p.Moves) != 3 || p.Seed != 7 || !p.At.Equal(noon) {
		t.Errorf("got %+v, %v", p, err)
	}
	first, err := c.CreatePlan(ctx, api.PlanRequest{MaxMoves: 1}, "key")
	again, err2 := c.CreatePlan(ctx, api.PlanRequest{MaxMoves: 1}, "key")
	if err != nil || err2 != nil || first.ID != again.ID || !strings.HasPrefix(string(first.ID), "p-") {
		t.Errorf("%+v and %+v, %v, %v", first, again, err, err2)
	}
	if p, err := c.ApplyPlan(ctx, first.ID); err != nil || p.State != api.PlanRunning {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := c.AbortPlan(ctx, first.ID); err != nil || p.State != api.PlanAborted {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := c.AwaitPlan(ctx, first.ID, 0); err != nil || p.State != api.PlanAborted {
		t.Errorf("%+v, %v", p, err)
	}
	if list, err := c.Plans(ctx); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	if all, err := c.Policies(ctx); err != nil || len(all) != len(scheduler.Presets()) || all[0].Name != "balanced" || all[0].Hosts != heliotrope.HostsSpread || all[0].Weights["move_usd"] != 0.01 {
		t.Errorf("%+v, %v", all, err)
	}
	if p, err := c.Policy(ctx, "evacuate"); err != nil || !p.Forced || p.Base != "" {
		t.Errorf("%+v, %v", p, err)
	}
	if pools, err := c.Pools(ctx); err != nil || len(pools) != 1 || pools[0].Autopilot != "confirm" {
		t.Errorf("%+v, %v", pools, err)
	}
	for path, status := range map[string]int{"/v1/plans/p-none": 404, "/v1/pools/none": 404, "/v1/policies/none": 404, "/v1/stubs/none": 404, "/v1/plans/" + string(first.ID) + "/apply": 409} {
		method := "GET"
		if status == 409 {
			method = "POST"
		}
		wantProblem(t, s.ask(t, method, path, nil, nil), status, "")
	}
}

// A plan, a pool and a move are pages for who asks for one, and JSON for all others.
func TestPlanPages(t *testing.T) {
	s := serve(t, Options{})
	s.example(t)
	p, err := s.client(t).CreatePlan(t.Context(), api.PlanRequest{MaxMoves: 1}, "key")
	if err != nil {
		t.Fatal(err)
	}
	const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	m, err := s.client(t).StartMigration(t.Context(), api.MigrationRequest{VM: "web", To: "eu-1"}, "key")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v1/plans/" + string(p.ID), "/v1/pools/shop", "/v1/migrations/" + string(m.ID)} {
		for _, c := range []struct {
			query, accept string
			page          bool
		}{{"", "", false}, {"", "*/*", false}, {"", browser, true}, {"?format=html", "", true}, {"?format=json", browser, false}, {"", "application/json, text/html", false}} {
			a := s.ask(t, "GET", path+c.query, map[string]string{"Accept": c.accept}, nil)
			kind, begins := a.Header.Get("Content-Type"), "{"
			if c.page {
				begins = "<!doctype html>"
			}
			if a.StatusCode != 200 || strings.HasPrefix(kind, "text/html") != c.page || !strings.HasPrefix(string(a.body), begins) {
				t.Errorf("%s%s, accepting %q: %d, %s: %.60s", path, c.query, c.accept, a.StatusCode, kind, a.body)
			}
		}
		wantProblem(t, s.ask(t, "GET", path+"?format=pdf", nil, nil), 422, "")
	}
	wantProblem(t, s.ask(t, "GET", "/v1/plans/p-none?format=html", nil, nil), 404, "")
}

// What cannot be planned for is said field by field, with how to mend it.
func TestWrongPlans(t *testing.T) {
	s := serve(t, Options{})
	s.example(t)
	for text, pointers := range map[string][]string{
		`{"policy": "dearest", "pool": "none", "window_s": 0.5}`: {"/pool", "/policy", "/window_s"},
		`{"down": ["us"]}`: {"/dry_run"},
		`{"dry_run": true, "down": ["mars"], "prices": {"us": -1, "io": 1}}`: {"/down/0", "/prices/io", "/prices/us"},
		`{"max_moves": -1}`: {"/max_moves"},
	} {
		p := wantProblem(t, s.ask(t, "POST", "/v1/plans", map[string]string{"Content-Type": api.MediaJSON}, strings.NewReader(text)), 422, api.TypeInvalid)
		var got []string
		for _, f := range p.Errors {
			got = append(got, f.Pointer)
		}
		if !slices.Equal(got, pointers) {
			t.Errorf("%s: %v, want %v", text, got, pointers)
		}
	}
}

// A host is drained with a reason and a deadline, and undrained.
func TestDrain(t *testing.T) {
	s := serve(t, Options{})
	s.example(t)
	c, ctx := s.client(t), t.Context()
	hosts, err := c.Hosts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := api.DrainRequest{Reason: "maintenance", DeadlineS: time.Minute.Seconds()}
	if err := c.DrainHost(ctx, hosts[0].Name, want); err != nil || s.memory.drained[hosts[0].Name] != want {
		t.Errorf("%+v, %v", s.memory.drained, err)
	}
	if err := c.UndrainHost(ctx, hosts[0].Name); err != nil || len(s.memory.drained) > 0 {
		t.Errorf("%+v, %v", s.memory.drained, err)
	}
	if err := c.DrainHost(ctx, "mars", want); err == nil {
		t.Error("a host that is not there is drained")
	}
}
