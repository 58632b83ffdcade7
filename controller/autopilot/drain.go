package autopilot

import (
	"context"
	"fmt"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler"
	"heliotrope/scheduler/survey"
)

// drainAgain is how long after a try to empty a host the next follows.
const drainAgain = 5 * time.Second

// drain empties the hosts that are drained: everything that is there leaves, at once and
// whatever the pools say, by the policy evacuate. Plans that lead to such a host are ended
// first. What cannot leave is told, and tried again.
func (a *Autopilot) drain(ctx context.Context, t heliotrope.Topology) error {
	_, placements := a.world.Topology()
	occupied := map[heliotrope.HostID][]heliotrope.VMID{}
	for vm, p := range placements {
		if _, ok := t.Hosts[p.Host]; ok && p.Incoming == "" && a.world.Host(p.Host).Drained {
			occupied[p.Host] = append(occupied[p.Host], vm)
		}
	}
	for _, p := range a.all(func(p api.Plan) bool { return p.State == api.PlanRunning && !p.Aborting }) {
		if slices.ContainsFunc(p.Plan.Moves, func(m scheduler.Move) bool { return a.world.Host(m.To).Drained }) {
			if _, err := a.AbortPlan(ctx, p.ID); err != nil {
				return err
			}
		}
	}
	var leave []heliotrope.VMID
	for h, vms := range occupied {
		if last, ok := a.drained[h]; !ok || time.Since(last) >= drainAgain {
			a.drained[h] = time.Now()
			leave = append(leave, vms...)
		}
	}
	leaving := a.all(func(p api.Plan) bool { return p.By == "drain" && p.State == api.PlanRunning })
	if len(leave) == 0 || len(leaving) > 0 {
		return nil
	}
	policy, err := scheduler.Preset("evacuate")
	if err != nil {
		return err
	}
	policy.RTTLimits = survey.Limits(t)
	s, _, err := a.snapshot(ctx, time.Time{}, defaultWindow, nil)
	if err != nil {
		return err
	}
	s = s.Only(leave)
	plan, err := maker(ctx, 0)(s, policy)
	if err != nil {
		return err
	}
	for _, b := range plan.Blocked {
		a.world.Tell("host", string(placements[b.VM].Host), fmt.Sprintf("is drained, and %s cannot leave: %s", b.VM, b.Why))
	}
	if len(plan.Moves) == 0 {
		return nil
	}
	p, err := a.propose(ctx, api.Plan{By: "drain", WindowS: defaultWindow.Seconds(), Plan: plan, Policy: policy})
	if err != nil {
		return err
	}
	_, err = a.begin(ctx, p)
	return err
}
