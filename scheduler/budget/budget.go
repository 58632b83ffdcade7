// Package budget holds plans to what may be spent.
//
// What a placement costs in money is its VMs' share of compute, hosts, licences and egress: what they
// cost less if they were nowhere. Distance costs no money, so the plan that a policy would
// have may cost more than there is. Then the price of distance is lowered, step by step, until
// the plan fits (the Lagrangian of the budget, searched from the policy's own price down);
// at a price of nothing what is left is the cheapest placement, and if that does not fit
// either, the plan is refused, and says what the cheapest would cost.
//
// What moves cost in money is the egress of their copies. A plan whose copies cost more than
// is left of a day's budget makes fewer moves.
package budget

import (
	"fmt"
	"math"
	"slices"

	"heliotrope"
	"heliotrope/scheduler"
)

// Limits are what VMs may cost, and what their moves may.
type Limits struct {
	VMs        []heliotrope.VMID
	USDPerHour float64 // 0: any
	MovesUSD   float64 // a day's; 0: any
	MovedUSD   float64 // of the last 24 hours' moves
}

const (
	step  = 4.0 // by which the price of distance is lowered
	steps = 10
	finer = 3 // halvings of the last step, of its logarithm
)

// Maker makes a plan.
type Maker func(scheduler.Snapshot, scheduler.Policy) (scheduler.Plan, error)

// Solve makes a plan within the limits. How plans are made is the caller's to say.
func (l Limits) Solve(s scheduler.Snapshot, p scheduler.Policy, solve Maker) (scheduler.Plan, error) {
	first, err := l.pay(s, p, solve)
	if err != nil || l.USDPerHour == 0 {
		return first, err
	}
	wanted, err := l.Spends(s, p, first.Apply(s.Placement()))
	if err != nil || wanted <= l.USDPerHour {
		return first, err
	}
	plan, spends, err := l.fit(s, p, solve)
	switch {
	case err != nil:
		return plan, err
	case spends > l.USDPerHour:
		return refuse(s, p, first, fmt.Sprintf("no move: the cheapest place for these VMs that was found costs USD %.4g/h, and the budget is USD %.4g/h; the plan without it costs USD %.4g/h", spends, l.USDPerHour, wanted))
	}
	return priced(s, p, plan, fmt.Sprintf("within the budget of USD %.4g/h, USD %.4g/h are spent; without it, USD %.4g/h would be", l.USDPerHour, spends, wanted))
}

// fit is the plan at the highest price of distance at which it fits that was found, or else
// the cheapest, and what it spends.
func (l Limits) fit(s scheduler.Snapshot, p scheduler.Policy, solve Maker) (best scheduler.Plan, spends float64, err error) {
	try := func(q scheduler.Policy) (bool, error) {
		plan, err := l.pay(s, q, solve)
		if err != nil {
			return false, err
		}
		usd, err := l.Spends(s, p, plan.Apply(s.Placement()))
		if err == nil && usd <= l.USDPerHour {
			best, spends = plan, usd
		}
		return usd <= l.USDPerHour, err
	}
	share := 1.0
	for range steps {
		share /= step
		fits, err := try(at(p, share))
		if err != nil {
			return best, 0, err
		}
		if !fits {
			continue
		}
		low, high := share, share*step
		for range finer {
			mid := math.Sqrt(low * high)
			if fits, err = try(at(p, mid)); err != nil {
				return best, 0, err
			} else if fits {
				low = mid
			} else {
				high = mid
			}
		}
		return best, spends, nil
	}
	q := at(p, 0) // what it takes to get within the budget need not pay for itself
	q.MinGainUSDPerHour, q.MinMoveGainUSDPerHour, q.MoveUSD, q.PauseUSDPerSecond = 0, 0, 0, 0
	if best, err = l.pay(s, q, solve); err != nil {
		return best, 0, err
	}
	spends, err = l.Spends(s, p, best.Apply(s.Placement()))
	return best, spends, err
}

// at is a policy with another price of distance.
func at(p scheduler.Policy, share float64) scheduler.Policy {
	p.EastWestUSDPerGBMs *= share
	p.ClientUSDPerGBMs *= share
	p.ClientUSDPerMillionRequestsMs *= share
	return p
}

// Spends is what VMs cost in USD per hour where a placement has them.
func (l Limits) Spends(s scheduler.Snapshot, p scheduler.Policy, where scheduler.Placement) (float64, error) {
	rest := scheduler.Placement{}
	for vm, host := range where {
		if !slices.Contains(l.VMs, vm) {
			rest[vm] = host
		}
	}
	all, err := scheduler.Evaluate(s, p, where)
	if err != nil {
		return 0, err
	}
	others, err := scheduler.Evaluate(s, p, rest)
	money := func(c scheduler.Cost) float64 { return c.Compute + c.Hosts + c.Licences + c.Egress }
	return money(all) - money(others), err
}

// pay makes plans with fewer and fewer moves until the copies fit into what is left of the day.
func (l Limits) pay(s scheduler.Snapshot, p scheduler.Policy, solve Maker) (scheduler.Plan, error) {
	for {
		plan, err := solve(s, p)
		if err != nil || l.MovesUSD == 0 {
			return plan, err
		}
		usd := Copies(s, plan)
		if usd <= l.MovesUSD-l.MovedUSD || len(plan.Moves) == 0 {
			return plan, nil
		}
		if len(plan.Moves) == 1 {
			return refuse(s, p, plan, fmt.Sprintf("no move: the best one's copy costs USD %.4g, and of the USD %.4g that moves may cost in 24 hours USD %.4g are spent", usd, l.MovesUSD, l.MovedUSD))
		}
		p.MaxMoves = len(plan.Moves) - 1
	}
}

// Copies is what the copies of a plan's moves cost in USD.
func Copies(s scheduler.Snapshot, plan scheduler.Plan) float64 {
	bytes, usd := map[heliotrope.VMID]float64{}, 0.0
	for _, v := range s.VMs {
		bytes[v.ID] = v.CopyBytes
	}
	for _, m := range plan.Moves {
		for _, w := range s.Paths {
			if w.From == m.FromSite && w.To == m.ToSite {
				usd += bytes[m.VM] / 1e9 * w.USDPerGB
			}
		}
	}
	return usd
}

// priced is a plan by the policy's own prices.
func priced(s scheduler.Snapshot, p scheduler.Policy, plan scheduler.Plan, note string) (scheduler.Plan, error) {
	before := s.Placement()
	was, is, shares, err := scheduler.Compare(s, p, before, plan.Apply(before))
	if err != nil {
		return plan, err
	}
	plan.Before, plan.After, plan.Bound, plan.Gap, plan.Bounded = was, is, 0, 0, false
	plan.Reason += "; " + note
	for i, m := range plan.Moves {
		if !m.Temporary {
			plan.Moves[i].USDPerHour, plan.Moves[i].Ms = shares[m.VM].USDPerHour, shares[m.VM].Ms
		}
	}
	return plan, nil
}

// refuse is a plan that moves nothing.
func refuse(s scheduler.Snapshot, p scheduler.Policy, plan scheduler.Plan, why string) (scheduler.Plan, error) {
	broken, err := scheduler.Check(s, p, s.Placement())
	return scheduler.Plan{At: plan.At, Policy: plan.Policy, Seed: plan.Seed, Moves: []scheduler.Move{}, Reason: why, Before: plan.Before, After: plan.Before, Broken: broken}, err
}
