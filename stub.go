package heliotrope

import (
	"cmp"
	"maps"
	"net/netip"
	"time"
)

// StubID names a stub. No VM has the same name.
type StubID string

// Stub is a resource that is bound to a place: a device, a dataset, a licence. It appears
// in a network as an address that is the same everywhere.
type Stub struct {
	Description string     `yaml:"description,omitempty" json:"description,omitempty"` // for people
	Host        HostID     `yaml:"host" json:"host"`                                   // where it is
	Port        string     `yaml:"port" json:"port"`                                   // the network device of that host that it is behind
	Network     NetworkID  `yaml:"network" json:"network"`                             // in which it appears
	Address     netip.Addr `yaml:"address" json:"address"`                             // in the network's subnet
	MAC         MAC        `yaml:"mac,omitzero" json:"mac,omitzero"`                   // its own; zero: derived from its name
	Access      string     `yaml:"access,omitempty" json:"access,omitempty"`           // auto, proxy or local; empty: auto
	Linger      Duration   `yaml:"linger,omitempty" json:"linger,omitzero"`            // local: how long a VM stays after its last access; zero: 10m
}

// What becomes of an access from another site than the stub's.
const (
	// AccessAuto carries it over the mesh, until that has cost as much as moving the VM
	// there would; then the VM is moved.
	AccessAuto = "auto"
	// AccessProxy carries it over the mesh.
	AccessProxy = "proxy"
	// AccessLocal lets it wait until the VM has been moved to the stub's site.
	AccessLocal = "local"
)

// AccessOf is s.Access, or what it is where that is empty.
func (s Stub) AccessOf() string { return cmp.Or(s.Access, AccessAuto) }

// LingerOf is s.Linger, or what it is where that is zero.
func (s Stub) LingerOf() time.Duration { return cmp.Or(time.Duration(s.Linger), 10*time.Minute) }

// NIC is what a stub is to the network.
func (s Stub) NIC(id StubID) NIC {
	nic := NIC{Network: s.Network, MAC: s.MAC, Address: s.Address}
	if nic.MAC.IsZero() {
		nic.MAC = NICMAC(VMID(id), 0)
	}
	return nic
}

// Withheld is true for what a host does not let its VMs reach: a stub of access local that
// is at another site.
func (t Topology) Withheld(end VMID, from HostID) bool {
	s, ok := t.Stubs[StubID(end)]
	return ok && s.AccessOf() == AccessLocal && t.Hosts[s.Host].Site != t.Hosts[from].Site
}

// Ends returns t with its stubs among the VMs, and where they all are: to packets and to
// those who count them, a stub is a VM that never moves.
func (t Topology) Ends(placements map[VMID]Placement) (Topology, map[VMID]Placement) {
	if len(t.Stubs) == 0 {
		return t, placements
	}
	t.VMs, placements = maps.Clone(t.VMs), maps.Clone(placements)
	if t.VMs == nil {
		t.VMs = map[VMID]VM{}
	}
	if placements == nil {
		placements = map[VMID]Placement{}
	}
	for id, s := range t.Stubs {
		t.VMs[VMID(id)] = VM{Host: s.Host, NICs: []NIC{s.NIC(id)}}
		placements[VMID(id)] = Placement{VM: VMID(id), Host: s.Host, Epoch: 1}
	}
	return t, placements
}
