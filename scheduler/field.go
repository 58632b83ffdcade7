package scheduler

import (
	"cmp"
	"math"
	"slices"

	"heliotrope/scheduler/assign"
)

// field is the problem at the level of sites, of units, which are VMs that must be together.
type field struct {
	*assign.Field
	m      *model
	units  [][]int     // VMs
	unitOf []int       // of each VM
	open   []bool      // sites that have a host for VMs, however small
	price  [][]float64 // of a seat, by site and licence, that charge put into the units' own; nil: none
	paid   float64     // USD per hour for all seats there are, by it
}

func newField(m *model) *field {
	f := &field{Field: &assign.Field{Sites: len(m.s.Sites), MaxMoves: m.p.MaxMoves}, m: m}
	f.unite()
	n := len(f.units) * f.Sites
	f.Linear, f.Moves = make([]float64, n), make([]int, n)
	f.VCPUs, f.MiB = make([]float64, len(f.units)), make([]float64, len(f.units))
	f.RoomVCPUs, f.RoomMiB = make([]float64, f.Sites), make([]float64, f.Sites)
	f.open = make([]bool, f.Sites)
	vcpus, mib := grain(m.s.VMs, func(v VM) float64 { return v.VCPUs }), grain(m.s.VMs, func(v VM) float64 { return v.MemoryMiB })
	for h, host := range m.s.Hosts {
		if !host.Drained {
			f.open[m.site[h]] = true
			f.RoomVCPUs[m.site[h]] += grains(host.VCPUs, vcpus)
			f.RoomMiB[m.site[h]] += grains(host.MemoryMiB, mib)
		}
	}
	f.pin()
	f.tariff()
	f.weigh()
	f.connect()
	return f
}

// grain is the greatest size of which all VMs' are multiples: a host's room counts in whole
// ones, since no VMs can take the rest. It is 0 where sizes are not whole numbers.
func grain(vms []VM, size func(VM) float64) float64 {
	var all float64
	for _, v := range vms {
		x := size(v)
		if x != math.Trunc(x) || x > 1<<53 {
			return 0
		}
		for x > 0 {
			all, x = x, math.Mod(all, x)
		}
	}
	return all
}

// grains is a room without what is left of it beyond whole grains.
func grains(room, grain float64) float64 {
	if grain == 0 {
		return room
	}
	return math.Floor((room+slack)/grain) * grain
}

// unite makes units of VMs that must be together.
func (f *field) unite() {
	m := f.m
	leader := make([]int, len(m.s.VMs))
	for i := range leader {
		leader[i] = i
	}
	var root func(int) int
	root = func(i int) int {
		if leader[i] != i {
			leader[i] = root(leader[i])
		}
		return leader[i]
	}
	for _, g := range m.together {
		for _, v := range g.vms {
			leader[root(v)] = root(g.vms[0])
		}
	}
	f.unitOf = slices.Repeat([]int{none}, len(m.s.VMs))
	for i := range m.s.VMs {
		first := &f.unitOf[root(i)]
		if *first == none {
			*first = len(f.units)
			f.units = append(f.units, nil)
			f.Home = append(f.Home, m.siteAt(m.home[i]))
		}
		f.unitOf[i] = *first
		f.units[*first] = append(f.units[*first], i)
	}
}

// pin takes the room of VMs that stay on drained hosts from nothing: it was assign.Never counted.
func (f *field) pin() {
	for i, v := range f.m.s.VMs {
		if h := f.m.home[i]; v.Pinned && h != none && f.m.s.Hosts[h].Drained {
			f.open[f.m.site[h]] = true
			f.RoomVCPUs[f.m.site[h]] += v.VCPUs
			f.RoomMiB[f.m.site[h]] += v.MemoryMiB
		}
	}
}

// tariff fills in what a GB costs between sites, by asking for one.
func (f *field) tariff() {
	f.Price, f.Back = make([]float64, f.Sites*f.Sites), make([]float64, f.Sites*f.Sites)
	for a := range f.Sites {
		for b := range f.Sites {
			usd := f.m.talking(flow{gbPerHour: 1}, a, b).Total()
			f.Price[a*f.Sites+b], f.Back[b*f.Sites+a] = usd, usd
		}
	}
}

