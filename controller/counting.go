package controller

import (
	"cmp"
	"context"
	"net/netip"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/autopilot"
	"heliotrope/controller/collector"
	"heliotrope/controller/images"
	"heliotrope/controller/snapshots"
	"heliotrope/controller/world"
	"heliotrope/hostagent/agentapi"
	"heliotrope/ovsdb"
	"heliotrope/scheduler/traffic"
	"heliotrope/topologies"
)

// door is what the membership of hosts sees of the view.
type door struct{ *Controller }

// Known says whether a host is in the topology.
func (c door) Known(h heliotrope.HostID) bool {
	_, ok := c.world.View().Topology.Hosts[h]
	return ok
}

// Event records what happened to a host.
func (c door) Event(h heliotrope.HostID, message string, fields map[string]string) {
	c.event("host", string(h), message, fields)
}

// allowed says whether host has joined and was not revoked since.
func (c *Controller) allowed(host heliotrope.HostID) bool {
	r, ok := c.world.View().Members[host]
	return ok && !r.Revoked()
}

// counted is what the collector of traffic sees of the view.
type counted struct{ *Controller }

// Leads says whether this controller does.
func (c counted) Leads() bool { return c.leading() != nil }

// Tell records what happened.
func (c counted) Tell(kind, subject, message string) { c.event(kind, subject, message, nil) }

// Fabric is the topology and where its VMs and stubs are.
func (c counted) Fabric() collector.Fabric {
	v := c.world.View()
	t, placements := v.Topology.Ends(v.Placements)
	return collector.Fabric{Topology: t, Placements: placements}
}

// ImageHosts are the hosts of the topology, and the term while this controller leads.
func (c counted) ImageHosts() (all []images.Host, term uint64) {
	v := c.world.View()
	shared := c.sharedLinks(v.Topology)
	for id := range v.Topology.Hosts {
		h := c.imageHost(v, id)
		h.Shared = shared[h.Site]
		all = append(all, h)
	}
	return all, c.Term()
}

// imageSite is where the image store is.
func (c counted) imageSite(t heliotrope.Topology) heliotrope.SiteID {
	return cmp.Or(heliotrope.SiteID(c.cfg.ImageSite), t.Controller.Site)
}

// sharedLinks are, by site, the links on the way from the image store that images share.
func (c counted) sharedLinks(t heliotrope.Topology) map[heliotrope.SiteID]map[heliotrope.LinkID]heliotrope.BitRate {
	some := false
	for _, l := range t.Links {
		some = some || l.ImagesRate > 0
	}
	if !some {
		return nil
	}
	all := map[heliotrope.SiteID]map[heliotrope.LinkID]heliotrope.BitRate{}
	for site, way := range topologies.Ways(t, c.imageSite(t)) {
		for _, id := range way {
			if rate := t.Links[id].ImagesRate; rate > 0 {
				if all[site] == nil {
					all[site] = map[heliotrope.LinkID]heliotrope.BitRate{}
				}
				all[site][id] = rate
			}
		}
	}
	return all
}

// imageHost is a host of the topology as one that may have images.
func (c counted) imageHost(v *world.View, id heliotrope.HostID) images.Host {
	site := v.Topology.Hosts[id].Site
	store := c.imageSite(v.Topology)
	h := images.Host{ID: id, Site: site, Images: v.Hosts[id].Status.Images, Link: linkBetween(v.Topology, store, site), Local: site == store,
		Relay: netip.AddrPortFrom(v.Topology.Hosts[id].Address, agentapi.RelayPort)}
	if agent := v.Hosts[id].Agent; agent != nil {
		h.Agent = agent
	}
	return h
}

// Term is that under which hosts get orders; 0: another controller leads.
func (c counted) Term() uint64 {
	if d := c.leading(); d != nil {
		return d.term
	}
	return 0
}

// SnapshotVM is a VM of the topology as one whose disk may have a snapshot.
func (c counted) SnapshotVM(id heliotrope.VMID) (vm snapshots.VM, ok bool) {
	v := c.world.View()
	if _, ok = v.Topology.VMs[id]; !ok {
		return vm, false
	}
	vm.Host = v.Placements[id].Host
	if m, moving := v.Moving(id); moving {
		vm.Move = m.ID
	}
	for _, s := range v.Hosts[vm.Host].Status.VMs {
		if s.VM == id {
			vm.State = s.State
		}
	}
	if vm.Host != "" {
		vm.Link = c.imageHost(v, vm.Host).Link
	}
	return vm, true
}

// SnapshotAgent is a host's agent, where it is connected.
func (c counted) SnapshotAgent(h heliotrope.HostID) (a snapshots.Agent, known bool) {
	v := c.world.View()
	if agent := v.Hosts[h].Agent; agent != nil {
		a = agent
	}
	_, known = v.Topology.Hosts[h]
	return a, known
}

// Devices are the network devices of a host's ports that are VMs', by interface ID.
func (c counted) Devices(h heliotrope.HostID) map[string]string {
	devices := make(map[string]string)
	for _, p := range c.world.View().Hosts[h].Ports {
		if p.Bridge == ovsdb.IntBridge && p.IfaceID != "" {
			devices[p.IfaceID] = p.Name
		}
	}
	return devices
}

// Topology is the one in force.
func (c counted) Topology() heliotrope.Topology { return c.world.View().Topology }

// Paths are those from a host to the others, as measured lately.
func (c counted) Paths(h heliotrope.HostID) []agentapi.Path {
	return c.world.View().Hosts[h].Status.Paths
}

// steered is what the autopilot sees of the view, and how it moves VMs.
type steered struct{ operations }

// Topology is the one in force, at the prices of now, and where its VMs are.
func (c steered) Topology() (heliotrope.Topology, map[heliotrope.VMID]heliotrope.Placement) {
	v := c.world.View()
	t := v.Topology
	c.prices.Apply(&t)
	return t, v.Placements
}

// Host is how a host is.
func (c steered) Host(h heliotrope.HostID) autopilot.Host {
	v := c.world.View()
	f := v.Hosts[h]
	return autopilot.Host{CPUs: f.Status.CPUs, MemoryMiB: f.Status.MemoryMiB, Connected: f.Agent != nil, Drained: v.Members[h].Drained()}
}

// stale is how old what a host said may be: it is asked every few seconds.
const stale = 30 * time.Second

// Paths are those that a host measured lately to others.
func (c steered) Paths(h heliotrope.HostID) []agentapi.Path {
	f := c.world.View().Hosts[h]
	if f.Agent == nil || time.Since(f.StatusAt) > stale {
		return nil
	}
	return f.Status.Paths
}

// Speeds are how many reference vCPUs a vCPU of each host that was measured is worth.
func (c steered) Speeds() map[heliotrope.HostID]float64 { return c.speeds.Speeds() }

// Counted is the traffic of a time.
func (c steered) Counted(ctx context.Context, end time.Time, span time.Duration) (traffic.Matrix, error) {
	return c.traffic.Matrix(ctx, api.TrafficQuery{End: end, Window: span})
}

// Tell records what happened.
func (c steered) Tell(kind, subject, message string) { c.event(kind, subject, message, nil) }

// Follow calls f now and after each change of Fabric or of Devices(h), until ctx ends.
func (c counted) Follow(ctx context.Context, h heliotrope.HostID, f func()) error {
	key := func(v *world.View) world.Compiled {
		return world.Compiled{Fabric: v.Fabric, Ports: v.Hosts[h].PortsGen}
	}
	return world.Follow(ctx, c.world, key, func(*world.View) { f() })
}
