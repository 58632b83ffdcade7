package controller

import (
	"fmt"

	"heliotrope"
	"heliotrope/arpproxy"
	"heliotrope/controller/world"
	"heliotrope/flows"
	"heliotrope/ovsdb"
	"heliotrope/scheduler/traffic"
)

// pipeline is what the switch of a host has to hold. From one state to the next it compiles
// only the flows of VMs whose placements changed, unless more did.
type pipeline struct {
	host heliotrope.HostID
	made world.Compiled        // the state that the rest is of
	view flows.View            // that it was compiled from
	want map[string]flows.Flow // nil: start anew

	touched map[string]bool // keys that the last at changed; nil: any may be
}

// at returns the flows for v. The map is the pipeline's own, good until the next call.
func (p *pipeline) at(v *world.View) (map[string]flows.Flow, error) {
	if !v.KnowsPorts(p.host) {
		return nil, fmt.Errorf("ports of %s are not known yet", p.host)
	}
	now := world.Compiled{Fabric: v.Fabric, Ports: v.Hosts[p.host].PortsGen}
	vms, known := v.PlacedSince(p.made.Fabric)
	var err error
	if p.want == nil || !known || p.made.Ports != now.Ports {
		p.view = flowsView(v, p.host)
		p.want, err = compile(p.view)
		p.touched = nil
	} else {
		_, placements := v.Topology.Ends(v.Placements)
		err = p.follow(placements, vms)
	}
	if err != nil {
		p.want = nil
		return nil, err
	}
	p.made = now
	return p.want, nil
}

// follow takes over placements, which differ from the view's in those of vms.
func (p *pipeline) follow(placements map[heliotrope.VMID]heliotrope.Placement, vms []heliotrope.VMID) error {
	next := p.view
	next.Placements = placements
	p.touched = make(map[string]bool)
	for _, vm := range vms {
		old, err := flows.Placed(p.view, vm)
		if err != nil {
			return err
		}
		for _, f := range old {
			key := f.Key()
			delete(p.want, key)
			p.touched[key] = true
		}
		list, err := flows.Placed(next, vm)
		if err != nil {
			return err
		}
		for _, f := range list {
			key := f.Key()
			p.want[key] = f
			p.touched[key] = true
		}
	}
	p.view = next
	return nil
}

// flowsWanted compiles the flows of a host from a view.
func flowsWanted(v *world.View, h heliotrope.HostID) (map[string]flows.Flow, error) {
	if !v.KnowsPorts(h) {
		return nil, fmt.Errorf("ports of %s are not known yet", h)
	}
	return compile(flowsView(v, h))
}

func compile(v flows.View) (map[string]flows.Flow, error) {
	list, err := flows.Compile(v, arpproxy.Flows)
	if err != nil {
		return nil, err
	}
	want := make(map[string]flows.Flow, len(list))
	for _, f := range list {
		want[f.Key()] = f
	}
	return want, nil
}

// flowsView is what the flows of h are made of.
func flowsView(v *world.View, h heliotrope.HostID) flows.View {
	facts := v.Hosts[h]
	ports := flows.Ports{NIC: make(map[flows.NICKey]uint32), Tunnel: make(map[heliotrope.HostID]uint32)}
	cards := make(map[string]uint32)
	for _, p := range facts.Ports {
		switch {
		case p.Ofport <= 0:
		case p.IfaceID != "":
			cards[p.IfaceID] = uint32(p.Ofport)
		case p.Bridge != ovsdb.IntBridge:
		case p.Name == ovsdb.Uplink:
			ports.Uplink = uint32(p.Ofport)
		case p.Name == ovsdb.MeshPort:
			ports.FlowTunnel = uint32(p.Ofport)
		case p.Peer != "":
			ports.Tunnel[p.Peer] = uint32(p.Ofport)
		}
	}
	topology, placements := v.Topology.Ends(v.Placements)
	for vm, spec := range topology.VMs {
		if len(cards) == 0 {
			break
		}
		for i := range spec.NICs {
			if port, ok := cards[heliotrope.InterfaceID(vm, i)]; ok {
				ports.NIC[flows.NICKey{VM: vm, Index: i}] = port
			}
		}
	}
	counters := 0
	if traffic.Source(v.Topology.Capture.Source) == traffic.SourceCounters {
		counters = flows.DefaultCounters
	}
	return flows.View{Host: h, Topology: topology, Placements: placements, Ports: ports, GatewayMAC: facts.Status.GatewayMAC, Counters: counters}
}
