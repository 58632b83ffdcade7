package api

import (
	"context"
	"net/url"
	"strconv"
	"time"

	"heliotrope/scheduler"
)

// PlanQuery says what a plan is to rest on.
type PlanQuery struct {
	Policy   string        // one of scheduler.Presets; empty: balanced
	Window   time.Duration // of traffic; 0: DefaultPlanWindow
	MaxMoves int           // 0: any number
	Seed     uint64
}

// The plan that nobody asked anything special of.
const (
	DefaultPlanWindow = 10 * time.Minute
	DefaultPolicy     = "balanced"
)

// Plan says where VMs ought to be, and why. It moves nothing.
func (c *Client) Plan(ctx context.Context, q PlanQuery) (scheduler.Plan, error) {
	v := url.Values{}
	if q.Policy != "" {
		v.Set("policy", q.Policy)
	}
	if q.Window != 0 {
		v.Set("window", q.Window.String())
	}
	if q.MaxMoves != 0 {
		v.Set("max_moves", strconv.Itoa(q.MaxMoves))
	}
	if q.Seed != 0 {
		v.Set("seed", strconv.FormatUint(q.Seed, 10))
	}
	return get[scheduler.Plan](ctx, c, v, "/v1/plan")
}
