package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/store"
	"heliotrope/topologies"
)

// desired answers for the topology: what engineers want.
type desired struct{ *Controller }

// Topology is read from the store, not from the view: a read sees what was just written.
func (c desired) Topology(ctx context.Context) (heliotrope.Topology, int64, error) {
	t, rev, err := c.store.Topology(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return heliotrope.Topology{}, 0, nil
	}
	return t, rev, err
}

// PlanTopology says what t would change. It changes nothing.
func (c desired) PlanTopology(ctx context.Context, t heliotrope.Topology) (api.TopologyPlan, error) {
	now, rev, err := c.Topology(ctx)
	if err != nil {
		return api.TopologyPlan{}, err
	}
	plan := api.TopologyPlan{Name: t.Name, Revision: rev, Changes: objectChanges(now, t)}
	plan.Warnings = c.imageWarnings(ctx, t, plan.Changes)
	v := c.world.View()
	for _, ch := range plan.Changes {
		vm := heliotrope.VMID(ch.Name)
		m, moving := v.Moving(vm)
		switch {
		case ch.Kind != "vm":
		case ch.Op == "delete" && moving:
			plan.Warnings = append(plan.Warnings, fmt.Sprintf("%s is on the move (%s) and cannot be removed before that ends", vm, m.ID))
		case ch.Op == "update" && t.VMs[vm].Host != now.VMs[vm].Host:
			plan.Warnings = append(plan.Warnings, fmt.Sprintf("%s stays at %s: a new home moves nothing; use 'heliotrope vm migrate %s --to %s'", vm, v.Placements[vm].Host, vm, t.VMs[vm].Host))
		}
	}
	return plan, nil
}

// ApplyTopology puts t in force.
func (c desired) ApplyTopology(ctx context.Context, t heliotrope.Topology, ifMatch int64) (api.TopologyPlan, error) {
	plan, err := c.PlanTopology(ctx, t)
	if err != nil {
		return plan, err
	}
	rev, err := c.store.ApplyTopology(ctx, t, ifMatch)
	switch {
	case errors.Is(err, store.ErrMoving):
		return plan, api.Conflict("a VM that the new topology lacks is on the move", "wait for it to end, or abort it: heliotrope migration list")
	case errors.Is(err, store.ErrConflict):
		return plan, api.Stale(plan.Revision)
	case err != nil:
		return plan, err
	}
	if rev != plan.Revision {
		c.event("topology", t.Name, fmt.Sprintf("applied: %d changes", len(plan.Changes)), map[string]string{"revision": fmt.Sprint(rev)})
	}
	plan.Revision, plan.Applied = rev, true
	return plan, nil
}

// objectChanges groups the fields that differ by the object that they belong to.
func objectChanges(old, new heliotrope.Topology) []api.ObjectChange {
	kinds := map[string]string{"sites": "site", "links": "link", "hosts": "host", "networks": "network", "vms": "vm", "peers": "peer", "clients": "client",
		"pools": "pool", "rules": "rule", "demand": "demand", "stubs": "stub", "policies": "policy", "images": "image policy"}
	ops := map[topologies.Op]string{topologies.Add: "create", topologies.Remove: "delete", topologies.Replace: "update"}
	out := []api.ObjectChange{}
	index := make(map[string]int)
	for _, ch := range topologies.Diff(old, new) {
		parts := strings.Split(strings.TrimPrefix(ch.Pointer, "/"), "/")
		kind, name, field := cmp.Or(kinds[parts[0]], parts[0]), "", strings.Join(parts[1:], ".")
		if kinds[parts[0]] != "" && len(parts) > 1 {
			name, field = parts[1], strings.Join(parts[2:], ".")
		}
		key := kind + "/" + name
		i, ok := index[key]
		if !ok {
			op := map[bool]string{true: "create", false: "update"}[old.Version == 0] // with nothing in force, no values to compare
			if field == "" && kinds[parts[0]] != "" {
				op = ops[ch.Op]
			}
			i, index[key] = len(out), len(out)
			out = append(out, api.ObjectChange{Op: op, Kind: kind, Name: name})
		}
		if out[i].Op == "update" {
			out[i].Fields = append(out[i].Fields, api.FieldChange{Path: field, Old: written(ch.Old), New: written(ch.New)})
		}
	}
	slices.SortStableFunc(out, func(a, b api.ObjectChange) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// written is a value as text; of none, none.
func written(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

// parseTopology reads what a caller sends, with every problem that it has.
func parseTopology(data []byte, _ string) (heliotrope.Topology, []api.FieldProblem) {
	// JSON is YAML; one reader finds the places in both.
	t, err := topologies.Parse(data, "body", topologies.Options{})
	if err == nil {
		return t, nil
	}
	var all topologies.Errors
	if !errors.As(err, &all) {
		return t, []api.FieldProblem{{Detail: err.Error()}}
	}
	var problems []api.FieldProblem
	for _, p := range all {
		problems = append(problems, api.FieldProblem{Detail: p.Message, Pointer: p.Pointer, Path: p.Path, Line: p.Line, Column: p.Column, Hint: p.Hint})
	}
	return t, problems
}
