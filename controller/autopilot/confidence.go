package autopilot

import (
	"context"
	"maps"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
)

// tenths is how many parts of a window a move is held against.
const tenths = 10

// trial counts in how many parts of its window a VM's move would have gained, and lost; in
// the others the VM was silent.
type trial struct{ gained, lost int }

// add takes in what one part says.
func (t *trial) add(usdPerHour float64) {
	switch {
	case usdPerHour > 1e-9:
		t.gained++
	case usdPerHour < -1e-9:
		t.lost++
	}
}

// steady says whether a move is no matter of chance: it lost in no part, and gained in half
// of them at least. If what speaks for a move is noise, and its better half is in another
// place in one part of four, all ten agree once in a million windows.
func (t trial) steady() bool { return t.lost == 0 && 2*t.gained >= tenths }

// confidence is the share of the parts with traffic in which the move gained.
func (t trial) confidence() float64 { return float64(t.gained) / float64(max(1, t.gained+t.lost)) }

// try holds a plan, and each VM's share of it, against each part of the window that it rests
// on, by itself: what it gains on average may be one burst. What moves cost is left out,
// since they are weighed already.
func (a *Autopilot) try(ctx context.Context, s scheduler.Snapshot, policy scheduler.Policy, plan scheduler.Plan, window time.Duration, v *sight) (whole trial, vms map[heliotrope.VMID]trial, err error) {
	policy.MoveUSD, policy.PauseUSDPerSecond = 0, 0
	before := s.Placement()
	after := plan.Apply(before)
	vms = map[heliotrope.VMID]trial{}
	for i := range tenths {
		m, err := a.world.Counted(ctx, s.At.Add(-window*time.Duration(i)/tenths), window/tenths)
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
		whole.add(was.Total() - is.Total())
		for vm, share := range shares {
			t := vms[vm]
			t.add(share.USDPerHour)
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
func chance(plan scheduler.Plan, whole trial, vms map[heliotrope.VMID]trial) (held []heliotrope.VMID) {
	gains := map[heliotrope.VMID]float64{}
	for _, m := range plan.Moves {
		gains[m.VM] += m.USDPerHour
	}
	for vm, usd := range gains {
		if usd > 0 && !vms[vm].steady() {
			held = append(held, vm)
		}
	}
	if len(held) == 0 && !whole.steady() {
		held = slices.Collect(maps.Keys(gains))
	}
	return held
}

// sure writes into a plan how sure its moves are.
func sure(plan *scheduler.Plan, trials map[heliotrope.VMID]trial) {
	for i := range plan.Moves {
		plan.Moves[i].Confidence = trials[plan.Moves[i].VM].confidence()
	}
}
