package scheduler

import (
	"fmt"
	"math"

	"heliotrope/scheduler/assign"
)

// Options say how long to search.
type Options = assign.Options

// Solve makes a plan. It fails only where the snapshot or the policy contradicts itself.
func Solve(s Snapshot, p Policy, o Options) (Plan, error) {
	m, err := newModel(&s, p)
	if err != nil {
		return Plan{}, err
	}
	plan := m.solve(o)
	if quick := o; o.Iterations >= 0 {
		// What a search wants may be blocked on the way; what is better move by move is less so.
		quick.Iterations, quick.Passes = -1, -1
		if other := m.solve(quick); other.beats(plan) {
			other.bound(m, plan.Bound, plan.Bounded)
			plan = other
		}
	}
	if !plan.fixes(m) || m.p.OnlyForced || len(plan.Moves) == 0 || m.p.MinGainUSDPerHour <= 0 {
		return plan, nil
	}
	// Some must move. Whether the others do too has to pay for itself.
	m.p.OnlyForced = true
	o.Passes, o.Iterations = -1, -1
	least := m.solve(o)
	if len(least.Broken) <= len(plan.Broken) && least.After.Total()-plan.After.Total() < m.p.MinGainUSDPerHour {
		least.bound(m, plan.Bound, plan.Bounded)
		return least, nil
	}
	return plan, nil
}

func (m *model) solve(o Options) Plan {
	f := newField(m)
	f.charge(o.Passes >= 0)
	s, bound := f.Search(o)
	bound -= f.paid
	s.Prune(m.p.MinMoveGainUSDPerHour)
	target := f.settle(s, m.p.MinMoveGainUSDPerHour, o)
	reasons := m.reasons(m.home, target.at)
	order := arrange(f, target.at, func(vms []int) float64 {
		var usd float64
		for _, v := range vms {
			usd += reasons[v].gain.Total()
			if m.mustLeave(v) {
				usd += assign.Never
			}
		}
		return usd
	})
	order.steps = m.abreast(order.steps)
	plan := Plan{At: m.s.At, Policy: m.p.Name, Seed: o.Seed, Moves: []Move{}, Before: m.cost(m.home), After: m.cost(order.at), Broken: m.check(order.at)}
	m.fill(&plan, order)
	m.block(&plan, order, target)
	m.judge(&plan)
	// Where only those move that must, the bound is of placements in which the others stay; a
	// constraint may be mended by moving one of them all the same.
	plan.bound(m, bound, !math.IsInf(bound, -1) && bound < assign.Never/2 && !m.p.OnlyForced)
	return plan
}

// beats says whether a plan leaves fewer constraints broken, or as many at less cost.
func (p *Plan) beats(q Plan) bool {
	if len(p.Broken) != len(q.Broken) {
		return len(p.Broken) < len(q.Broken)
	}
	return p.After.Total() < q.After.Total()-1e-9
}

// bound tells a plan what is certain. It is so of placements of all VMs: one that leaves a VM
// nowhere, where it costs nothing, may well be below.
func (p *Plan) bound(m *model, usd float64, known bool) {
	if known && len(p.Apply(m.s.Placement())) == len(m.s.VMs) {
		p.Bound, p.Bounded = usd, true
		p.Gap = max(0, p.After.Total()-usd) / max(math.Abs(usd), 1e-9)
	}
}

// fill writes the moves of an order.
func (m *model) fill(plan *Plan, o *orderer) {
	reasons := m.reasons(m.home, o.at)
	told := make([]bool, len(o.at))
	for n, step := range o.steps {
		for i, v := range step.vms {
			to := step.to[i]
			move := Move{Step: n + 1, VM: m.s.VMs[v].ID, To: m.s.Hosts[to].ID, ToSite: m.s.Hosts[to].Site, Temporary: step.temporary}
			if from := step.from[i]; from == none {
				move.Why = "it has no place yet"
			} else {
				move.From, move.FromSite = m.s.Hosts[from].ID, m.s.Hosts[from].Site
				move.Seconds = m.moveSeconds(v, m.site[from], m.site[to])
				move.PauseMs = m.pauseMs(v, m.site[from], m.site[to])
				move.Why, move.Evidence = m.why(v, m.home[v], o.at[v], reasons[v])
			}
			switch {
			case step.temporary:
				move.Why = "it waits here while others make room for each other"
			case !told[v]:
				move.USDPerHour, move.Ms = reasons[v].gain.Total(), reasons[v].ms
				m.billed(&move, v, step.from[i], to, reasons[v])
				told[v] = true
			}
			plan.Moves = append(plan.Moves, move)
		}
	}
}

// block lists what could not be done.
func (m *model) block(plan *Plan, o *orderer, target *packer) {
	for _, vms := range o.pending {
		for _, v := range vms {
			plan.Blocked = append(plan.Blocked, Blocked{m.s.VMs[v].ID, m.s.Hosts[o.target[v]].ID, o.why(v)})
		}
	}
	for _, v := range target.stuck {
		if m.mustLeave(v) {
			plan.Blocked = append(plan.Blocked, Blocked{VM: m.s.VMs[v].ID, Why: m.nowhere(target.at, v)})
		}
	}
}

// judge refuses a plan that gains too little and mends nothing, and says why it is as it is.
func (m *model) judge(plan *Plan) {
	gain, mended := plan.Gain(), plan.fixes(m)
	switch {
	case len(plan.Moves) == 0 && len(plan.Broken) > 0:
		plan.Reason = fmt.Sprintf("no move helps: %d constraints are not kept and cannot be", len(plan.Broken))
	case len(plan.Moves) == 0 && len(plan.Blocked) > 0:
		plan.Reason = fmt.Sprintf("no move can be made: %d would gain something and are blocked", len(plan.Blocked))
	case len(plan.Moves) == 0:
		plan.Reason = fmt.Sprintf("no beneficial move: none adds USD %.4g/h or more", m.p.MinMoveGainUSDPerHour)
	case mended:
		plan.Reason = fmt.Sprintf("constraints are not kept now (%d): the moves mend all but %d of them", len(m.check(m.home)), len(plan.Broken))
	case gain < max(m.p.MinGainUSDPerHour, 1e-9):
		moves := len(plan.Moves)
		plan.Moves, plan.Blocked = []Move{}, nil
		plan.After, plan.Broken = plan.Before, m.check(m.home)
		plan.Reason = fmt.Sprintf("no beneficial move: the best %d found gain USD %.4g/h, less than the USD %.4g/h that they must", moves, gain, m.p.MinGainUSDPerHour)
	default:
		plan.Reason = fmt.Sprintf("the moves gain USD %.4g/h (%.1f %%), what they cost included", gain, 100*gain/max(math.Abs(plan.Before.Total()), 1e-9))
	}
}

// fixes says whether the plan leaves fewer constraints broken than there are now.
func (p *Plan) fixes(m *model) bool { return len(p.Broken) < len(m.check(m.home)) }

// Bound tells what no placement that keeps all constraints can cost less than, in USD per
// hour, after so many passes of messages; 0: as many as the size allows.
func Bound(s Snapshot, p Policy, passes int) (float64, error) {
	m, err := newModel(&s, p)
	if err != nil {
		return 0, err
	}
	f := newField(m)
	f.charge(true)
	return f.Bound(passes) - f.paid, nil
}

// Field is the problem at the level of sites as numbers, for who wants to solve it otherwise.
func Field(s Snapshot, p Policy) (*assign.Field, error) {
	m, err := newModel(&s, p)
	if err != nil {
		return nil, err
	}
	return newField(m).Field, nil
}
