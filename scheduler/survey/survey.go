// Package survey makes of a topology, of where its VMs are and of the traffic that was
// counted what the scheduler decides on: a snapshot, and each pool's policy.
package survey

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/traffic"
)

const (
	lanRTTMs = 0.3 // within a site

	// usualPauseMs is what moves of small guests pause for where no distance adds to it; the
	// guests of the lab take 400 to 900 ms (docs/performance.md).
	usualPauseMs = 500
)

// Where a distance of a snapshot is from.
const (
	Measured = "measured" // by hosts
	Stated   = "stated"   // by the topology
)

// Facts are what is known besides a topology.
type Facts struct {
	Placements map[heliotrope.VMID]heliotrope.Placement
	Traffic    traffic.Matrix
	Speeds     map[heliotrope.HostID]float64    // of hosts that were measured (perf.Speeds)
	Since      map[heliotrope.VMID]time.Time    // when VMs came to their sites, of those that have come from another
	RTTMs      map[[2]heliotrope.SiteID]float64 // of pairs of sites whose hosts measure it (Distances.Believed)
}

// Take makes a snapshot of what a topology says and what is known besides. Prices are those
// of the topology's links, and so are distances, in lieu of measured ones; each way of the
// snapshot says which. Clients are at the site whose underlay their address is in, which may
// have no hosts, or in the region whose prefixes it is in. Those elsewhere are left out, since
// nobody says how far they are. Of a VM's clients in a region what was counted counts; where
// nothing was, what the topology says that they ask at that hour.
// A VM on the move stays where it is going. A host has room for what it has now, also where
// that is more than is said of it, or nothing is said. Rules are taken in, but for those of
// distance: Limits.
//
// A vCPU of the snapshot is a reference vCPU, so that it means the same everywhere: speeds
// say how many of them a vCPU of a host is worth; where they say nothing it is one. A VM of
// n vCPUs asks for n reference vCPUs. A host of 8 vCPUs at 0.75 has room for 6, and a site
// whose vCPUs are worth 0.75 gives a reference vCPU for 1 1/3 of its price, and of its CO2.
func Take(at time.Time, t heliotrope.Topology, f Facts) scheduler.Snapshot {
	s := snapshot{scheduler.Snapshot{At: at}}
	hosted := map[heliotrope.SiteID]bool{}
	for _, id := range slices.Sorted(maps.Keys(t.Hosts)) {
		h := t.Hosts[id]
		s.Hosts = append(s.Hosts, scheduler.Host{ID: id, Site: h.Site, VCPUs: float64(h.CPUs) * cmp.Or(f.Speeds[id], 1), MemoryMiB: float64(h.MemoryMiB), Licences: h.Licences})
		hosted[h.Site] = true
	}
	for _, id := range slices.Sorted(maps.Keys(t.VMs)) {
		s.VMs = append(s.VMs, surveyVM(id, t.VMs[id], f))
	}
	for _, id := range slices.Sorted(maps.Keys(t.Stubs)) { // what exchanges bytes with VMs, and stays
		s.VMs = append(s.VMs, scheduler.VM{ID: heliotrope.VMID(id), Host: t.Stubs[id].Host, Pinned: true})
	}
	s.fill()
	s.rules(t)
	region := func(p netip.Prefix) (scheduler.RegionID, bool) {
		for id, site := range t.Sites {
			if site.Underlay.Contains(p.Addr()) {
				return scheduler.RegionID(id), true
			}
		}
		for id, d := range t.Demand {
			if slices.ContainsFunc(d.Prefixes, func(c netip.Prefix) bool { return c.Contains(p.Addr()) }) {
				return scheduler.RegionID(id), true
			}
		}
		return "", false
	}
	s.Flows, s.Demands = Traffic(known(f.Traffic, t), region)
	s.demand(t)
	s.places(t, hosted, f.RTTMs)
	for i, site := range s.Sites {
		speed := siteSpeed(t, site.ID, f.Speeds)
		s.Sites[i].USDPerVCPUHour /= speed
		s.Sites[i].GramsCO2PerVCPUHour /= speed
	}
	return s.Snapshot
}

