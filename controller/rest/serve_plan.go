package rest

import (
	"context"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"heliotrope/controller/api"
	"heliotrope/scheduler"
)

type planQuery struct {
	Policy   string `query:"policy" default:"balanced" doc:"What matters: balanced, cheapest, closest, consolidate or evacuate." example:"cheapest"`
	Window   string `query:"window" default:"10m" doc:"Length of the time whose traffic counts, 1s to 24h." example:"1h"`
	MaxMoves int    `query:"max_moves" minimum:"0" maximum:"10000" doc:"No more moves than that; 0: any number."`
	Seed     uint64 `query:"seed" doc:"Of the search. The same state of the world and the same seed give the same plan."`
}

func (h *handler) registerPlan(routes huma.API) {
	handle(h, routes, operation("GET", "/v1/plan", "plan", "Where VMs ought to be, and why; moves nothing", 404, 422), h.plan)
}

func (h *handler) plan(ctx context.Context, in *planQuery) (*body[scheduler.Plan], error) {
	q, err := h.trafficFilter(ctx, TrafficFilter{Window: in.Window})
	if err != nil {
		return nil, err
	}
	if _, err := scheduler.Preset(in.Policy); err != nil {
		return nil, wrongQuery("query.policy", "is not known", "use "+strings.Join(scheduler.Presets(), ", "))
	}
	p, err := h.Traffic.Plan(ctx, api.PlanQuery{Policy: in.Policy, Window: q.Window, MaxMoves: in.MaxMoves, Seed: in.Seed})
	return &body[scheduler.Plan]{p}, err
}
