package world

import (
	"cmp"
	"fmt"
	"slices"

	"heliotrope"
	"heliotrope/ovsdb"
)

// Moving returns the move of vm that has not ended.
func (v *View) Moving(vm heliotrope.VMID) (Move, bool) {
	id, ok := v.Underway[vm]
	return v.Moves[id], ok
}

// FlowsReached says whether the switch of h has flows compiled from fabric or later and
// from the ports that it has now.
func (v *View) FlowsReached(h heliotrope.HostID, fabric uint64) bool {
	f := v.Hosts[h]
	return f.OpenFlow && f.Applied.Fabric >= fabric && f.Applied.Ports >= f.PortsGen
}

// KnowsPorts says whether the ports of h, which is in the topology, are known.
func (v *View) KnowsPorts(h heliotrope.HostID) bool {
	_, ok := v.Topology.Hosts[h]
	return ok && v.Hosts[h].OVSDB
}

// NICPorts returns the OpenFlow port numbers of vm's NICs at h; ok is false unless all are there.
func (v *View) NICPorts(h heliotrope.HostID, vm heliotrope.VMID) (ports map[int]uint32, ok bool) {
	ports = make(map[int]uint32)
	spec := v.Topology.VMs[vm]
	for i := range spec.NICs {
		for _, p := range v.Hosts[h].Ports {
			if p.IfaceID == heliotrope.InterfaceID(vm, i) && p.Ofport > 0 {
				ports[i] = uint32(p.Ofport)
			}
		}
	}
	return ports, len(ports) == len(spec.NICs)
}

// Behind are the hosts of the topology whose switches lack flows made from fabric.
func (v *View) Behind(fabric uint64) []heliotrope.HostID {
	var hosts []heliotrope.HostID
	for h := range v.Topology.Hosts {
		if !v.FlowsReached(h, fabric) {
			hosts = append(hosts, h)
		}
	}
	slices.Sort(hosts)
	return hosts
}

// Tunnel is a host's port to another.
type Tunnel ovsdb.Port

// Tunnel returns the port to another host.
func (f Host) Tunnel(to heliotrope.HostID) (Tunnel, bool) {
	for _, p := range f.Ports {
		if p.Bridge == ovsdb.IntBridge && p.Ofport > 0 && (p.Peer == to || p.Name == ovsdb.MeshPort) {
			return Tunnel(p), true
		}
	}
	return Tunnel{}, false
}

// Up says whether packets pass, as far as that is known: a shared tunnel port has no BFD.
func (t Tunnel) Up() bool { return t.BFD == nil || t.BFD.State == "up" && t.BFD.Forwarding }

// Words says how BFD sees it.
func (t Tunnel) Words() string {
	if t.BFD == nil {
		return "up, without BFD"
	}
	return fmt.Sprintf("BFD %s, %s", t.BFD.State, cmp.Or(t.BFD.Diagnostic, "no diagnostic"))
}
