package survey_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/survey"
)

func TestNamed(t *testing.T) {
	top := heliotrope.Topology{Policies: map[heliotrope.PolicyID]heliotrope.Policy{
		"green":  {Weights: map[heliotrope.WeightID]float64{"usd_per_tonne_co2": 90, "east_west_usd_per_gb_ms": 0}},
		"packed": {Base: "cheapest", Hosts: heliotrope.HostsSpread},
		"lost":   {Base: "dearest"},
	}}
	want, err := scheduler.Preset("balanced")
	if err != nil {
		t.Fatal(err)
	}
	want.Name, want.USDPerTonneCO2, want.EastWestUSDPerGBMs = "green", 90, 0
	got, err := survey.Named(top, "green")
	if g, w := survey.WeightsOf(got), survey.WeightsOf(want); err != nil || !maps.Equal(g, w) || got.Name != "green" || got.Spread != want.Spread {
		t.Errorf("%+v, %v", got, err)
	}
	if p, err := survey.Named(top, "packed"); err != nil || !p.Spread || p.ClientUSDPerGBMs != 0 {
		t.Errorf("%+v, %v", p, err)
	}
	for name, says := range map[heliotrope.PolicyID]string{"lost": `base of policy lost: choose policy: there is no "dearest"`, "gren": "green, lost, packed"} {
		if _, err := survey.Named(top, name); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range scheduler.Presets() {
		if p, err := survey.Named(top, heliotrope.PolicyID(name)); err != nil || p.Name != name {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

// TestWeights holds the names of weights to those that a plan's policy has in JSON: all of
// its numbers that are no limits.
func TestWeights(t *testing.T) {
	p := scheduler.Policy{USDPerTonneCO2: 1, HostUSDPerHour: 1, MaxPauseMs: 1}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	var numbers []heliotrope.WeightID
	for name, v := range fields {
		if _, ok := v.(float64); ok && name != "max_pause_ms" {
			numbers = append(numbers, heliotrope.WeightID(name))
		}
	}
	slices.Sort(numbers)
	if !slices.Equal(numbers, survey.Weights()) {
		t.Errorf("a policy has %q, and can be given %q", numbers, survey.Weights())
	}
}

// planned is where a policy has web, of a topology that nobody talks in.
func planned(t *testing.T, top heliotrope.Topology, policy heliotrope.PolicyID, drained ...heliotrope.HostID) heliotrope.HostID {
	t.Helper()
	p, err := survey.Named(top, policy)
	if err != nil {
		t.Fatal(err)
	}
	s := survey.Take(zero, top, survey.Facts{Placements: at(map[heliotrope.VMID]heliotrope.HostID{"web": "us-1"})})
	for i := range s.Hosts {
		s.Hosts[i].Drained = slices.Contains(drained, s.Hosts[i].ID)
	}
	plan, err := scheduler.Solve(s.Only([]heliotrope.VMID{"web"}), p, scheduler.Options{Seed: 1, Iterations: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return plan.Apply(s.Placement())["web"]
}

func TestCarbon(t *testing.T) {
	top := near()
	us, eu := top.Sites["us"], top.Sites["eu"]
	us.GramsCO2PerVCPUHour, eu.GramsCO2PerVCPUHour = 450, 20
	top.Sites["us"], top.Sites["eu"] = us, eu // eu is dearer by USD 0.011/h for web
	top.Policies = map[heliotrope.PolicyID]heliotrope.Policy{
		"green":     {Weights: map[heliotrope.WeightID]float64{"usd_per_tonne_co2": 300}},
		"greenwash": {Weights: map[heliotrope.WeightID]float64{"usd_per_tonne_co2": 3}},
	}
	for policy, want := range map[heliotrope.PolicyID]heliotrope.HostID{"balanced": "us-1", "green": "eu-1", "greenwash": "us-1"} {
		if got := planned(t, top, policy); got != want {
			t.Errorf("%s has web at %s, not %s", policy, got, want)
		}
	}
}

// TestSpot has two markets of one place as two sites: a VM goes to the one that is cheaper
// with what its interruptions cost, and to the other when there is no room in it.
func TestSpot(t *testing.T) {
	top := near()
	top.Sites["us"] = heliotrope.Site{Underlay: top.Sites["us"].Underlay, PricePerVCPUHour: 0.04}
	top.Sites["eu"] = heliotrope.Site{Underlay: top.Sites["eu"].Underlay, PricePerVCPUHour: 0.01, InterruptionsPerHour: 0.005}
	for _, x := range []struct {
		what    string
		usd     float64
		drained []heliotrope.HostID
		want    heliotrope.HostID
	}{
		{"of no matter", 0, nil, "eu-1"},
		{"of little matter", 1, nil, "eu-1"},
		{"dear", 10, nil, "us-1"},
		{"of no matter, and spot hosts revoked", 0, []heliotrope.HostID{"eu-1"}, "us-1"},
		{"dear, and the others are away", 10, []heliotrope.HostID{"us-1"}, "eu-1"},
	} {
		web := top.VMs["web"]
		web.InterruptionUSD = x.usd
		top.VMs["web"] = web
		if got := planned(t, top, "cheapest", x.drained...); got != x.want {
			t.Errorf("interruptions %s: web is at %s, not %s", x.what, got, x.want)
		}
	}
}
