package autopilot

import (
	"context"
	"maps"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/trial"
)

// try holds a plan, and each VM's share of it, against each part of the window that it rests
// on, by itself: what it gains on average may be one burst. What moves cost is left out,
// since they are weighed already.
func (a *Autopilot) try(ctx context.Context, s scheduler.Snapshot, policy scheduler.Policy, plan scheduler.Plan, window time.Duration, v *sight) (whole trial.Trial, vms map[heliotrope.VMID]trial.Trial, err error) {
	policy.MoveUSD, policy.PauseUSDPerSecond = 0, 0
	before := s.Placement()
	after := plan.Apply(before)
	vms = map[heliotrope.VMID]trial.Trial{}
	for i := range trial.Tenths {
		m, err := a.world.Counted(ctx, s.At.Add(-window*time.Duration(i)/trial.Tenths), window/trial.Tenths)
		if err != nil {
			return whole, nil, err
		}
		part := v.survey(m)
		part.VMs = slices.Clone(part.VMs)
		for i := range part.VMs {
			part.VMs[i].CopyBytes = 0
		}
		part = byTheMoment(part)
		was, is, shares, err := scheduler.Compare(part, policy, before, after)
		if err != nil {
			return whole, nil, err
		}
		whole.Add(was.Total() - is.Total())
		for vm, share := range shares {
			t := vms[vm]
			t.Add(share.USDPerHour)
			vms[vm] = t
		}
	}
	return whole, vms, nil
}

// byTheMoment is a snapshot in which nothing is lost of what is paid.
func byTheMoment(s scheduler.Snapshot) scheduler.Snapshot {
	s.Sites = slices.Clone(s.Sites)
	for i := range s.Sites {
		s.Sites[i].BillingSeconds = 0
	}
	return s
}

// chance are the VMs whose moves may be chance. One that moves to make room for others loses
// by itself, and is judged with the plan; that is judged once all others are steady.
func chance(plan scheduler.Plan, whole trial.Trial, vms map[heliotrope.VMID]trial.Trial) (held []heliotrope.VMID) {
	gains := map[heliotrope.VMID]float64{}
	for _, m := range plan.Moves {
		gains[m.VM] += m.USDPerHour
	}
	for vm, usd := range gains {
		if usd > 0 && !vms[vm].Steady() {
			held = append(held, vm)
		}
	}
	if len(held) == 0 && !whole.Steady() {
		held = slices.Collect(maps.Keys(gains))
	}
	return held
}

// sure writes into a plan how sure its moves are.
func sure(plan *scheduler.Plan, trials map[heliotrope.VMID]trial.Trial) {
	for i := range plan.Moves {
		plan.Moves[i].Confidence = trials[plan.Moves[i].VM].Confidence()
	}
}
