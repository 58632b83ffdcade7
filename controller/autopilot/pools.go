package autopilot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/store"
	"heliotrope/scheduler"
	"heliotrope/scheduler/budget"
	"heliotrope/scheduler/diff"
	"heliotrope/scheduler/pace"
	"heliotrope/scheduler/survey"
)

const (
	defaultWindow = 10 * time.Minute
	minInterval   = time.Second
	mostTries     = 3 // plans that are made anew without what is not steady
)

// pool is what an autopilot remembers of one.
type pool struct {
	at     time.Time // when it last looked
	says   string
	newest scheduler.Plan
	looks  []api.Look // oldest first
}

func windowOf(p heliotrope.Pool) time.Duration { return cmp.Or(time.Duration(p.Window), defaultWindow) }

func intervalOf(p heliotrope.Pool) time.Duration {
	least := minInterval
	if p.Forecast > 0 {
		least = accountEvery
	}
	return max(least, cmp.Or(time.Duration(p.Interval), windowOf(p)/10))
}

// consider looks at distances, empties drained hosts, brings VMs to the stubs that they use,
// looks at the pools that are due, and forgets old plans.
func (a *Autopilot) consider(ctx context.Context) error {
	t, _ := a.world.Topology()
	a.sound(t)
	problems := []error{a.drain(ctx, t), a.serve(ctx, t), a.trim(ctx)}
	for _, id := range slices.Sorted(maps.Keys(t.Pools)) {
		problems = append(problems, a.look(ctx, t, id))
	}
	err := errors.Join(problems...)
	switch {
	case errors.Is(err, store.ErrStaleTerm):
		return err
	case err != nil && ctx.Err() == nil:
		a.log.Warn("autopilot", "err", err)
	}
	return nil
}

// look makes a pool's plan when it is due, and does with it what the pool says.
func (a *Autopilot) look(ctx context.Context, t heliotrope.Topology, id heliotrope.PoolID) error {
	spec := t.Pools[id]
	a.mu.Lock()
	seen := a.pools[id]
	if seen == nil {
		seen = &pool{looks: a.looksOf(id)}
		a.pools[id] = seen
	}
	now := time.Now()
	// What a new leader knows of a window that began before it did may have holes.
	due := !now.Before(seen.at.Add(intervalOf(spec))) && now.Sub(a.since) >= min(windowOf(spec), defaultWindow)
	a.mu.Unlock()
	if cmp.Or(spec.Autopilot, heliotrope.AutopilotOff) == heliotrope.AutopilotOff || !due {
		return nil
	}
	running := a.all(func(p api.Plan) bool { return p.Pool == id && p.State == api.PlanRunning })
	if len(running) > 0 {
		return nil // what it would find now is half of what it is doing
	}
	var plan scheduler.Plan
	var says string
	m, err := a.matter(ctx, t, id, now)
	switch {
	case err != nil:
	case spec.Forecast > 0:
		plan, says, err = a.foresee(ctx, id, m)
	default:
		plan, says, err = a.decide(ctx, m)
	}
	if err != nil {
		says = err.Error()
	}
	a.mu.Lock()
	before := seen.newest
	seen.at, seen.says, seen.newest = now, says, plan
	if err == nil {
		seen.looks = remember(seen.looks, lookOf(now, plan))
	}
	a.mu.Unlock()
	if err != nil {
		return fmt.Errorf("look at pool %s: %w", id, err)
	}
	if spec.Autopilot == heliotrope.AutopilotAdvise {
		if !diff.Plans(before, plan).Same() {
			a.world.Tell("pool", string(id), says)
		}
		return nil
	}
	return a.follow(ctx, id, spec, api.Plan{Pool: id, By: "autopilot", WindowS: windowOf(spec).Seconds(), Plan: plan, Policy: m.policy})
}

// matter is what a decision about a pool rests on.
type matter struct {
	pool   heliotrope.Pool
	policy scheduler.Policy
	s      scheduler.Snapshot // in which only the pool's VMs may move
	seen   *sight
	limits budget.Limits
	now    time.Time
}

func (a *Autopilot) matter(ctx context.Context, t heliotrope.Topology, id heliotrope.PoolID, now time.Time) (matter, error) {
	m := matter{pool: t.Pools[id], now: now}
	var err error
	if m.policy, err = survey.Policy(t, id); err != nil {
		return m, err
	}
	s, seen, err := a.snapshot(ctx, time.Time{}, windowOf(m.pool), nil)
	if err != nil {
		return m, err
	}
	m.s, m.seen = bind(s, a.bound(t)).Only(survey.Members(t, id)), seen
	m.limits, err = a.limits(ctx, t, id, s, now)
	return m, err
}

