package heliotrope

import (
	"net/netip"
	"slices"
	"time"
)

// RegionID names where clients are: a country, an office, a provider's network.
type RegionID string

// Demand is what clients of a region ask. It is what somebody knows beforehand; what is
// counted of them counts before it.
type Demand struct {
	Zone     Zone                `yaml:"zone,omitempty" json:"zone,omitempty"`         // of its hours; empty: UTC
	Prefixes []netip.Prefix      `yaml:"prefixes,omitempty" json:"prefixes,omitempty"` // of the clients' addresses, /24 or /48 at the longest
	RTT      map[SiteID]Duration `yaml:"rtt" json:"rtt"`                               // from each site that has hosts, there and back
	Asks     []Ask               `yaml:"asks,omitempty" json:"asks,omitempty"`
}

// Ask is a demand on VMs, each of which is asked as much. Its numbers are one for each of the
// 24 hours of the day, or one for all of them. Several asks of one VM add up.
type Ask struct {
	VMs      []VMID    `yaml:"vms" json:"vms"`
	Days     []Weekday `yaml:"days,omitempty" json:"days,omitempty"` // on which it is asked; empty: each
	Requests []float64 `yaml:"requests_per_hour,omitempty" json:"requests_per_hour,omitempty"`
	Bytes    []float64 `yaml:"bytes_per_hour,omitempty" json:"bytes_per_hour,omitempty"` // from the VM to clients
}

// Asked is what one VM is asked in an hour.
type Asked struct {
	Requests float64 `json:"requests_per_hour"`
	Bytes    float64 `json:"bytes_per_hour"`
}

// At is what each VM is asked in the hour of t.
func (d Demand) At(t time.Time) map[VMID]Asked {
	t = t.In(d.Zone.location())
	all := map[VMID]Asked{}
	for _, a := range d.Asks {
		if len(a.Days) > 0 && !slices.Contains(a.Days, Weekday(t.Weekday())) {
			continue
		}
		for _, vm := range a.VMs {
			sum := all[vm]
			sum.Requests += hourly(a.Requests, t.Hour())
			sum.Bytes += hourly(a.Bytes, t.Hour())
			all[vm] = sum
		}
	}
	return all
}

// Local is t as the region's clocks show it.
func (d Demand) Local(t time.Time) time.Time { return t.In(d.Zone.location()) }

// hourly is the number of an hour.
func hourly(list []float64, hour int) float64 {
	switch {
	case len(list) == 1:
		return list[0]
	case hour < len(list):
		return list[hour]
	}
	return 0
}
