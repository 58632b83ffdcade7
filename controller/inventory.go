package controller

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/world"
	"heliotrope/ovsdb"
)

// inventory answers what hosts and VMs there are from the current view.
type inventory struct{ *Controller }

// Hosts are those of the topology and those that joined, by name.
func (c inventory) Hosts(context.Context) ([]api.Host, error) {
	v := c.world.View()
	names := make(map[heliotrope.HostID]bool)
	for h := range v.Topology.Hosts {
		names[h] = true
	}
	for h := range v.Members {
		names[h] = true
	}
	var hosts []api.Host
	for _, h := range slices.Sorted(maps.Keys(names)) {
		hosts = append(hosts, hostView(v, h))
	}
	return hosts, nil
}

func hostView(v *world.View, h heliotrope.HostID) api.Host {
	spec, facts := v.Topology.Hosts[h], v.Hosts[h]
	s := facts.Status
	out := api.Host{Name: h, Site: spec.Site, Address: spec.Address, Public: spec.Public, State: api.HostExpected,
		LastSeen: facts.LastSeen, RPC: facts.Agent != nil, OVSDB: facts.OVSDB, OpenFlow: facts.OpenFlow,
		Agent: s.Version, CPUs: cmp.Or(s.CPUs, spec.CPUs), MemoryMiB: cmp.Or(s.MemoryMiB, spec.MemoryMiB), KVM: s.KVM,
		QEMU: s.QEMU, Libvirt: s.Libvirt, UnderlayMTU: s.UnderlayMTU, Warnings: slices.Clone(s.Warnings)}
	if r, ok := v.Members[h]; ok {
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
		case !facts.LastSeen.IsZero():
			out.State = api.HostLost
		}
	}
	for _, loop := range slices.Sorted(maps.Keys(facts.Trouble)) {
		if facts.Trouble[loop] != "" {
			out.Warnings = append(out.Warnings, facts.Trouble[loop])
		}
	}
	for _, vm := range s.VMs {
		if p, ok := v.Placements[vm.VM]; vm.Foreign || !ok || !p.At(h) {
			out.Unmanaged = append(out.Unmanaged, fmt.Sprintf("vm %s (%s)", cmp.Or(string(vm.VM), vm.UUID), vm.State))
		}
	}
	for _, p := range facts.Ports {
		if p.Foreign && p.Bridge == ovsdb.IntBridge { // br-phy is the host's own
			out.Unmanaged = append(out.Unmanaged, fmt.Sprintf("port %s of %s", p.Name, p.Bridge))
		}
	}
	for _, vm := range slices.Sorted(maps.Keys(v.Placements)) {
		if v.Placements[vm].Host == h {
			out.VMs = append(out.VMs, vm)
		}
	}
	return out
}

// VMs are those of the topology, by name.
func (c inventory) VMs(context.Context) ([]api.VM, error) {
	v := c.world.View()
	var vms []api.VM
	for _, id := range slices.Sorted(maps.Keys(v.Topology.VMs)) {
		vms = append(vms, vmView(v, id))
	}
	return vms, nil
}

func vmView(v *world.View, id heliotrope.VMID) api.VM {
	spec, p := v.Topology.VMs[id], v.Placements[id]
	out := api.VM{Name: id, State: "unknown", Host: p.Host, Site: v.Topology.Hosts[p.Host].Site, Epoch: p.Epoch,
		Home: spec.Host, Image: spec.Image, CPUs: spec.CPUs, MemoryMiB: spec.MemoryMiB, Tenant: spec.Tenant, NICs: spec.NICs}
	for h, facts := range v.Hosts {
		for _, s := range facts.Status.VMs {
			switch {
			case s.VM != id || s.Foreign:
			case h == p.Host && facts.Agent != nil:
				out.State = string(s.State)
			case h != p.Host && s.State == heliotrope.VMRunning:
				out.Warnings = append(out.Warnings, fmt.Sprintf("%s says that it runs there too", h))
			}
		}
	}
	if facts := v.Hosts[p.Host]; out.State == "unknown" && facts.Agent != nil && !facts.StatusAt.IsZero() {
		out.State = string(heliotrope.VMAbsent)
	}
	for line := range strings.SplitSeq(v.Hosts[p.Host].Trouble["vms"], "\n") {
		if _, why, ok := strings.Cut(line, vmTrouble(id)); ok {
			out.Warnings = append(out.Warnings, why)
		}
	}
	if m, ok := v.Moving(id); ok {
		out.Migration = m.ID
	}
	return out
}

// vmTrouble is before what is wrong with a VM, in a line of its host's trouble.
func vmTrouble(vm heliotrope.VMID) string { return "vm " + string(vm) + ": " }

// check is one line of a preflight.
func check(name string, ok bool, format string, args ...any) api.Check {
	return api.Check{Name: name, OK: ok, Detail: fmt.Sprintf(format, args...)}
}

// preflightChecks looks at everything that can be known of a move before it begins.
func preflightChecks(v *world.View, vm heliotrope.VMID, from, to heliotrope.HostID) []api.Check {
	src, dst := v.Hosts[from], v.Hosts[to]
	state := vmView(v, vm).State
	checks := []api.Check{
		check("source", src.Agent != nil && src.OpenFlow, "%s is %s", from, connected(src)),
		check("destination", dst.Agent != nil && dst.OpenFlow && dst.OVSDB, "%s is %s", to, connected(dst)),
		check("vm runs", state == string(heliotrope.VMRunning), "%s is %s at %s", vm, state, from),
	}
	if dst.Status.NoVMs {
		checks = append(checks, check("destination", false, "%s has no hypervisor: it runs no VMs", to))
	}
	used, limit := memoryUsed(v, to), cmp.Or(v.Topology.Hosts[to].MemoryMiB, dst.Status.MemoryMiB)
	need := v.Topology.VMs[vm].MemoryMiB
	checks = append(checks, check("memory", limit == 0 || used+need <= limit, "%s has %d of %d MiB given out, %s needs %d", to, used, limit, vm, need))
	rule := map[bool]string{false: ": a VM cannot change between them"}[src.Status.KVM == dst.Status.KVM]
	checks = append(checks, check("hypervisor", rule == "", "%s uses %s, %s uses %s%s", from, accelerator(src), to, accelerator(dst), rule))
	if t, ok := src.Tunnel(to); ok {
		checks = append(checks, check("tunnel", t.Up(), "the tunnel from %s to %s: %s", from, to, t.Words()))
	} else {
		checks = append(checks, check("tunnel", false, "there is no tunnel from %s to %s", from, to))
	}
	return checks
}

func connected(f world.Host) string {
	switch {
	case f.Agent == nil:
		return "not connected"
	case !f.OpenFlow || !f.OVSDB:
		return "connected without its switch"
	}
	return "connected"
}

func accelerator(f world.Host) string {
	if f.Status.KVM {
		return "KVM"
	}
	return "TCG"
}

// memoryUsed is what a host's VMs were promised, in MiB, one on its way in included.
func memoryUsed(v *world.View, h heliotrope.HostID) int {
	sum := 0
	for vm, p := range v.Placements {
		if p.At(h) {
			sum += v.Topology.VMs[vm].MemoryMiB
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
	v := c.world.View()
	checks = append(checks, check("view", v.Revision > 0, "up to revision %d", v.Revision))
	return checks
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
