package controller

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/ovsdb"
)

// inventory answers what hosts and VMs there are from the current view.
type inventory struct{ *Controller }

// Hosts are those of the topology and those that joined, by name.
func (c inventory) Hosts(context.Context) ([]api.Host, error) {
	v := c.world.view()
	names := make(map[heliotrope.HostID]bool)
	for h := range v.topology.Hosts {
		names[h] = true
	}
	for h := range v.members {
		names[h] = true
	}
	var hosts []api.Host
	for _, h := range slices.Sorted(maps.Keys(names)) {
		hosts = append(hosts, hostView(v, h))
	}
	return hosts, nil
}

func hostView(v *view, h heliotrope.HostID) api.Host {
	spec, facts := v.topology.Hosts[h], v.hosts[h]
	s := facts.status
	out := api.Host{Name: h, Site: spec.Site, Address: spec.Address, Public: spec.Public, State: api.HostExpected,
		LastSeen: facts.lastSeen, RPC: facts.agent != nil, OVSDB: facts.ovsdb, OpenFlow: facts.openflow,
		Agent: s.Version, CPUs: cmp.Or(s.CPUs, spec.CPUs), MemoryMiB: cmp.Or(s.MemoryMiB, spec.MemoryMiB), KVM: s.KVM,
		QEMU: s.QEMU, Libvirt: s.Libvirt, UnderlayMTU: s.UnderlayMTU, Warnings: slices.Clone(s.Warnings)}
	if r, ok := v.members[h]; ok {
		out.JoinedAt, out.DrainedAt, out.DrainedBy, out.DrainReason = r.JoinedAt, r.DrainedAt, r.DrainedBy, r.Reason
		out.State = api.HostJoined
		up := 0
		for _, ok := range []bool{out.RPC, out.OVSDB, out.OpenFlow} {
			if ok {
				up++
			}
		}
		switch {
		case r.Revoked():
			out.State = api.HostRevoked
		case up == 3:
			out.State = api.HostUp
		case up > 0:
			out.State = api.HostDegraded
		case !facts.lastSeen.IsZero():
			out.State = api.HostLost
		}
	}
	for _, loop := range slices.Sorted(maps.Keys(facts.trouble)) {
		if facts.trouble[loop] != "" {
			out.Warnings = append(out.Warnings, facts.trouble[loop])
		}
	}
	for _, vm := range s.VMs {
		if p, ok := v.placements[vm.VM]; vm.Foreign || !ok || !p.At(h) {
			out.Unmanaged = append(out.Unmanaged, fmt.Sprintf("vm %s (%s)", cmp.Or(string(vm.VM), vm.UUID), vm.State))
		}
	}
	for _, p := range facts.ports {
		if p.Foreign && p.Bridge == ovsdb.IntBridge { // br-phy is the host's own
			out.Unmanaged = append(out.Unmanaged, fmt.Sprintf("port %s of %s", p.Name, p.Bridge))
		}
	}
	for _, vm := range slices.Sorted(maps.Keys(v.placements)) {
		if v.placements[vm].Host == h {
			out.VMs = append(out.VMs, vm)
		}
	}
	return out
}

// VMs are those of the topology, by name.
func (c inventory) VMs(context.Context) ([]api.VM, error) {
	v := c.world.view()
	var vms []api.VM
	for _, id := range slices.Sorted(maps.Keys(v.topology.VMs)) {
		vms = append(vms, vmView(v, id))
	}
	return vms, nil
}

