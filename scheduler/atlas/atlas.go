// Package atlas is a plan as a map: sites, how far they are from each other, what goes
// between them before the plan and after it, and where to draw them (place.go).
//
// A Map is made of sums, site by site, and of the few VMs that talk most, so that a plan of a
// thousand VMs can carry one.
package atlas

import "heliotrope"

// Most is how many sites a map has; those with the least VMs and traffic are left out.
const Most = 24

// MostVMs is how many VMs a map has, and MostPairs how many pairs of them.
const (
	MostVMs   = 40
	MostPairs = 400
)

// Map is what there is to draw.
type Map struct {
	Sites   []SiteVMs  `json:"sites"`          // by name
	Ways    []Way      `json:"ways,omitempty"` // by the names of their ends
	LeftOut int        `json:"left_out_sites,omitempty"`
	VMs     []PlacedVM `json:"vms,omitempty"`   // that talk most to each other, by name
	Pairs   []VMPair   `json:"pairs,omitempty"` // of them, by the places of their ends in VMs
	Rest    float64    `json:"other_pairs_bytes_per_second,omitempty"`
	Before  Means      `json:"before"`
	After   Means      `json:"after"`
}

// SiteVMs is a place of VMs, of clients, or of both.
type SiteVMs struct {
	ID    heliotrope.SiteID `json:"id"`
	VMs   int               `json:"vms"`
	After int               `json:"vms_after"`
}

// PlacedVM is where a VM is, and will be.
type PlacedVM struct {
	ID     heliotrope.VMID   `json:"id"`
	Before heliotrope.SiteID `json:"before,omitempty"`
	After  heliotrope.SiteID `json:"after,omitempty"`
}

// VMPair is what one of a map's VMs sends to another, which a plan does not change.
type VMPair struct {
	From           int     `json:"from"` // in Map.VMs
	To             int     `json:"to"`
	BytesPerSecond float64 `json:"bytes_per_second"`
}

// Way is what VMs at a site send to VMs and clients at a site, which may be the same. A way
// without traffic is told in one direction only, for its distance.
type Way struct {
	From   heliotrope.SiteID `json:"from"`
	To     heliotrope.SiteID `json:"to"`
	RTTMs  float64           `json:"rtt_ms,omitempty"` // 0: nobody says
	Before float64           `json:"bytes_per_second,omitempty"`
	After  float64           `json:"bytes_per_second_after,omitempty"`
}

// Means are mean round trips in milliseconds, by bytes; 0 where there is no traffic.
type Means struct {
	ClientsMs  float64 `json:"clients_ms"`   // from VMs to their clients
	EastWestMs float64 `json:"east_west_ms"` // between VMs
}

// Distances are the round trips between all sites in milliseconds, in the order of Sites;
// 0 where they are not known.
func (m *Map) Distances() [][]float64 {
	at := map[heliotrope.SiteID]int{}
	d := make([][]float64, len(m.Sites))
	for i, s := range m.Sites {
		at[s.ID] = i
		d[i] = make([]float64, len(m.Sites))
	}
	for _, w := range m.Ways {
		i, from := at[w.From]
		j, to := at[w.To]
		if from && to && i != j && w.RTTMs > 0 {
			d[i][j], d[j][i] = w.RTTMs, w.RTTMs
		}
	}
	return d
}

// Rates are bytes per second from each site to each, in the order of Sites.
func (m *Map) Rates(rate func(Way) float64) [][]float64 {
	at := map[heliotrope.SiteID]int{}
	r := make([][]float64, len(m.Sites))
	for i, s := range m.Sites {
		at[s.ID] = i
		r[i] = make([]float64, len(m.Sites))
	}
	for _, w := range m.Ways {
		i, from := at[w.From]
		j, to := at[w.To]
		if from && to {
			r[i][j] += rate(w)
		}
	}
	return r
}