// weigh fills in what each VM costs at each site, all that is between VMs aside.
func (f *field) weigh() {
	m := f.m
	perVCPU, perMiB := f.hostShare()
	for i := range m.s.VMs {
		u := f.unitOf[i]
		f.VCPUs[u] += m.s.VMs[i].VCPUs
		f.MiB[u] += m.s.VMs[i].MemoryMiB
		for k := range f.Sites {
			usd := m.standing(i, k).Total() + perVCPU[k]*m.s.VMs[i].VCPUs + perMiB[k]*m.s.VMs[i].MemoryMiB
			for _, d := range m.demandsOf[i] {
				usd += m.serving(m.demands[d], k).Total()
			}
			if away := m.siteAt(m.home[i]) != k; m.home[i] != none && (away || m.mustLeave(i)) {
				usd += m.going(i, k).Total()
				f.Moves[u*f.Sites+k]++
			}
			if !f.may(i, k) {
				usd += assign.Never
			}
			f.Linear[u*f.Sites+k] += usd
		}
	}
}

// may says whether a VM may be at a site. A policy that moves only what must keeps the rest.
func (f *field) may(vm, site int) bool {
	if f.m.p.OnlyForced && !f.m.mustLeave(vm) && !f.torn(f.unitOf[vm]) {
		return f.m.siteAt(f.m.home[vm]) == site
	}
	return f.m.allowed[vm][site] && f.open[site] && f.m.seats.May(vm, site)
}

// torn says whether a unit cannot stay as it is: one of it must leave, or it is not together.
func (f *field) torn(u int) bool {
	for _, v := range f.units[u] {
		if f.m.mustLeave(v) || f.m.siteAt(f.m.home[v]) != f.Home[u] {
			return true
		}
	}
	return false
}

// hostShare is a lower bound of what hosts in use cost, per vCPU and per MiB at each site:
// a site needs at least as many hosts as its load over its largest host. One of the two
// counts: the one of which all VMs need more.
func (f *field) hostShare() (perVCPU, perMiB []float64) {
	perVCPU, perMiB = make([]float64, f.Sites), make([]float64, f.Sites)
	maxVCPUs, maxMiB := make([]float64, f.Sites), make([]float64, f.Sites)
	var needVCPUs, needMiB float64
	for h, host := range f.m.s.Hosts {
		k := f.m.site[h]
		maxVCPUs[k], maxMiB[k] = max(maxVCPUs[k], host.VCPUs), max(maxMiB[k], host.MemoryMiB)
	}
	for _, v := range f.m.s.VMs {
		needVCPUs += v.VCPUs / max(slices.Max(maxVCPUs), 1)
		needMiB += v.MemoryMiB / max(slices.Max(maxMiB), 1)
	}
	for k := range f.Sites {
		switch {
		case needVCPUs >= needMiB && maxVCPUs[k] > 0:
			perVCPU[k] = f.m.p.HostUSDPerHour / maxVCPUs[k]
		case needVCPUs < needMiB && maxMiB[k] > 0:
			perMiB[k] = f.m.p.HostUSDPerHour / maxMiB[k]
		}
	}
	return perVCPU, perMiB
}

// bond is one thing that two units have to do with each other.
type bond struct {
	u, v    int
	out, in float64
	ms      float64 // at most, or infinite
	apart   bool
}

