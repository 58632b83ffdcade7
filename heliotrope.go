package heliotrope

import (
	"net/netip"
	"slices"
)

// The names of things. A name is unique among its kind, and matches [a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?.
type (
	SiteID    string
	HostID    string
	LinkID    string
	NetworkID string
	VMID      string
	PeerID    string
	ClientID  string
	MoveID    string
	PlanID    string
	LicenceID string
	TenantID  string
)

// Topology is what an engineer wants to exist: the content of one topology file.
type Topology struct {
	Version    int                     `yaml:"version" json:"version"`
	Name       string                  `yaml:"name" json:"name"`
	Controller Controller              `yaml:"controller" json:"controller"`
	Sites      map[SiteID]Site         `yaml:"sites" json:"sites"`
	Links      map[LinkID]Link         `yaml:"links,omitempty" json:"links,omitempty"`
	Hosts      map[HostID]Host         `yaml:"hosts" json:"hosts"`
	Networks   map[NetworkID]Network   `yaml:"networks,omitempty" json:"networks,omitempty"`
	VMs        map[VMID]VM             `yaml:"vms,omitempty" json:"vms,omitempty"`
	Peers      map[PeerID]Peer         `yaml:"peers,omitempty" json:"peers,omitempty"`
	Clients    map[ClientID]Client     `yaml:"clients,omitempty" json:"clients,omitempty"`
	Capture    Capture                 `yaml:"capture,omitempty" json:"capture,omitzero"`
	Pools      map[PoolID]Pool         `yaml:"pools,omitempty" json:"pools,omitempty"`
	Policies   map[PolicyID]Policy     `yaml:"policies,omitempty" json:"policies,omitempty"`
	Rules      map[RuleID]Rule         `yaml:"rules,omitempty" json:"rules,omitempty"`
	Stubs      map[StubID]Stub         `yaml:"stubs,omitempty" json:"stubs,omitempty"`
	Demand     map[RegionID]Demand     `yaml:"demand,omitempty" json:"demand,omitempty"`
	Images     map[ImageID]ImagePolicy `yaml:"images,omitempty" json:"images,omitempty"`
}

// Controller says where the controller stands and as whom it speaks BGP.
type Controller struct {
	Site    SiteID     `yaml:"site" json:"site"`
	Address netip.Addr `yaml:"address" json:"address"` // in the site's underlay; also the BGP router ID
	AS      uint32     `yaml:"as" json:"as"`
}

// Site is one place of one provider: a LAN (the underlay) behind one router.
type Site struct {
	Description string       `yaml:"description,omitempty" json:"description,omitempty"`
	Provider    string       `yaml:"provider,omitempty" json:"provider,omitempty"`
	Underlay    netip.Prefix `yaml:"underlay" json:"underlay"`
	Router      netip.Addr   `yaml:"router" json:"router"` // the hosts' default gateway, in Underlay
	Latitude    float64      `yaml:"latitude,omitempty" json:"latitude,omitempty"`
	Longitude   float64      `yaml:"longitude,omitempty" json:"longitude,omitempty"`

	PricePerVCPUHour float64 `yaml:"price_per_vcpu_hour,omitempty" json:"price_per_vcpu_hour,omitempty"` // USD that a VM's vCPU costs here
	PricePerGiBHour  float64 `yaml:"price_per_gib_hour,omitempty" json:"price_per_gib_hour,omitempty"`   // USD that a GiB of its memory costs
	PricePerGB       float64 `yaml:"price_per_gb,omitempty" json:"price_per_gb,omitempty"`               // USD per 10^9 bytes to clients in regions of Topology.Demand

	GramsCO2PerVCPUHour  float64 `yaml:"grams_co2_per_vcpu_hour,omitempty" json:"grams_co2_per_vcpu_hour,omitempty"` // emitted for a VM's vCPU here
	InterruptionsPerHour float64 `yaml:"interruptions_per_hour,omitempty" json:"interruptions_per_hour,omitempty"`   // of a VM here, expected: revoked spot instances

	Billing Duration `yaml:"billing,omitempty" json:"billing,omitempty"` // vCPUs and memory are paid in whole periods of so long; zero: by the moment

	Licences     map[LicenceID]int     `yaml:"licences,omitempty" json:"licences,omitempty"`                       // seats for VMs at any of its hosts
	PricePerSeat map[LicenceID]float64 `yaml:"price_per_seat_hour,omitempty" json:"price_per_seat_hour,omitempty"` // USD for a seat beyond all these; not in it: there are none
}

// Link is the WAN between two sites, the same in both directions.
// Zero Rate, Loss, Jitter or Queue mean unlimited, none, none and a default queue of 50 ms.
type Link struct {
	Between    [2]SiteID `yaml:"between" json:"between"`
	Delay      Duration  `yaml:"delay" json:"delay"` // one way
	Jitter     Duration  `yaml:"jitter,omitempty" json:"jitter,omitempty"`
	Loss       float64   `yaml:"loss,omitempty" json:"loss,omitempty"` // share of packets, 0 to 1
	Rate       BitRate   `yaml:"rate,omitempty" json:"rate,omitempty"` // bits per second, each way
	Queue      Duration  `yaml:"queue,omitempty" json:"queue,omitempty"`
	PricePerGB float64   `yaml:"price_per_gb,omitempty" json:"price_per_gb,omitempty"` // USD per 10^9 bytes
	ImagesRate BitRate   `yaml:"images_rate,omitempty" json:"images_rate,omitempty"`   // most that images which are pushed take of it together, each way; zero: any
}