// limits are what a pool's VMs may cost, and their moves, those of the last day counted.
func (a *Autopilot) limits(ctx context.Context, t heliotrope.Topology, id heliotrope.PoolID, s scheduler.Snapshot, now time.Time) (budget.Limits, error) {
	l := budget.Limits{VMs: survey.Members(t, id), USDPerHour: t.Pools[id].Budget, MovesUSD: t.Pools[id].MoveUSD}
	if l.MovesUSD == 0 {
		return l, nil
	}
	list, err := a.world.Migrations(ctx)
	if err != nil {
		return l, fmt.Errorf("list migrations: %w", err)
	}
	for _, m := range list {
		if now.Sub(m.CreatedAt) < 24*time.Hour && slices.Contains(l.VMs, m.VM) {
			way := []scheduler.Move{{VM: m.VM, FromSite: t.Hosts[m.From].Site, ToSite: t.Hosts[m.To].Site}}
			sent := scheduler.Snapshot{Paths: s.Paths, VMs: []scheduler.VM{{ID: m.VM, CopyBytes: float64(m.Measured.Bytes)}}}
			l.MovedUSD += budget.Copies(sent, scheduler.Plan{Moves: way})
		}
	}
	return l, nil
}

// decide makes the plan of what a pool's autopilot would move now: what is no matter of
// chance, as much as the pace allows.
func (a *Autopilot) decide(ctx context.Context, m matter) (scheduler.Plan, string, error) {
	allowance, err := a.allowance(ctx, m.pool, m.now)
	if err != nil {
		return scheduler.Plan{}, "", err
	}
	return a.steady(ctx, m, m.s, allowance, a.byWindow(ctx, m))
}

// judge tells which of a plan's VMs are held back, and why.
type judge struct {
	hold func(s scheduler.Snapshot, plan *scheduler.Plan) ([]heliotrope.VMID, error)
	but  string
}

// byWindow is the judge of plans by traffic of now: it writes into a plan how sure its moves
// are, and holds back the VMs whose moves may be chance.
func (a *Autopilot) byWindow(ctx context.Context, m matter) judge {
	return judge{but: "not in each tenth of the window", hold: func(s scheduler.Snapshot, plan *scheduler.Plan) ([]heliotrope.VMID, error) {
		whole, trials, err := a.try(ctx, s, m.policy, *plan, windowOf(m.pool), m.seen)
		if err != nil {
			return nil, err
		}
		sure(plan, trials)
		return chance(*plan, whole, trials), nil
	}}
}

// steady makes plans of a snapshot until a judge holds none of its VMs back. What breaks a
// constraint, or costs more than the budget, does not wait for that.
func (a *Autopilot) steady(ctx context.Context, m matter, s scheduler.Snapshot, allowance pace.Allowance, by judge) (scheduler.Plan, string, error) {
	s, paced := allowance.Hold(s, m.policy)
	broken, err := scheduler.Check(s, paced, s.Placement())
	if err != nil {
		return scheduler.Plan{}, "", err
	}
	spends, err := m.limits.Spends(s, paced, s.Placement())
	if err != nil {
		return scheduler.Plan{}, "", err
	}
	must := len(broken) > 0 || m.limits.USDPerHour > 0 && spends > m.limits.USDPerHour
	var stays stay
	for try := 0; ; try++ {
		plan, err := within(ctx, m.limits, s, paced, 0)
		if err != nil {
			return plan, "", err
		}
		held, err := by.hold(s, &plan)
		if err != nil {
			return plan, "", err
		}
		paid := stays.add(plan, held, m.now.Add(intervalOf(m.pool)))
		s = pin(s, append(held, paid...))
		if len(held)+len(paid) == 0 || must {
			return plan, stays.says(plan.Reason, allowance, by.but), nil
		}
		if try == mostTries {
			still := scheduler.Plan{At: s.At, Policy: m.policy.Name, Reason: plan.Reason, Before: plan.Before, After: plan.Before}
			still.Map = survey.Map(s, still)
			return still, stays.says("nothing moves", allowance, by.but), nil
		}
	}
}

// pin keeps some VMs where they are.
func pin(s scheduler.Snapshot, vms []heliotrope.VMID) scheduler.Snapshot {
	s.VMs = slices.Clone(s.VMs)
	for i := range s.VMs {
		s.VMs[i].Pinned = s.VMs[i].Pinned || slices.Contains(vms, s.VMs[i].ID)
	}
	return s
}

// stay counts the VMs that a plan would move and that stay for now.
type stay struct {
	restless, paid int
	until          time.Time // when the first of those is to go for whose place is paid
}