// connect makes edges of flows, limits, and groups that must be at different sites.
func (f *field) connect() {
	bonds := make([]bond, 0, len(f.m.flows))
	add := func(i, j int, out, ms float64, apart bool) {
		u, v := f.unitOf[i], f.unitOf[j]
		switch {
		case u == v:
			f.within(u, out, ms, apart)
		case u < v:
			bonds = append(bonds, bond{u, v, out, 0, ms, apart})
		default:
			bonds = append(bonds, bond{v, u, 0, out, ms, apart})
		}
	}
	for _, w := range f.m.flows {
		add(w.src, w.dst, w.gbPerHour, math.Inf(1), false)
	}
	for _, l := range f.m.limits {
		for n, i := range l.vms {
			for _, j := range l.vms[:n] {
				if l.binds(i, j) {
					add(i, j, 0, l.ms, false)
				}
			}
		}
	}
	for _, g := range f.m.apart {
		for n, i := range g.vms {
			for _, j := range g.vms[:n] {
				if g.scope == AtSite {
					add(i, j, 0, math.Inf(1), true)
				}
			}
		}
	}
	f.join(bonds)
}

// within adds to a unit's own price what is between two of its VMs.
func (f *field) within(u int, gb, ms float64, apart bool) {
	for k := range f.Sites {
		f.Linear[u*f.Sites+k] += gb * f.Price[k*f.Sites+k]
		if apart || f.m.rttMs[k][k] > ms {
			f.Linear[u*f.Sites+k] += assign.Never
		}
	}
}

// join makes one edge of all bonds of a pair.
func (f *field) join(bonds []bond) {
	known := map[bond]int{}
	edges := make([]assign.Edge, 0, 2*len(bonds)) // side by side: a search walks through them all the time
	n := make([]int, len(f.units))                // of each unit
	type pair struct {
		u, v int
		assign.Edge
	}
	var pairs []pair
	for _, list := range byFirst(bonds, len(f.units)) {
		slices.SortStableFunc(list, func(a, b bond) int { return cmp.Compare(a.v, b.v) })
		for i := 0; i < len(list); {
			all := list[i]
			for i++; i < len(list) && list[i].v == all.v; i++ {
				all.out += list[i].out
				all.in += list[i].in
				all.ms = min(all.ms, list[i].ms)
				all.apart = all.apart || list[i].apart
			}
			pairs = append(pairs, pair{all.u, all.v, assign.Edge{To: all.v, Out: all.out, In: all.in, Rule: f.rule(known, all.ms, all.apart)}})
			n[all.u]++
			n[all.v]++
		}
	}
	f.Edges = make([][]assign.Edge, len(f.units))
	for u, size := range n {
		f.Edges[u] = edges[len(edges) : len(edges) : len(edges)+size]
		edges = edges[:len(edges)+size]
	}
	for _, p := range pairs {
		f.Edges[p.u] = append(f.Edges[p.u], p.Edge)
		f.Edges[p.v] = append(f.Edges[p.v], assign.Edge{To: p.u, Out: p.In, In: p.Out, Rule: p.Rule})
	}
	for _, list := range f.Edges {
		slices.SortStableFunc(list, func(a, b assign.Edge) int { return cmp.Compare(b.Out+b.In, a.Out+a.In) })
	}
}

// byFirst lists bonds by their first unit, in the order in which they were.
func byFirst(bonds []bond, units int) [][]bond {
	n := make([]int, units)
	for _, b := range bonds {
		n[b.u]++
	}
	all := make([]bond, len(bonds))
	lists := make([][]bond, units)
	for u, size := range n {
		lists[u], all = all[:0:size], all[size:]
	}
	for _, b := range bonds {
		lists[b.u] = append(lists[b.u], b)
	}
	return lists
}

// rule numbers the pairs of sites that a limit and being apart forbid.
func (f *field) rule(known map[bond]int, ms float64, apart bool) int {
	if math.IsInf(ms, 1) && !apart {
		return none
	}
	key := bond{ms: ms, apart: apart}
	if r, ok := known[key]; ok {
		return r
	}
	forbidden := make([]bool, f.Sites*f.Sites)
	for a := range f.Sites {
		for b := range f.Sites {
			forbidden[a*f.Sites+b] = f.m.rttMs[a][b] > ms || apart && a == b
		}
	}
	known[key] = len(f.Rules)
	f.Rules = append(f.Rules, forbidden)
	return known[key]
}
