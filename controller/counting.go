package controller

import (
	"context"

	"heliotrope"
	"heliotrope/controller/collector"
	"heliotrope/ovsdb"
)

// door is what the membership of hosts sees of the view.
type door struct{ *Controller }

// Known says whether a host is in the topology.
func (c door) Known(h heliotrope.HostID) bool {
	_, ok := c.world.view().topology.Hosts[h]
	return ok
}

// Event records what happened to a host.
func (c door) Event(h heliotrope.HostID, message string, fields map[string]string) {
	c.event("host", string(h), message, fields)
}

// allowed says whether host has joined and was not revoked since.
func (c *Controller) allowed(host heliotrope.HostID) bool {
	r, ok := c.world.view().members[host]
	return ok && !r.Revoked()
}

// counted is what the collector of traffic sees of the view.
type counted struct{ *Controller }

// Leads says whether this controller does.
func (c counted) Leads() bool { return c.leading() != nil }

// Tell records what happened.
func (c counted) Tell(kind, subject, message string) { c.event(kind, subject, message, nil) }

// Fabric is the topology and where its VMs are.
func (c counted) Fabric() collector.Fabric {
	v := c.world.view()
	return collector.Fabric{Topology: v.topology, Placements: v.placements}
}

// Devices are the network devices of a host's ports that are VMs', by interface ID.
func (c counted) Devices(h heliotrope.HostID) map[string]string {
	devices := make(map[string]string)
	for _, p := range c.world.view().hosts[h].ports {
		if p.Bridge == ovsdb.IntBridge && p.IfaceID != "" {
			devices[p.IfaceID] = p.Name
		}
	}
	return devices
}

// Room is what a host says that it has.
func (c counted) Room(h heliotrope.HostID) (cpus, memoryMiB int) {
	s := c.world.view().hosts[h].status
	return s.CPUs, s.MemoryMiB
}

// Follow calls f now and after each change of Fabric or of Devices(h), until ctx ends.
func (c counted) Follow(ctx context.Context, h heliotrope.HostID, f func()) error {
	key := func(v *view) appliedFlows { return appliedFlows{fabric: v.fabric, ports: v.hosts[h].portsGen} }
	return follow(ctx, c.world, key, func(*view) { f() })
}