// add takes in who is held back, and returns who had better go later than the next look.
func (x *stay) add(p scheduler.Plan, held []heliotrope.VMID, next time.Time) (paid []heliotrope.VMID) {
	x.restless += len(held)
	for _, m := range p.Moves {
		if !m.Better.After(next) || slices.Contains(held, m.VM) {
			continue
		}
		paid = append(paid, m.VM)
		if x.paid++; x.until.IsZero() || m.Better.Before(x.until) {
			x.until = m.Better
		}
	}
	return paid
}

// says adds to a plan's reason what holds VMs back.
func (x *stay) says(reason string, allowed pace.Allowance, but string) string {
	if x.paid > 0 {
		reason = fmt.Sprintf("%d VMs use up first what is paid for them where they are, until %s; %s", x.paid, x.until.UTC().Format(time.RFC3339), reason)
	}
	switch {
	case allowed.Quiet:
		return fmt.Sprintf("it is a quiet time until %s; %s", allowed.Next.UTC().Format(time.RFC3339), reason)
	case allowed.Moves == 0:
		return fmt.Sprintf("no more moves may begin until %s; %s", allowed.Next.UTC().Format(time.RFC3339), reason)
	case x.restless > 0:
		return fmt.Sprintf("%d VMs would gain elsewhere on average, but %s, and stay; %s", x.restless, but, reason)
	}
	return reason
}

// allowance is what may move by a pool's pace, all migrations of the past counted.
func (a *Autopilot) allowance(ctx context.Context, p heliotrope.Pool, now time.Time) (pace.Allowance, error) {
	list, err := a.world.Migrations(ctx)
	if err != nil {
		return pace.Allowance{}, fmt.Errorf("list migrations: %w", err)
	}
	var moved []pace.Moved
	for _, m := range list {
		moved = append(moved, pace.Moved{VM: m.VM, At: m.CreatedAt})
	}
	return pace.Pace(p.Pace).Allow(moved, now), nil
}

// follow keeps one plan of a pool up to date: it is made, made anew when something else
// ought to move, and withdrawn when nothing does. With auto it is applied at once.
func (a *Autopilot) follow(ctx context.Context, id heliotrope.PoolID, spec heliotrope.Pool, p api.Plan) error {
	for _, old := range a.all(func(q api.Plan) bool { return q.Pool == id && q.By == p.By && q.State == api.PlanProposed }) {
		if diff.Plans(old.Plan, p.Plan).Same() && spec.Autopilot == heliotrope.AutopilotConfirm {
			return nil
		}
		if _, err := a.end(ctx, old, api.PlanSuperseded, "later: "+p.Plan.Reason); err != nil {
			return err
		}
	}
	if len(p.Plan.Moves) == 0 {
		return nil
	}
	if a.stale(p) != "" {
		return nil // something else moves; it looks again
	}
	p, err := a.propose(ctx, p)
	if err != nil || spec.Autopilot != heliotrope.AutopilotAuto {
		return err
	}
	_, err = a.begin(ctx, p)
	return err
}

// Pools are those of the topology, by name.
func (a *Autopilot) Pools(ctx context.Context) ([]api.Pool, error) {
	if _, err := a.leads(); err != nil {
		return nil, err
	}
	t, _ := a.world.Topology()
	list := []api.Pool{}
	for _, id := range slices.Sorted(maps.Keys(t.Pools)) {
		p, err := a.poolView(ctx, t, id)
		if err != nil {
			return nil, err
		}
		p.Newest, p.History = nil, nil
		list = append(list, p)
	}
	return list, nil
}

// Pool is one pool, with what its autopilot last found.
func (a *Autopilot) Pool(ctx context.Context, id heliotrope.PoolID) (api.Pool, error) {
	if _, err := a.leads(); err != nil {
		return api.Pool{}, err
	}
	t, _ := a.world.Topology()
	if _, ok := t.Pools[id]; !ok {
		return api.Pool{}, api.NotFound("pool", string(id))
	}
	return a.poolView(ctx, t, id)
}

func (a *Autopilot) poolView(ctx context.Context, t heliotrope.Topology, id heliotrope.PoolID) (api.Pool, error) {
	spec := t.Pools[id]
	allowed, err := a.allowance(ctx, spec, time.Now())
	p := api.Pool{Name: id, VMs: survey.Members(t, id), Autopilot: cmp.Or(spec.Autopilot, heliotrope.AutopilotOff),
		Policy: cmp.Or(spec.Policy, survey.DefaultPolicy), Pace: allowed}
	for _, q := range a.all(func(q api.Plan) bool {
		return q.Pool == id && (q.State == api.PlanProposed || q.State == api.PlanRunning)
	}) {
		p.Plan = q.ID
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if seen := a.pools[id]; seen != nil && !seen.at.IsZero() {
		newest := seen.newest
		p.ConsideredAt, p.Says, p.Newest, p.History = seen.at.UTC(), seen.says, &newest, slices.Clone(seen.looks)
	}
	return p, err
}