// snapshot is one in the making.
type snapshot struct{ scheduler.Snapshot }

// siteSpeed is what a site's vCPUs are worth on average: its price is for any of them.
func siteSpeed(t heliotrope.Topology, site heliotrope.SiteID, speeds map[heliotrope.HostID]float64) float64 {
	vcpus, reference := 0.0, 0.0
	for _, id := range slices.Sorted(maps.Keys(t.Hosts)) {
		if h := t.Hosts[id]; h.Site == site {
			n := float64(max(h.CPUs, 1)) // one where nobody knows how many there are
			vcpus, reference = vcpus+n, reference+n*cmp.Or(speeds[id], 1)
		}
	}
	return reference / vcpus
}

func surveyVM(id heliotrope.VMID, vm heliotrope.VM, f Facts) scheduler.VM {
	v := scheduler.VM{ID: id, VCPUs: float64(vm.CPUs), MemoryMiB: float64(vm.MemoryMiB), CopyBytes: float64(vm.MemoryMiB) * (1 << 20), PauseMs: usualPauseMs, Licences: vm.Licences, PaidSince: f.Since[id],
		InterruptionUSD: vm.InterruptionUSD}
	p := f.Placements[id]
	v.Host = p.Host
	if p.Incoming != "" {
		v.Host, v.Pinned = p.Incoming, true
	}
	return v
}

// fill makes room at hosts for what they have.
func (s *snapshot) fill() {
	at := map[heliotrope.HostID]*scheduler.Host{}
	for i := range s.Hosts {
		at[s.Hosts[i].ID] = &s.Hosts[i]
	}
	used := map[heliotrope.HostID]scheduler.VM{}
	for _, v := range s.VMs {
		u := used[v.Host]
		u.VCPUs, u.MemoryMiB = u.VCPUs+v.VCPUs, u.MemoryMiB+v.MemoryMiB
		used[v.Host] = u
	}
	for id, u := range used {
		if h := at[id]; h != nil {
			h.VCPUs, h.MemoryMiB = max(h.VCPUs, u.VCPUs), max(h.MemoryMiB, u.MemoryMiB)
		}
	}
}

// known is m without VMs and stubs that the topology has no longer.
func known(m traffic.Matrix, t heliotrope.Topology) traffic.Matrix {
	gone := func(e traffic.End) bool {
		_, vm := t.VMs[e.VM]
		_, stub := t.Stubs[heliotrope.StubID(e.VM)]
		return e.IsVM() && !vm && !stub
	}
	m.Cells = slices.DeleteFunc(slices.Clone(m.Cells), func(c traffic.Cell) bool { return gone(c.Src) || gone(c.Dst) })
	return m
}

// demand adds what a topology says that clients ask of a VM in a region, where nothing of them
// was counted.
func (s *snapshot) demand(t heliotrope.Topology) {
	type asker struct {
		vm     heliotrope.VMID
		region scheduler.RegionID
	}
	counted := map[asker]bool{}
	for _, d := range s.Demands {
		counted[asker{d.VM, d.Region}] = true
	}
	for _, id := range slices.Sorted(maps.Keys(t.Demand)) {
		asked := t.Demand[id].At(s.At)
		for _, vm := range slices.Sorted(maps.Keys(asked)) {
			region, a := scheduler.RegionID(id), asked[vm]
			if !counted[asker{vm, region}] && a != (heliotrope.Asked{}) {
				s.Demands = append(s.Demands, scheduler.Demand{VM: vm, Region: region, BytesPerSecond: a.Bytes / 3600, RequestsPerSecond: a.Requests / 3600})
			}
		}
	}
}

