package survey

import (
	"net/netip"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/traffic"
)

// Traffic tells a matrix as flows between VMs, and as demands of the regions that prefixes
// are in. What has neither end at a VM, or is in no region, is left out; so are requests,
// which a matrix does not count.
func Traffic(m traffic.Matrix, region func(netip.Prefix) (scheduler.RegionID, bool)) ([]scheduler.Flow, []scheduler.Demand) {
	seconds := m.To.Sub(m.From).Seconds()
	if seconds <= 0 {
		return nil, nil
	}
	type asker struct {
		vm     heliotrope.VMID
		region scheduler.RegionID
	}
	var flows []scheduler.Flow
	var demands []scheduler.Demand
	known := map[asker]int{}
	for _, c := range m.Cells {
		switch {
		case c.Src.IsVM() && c.Dst.IsVM():
			flows = append(flows, scheduler.Flow{Src: c.Src.VM, Dst: c.Dst.VM, BytesPerSecond: c.Bytes / seconds})
		case c.Src.IsVM():
			r, ok := region(c.Dst.Prefix)
			if !ok {
				continue
			}
			key := asker{c.Src.VM, r}
			i, ok := known[key]
			if !ok {
				i = len(demands)
				known[key] = i
				demands = append(demands, scheduler.Demand{VM: c.Src.VM, Region: r})
			}
			demands[i].BytesPerSecond += c.Bytes / seconds
		}
	}
	return flows, demands
}
