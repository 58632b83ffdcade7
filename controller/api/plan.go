package api

import (
	"context"
	"net/url"
	"strconv"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/atlas"
	"heliotrope/scheduler/pace"
)

// PlanRequest says what a plan is to rest on. Without a pool it is about all VMs.
type PlanRequest struct {
	Pool     heliotrope.PoolID   `json:"pool,omitempty" doc:"Only this pool's VMs move, by its policy and window, at its pace."`
	Policy   heliotrope.PolicyID `json:"policy,omitempty" doc:"What matters, of those that GET /v1/policies lists; default: the pool's, or balanced." example:"cheapest"`
	WindowS  float64             `json:"window_s,omitempty" minimum:"0" maximum:"86400" doc:"Seconds of traffic that count, from 1; default: the pool's, or 600."`
	MaxMoves int                 `json:"max_moves,omitempty" minimum:"0" maximum:"10000" doc:"No more moves than that; 0: any number."`
	Seed     uint64              `json:"seed,omitempty" doc:"Of the search. The same state of the world and the same seed give the same plan."`

	DryRun bool `json:"dry_run,omitempty" doc:"Answer the plan, and keep nothing."`

	// What if: of a dry run only.
	At     time.Time                     `json:"at,omitzero" doc:"By the traffic that was counted up to then; default: now."`
	Down   []heliotrope.SiteID           `json:"down,omitempty" doc:"Sites that nothing may be at."`
	Prices map[heliotrope.SiteID]float64 `json:"prices,omitempty" doc:"USD per vCPU and hour at a site, in place of the topology's."`
}

// Window is the length of traffic that counts, or 0 for the default.
func (r PlanRequest) Window() time.Duration { return time.Duration(r.WindowS * float64(time.Second)) }

// States of a plan. Those of PlanEnded are the last.
const (
	PlanProposed   = "proposed"   // it waits to be applied
	PlanRunning    = "running"    // its moves are under way
	PlanMeasuring  = "measuring"  // they are done; what they gained is being counted
	PlanDone       = "done"       // and was counted
	PlanFailed     = "failed"     // a move did not succeed; those after it were not begun
	PlanAborted    = "aborted"    // somebody asked for that; moves that were committed stand
	PlanSuperseded = "superseded" // it was not applied, and no longer holds
)

// Plan is a plan that is kept: what is to move, how far that is, and what it gained.
type Plan struct {
	ID        heliotrope.PlanID `json:"id"`
	Revision  int64             `json:"revision" doc:"Of this record; wait for a newer one with ?wait=true&after=REVISION."`
	Pool      heliotrope.PoolID `json:"pool,omitempty"`
	By        string            `json:"by" doc:"Who made it: request, autopilot, drain or stub." example:"autopilot"`
	State     string            `json:"state" doc:"proposed, running, measuring, done, failed, aborted or superseded." example:"running"`
	Note      string            `json:"note,omitempty" doc:"Why it is in this state."`
	CreatedAt time.Time         `json:"created_at"`
	AppliedAt time.Time         `json:"applied_at,omitzero"`
	MovedAt   time.Time         `json:"moved_at,omitzero" doc:"When the last of its moves had ended."`
	EndedAt   time.Time         `json:"ended_at,omitzero"`
	Aborting  bool              `json:"aborting,omitempty" doc:"Somebody asked for an end."`
	WindowS   float64           `json:"window_s" doc:"Seconds of traffic that it rests on, and that its gain is measured over."`

	Plan     scheduler.Plan   `json:"plan"`
	Policy   scheduler.Policy `json:"policy"`
	Moves    []PlanMove       `json:"moves,omitempty" doc:"How far each move is, in the plan's order, once it is applied."`
	Measured *PlanGain        `json:"measured,omitempty" doc:"What it gained, next to what it promised."`
}

// Ended says whether nothing more happens to the plan.
func (p Plan) Ended() bool {
	switch p.State {
	case PlanDone, PlanFailed, PlanAborted, PlanSuperseded:
		return true
	}
	return false
}

// PlanMove is how far a move of a plan is.
type PlanMove struct {
	Migration heliotrope.MoveID `json:"migration"`
	Phase     string            `json:"phase,omitempty" doc:"Of the migration; empty: not begun." example:"Succeeded"`
	PauseMs   float64           `json:"pause_ms,omitempty"`
	Bytes     uint64            `json:"bytes,omitempty"`
	Error     string            `json:"error,omitempty"`
}

// PlanGain is what a plan gained by the traffic after it: what the VMs would cost with
// that traffic where they were, and what they do where they are.
type PlanGain struct {
	From     time.Time                           `json:"from"`
	To       time.Time                           `json:"to"`
	Before   scheduler.Cost                      `json:"before"`
	After    scheduler.Cost                      `json:"after"`
	Promised float64                             `json:"promised_usd_per_hour" doc:"What the plan said that it gains."`
	Gained   float64                             `json:"gained_usd_per_hour" doc:"What it did, the bytes that its moves took included."`
	VMs      map[heliotrope.VMID]scheduler.Share `json:"vms" doc:"Each VM's share."`
}

