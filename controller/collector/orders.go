package collector

import (
	"cmp"
	"maps"
	"slices"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

// What a host is told where the topology does not say.
const (
	defaultBudget = 0.05 // of one core
	maxKeys       = 16384
	grain4        = 24
	grain6        = 48
)

// Fabric is what the controller knows at one moment, as far as it matters for counting.
type Fabric struct {
	Topology   heliotrope.Topology
	Placements map[heliotrope.VMID]heliotrope.Placement
	Counting   map[heliotrope.HostID]bool // hosts that count what their VMs send
}

// HostOf says where each VM is.
func (f Fabric) HostOf() map[heliotrope.VMID]heliotrope.HostID {
	hosts := make(map[heliotrope.VMID]heliotrope.HostID, len(f.Placements))
	for vm, p := range f.Placements {
		hosts[vm] = p.Host
	}
	return hosts
}

// Domain names the address space of a network: those of one group share one.
func Domain(id heliotrope.NetworkID, n heliotrope.Network) string {
	if n.Group != "" {
		return "group/" + n.Group
	}
	return "network/" + string(id)
}

// Orders are what a host is to count; devices are those of the host's ports, by interface
// ID (heliotrope.InterfaceID). Of a network that does not want it no port is counted, and
// nothing that goes to or comes from its addresses.
func Orders(f Fabric, devices map[string]string) traffic.Orders {
	c := f.Topology.Capture
	o := traffic.Orders{Source: traffic.Source(c.Source), Sampling: uint32(c.Sampling), Budget: cmp.Or(c.Budget, defaultBudget),
		MaxKeys: maxKeys, Grain4: grain4, Grain6: grain6}
	if c.Source == heliotrope.CaptureOff || o.Source == traffic.SourceCounters {
		return traffic.Orders{} // nothing, or what the switch counts by itself
	}
	for _, vm := range slices.Sorted(maps.Keys(f.Topology.VMs)) {
		counted := f.Counting[f.Placements[vm].Host]
		for i, nic := range f.Topology.VMs[vm].NICs {
			network := f.Topology.Networks[nic.Network]
			domain, off := Domain(nic.Network, network), network.Capture == heliotrope.CaptureOff
			if device, ok := devices[heliotrope.InterfaceID(vm, i)]; ok && !off {
				o.Ports = append(o.Ports, traffic.Port{Device: device, VM: vm, Domain: domain})
			}
			o.Book = append(o.Book, traffic.Address{Domain: domain, Address: nic.Address, VM: vm, Counted: counted, Off: off})
			if nic.Public.IsValid() {
				o.Book = append(o.Book, traffic.Address{Address: nic.Public, VM: vm, Counted: counted, Off: off})
			}
		}
	}
	return o
}
