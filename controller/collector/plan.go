package collector

import (
	"cmp"
	"context"
	"fmt"
	"maps"

	"heliotrope/controller/api"
	"heliotrope/scheduler"
)

// Plan says where VMs ought to be by what was counted in a window up to now.
func (c *Collector) Plan(ctx context.Context, q api.PlanQuery) (scheduler.Plan, error) {
	if !c.world.Leads() {
		return scheduler.Plan{}, errNotLeading
	}
	policy, err := scheduler.Preset(q.Policy)
	if err != nil {
		return scheduler.Plan{}, err
	}
	policy.MaxMoves = q.MaxMoves
	end, span := c.window(api.TrafficQuery{Window: q.Window})
	m, err := c.matrix(ctx, end, span)
	if err != nil {
		return scheduler.Plan{}, err
	}
	fabric := c.fabric()
	t := fabric.Topology
	t.Hosts = maps.Clone(t.Hosts)
	for id, h := range t.Hosts { // what the topology leaves out is as the host reports
		cpus, mib := c.world.Room(id)
		h.CPUs, h.MemoryMiB = cmp.Or(h.CPUs, cpus), cmp.Or(h.MemoryMiB, mib)
		t.Hosts[id] = h
	}
	plan, err := scheduler.Solve(scheduler.Survey(end, t, fabric.Placements, m), policy,
		scheduler.Options{Seed: q.Seed, Deadline: func() bool { return ctx.Err() != nil }})
	if err != nil {
		return plan, fmt.Errorf("make plan: %w", err)
	}
	return plan, nil
}