// Pool is a pool of the topology, and what its autopilot thinks.
type Pool struct {
	Name         heliotrope.PoolID   `json:"name"`
	VMs          []heliotrope.VMID   `json:"vms" nullable:"false"`
	Autopilot    string              `json:"autopilot" doc:"off, advise, confirm or auto."`
	Policy       heliotrope.PolicyID `json:"policy"`
	ConsideredAt time.Time           `json:"considered_at,omitzero" doc:"When it last looked."`
	Says         string              `json:"says,omitempty" doc:"What it found."`
	Plan         heliotrope.PlanID   `json:"plan,omitempty" doc:"The one that waits or runs."`
	Pace         pace.Allowance      `json:"pace" doc:"What may move now."`
	Newest       *scheduler.Plan     `json:"newest,omitempty" doc:"What it would do, when asked for one pool."`
	History      []Look              `json:"history,omitempty" doc:"What its autopilot saw, oldest first, when asked for one pool."`
}

// Policy says what matters in a plan: a policy of the scheduler, or one of the topology's.
type Policy struct {
	Name    heliotrope.PolicyID             `json:"name"`
	Base    heliotrope.PolicyID             `json:"base,omitempty" doc:"Of one that the topology has: whose weights count where it says nothing. Empty: it is the scheduler's."`
	Weights map[heliotrope.WeightID]float64 `json:"weights" doc:"Prices, and least gains; the names say the units."`
	Hosts   string                          `json:"hosts" enum:"spread,fill" doc:"Which of a site's hosts comes first: the emptiest, or the fullest."`
	Forced  bool                            `json:"only_forced,omitempty" doc:"Only VMs that must leave where they are move."`
	Pools   []heliotrope.PoolID             `json:"pools" nullable:"false" doc:"Pools whose VMs are placed by it."`
}

// Look is what a pool's autopilot saw at one moment: what all VMs cost by its policy, and
// how far their traffic goes.
type Look struct {
	At    time.Time      `json:"at"`
	Cost  scheduler.Cost `json:"cost"`
	Means atlas.Means    `json:"mean_rtt"`
}

// CreatePlan makes a plan and keeps it. The same key gives the same plan; it may be empty.
func (c *Client) CreatePlan(ctx context.Context, r PlanRequest, key string) (Plan, error) {
	r.DryRun = false
	return post[Plan](ctx, c, key, r, "/v1/plans")
}

// SimulatePlan says what a plan would be. Nothing is kept.
func (c *Client) SimulatePlan(ctx context.Context, r PlanRequest) (scheduler.Plan, error) {
	r.DryRun = true
	return post[scheduler.Plan](ctx, c, "", r, "/v1/plans")
}

// Plans are those that are kept, newest first.
func (c *Client) Plans(ctx context.Context) ([]Plan, error) {
	return list[Plan](ctx, c, nil, "/v1/plans")
}

// Plan is one plan as it is.
func (c *Client) Plan(ctx context.Context, id heliotrope.PlanID) (Plan, error) {
	return get[Plan](ctx, c, nil, "/v1/plans/%s", id)
}

// AwaitPlan returns the plan when its revision is above after, or after 30 s.
func (c *Client) AwaitPlan(ctx context.Context, id heliotrope.PlanID, after int64) (Plan, error) {
	q := url.Values{"wait": {"true"}, "after": {strconv.FormatInt(after, 10)}}
	return get[Plan](ctx, c, q, "/v1/plans/%s", id)
}

// ApplyPlan begins a plan's moves.
func (c *Client) ApplyPlan(ctx context.Context, id heliotrope.PlanID) (Plan, error) {
	return post[Plan](ctx, c, "", struct{}{}, "/v1/plans/%s/apply", id)
}

// AbortPlan begins no more of its moves, and rolls back those that can be.
func (c *Client) AbortPlan(ctx context.Context, id heliotrope.PlanID) (Plan, error) {
	return post[Plan](ctx, c, "", struct{}{}, "/v1/plans/%s/abort", id)
}

// Policies are all that plans can be made by, by name.
func (c *Client) Policies(ctx context.Context) ([]Policy, error) {
	return list[Policy](ctx, c, nil, "/v1/policies")
}

// Policy is one of them.
func (c *Client) Policy(ctx context.Context, name heliotrope.PolicyID) (Policy, error) {
	return get[Policy](ctx, c, nil, "/v1/policies/%s", name)
}

// Pools are those of the topology, by name.
func (c *Client) Pools(ctx context.Context) ([]Pool, error) {
	return list[Pool](ctx, c, nil, "/v1/pools")
}

// Pool is one pool, with the plan that it would carry out now.
func (c *Client) Pool(ctx context.Context, name heliotrope.PoolID) (Pool, error) {
	return get[Pool](ctx, c, nil, "/v1/pools/%s", name)
}
