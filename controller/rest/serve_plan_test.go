package rest

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"heliotrope/controller/api"
	"heliotrope/scheduler"
)

// Plan tells what it was asked by what it answers.
func (m *memory) Plan(_ context.Context, q api.PlanQuery) (scheduler.Plan, error) {
	return scheduler.Plan{At: noon, Policy: q.Policy, Seed: q.Seed, Moves: make([]scheduler.Move, q.MaxMoves), Reason: q.Window.String()}, nil
}

// A question about a plan arrives as it was asked; what cannot be answered is said with how
// to ask.
func TestPlan(t *testing.T) {
	s := serve(t, Options{})
	s.example(t)
	c, ctx := s.client(t), t.Context()
	for _, x := range []struct {
		ask    api.PlanQuery
		policy string
		window time.Duration
	}{
		{api.PlanQuery{}, api.DefaultPolicy, api.DefaultPlanWindow},
		{api.PlanQuery{Policy: "cheapest", Window: time.Hour, MaxMoves: 3, Seed: 7}, "cheapest", time.Hour},
	} {
		p, err := c.Plan(ctx, x.ask)
		if err != nil || p.Policy != x.policy || p.Reason != x.window.String() || len(p.Moves) != x.ask.MaxMoves || p.Seed != x.ask.Seed {
			t.Errorf("%+v: got %+v, %v", x.ask, p, err)
		}
	}
	for query, want := range map[string]string{"policy=dearest": "balanced", "window=0s": "1s to 24h", "max_moves=-1": "max_moves"} {
		a := s.ask(t, "GET", "/v1/plan?"+query, nil, nil)
		if a.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(string(a.body), want) {
			t.Errorf("%s: got %d %s, want 422 with %q", query, a.StatusCode, a.body, want)
		}
	}
}
