package scheduler

import (
	"slices"
	"time"

	"heliotrope"
)

// RegionID names where clients are: a country, a metropolis, a provider's network.
type RegionID string

// Snapshot is all that a decision rests on, at one moment. It is a value: nothing changes it.
// A GB is 10^9 bytes, a GiB of memory 2^30.
type Snapshot struct {
	At       time.Time `json:"at"`
	VMs      []VM      `json:"vms"`
	Hosts    []Host    `json:"hosts"`
	Sites    []Site    `json:"sites"`
	Paths    []Path    `json:"paths"` // of each two sites at least one way
	Flows    []Flow    `json:"flows,omitempty"`
	Demands  []Demand  `json:"demands,omitempty"`
	Reaches  []Reach   `json:"reaches,omitempty"` // of each region of Demands and each site
	Apart    []Group   `json:"apart,omitempty"`   // no two of a group at one host, or site
	Together []Group   `json:"together,omitempty"`
}

// VM is a VM as the scheduler sees it.
type VM struct {
	ID        heliotrope.VMID     `json:"id"`
	VCPUs     float64             `json:"vcpus"`
	MemoryMiB float64             `json:"memory_mib"`
	Host      heliotrope.HostID   `json:"host,omitempty"`   // now; empty: it has no place yet
	Pinned    bool                `json:"pinned,omitempty"` // it stays, whatever that costs
	Allowed   []heliotrope.SiteID `json:"allowed_sites,omitempty"`
	Forbidden []heliotrope.SiteID `json:"forbidden_sites,omitempty"`

	Licences map[heliotrope.LicenceID]int `json:"licences,omitempty"` // seats that it needs

	// What a move is predicted to take.
	CopyBytes float64 `json:"copy_bytes,omitempty"` // memory and disk that go over the wire
	PauseMs   float64 `json:"pause_ms,omitempty"`   // with no distance; round trips are added

	PaidSince time.Time `json:"paid_since,omitzero"` // when its place at its site began to be paid; zero: with the clock, in UTC

	InterruptionUSD float64 `json:"interruption_usd,omitempty"` // what one revocation of its host costs
}

// Host is a machine that runs VMs.
type Host struct {
	ID        heliotrope.HostID `json:"id"`
	Site      heliotrope.SiteID `json:"site"`
	VCPUs     float64           `json:"vcpus"` // reference vCPUs
	MemoryMiB float64           `json:"memory_mib"`
	Drained   bool              `json:"drained,omitempty"` // no VM may stay or come

	Licences map[heliotrope.LicenceID]int `json:"licences,omitempty"` // its own seats, for VMs here only
}

// Site is a place with its prices. Its room is that of its hosts.
type Site struct {
	ID                   heliotrope.SiteID `json:"id"`
	USDPerVCPUHour       float64           `json:"usd_per_vcpu_hour"` // of a reference vCPU
	USDPerGiBHour        float64           `json:"usd_per_gib_hour"`
	InternetUSDPerGB     float64           `json:"internet_usd_per_gb,omitempty"` // to clients
	GramsCO2PerVCPUHour  float64           `json:"grams_co2_per_vcpu_hour,omitempty"`
	InterruptionsPerHour float64           `json:"interruptions_per_hour,omitempty"` // of a VM there, expected
	LANRTTMs             float64           `json:"lan_rtt_ms,omitempty"`
	LANBitsPerSecond     float64           `json:"lan_bits_per_second,omitempty"` // for copies within the site; 0: 10^9

	BillingSeconds float64 `json:"billing_seconds,omitempty"` // vCPUs and memory are paid in whole periods of so long; 0: by the moment

	Licences       map[heliotrope.LicenceID]int     `json:"licences,omitempty"`          // seats for VMs at any of its hosts
	SeatUSDPerHour map[heliotrope.LicenceID]float64 `json:"seat_usd_per_hour,omitempty"` // of seats beyond all these; not in it: there are none
}

// Path is the way from one site to another. Money has a direction; a round trip has none:
// where both ways give one, their mean counts.
type Path struct {
	From          heliotrope.SiteID `json:"from"`
	To            heliotrope.SiteID `json:"to"`
	RTTMs         float64           `json:"rtt_ms"`
	USDPerGB      float64           `json:"usd_per_gb"`
	BitsPerSecond float64           `json:"bits_per_second,omitempty"` // for copies; 0: 10^9
	Source        string            `json:"source,omitempty"`          // of RTTMs: measured, stated, or not said
}

// Flow is what one VM sends to another.
type Flow struct {
	Src            heliotrope.VMID `json:"src"`
	Dst            heliotrope.VMID `json:"dst"`
	BytesPerSecond float64         `json:"bytes_per_second"`
}

// Demand is what clients of a region ask of a VM.
type Demand struct {
	VM                heliotrope.VMID `json:"vm"`
	Region            RegionID        `json:"region"`
	BytesPerSecond    float64         `json:"bytes_per_second,omitempty"` // from the VM to them
	RequestsPerSecond float64         `json:"requests_per_second,omitempty"`
}

// Reach is how far a region's clients are from a site.
type Reach struct {
	Region RegionID          `json:"region"`
	Site   heliotrope.SiteID `json:"site"`
	RTTMs  float64           `json:"rtt_ms"`
}

// Scope says what the members of a group share, or must not.
type Scope string

// The scopes of groups.
const (
	AtHost Scope = heliotrope.AtHost
	AtSite Scope = heliotrope.AtSite
)

// Group is VMs that must be together or apart.
type Group struct {
	Name  string            `json:"name"`
	VMs   []heliotrope.VMID `json:"vms"`
	Scope Scope             `json:"scope"`
}

// Placement says at which host each VM runs. A VM that is not in it runs nowhere.
type Placement map[heliotrope.VMID]heliotrope.HostID

// Placement is where the VMs are now.
func (s *Snapshot) Placement() Placement {
	p := make(Placement, len(s.VMs))
	for _, v := range s.VMs {
		if v.Host != "" {
			p[v.ID] = v.Host
		}
	}
	return p
}

// Only pins all VMs but some.
func (s Snapshot) Only(vms []heliotrope.VMID) Snapshot {
	s.VMs = slices.Clone(s.VMs)
	for i := range s.VMs {
		v := &s.VMs[i]
		v.Pinned = v.Pinned || !slices.Contains(vms, v.ID)
	}
	return s
}