// places adds the sites that have hosts, the ways between them, and how far clients are.
func (s *snapshot) places(t heliotrope.Topology, hosted map[heliotrope.SiteID]bool, measured map[[2]heliotrope.SiteID]float64) {
	ways := traffic.Ways(t)
	asked := map[scheduler.RegionID]float64{} // bytes per second
	sum := 0.0
	for _, d := range s.Demands {
		asked[d.Region] += d.BytesPerSecond
		sum += d.BytesPerSecond
	}
	for _, id := range slices.Sorted(maps.Keys(hosted)) {
		site := scheduler.Site{ID: id, USDPerVCPUHour: t.Sites[id].PricePerVCPUHour, USDPerGiBHour: t.Sites[id].PricePerGiBHour, LANRTTMs: lanRTTMs,
			GramsCO2PerVCPUHour: t.Sites[id].GramsCO2PerVCPUHour, InterruptionsPerHour: t.Sites[id].InterruptionsPerHour,
			BillingSeconds: time.Duration(t.Sites[id].Billing).Seconds(),
			Licences:       t.Sites[id].Licences, SeatUSDPerHour: t.Sites[id].PricePerSeat}
		for _, r := range slices.Sorted(maps.Keys(asked)) {
			w := ways[[2]heliotrope.SiteID{id, heliotrope.SiteID(r)}]
			reach := scheduler.Reach{Region: r, Site: id}
			reach.RTTMs, _ = distance(measured, id, heliotrope.SiteID(r), w)
			if d, ok := t.Demand[heliotrope.RegionID(r)]; ok {
				reach.RTTMs, w.PricePerGB = milliseconds(d.RTT[id]), t.Sites[id].PricePerGB
			}
			s.Reaches = append(s.Reaches, reach)
			if sum > 0 { // the mean, by what they get
				site.InternetUSDPerGB += w.PricePerGB * asked[r] / sum
			}
		}
		for _, to := range slices.Sorted(maps.Keys(hosted)) {
			if w, ok := ways[[2]heliotrope.SiteID{id, to}]; ok {
				path := scheduler.Path{From: id, To: to, USDPerGB: w.PricePerGB, BitsPerSecond: float64(w.Rate)}
				path.RTTMs, path.Source = distance(measured, id, to, w)
				s.Paths = append(s.Paths, path)
			}
		}
		s.Sites = append(s.Sites, site)
	}
}

// distance is the round trip between two sites, and who says so: their hosts if they do,
// else the topology.
func distance(measured map[[2]heliotrope.SiteID]float64, a, b heliotrope.SiteID, w traffic.Way) (ms float64, source string) {
	if ms, ok := measured[pairOf(a, b)]; ok {
		return ms, Measured
	}
	return lanRTTMs + 2*milliseconds(heliotrope.Duration(w.Delay)), Stated
}

func milliseconds(d heliotrope.Duration) float64 { return time.Duration(d).Seconds() * 1e3 }

// Ways are those that a plan's moves rest on: between the sites that VMs leave and go to, and
// from these to the clients of VMs that move.
func Ways(s scheduler.Snapshot, p scheduler.Plan) []scheduler.Path {
	sites, regions := map[heliotrope.SiteID]bool{}, map[scheduler.RegionID]bool{}
	for _, m := range p.Moves {
		sites[m.FromSite], sites[m.ToSite] = true, true
		for _, d := range s.Demands {
			regions[d.Region] = regions[d.Region] || d.VM == m.VM
		}
	}
	var ways []scheduler.Path
	hosted := map[heliotrope.SiteID]bool{}
	for _, site := range s.Sites {
		hosted[site.ID] = true
	}
	for _, w := range s.Paths { // the clients of a site that has hosts are as far as these
		asks := regions[scheduler.RegionID(w.From)] && sites[w.To] || regions[scheduler.RegionID(w.To)] && sites[w.From]
		if w.From < w.To && (sites[w.From] && sites[w.To] || asks) {
			ways = append(ways, w)
		}
	}
	for _, r := range s.Reaches {
		if sites[r.Site] && regions[r.Region] && !hosted[heliotrope.SiteID(r.Region)] {
			ways = append(ways, scheduler.Path{From: r.Site, To: heliotrope.SiteID(r.Region), RTTMs: r.RTTMs, Source: Stated})
		}
	}
	return ways
}
