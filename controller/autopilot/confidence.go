package autopilot

import (
	"context"
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

// steady says whether a move is no matter of chance: it lost in no part, and gained in half
// of them at least. If what speaks for a move is noise, and its better half is in another
// place in one part of four, all ten agree once in a million windows.
func (t trial) steady() bool { return t.lost == 0 && 2*t.gained >= tenths }

// confidence is the share of the parts with traffic in which the move gained.
func (t trial) confidence() float64 { return float64(t.gained) / float64(max(1, t.gained+t.lost)) }

// try holds a plan against each part of the window that it rests on, by itself: what it
// gains on average may be one burst. What moves cost is left out, since they are weighed
// already.
func (a *Autopilot) try(ctx context.Context, s scheduler.Snapshot, policy scheduler.Policy, plan scheduler.Plan, window time.Duration, v *sight) (map[heliotrope.VMID]trial, error) {
	policy.MoveUSD, policy.PauseUSDPerSecond = 0, 0
	before := s.Placement()
	after := plan.Apply(before)
	trials := map[heliotrope.VMID]trial{}
	for i := range tenths {
		m, err := a.world.Counted(ctx, s.At.Add(-window*time.Duration(i)/tenths), window/tenths)
		if err != nil {
			return nil, err
		}
		part := v.survey(m)
		part.VMs = slices.Clone(part.VMs)
		for i := range part.VMs {
			part.VMs[i].CopyBytes = 0
		}
		_, _, shares, err := scheduler.Compare(part, policy, before, after)
		if err != nil {
			return nil, err
		}
		for vm, share := range shares {
			t := trials[vm]
			switch {
			case share.USDPerHour > 1e-9:
				t.gained++
			case share.USDPerHour < -1e-9:
				t.lost++
			}
			trials[vm] = t
		}
	}
	return trials, nil
}

// sure writes into a plan how sure its moves are.
func sure(plan *scheduler.Plan, trials map[heliotrope.VMID]trial) {
	for i := range plan.Moves {
		plan.Moves[i].Confidence = trials[plan.Moves[i].VM].confidence()
	}
}
