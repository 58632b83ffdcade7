package autopilot

import (
	"context"
	"fmt"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler"
)

// measure tells what a plan gained, once a window of traffic has been counted since its
// last move: what the VMs cost with that traffic where they are, next to what they would
// where they were. So a change of the traffic itself is in neither.
func (a *Autopilot) measure(ctx context.Context, p api.Plan) error {
	window := time.Duration(p.WindowS * float64(time.Second))
	from, to := p.MovedAt, p.MovedAt.Add(window)
	if time.Now().Before(to.Add(settle)) {
		return nil
	}
	s, _, err := a.snapshot(ctx, to, window, nil)
	if err != nil {
		return err
	}
	gain, err := compare(s, p)
	if err != nil {
		_, err = a.end(ctx, p, api.PlanDone, fmt.Sprintf("what it gained is not known: %v", err))
		return err
	}
	gain.From, gain.To = from, to
	p.Measured = &gain
	_, err = a.end(ctx, p, api.PlanDone, fmt.Sprintf("promised USD %.4f/h, gained USD %.4f/h by the traffic of the %v after it", gain.Promised, gain.Gained, window))
	return err
}

// compare is the gain of a plan by a snapshot that was taken after it. VMs that others
// moved since are where they are, before and after; what is no longer there counts for
// nothing.
func compare(s scheduler.Snapshot, p api.Plan) (api.PlanGain, error) {
	first, bytes := map[heliotrope.VMID]heliotrope.HostID{}, map[heliotrope.VMID]float64{}
	for i, m := range p.Plan.Moves {
		if _, ok := first[m.VM]; !ok {
			first[m.VM] = m.From
		}
		bytes[m.VM] += float64(p.Moves[i].Bytes)
	}
	s = byTheMoment(s) // what a move lost of it is past
	s.VMs = slices.Clone(s.VMs)
	after := s.Placement()
	for i := range s.VMs {
		v := &s.VMs[i]
		from, ok := first[v.ID]
		if !ok {
			continue
		}
		if !slices.ContainsFunc(s.Hosts, func(h scheduler.Host) bool { return h.ID == from }) {
			return api.PlanGain{}, fmt.Errorf("%s is no longer in the topology", from)
		}
		v.Host, v.CopyBytes = from, bytes[v.ID]
	}
	was, is, shares, err := scheduler.Compare(s, p.Policy, s.Placement(), after)
	return api.PlanGain{Before: was, After: is, Promised: p.Plan.Gain(), Gained: was.Total() - is.Total(), VMs: shares}, err
}