func vmView(v *view, id heliotrope.VMID) api.VM {
	spec, p := v.topology.VMs[id], v.placements[id]
	out := api.VM{Name: id, State: "unknown", Host: p.Host, Site: v.topology.Hosts[p.Host].Site, Epoch: p.Epoch,
		Home: spec.Host, Image: spec.Image, CPUs: spec.CPUs, MemoryMiB: spec.MemoryMiB, NICs: spec.NICs}
	for h, facts := range v.hosts {
		for _, s := range facts.status.VMs {
			switch {
			case s.VM != id || s.Foreign:
			case h == p.Host && facts.agent != nil:
				out.State = string(s.State)
			case h != p.Host && s.State == heliotrope.VMRunning:
				out.Warnings = append(out.Warnings, fmt.Sprintf("%s says that it runs there too", h))
			}
		}
	}
	if facts := v.hosts[p.Host]; out.State == "unknown" && facts.agent != nil && !facts.statusAt.IsZero() {
		out.State = string(heliotrope.VMAbsent)
	}
	if m, ok := v.moving(id); ok {
		out.Migration = m.ID
	}
	return out
}

// check is one line of a preflight.
func check(name string, ok bool, format string, args ...any) api.Check {
	return api.Check{Name: name, OK: ok, Detail: fmt.Sprintf(format, args...)}
}

// preflightChecks looks at everything that can be known of a move before it begins.
func preflightChecks(v *view, vm heliotrope.VMID, from, to heliotrope.HostID) []api.Check {
	src, dst := v.hosts[from], v.hosts[to]
	state := vmView(v, vm).State
	checks := []api.Check{
		check("source", src.agent != nil && src.openflow, "%s is %s", from, connected(src)),
		check("destination", dst.agent != nil && dst.openflow && dst.ovsdb, "%s is %s", to, connected(dst)),
		check("vm runs", state == string(heliotrope.VMRunning), "%s is %s at %s", vm, state, from),
	}
	if dst.status.NoVMs {
		checks = append(checks, check("destination", false, "%s has no hypervisor: it runs no VMs", to))
	}
	used, limit := memoryUsed(v, to), cmp.Or(v.topology.Hosts[to].MemoryMiB, dst.status.MemoryMiB)
	need := v.topology.VMs[vm].MemoryMiB
	checks = append(checks, check("memory", limit == 0 || used+need <= limit, "%s has %d of %d MiB given out, %s needs %d", to, used, limit, vm, need))
	rule := map[bool]string{false: ": a VM cannot change between them"}[src.status.KVM == dst.status.KVM]
	checks = append(checks, check("hypervisor", rule == "", "%s uses %s, %s uses %s%s", from, accelerator(src), to, accelerator(dst), rule))
	if t, ok := src.tunnel(to); ok {
		checks = append(checks, check("tunnel", t.up(), "the tunnel from %s to %s: %s", from, to, t.words()))
	} else {
		checks = append(checks, check("tunnel", false, "there is no tunnel from %s to %s", from, to))
	}
	return checks
}

func connected(f hostFacts) string {
	switch {
	case f.agent == nil:
		return "not connected"
	case !f.openflow || !f.ovsdb:
		return "connected without its switch"
	}
	return "connected"
}

func accelerator(f hostFacts) string {
	if f.status.KVM {
		return "KVM"
	}
	return "TCG"
}

// memoryUsed is what a host's VMs were promised, in MiB, one on its way in included.
func memoryUsed(v *view, h heliotrope.HostID) int {
	sum := 0
	for vm, p := range v.placements {
		if p.At(h) {
			sum += v.topology.VMs[vm].MemoryMiB
		}
	}
	return sum
}

// Leader and Checks answer /readyz.
type health struct{ *Controller }

// Leader is this controller while it leads, else whoever the store names.
func (c health) Leader(ctx context.Context) (string, int64) {
	name, term, err := c.store.Leader(ctx)
	if err != nil {
		return "", 0
	}
	return name, int64(term)
}

// Checks looks at the store, the leader and the hosts.
func (c health) Checks(ctx context.Context) []api.Check {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := c.store.Ping(ctx)
	checks := []api.Check{check("store", err == nil, "%s", cmp.Or(errorText(err), "answers"))}
	name, term := c.Leader(ctx)
	checks = append(checks, check("leader", name != "", "%s in term %d", cmp.Or(name, "nobody"), term))
	v := c.world.view()
	checks = append(checks, check("view", v.revision > 0, "up to revision %d", v.revision))
	return checks
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
