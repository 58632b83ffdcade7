package autopilot

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/store"
	"heliotrope/scheduler"
	"heliotrope/scheduler/budget"
	"heliotrope/scheduler/survey"
)

// SimulatePlan makes a plan and keeps nothing.
func (a *Autopilot) SimulatePlan(ctx context.Context, r api.PlanRequest) (scheduler.Plan, error) {
	if _, err := a.leads(); err != nil {
		return scheduler.Plan{}, err
	}
	plan, _, _, err := a.answer(ctx, r)
	return plan, err
}

// answer makes the plan that is asked for, and tells by which policy and window.
func (a *Autopilot) answer(ctx context.Context, r api.PlanRequest) (scheduler.Plan, scheduler.Policy, time.Duration, error) {
	t, _ := a.world.Topology()
	policy, err := survey.Policy(t, r.Pool)
	window := cmp.Or(r.Window(), windowOf(t.Pools[r.Pool]))
	if err == nil && r.Policy != "" {
		var named scheduler.Policy
		named, err = survey.Named(t, r.Policy)
		named.RTTLimits, named.MaxPauseMs = policy.RTTLimits, policy.MaxPauseMs
		policy = named
	}
	if err != nil {
		return scheduler.Plan{}, policy, window, err
	}
	policy.MaxMoves = r.MaxMoves
	policy.ForbiddenSites = r.Down
	s, seen, err := a.snapshot(ctx, r.At, window, func(t *heliotrope.Topology) {
		t.Sites = maps.Clone(t.Sites)
		for id, usd := range r.Prices {
			site := t.Sites[id]
			site.PricePerVCPUHour = usd
			t.Sites[id] = site
		}
	})
	if err != nil {
		return scheduler.Plan{}, policy, window, err
	}
	if r.Pool != "" {
		s = s.Only(survey.Members(t, r.Pool))
	}
	var limits budget.Limits
	if r.Pool != "" {
		if limits, err = a.limits(ctx, t, r.Pool, s, time.Now()); err != nil {
			return scheduler.Plan{}, policy, window, err
		}
	}
	plan, err := within(ctx, limits, s, policy, r.Seed)
	if err != nil {
		return plan, policy, window, err
	}
	if len(plan.Moves) > 0 {
		_, trials, err := a.try(ctx, s, policy, plan, window, seen)
		if err != nil {
			return plan, policy, window, err
		}
		sure(&plan, trials)
	}
	return plan, policy, window, nil
}

// maker makes plans of snapshots, with their maps and the ways that they rest on.
func maker(ctx context.Context, seed uint64) budget.Maker {
	return func(s scheduler.Snapshot, policy scheduler.Policy) (scheduler.Plan, error) {
		plan, err := scheduler.Solve(s, policy, effort(ctx, s, seed))
		if err != nil {
			return plan, fmt.Errorf("make plan: %w", err)
		}
		plan.Ways, plan.Map = survey.Ways(s, plan), survey.Map(s, plan)
		return plan, nil
	}
}

// within makes the plan of a snapshot within limits. One that these refuse has a map too.
func within(ctx context.Context, l budget.Limits, s scheduler.Snapshot, policy scheduler.Policy, seed uint64) (scheduler.Plan, error) {
	plan, err := l.Solve(s, policy, maker(ctx, seed))
	if err == nil && plan.Map == nil {
		plan.Map = survey.Map(s, plan)
	}
	return plan, err
}

// effort is how long to search: less where few VMs may move. A search ends with ctx.
func effort(ctx context.Context, s scheduler.Snapshot, seed uint64) scheduler.Options {
	const each, many = 20_000, 500
	free := 0
	for _, v := range s.VMs {
		if !v.Pinned {
			free++
		}
	}
	o := scheduler.Options{Seed: seed, Deadline: func() bool { return ctx.Err() != nil }}
	if free < many {
		o.Iterations = each * (free + 1)
	}
	return o
}

// CreatePlan makes a plan and keeps it under id.
func (a *Autopilot) CreatePlan(ctx context.Context, id heliotrope.PlanID, r api.PlanRequest) (api.Plan, error) {
	if _, err := a.leads(); err != nil {
		return api.Plan{}, err
	}
	if p, err := a.find(id); err == nil {
		return p, nil
	}
	plan, policy, window, err := a.answer(ctx, r)
	if err != nil {
		return api.Plan{}, err
	}
	return a.propose(ctx, api.Plan{ID: id, Pool: r.Pool, By: "request", WindowS: window.Seconds(), Plan: plan, Policy: policy})
}

// propose keeps a new plan. One without moves is kept as an answer, and has ended.
func (a *Autopilot) propose(ctx context.Context, p api.Plan) (api.Plan, error) {
	if p.ID == "" {
		p.ID = newPlanID()
	}
	p.State, p.CreatedAt, p.Note = api.PlanProposed, time.Now().UTC(), p.Plan.Reason
	if len(p.Plan.Moves) == 0 {
		p.State, p.EndedAt = api.PlanDone, p.CreatedAt
	}
	p, err := a.save(ctx, p)
	if err == nil {
		a.tell(p, fmt.Sprintf("%d moves: %s", len(p.Plan.Moves), p.Plan.Reason))
	}
	return p, err
}

func newPlanID() heliotrope.PlanID {
	return heliotrope.PlanID("p-" + strings.ToLower(rand.Text()[:12]))
}