// Host is a machine (often itself a cloud VM) that runs Open vSwitch, libvirt and the agent.
type Host struct {
	Site      SiteID     `yaml:"site" json:"site"`
	Address   netip.Addr `yaml:"address" json:"address"` // underlay: VXLAN endpoint and relay
	Public    netip.Addr `yaml:"public" json:"public"`   // underlay: BGP next hop of public addresses; answered by br-int, not by the host
	CPUs      int        `yaml:"cpus,omitempty" json:"cpus,omitempty"`
	MemoryMiB int        `yaml:"memory_mib,omitempty" json:"memory_mib,omitempty"`

	Licences map[LicenceID]int `yaml:"licences,omitempty" json:"licences,omitempty"` // its own seats, for VMs here only

	InstanceType string `yaml:"instance_type,omitempty" json:"instance_type,omitempty"` // as the provider calls it: hosts of one type at one site ought to be alike
}

// Network is one virtual L2 segment that spans all hosts. Networks of the same
// non-empty Group are routed to each other at every host.
type Network struct {
	VNI     uint32       `yaml:"vni" json:"vni"`
	Subnet  netip.Prefix `yaml:"subnet" json:"subnet"`
	Gateway netip.Addr   `yaml:"gateway" json:"gateway"`
	MTU     int          `yaml:"mtu,omitempty" json:"mtu,omitempty"`
	Group   string       `yaml:"group,omitempty" json:"group,omitempty"`
	Capture string       `yaml:"capture,omitempty" json:"capture,omitempty"` // off: what its VMs send and get is not counted
}

// VM is a nested virtual machine. Host is where it starts; where it is now is a Placement.
type VM struct {
	Image     string            `yaml:"image" json:"image"`
	CPUs      int               `yaml:"cpus,omitempty" json:"cpus,omitempty"`
	MemoryMiB int               `yaml:"memory_mib,omitempty" json:"memory_mib,omitempty"`
	Host      HostID            `yaml:"host" json:"host"`
	NICs      []NIC             `yaml:"nics" json:"nics"`
	Tenant    TenantID          `yaml:"tenant,omitempty" json:"tenant,omitempty"`     // whose it is: what moves remember of memory is not shared between two
	Licences  map[LicenceID]int `yaml:"licences,omitempty" json:"licences,omitempty"` // seats that it needs where it runs
	Metadata  map[string]string `yaml:"metadata,omitempty" json:"metadata,omitempty"` // given to the guest

	InterruptionUSD float64 `yaml:"interruption_usd,omitempty" json:"interruption_usd,omitempty"` // what it costs that its host is taken from it
}

// NIC is one network card of a VM. Public is its own /32, mapped one to one onto
// Address without connection state, so that it survives any move.
type NIC struct {
	Network NetworkID  `yaml:"network" json:"network"`
	MAC     MAC        `yaml:"mac,omitzero" json:"mac,omitzero"` // zero: derived from VM name and index
	Address netip.Addr `yaml:"address" json:"address"`
	Public  netip.Addr `yaml:"public,omitzero" json:"public,omitzero"`
}

// Peer is a BGP neighbour of the controller, normally a site's router.
type Peer struct {
	Site     SiteID     `yaml:"site" json:"site"`
	Address  netip.Addr `yaml:"address" json:"address"`
	AS       uint32     `yaml:"as" json:"as"` // equal to the controller's: a route-reflector client
	Password string     `yaml:"password,omitempty" json:"-"`
}

// Client is a machine on a site's LAN that is not ours: somebody on the internet. Only the lab makes them.
type Client struct {
	Site    SiteID     `yaml:"site" json:"site"`
	Address netip.Addr `yaml:"address" json:"address"`
}

// CaptureOff is the Network.Capture and the Capture.Source that counts nothing.
const CaptureOff = "off"

// Capture says how hosts count who talks to whom. Only headers are looked at.
type Capture struct {
	Source   string  `yaml:"source,omitempty" json:"source,omitempty"`     // packets, ebpf, counters or off; empty: what fits the budget
	Budget   float64 `yaml:"budget,omitempty" json:"budget,omitempty"`     // share of one core of each host; zero: 0.05
	Sampling int     `yaml:"sampling,omitempty" json:"sampling,omitempty"` // look at one of so many packets; zero: as the budget allows
}

// VMState is what a host's hypervisor says of a VM.
type VMState string

const (
	VMAbsent   VMState = "absent"
	VMRunning  VMState = "running"
	VMPaused   VMState = "paused"
	VMShutOff  VMState = "shutoff"
	VMIncoming VMState = "incoming" // a move's destination, not yet running
	VMCrashed  VMState = "crashed"
)

// Placement says who owns a VM. Epoch grows by one with each change of owner; a host
// may run the VM's vCPUs only with a permit for this epoch.
type Placement struct {
	VM    VMID   `json:"vm"`
	Host  HostID `json:"host"`
	Epoch uint64 `json:"epoch"`
	// Incoming is the host that prepares to receive the VM, empty when none does.
	Incoming HostID `json:"incoming,omitempty"`
	// Opened lets Incoming's port send: set when the end of the copy is near, so that the
	// pause need not wait for it. Incoming's QEMU does not run before the commit.
	Opened bool `json:"opened,omitempty"`
	// Previous are hosts that may still receive packets for the VM and forward them.
	Previous []HostID `json:"previous,omitempty"`
}

// At says whether h owns the VM or prepares to.
func (p Placement) At(h HostID) bool { return p.Host == h || p.Incoming == h }

// WasAt says whether h forwards stragglers to the VM's owner.
func (p Placement) WasAt(h HostID) bool { return slices.Contains(p.Previous, h) }
