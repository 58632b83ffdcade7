package flows

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"heliotrope"
)

// View is all that the flows of one host depend on.
type View struct {
	Host       heliotrope.HostID
	Topology   heliotrope.Topology
	Placements map[heliotrope.VMID]heliotrope.Placement
	Ports      Ports
	GatewayMAC heliotrope.MAC // of the site's router; zero while unknown: nothing is sent outside
	Counters   int            // how many flows may count who talks to whom, such as DefaultCounters; 0: nobody counts
}

// Ports are OpenFlow port numbers of br-int. Zero, or no entry, is a port that is not
// there (yet): its flows are left out.
type Ports struct {
	NIC        map[NICKey]uint32
	Tunnel     map[heliotrope.HostID]uint32 // one port for each peer
	FlowTunnel uint32                       // one port for all peers that have none of their own
	Uplink     uint32                       // the patch to br-phy
}

// NICKey names a VM's Index-th NIC.
type NICKey struct {
	VM    heliotrope.VMID
	Index int
}

// NIC is a VM's NIC with all that flows need of it.
type NIC struct {
	NICKey
	VNI       uint32
	Domain    uint32
	MAC       heliotrope.MAC
	Address   netip.Addr
	Public    netip.Addr // zero: none
	Port      uint32     // on this host; zero: none
	Placement heliotrope.Placement
}

// Segment is a network with all that flows need of it.
type Segment struct {
	ID        heliotrope.NetworkID
	VNI       uint32
	Domain    uint32 // the lowest VNI of its group
	Subnet    netip.Prefix
	Gateway   netip.Addr
	Uncounted bool // what its VMs send and get is not counted
}

// Segments returns the networks, ordered by VNI.
func (v View) Segments() []Segment {
	lowest := map[string]uint32{}
	for _, n := range v.Topology.Networks {
		if d, ok := lowest[n.Group]; !ok || n.VNI < d {
			lowest[n.Group] = n.VNI
		}
	}
	var all []Segment
	for id, n := range v.Topology.Networks {
		s := Segment{ID: id, VNI: n.VNI, Domain: n.VNI, Subnet: n.Subnet.Masked(), Gateway: n.Gateway,
			Uncounted: n.Capture == heliotrope.CaptureOff}
		if n.Group != "" {
			s.Domain = lowest[n.Group]
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Segment) int { return cmp.Or(cmp.Compare(a.VNI, b.VNI), cmp.Compare(a.ID, b.ID)) })
	return all
}

// NICs returns all VMs' NICs, ordered by VM and index. NICs in a network that is not
// there are left out; Compile refuses such a topology.
func (v View) NICs() []NIC {
	segments := v.segmentsByID()
	var all []NIC
	for _, id := range slices.Sorted(maps.Keys(v.Topology.VMs)) {
		all = append(all, v.nicsOf(id, segments)...)
	}
	return all
}

func (v View) segmentsByID() map[heliotrope.NetworkID]Segment {
	segments := map[heliotrope.NetworkID]Segment{}
	for _, s := range v.Segments() {
		segments[s.ID] = s
	}
	return segments
}

// nicsOf returns one VM's NICs.
func (v View) nicsOf(id heliotrope.VMID, segments map[heliotrope.NetworkID]Segment) []NIC {
	var all []NIC
	for i, n := range v.Topology.VMs[id].NICs {
		s, ok := segments[n.Network]
		if !ok {
			continue
		}
		key := NICKey{id, i}
		nic := NIC{NICKey: key, VNI: s.VNI, Domain: s.Domain, MAC: n.MAC, Address: n.Address,
			Public: n.Public, Port: v.Ports.NIC[key], Placement: v.Placements[id]}
		if nic.MAC.IsZero() {
			nic.MAC = heliotrope.NICMAC(id, i)
		}
		all = append(all, nic)
	}
	return all
}

// check finds what would make two flows contradict each other.
func (v View) check() error {
	if _, ok := v.Topology.Hosts[v.Host]; !ok {
		return fmt.Errorf("host %q is not in the topology", v.Host)
	}
	return errors.Join(v.checkSegments(), v.checkNICs(), v.checkPorts())
}

func (v View) checkSegments() error {
	var errs []error
	byVNI := map[uint32]heliotrope.NetworkID{}
	for _, s := range v.Segments() {
		if other, ok := byVNI[s.VNI]; ok || s.VNI == 0 || s.VNI >= 1<<24 {
			errs = append(errs, fmt.Errorf("network %q: VNI %d is not free (%q) or not in 1 to 2^24-1", s.ID, s.VNI, other))
		}
		byVNI[s.VNI] = s.ID
		if !s.Subnet.IsValid() || !s.Subnet.Contains(s.Gateway) {
			errs = append(errs, fmt.Errorf("network %q: gateway %v is not in subnet %v", s.ID, s.Gateway, s.Subnet))
		}
	}
	return errors.Join(errs...)
}

func (v View) checkNICs() error {
	type place struct {
		where uint32
		what  any
	}
	var errs []error
	seen := map[place]NICKey{}
	claim := func(n NICKey, where uint32, what any) {
		if other, ok := seen[place{where, what}]; ok {
			errs = append(errs, fmt.Errorf("%v: %v is also that of %v", n, what, other))
		}
		seen[place{where, what}] = n
	}
	for _, s := range v.Segments() {
		claim(NICKey{VM: "gateway of " + heliotrope.VMID(s.ID)}, s.Domain, s.Gateway)
	}
	for _, n := range v.NICs() {
		claim(n.NICKey, n.VNI, n.MAC)
		claim(n.NICKey, n.Domain, n.Address)
		if n.Public.IsValid() {
			claim(n.NICKey, 0, n.Public)
		}
		if n.Public.IsValid() && n.Public.Is4() != n.Address.Is4() {
			errs = append(errs, fmt.Errorf("%v: public %v and private %v are of two families", n.NICKey, n.Public, n.Address))
		}
	}
	for id, vm := range v.Topology.VMs {
		for i, n := range vm.NICs {
			net, ok := v.Topology.Networks[n.Network]
			if !ok || !net.Subnet.Contains(n.Address) {
				errs = append(errs, fmt.Errorf("%v: address %v is not in network %q", NICKey{id, i}, n.Address, n.Network))
			}
		}
	}
	return errors.Join(errs...)
}

func (v View) checkPorts() error {
	owner := map[uint32]string{}
	var errs []error
	claim := func(port uint32, who string) {
		if other, ok := owner[port]; ok && port != 0 {
			errs = append(errs, fmt.Errorf("port %d is both %s and %s", port, other, who))
		}
		owner[port] = who
	}
	for k, p := range v.Ports.NIC {
		claim(p, k.String())
	}
	for h, p := range v.Ports.Tunnel {
		claim(p, "tunnel to "+string(h))
	}
	claim(v.Ports.FlowTunnel, "tunnel to all")
	claim(v.Ports.Uplink, "uplink")
	return errors.Join(errs...)
}

func (k NICKey) String() string { return fmt.Sprintf("VM %q NIC %d", k.VM, k.Index) }