// tell records what happened to a plan.
func (a *Autopilot) tell(p api.Plan, what string) {
	a.world.Tell("plan", string(p.ID), what)
}

func (a *Autopilot) find(id heliotrope.PlanID) (api.Plan, error) {
	if _, err := a.leads(); err != nil {
		return api.Plan{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p, ok := a.plans[id]
	if !ok {
		return api.Plan{}, api.NotFound("plan", string(id))
	}
	return *p, nil
}

// Plans are those that are kept, newest first.
func (a *Autopilot) Plans(context.Context) ([]api.Plan, error) {
	if _, err := a.leads(); err != nil {
		return nil, err
	}
	return a.all(func(api.Plan) bool { return true }), nil
}

// WaitPlan waits for a revision above after.
func (a *Autopilot) WaitPlan(ctx context.Context, id heliotrope.PlanID, after int64) (api.Plan, error) {
	for {
		a.mu.Lock()
		changed := a.changed
		a.mu.Unlock()
		p, err := a.find(id)
		if err != nil || p.Revision > after {
			return p, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return p, nil
		}
	}
}

// ApplyPlan begins a plan's moves.
func (a *Autopilot) ApplyPlan(ctx context.Context, id heliotrope.PlanID) (api.Plan, error) {
	p, err := a.find(id)
	if err != nil {
		return p, err
	}
	const again = "make a new one: heliotrope plan create"
	switch p.State {
	case api.PlanRunning, api.PlanMeasuring, api.PlanDone:
		return p, nil
	case api.PlanProposed:
	default:
		return p, api.Conflict(fmt.Sprintf("%s is %s: %s", id, p.State, p.Note), again)
	}
	if why := a.stale(p); why != "" {
		return p, api.Conflict(fmt.Sprintf("%s does not hold any more: %s", id, why), again)
	}
	return a.begin(ctx, p)
}

// begin lets carry take the plan up.
func (a *Autopilot) begin(ctx context.Context, p api.Plan) (api.Plan, error) {
	p.State, p.AppliedAt, p.Note = api.PlanRunning, time.Now().UTC(), ""
	p.Moves = make([]api.PlanMove, len(p.Plan.Moves))
	for i := range p.Moves {
		p.Moves[i].Migration = heliotrope.MoveID(fmt.Sprintf("m-%s-%d", strings.TrimPrefix(string(p.ID), "p-"), i+1))
	}
	p, err := a.save(ctx, p)
	if err == nil {
		a.tell(p, "applied")
	}
	return p, err
}

// stale says why a plan that was not applied does not hold any more, or nothing.
func (a *Autopilot) stale(p api.Plan) string {
	t, placements := a.world.Topology()
	at := map[heliotrope.VMID]heliotrope.HostID{}
	for _, m := range p.Plan.Moves {
		where, known := at[m.VM]
		if !known {
			where = placements[m.VM].Host
		}
		_, vm := t.VMs[m.VM]
		_, host := t.Hosts[m.To]
		switch {
		case !vm || !host:
			return fmt.Sprintf("%s or %s is no longer in the topology", m.VM, m.To)
		case where != m.From:
			return fmt.Sprintf("%s is at %s, not at %s", m.VM, where, m.From)
		case a.world.Host(m.To).Drained:
			return fmt.Sprintf("%s is drained", m.To)
		}
		at[m.VM] = m.To
	}
	for _, m := range p.Plan.Moves {
		if q, ok := a.mover(m.VM); ok {
			return fmt.Sprintf("plan %s is moving %s", q, m.VM)
		}
	}
	return ""
}

// mover is the plan under way that moves a VM.
func (a *Autopilot) mover(vm heliotrope.VMID) (id heliotrope.PlanID, ok bool) {
	moves := func(m scheduler.Move) bool { return m.VM == vm }
	for _, q := range a.all(func(q api.Plan) bool { return q.State == api.PlanRunning && slices.ContainsFunc(q.Plan.Moves, moves) }) {
		return q.ID, true
	}
	return "", false
}

// AbortPlan begins no more moves, and undoes those that can be.
func (a *Autopilot) AbortPlan(ctx context.Context, id heliotrope.PlanID) (api.Plan, error) {
	for {
		p, err := a.abort(ctx, id)
		if !errors.Is(err, store.ErrConflict) || ctx.Err() != nil { // a move went on meanwhile
			return p, err
		}
	}
}

func (a *Autopilot) abort(ctx context.Context, id heliotrope.PlanID) (api.Plan, error) {
	p, err := a.find(id)
	switch {
	case err != nil, p.State == api.PlanAborted:
		return p, err
	case p.State == api.PlanProposed:
		return a.end(ctx, p, api.PlanAborted, "aborted before it was applied")
	case p.State == api.PlanRunning:
		p.Aborting = true
		return a.save(ctx, p)
	}
	return p, api.Conflict(fmt.Sprintf("%s is %s: its moves have ended", id, p.State), "move the VMs back with a new plan, or heliotrope vm migrate")
}

// end writes a plan's last state.
func (a *Autopilot) end(ctx context.Context, p api.Plan, state, note string) (api.Plan, error) {
	p.State, p.Note, p.EndedAt = state, note, time.Now().UTC()
	p, err := a.save(ctx, p)
	if err == nil {
		a.tell(p, state+": "+note)
	}
	return p, err
}
