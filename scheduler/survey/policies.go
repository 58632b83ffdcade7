package survey

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"heliotrope"
	"heliotrope/scheduler"
)

// DefaultPolicy is that of a plan that nobody asked anything special of.
const DefaultPolicy heliotrope.PolicyID = "balanced"

// weights are the numbers of a policy that a topology may say otherwise, by their names in
// its JSON, which have their units in them.
func weights(p *scheduler.Policy) map[heliotrope.WeightID]*float64 {
	return map[heliotrope.WeightID]*float64{
		"east_west_usd_per_gb_ms":            &p.EastWestUSDPerGBMs,
		"client_usd_per_gb_ms":               &p.ClientUSDPerGBMs,
		"client_usd_per_million_requests_ms": &p.ClientUSDPerMillionRequestsMs,
		"usd_per_tonne_co2":                  &p.USDPerTonneCO2,
		"host_usd_per_hour":                  &p.HostUSDPerHour,
		"move_usd":                           &p.MoveUSD,
		"pause_usd_per_second":               &p.PauseUSDPerSecond,
		"amortisation_hours":                 &p.AmortisationHours,
		"min_gain_usd_per_hour":              &p.MinGainUSDPerHour,
		"min_move_gain_usd_per_hour":         &p.MinMoveGainUSDPerHour,
	}
}

// Weights are the names of what a topology may say otherwise in its policies.
func Weights() []heliotrope.WeightID {
	return slices.Sorted(maps.Keys(weights(&scheduler.Policy{})))
}

// WeightsOf are these numbers of a policy.
func WeightsOf(p scheduler.Policy) map[heliotrope.WeightID]float64 {
	all := map[heliotrope.WeightID]float64{}
	for id, x := range weights(&p) {
		all[id] = *x
	}
	return all
}

// Named returns the policy of a name: one of the topology's, or of the scheduler's.
func Named(t heliotrope.Topology, name heliotrope.PolicyID) (scheduler.Policy, error) {
	own, ok := t.Policies[name]
	if !ok {
		p, err := scheduler.Preset(string(name))
		if err != nil {
			err = fmt.Errorf("choose policy: there is no %q: there are %s", name, strings.Join(Policies(t), ", "))
		}
		return p, err
	}
	p, err := scheduler.Preset(string(cmp.Or(own.Base, DefaultPolicy)))
	if err != nil {
		return p, fmt.Errorf("base of policy %s: %w", name, err)
	}
	p.Name = string(name)
	for id, x := range weights(&p) {
		if y, ok := own.Weights[id]; ok {
			*x = y
		}
	}
	if own.Hosts != "" {
		p.Spread = own.Hosts == heliotrope.HostsSpread
	}
	return p, nil
}

// Policies are the names that Named knows, sorted.
func Policies(t heliotrope.Topology) []string {
	names := scheduler.Presets()
	for id := range t.Policies {
		names = append(names, string(id))
	}
	slices.Sort(names)
	return names
}
