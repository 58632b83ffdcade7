package scheduler

import (
	"fmt"
	"slices"
	"strings"

	"heliotrope"
)

// Policy says what matters, and what may never be.
//
// Distance has to be priced to be weighed against money. Its price is in USD per GB and
// millisecond of round trip, since egress is in USD per GB: 0.001 says that traffic 10 ms
// farther away is as bad as traffic that costs USD 0.01 per GB more. There are no other
// weights: everything else is money already.
type Policy struct {
	Name string `json:"name"`

	EastWestUSDPerGBMs            float64 `json:"east_west_usd_per_gb_ms"`
	ClientUSDPerGBMs              float64 `json:"client_usd_per_gb_ms"`
	ClientUSDPerMillionRequestsMs float64 `json:"client_usd_per_million_requests_ms"`
	USDPerTonneCO2                float64 `json:"usd_per_tonne_co2,omitempty"`
	HostUSDPerHour                float64 `json:"host_usd_per_hour,omitempty"` // of each host in use

	// What a move costs once, spread over the time for which its reason is expected to last.
	// This is the hysteresis: a reason that lasts an hour does not pay for a day's move.
	MoveUSD           float64 `json:"move_usd"` // besides the copy's egress
	PauseUSDPerSecond float64 `json:"pause_usd_per_second"`
	AmortisationHours float64 `json:"amortisation_hours"` // 0: 24

	// A plan that gains less is none, and a move, or group of moves, that adds less to it
	// is left out. Where VMs must leave their place neither holds for those.
	MinGainUSDPerHour     float64 `json:"min_gain_usd_per_hour"`
	MinMoveGainUSDPerHour float64 `json:"min_move_gain_usd_per_hour"`

	RTTLimits      []RTTLimit          `json:"rtt_limits,omitempty"`
	MaxPauseMs     float64             `json:"max_pause_ms,omitempty"` // 0: any
	MaxMoves       int                 `json:"max_moves,omitempty"`    // 0: any number
	ForbiddenSites []heliotrope.SiteID `json:"forbidden_sites,omitempty"`
	OnlyForced     bool                `json:"only_forced,omitempty"` // only those move that must
	Spread         bool                `json:"spread,omitempty"`      // at a site, the emptiest host first, not the fullest
}

// RTTLimit is the farthest that any of A may be from any of B.
type RTTLimit struct {
	Name string            `json:"name"`
	A    []heliotrope.VMID `json:"a"`
	B    []heliotrope.VMID `json:"b"`
	Ms   float64           `json:"ms"`
}

var presets = []Policy{
	{
		Name: "balanced", EastWestUSDPerGBMs: 0.0005, ClientUSDPerGBMs: 0.001, ClientUSDPerMillionRequestsMs: 0.01,
		MoveUSD: 0.01, PauseUSDPerSecond: 0.01, AmortisationHours: 24, MinGainUSDPerHour: 0.01, MinMoveGainUSDPerHour: 0.001, Spread: true,
	},
	{
		Name:    "cheapest",
		MoveUSD: 0.005, AmortisationHours: 24, MinGainUSDPerHour: 0.01, MinMoveGainUSDPerHour: 0.001,
	},
	{
		Name: "closest", EastWestUSDPerGBMs: 0.05, ClientUSDPerGBMs: 0.1, ClientUSDPerMillionRequestsMs: 1,
		MoveUSD: 0.01, PauseUSDPerSecond: 0.01, AmortisationHours: 6, MinGainUSDPerHour: 0.01, MinMoveGainUSDPerHour: 0.001, Spread: true,
	},
	{
		Name: "consolidate", EastWestUSDPerGBMs: 0.0001, ClientUSDPerGBMs: 0.0002, ClientUSDPerMillionRequestsMs: 0.002,
		HostUSDPerHour: 0.5, MoveUSD: 0.005, AmortisationHours: 24, MinGainUSDPerHour: 0.01, MinMoveGainUSDPerHour: 0.001,
	},
	{
		Name: "evacuate", EastWestUSDPerGBMs: 0.0005, ClientUSDPerGBMs: 0.001, ClientUSDPerMillionRequestsMs: 0.01,
		AmortisationHours: 24, OnlyForced: true, Spread: true,
	},
	{
		// Distance of clients first, and a reason that lasts for half a working day.
		Name: "follow-the-sun", EastWestUSDPerGBMs: 0.001, ClientUSDPerGBMs: 0.1, ClientUSDPerMillionRequestsMs: 1,
		MoveUSD: 0.01, PauseUSDPerSecond: 0.01, AmortisationHours: 4, MinGainUSDPerHour: 0.01, MinMoveGainUSDPerHour: 0.001, Spread: true,
	},
}

// Preset returns the policy of a name, to be used as it is or changed.
func Preset(name string) (Policy, error) {
	for _, p := range presets {
		if p.Name == name {
			return p, nil
		}
	}
	return Policy{}, fmt.Errorf("choose policy: there is no %q: there are %s", name, strings.Join(Presets(), ", "))
}

// Presets lists the names that Preset knows.
func Presets() []string {
	var names []string
	for _, p := range presets {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return names
}
