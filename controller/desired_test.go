package controller

import (
	"maps"
	"slices"
	"testing"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/topologies"
)

// TestObjectChanges says what of a topology changes by the names that a file has for it.
func TestObjectChanges(t *testing.T) {
	example, err := topologies.Example("two-sites")
	if err != nil {
		t.Fatal(err)
	}
	old, err := topologies.Parse(example, "two-sites.yaml", topologies.Options{})
	if err != nil {
		t.Fatal(err)
	}
	changed := old
	changed.Capture = heliotrope.Capture{Source: "ebpf", Sampling: 8}
	changed.Policies = map[heliotrope.PolicyID]heliotrope.Policy{"green": {Weights: map[heliotrope.WeightID]float64{"usd_per_tonne_co2": 90}}}
	changed.VMs = maps.Clone(old.VMs)
	vm := slices.Sorted(maps.Keys(old.VMs))[0]
	v := changed.VMs[vm]
	v.InterruptionUSD = 2
	changed.VMs[vm] = v
	for _, x := range []struct {
		what     string
		old, new heliotrope.Topology
		want     []api.ObjectChange
	}{
		{"there", old, changed, []api.ObjectChange{
			{Op: "update", Kind: "capture", Fields: []api.FieldChange{{Path: "source", New: "ebpf"}, {Path: "sampling", New: "8"}}},
			{Op: "create", Kind: "policy", Name: "green"},
			{Op: "update", Kind: "vm", Name: string(vm), Fields: []api.FieldChange{{Path: "interruption_usd", New: "2"}}}}},
		{"and back", changed, old, []api.ObjectChange{
			{Op: "update", Kind: "capture", Fields: []api.FieldChange{{Path: "source", Old: "ebpf"}, {Path: "sampling", Old: "8"}}},
			{Op: "delete", Kind: "policy", Name: "green"},
			{Op: "update", Kind: "vm", Name: string(vm), Fields: []api.FieldChange{{Path: "interruption_usd", Old: "2"}}}}},
	} {
		got := objectChanges(x.old, x.new)
		if !slices.EqualFunc(got, x.want, func(a, b api.ObjectChange) bool {
			return a.Op == b.Op && a.Kind == b.Kind && a.Name == b.Name && slices.Equal(a.Fields, b.Fields)
		}) {
			t.Errorf("%s: got %+v, want %+v", x.what, got, x.want)
		}
	}
}
