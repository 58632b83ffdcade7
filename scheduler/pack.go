package scheduler

import (
	"cmp"
	"slices"

	"heliotrope/scheduler/assign"
)

// packer finds a host for each VM at the site that was chosen for it. What stands well stays.
type packer struct {
	*rack
	f      *field
	s      *assign.State
	items  [][]int   // VMs that share a host
	itemOf []int     // of each VM
	vcpus  []float64 // of each item
	mib    []float64
	size   []float64 // share of all room, of what it needs more of
	bySite [][]int   // hosts
	now    *rack     // what stands where now, with what was seated since: at both ends
	stuck  []int     // VMs for which there is no host
}

// settle finds a host for each VM at the site that was chosen for it, or where there is none,
// at the next best; then looks on from host to host. One that has none anywhere keeps its own.
func (f *field) settle(s *assign.State, least float64, o Options) *packer {
	p := &packer{rack: newRack(f.m), now: rackOfNow(f.m), f: f, s: s, bySite: make([][]int, f.Sites)}
	for h, k := range f.m.site {
		p.bySite[k] = append(p.bySite[k], h)
	}
	p.itemise()
	p.measure()
	over := make([][]int, f.Sites) // items for which there is no host as others stand
	for _, it := range p.stay() {
		if k := p.siteOf(it); !p.place(it, k) {
			over[k] = append(over[k], it)
		}
	}
	var out []int
	for k, items := range over {
		if len(items) > 0 {
			few := f.m.p.MaxMoves > 0 || o.Iterations < 0
			out = append(out, s.Squeeze(p.shelf(k, few), items)...)
		}
	}
	for _, it := range out {
		if !p.elsewhere(it) && !p.repack(it) {
			p.stuck = append(p.stuck, p.items[it]...)
		}
	}
	for _, v := range p.stuck {
		if h := f.m.home[v]; h != none {
			p.put(v, h)
		}
	}
	p.reseat(least)
	p.polish(least, o)
	if f.m.p.HostUSDPerHour > 0 {
		p.consolidate()
	}
	return p
}

func (p *packer) siteOf(item int) int { return p.s.At[p.f.unitOf[p.items[item][0]]] }

// itemise makes items of VMs that must share a host.
func (p *packer) itemise() {
	p.itemOf = slices.Repeat([]int{none}, len(p.m.s.VMs))
	for _, g := range p.m.together {
		if g.scope != AtHost || len(g.vms) == 0 {
			continue
		}
		into := len(p.items)
		p.items = append(p.items, nil)
		for _, v := range g.vms {
			more := []int{v}
			if old := p.itemOf[v]; old == into {
				continue
			} else if old != none {
				more, p.items[old] = p.items[old], nil
			}
			for _, w := range more {
				p.itemOf[w] = into
			}
			p.items[into] = append(p.items[into], more...)
		}
	}
	for v := range p.itemOf {
		if p.itemOf[v] == none {
			p.itemOf[v] = len(p.items)
			p.items = append(p.items, []int{v})
		}
	}
}

// stay puts all that may stay where it is, and returns the other items, the largest first.
func (p *packer) stay() []int {
	var pinned, order []int
	for it, vms := range p.items {
		switch {
		case len(vms) == 0:
		case slices.ContainsFunc(vms, func(v int) bool { return p.m.s.VMs[v].Pinned }):
			pinned = append(pinned, it)
		default:
			order = append(order, it)
		}
	}
	largest := func(a, b int) int { return cmp.Or(cmp.Compare(p.size[b], p.size[a]), cmp.Compare(a, b)) }
	slices.SortFunc(pinned, largest)
	slices.SortFunc(order, largest)
	var arrivals []int
	for _, it := range append(pinned, order...) {
		home := p.m.home[p.items[it][0]]
		if home == none || p.m.site[home] != p.siteOf(it) || !p.fits(it, home) {
			arrivals = append(arrivals, it)
			continue
		}
		p.seat(it, home)
	}
	return arrivals
}

// measure fills in how large each item is.
func (p *packer) measure() {
	var allVCPUs, allMiB float64
	for _, h := range p.m.s.Hosts {
		allVCPUs += h.VCPUs
		allMiB += h.MemoryMiB
	}
	for _, vms := range p.items {
		var vcpus, mib float64
		for _, v := range vms {
			vcpus += p.m.s.VMs[v].VCPUs
			mib += p.m.s.VMs[v].MemoryMiB
		}
		p.vcpus, p.mib = append(p.vcpus, vcpus), append(p.mib, mib)
		p.size = append(p.size, max(vcpus/max(allVCPUs, 1), mib/max(allMiB, 1)))
	}
}

func (p *packer) fits(item, host int) bool {
	return p.vcpus[item] <= p.freeVCPUs[host]+slack && p.mib[item] <= p.freeMiB[host]+slack && p.suits(item, host)
}

// suits says whether an item may be at a host, room aside.
func (p *packer) suits(item, host int) bool {
	return p.seats.Fits(p.items[item], p.at[p.items[item][0]], host) && !slices.ContainsFunc(p.items[item], func(v int) bool { return !p.m.may(v, host) || !p.lonely(v, host) })
}

// readyFor says whether a host has room for an item now, what is there still being there.
func (p *packer) readyFor(item, host int) bool {
	var vcpus, mib float64
	for _, v := range p.items[item] {
		if p.m.home[v] != host {
			vcpus += p.m.s.VMs[v].VCPUs
			mib += p.m.s.VMs[v].MemoryMiB
		}
	}
	return vcpus <= p.now.freeVCPUs[host]+slack && mib <= p.now.freeMiB[host]+slack
}

func (p *packer) seat(item, host int) {
	for _, v := range p.items[item] {
		p.put(v, host)
	}
}

func (p *packer) unseat(item int) {
	for _, v := range p.items[item] {
		p.remove(v)
	}
}

// left is the share of a host that is free.
func (p *packer) left(host int) float64 {
	h := p.m.s.Hosts[host]
	return p.freeVCPUs[host]/max(h.VCPUs, 1) + p.freeMiB[host]/max(h.MemoryMiB, 1)
}

// place puts an item at a host of a site: the fullest that has room, or the emptiest; but
// first one that has room now, so that nobody has to wait for it.
func (p *packer) place(item, site int) bool { return p.placeAt(item, p.bySite[site], none) }

func (p *packer) placeAt(item int, hosts []int, but int) bool {
	best, ready, rent := none, false, 0.0
	for _, h := range hosts {
		if h == but || !p.fits(item, h) {
			continue
		}
		free, usd := p.readyFor(item, h), p.seats.More(p.items[item], none, h)
		if best == none || usd < rent || usd == rent && (free && !ready || free == ready && (p.left(h) < p.left(best)) != p.m.p.Spread) {
			best, ready, rent = h, free, usd
		}
	}
	if best == none {
		return false
	}
	p.seat(item, best)
	for _, v := range p.items[item] {
		if p.m.home[v] != best {
			p.now.take(v, best, 1)
		}
	}
	return true
}

// elsewhere puts an item's whole unit at the next best site that has hosts for it.
func (p *packer) elsewhere(item int) bool {
	u := p.f.unitOf[p.items[item][0]]
	sites := make([]int, p.f.Sites)
	for k := range sites {
		sites[k] = k
	}
	slices.SortStableFunc(sites, func(a, b int) int { return cmp.Compare(p.s.Gain(u, a), p.s.Gain(u, b)) })
	var old []int  // hosts
	var unit []int // its items
	for _, v := range p.f.units[u] {
		old = append(old, p.at[v])
		if p.at[v] != none {
			p.remove(v)
		}
		if !slices.Contains(unit, p.itemOf[v]) {
			unit = append(unit, p.itemOf[v])
		}
	}
	for _, k := range sites {
		if k == p.s.At[u] || p.s.Gain(u, k) > assign.Never/2 || !p.s.Fits(u, k) {
			continue
		}
		if p.placeAll(unit, k) {
			p.s.Move(u, k)
			return true
		}
	}
	for i, v := range p.f.units[u] {
		if old[i] != none {
			p.put(v, old[i])
		}
	}
	return false
}

// shelf is a site's hosts with what may be moved there: where few moves are wanted, not what
// is where it was.
func (p *packer) shelf(site int, few bool) *assign.Shelf {
	n := len(p.items)
	b := &assign.Shelf{Site: site, FreeVCPUs: p.freeVCPUs, FreeMiB: p.freeMiB, VCPUs: p.vcpus, MiB: p.mib,
		Unit: make([]int, n), At: slices.Repeat([]int{none}, n), Home: slices.Repeat([]int{none}, n),
		Suits: p.suits, Seat: p.seat, Unseat: p.unseat}
	for _, h := range p.bySite[site] {
		if !p.m.s.Hosts[h].Drained {
			b.Bins = append(b.Bins, h)
		}
	}
	for it, vms := range p.items {
		if len(vms) == 0 {
			continue
		}
		at, home := p.at[vms[0]], p.m.home[vms[0]]
		b.Unit[it], b.Home[it] = p.f.unitOf[vms[0]], home
		if p.m.siteAt(at) == site && !p.fixed(it) && !(few && at == home) && !p.bound(it, site) {
			b.At[it] = at
		}
	}
	return b
}

// placeAll puts all of some items at a site, or none.
func (p *packer) placeAll(items []int, site int) bool {
	for n, it := range items {
		if p.place(it, site) {
			continue
		}
		for _, done := range items[:n] {
			p.unseat(done)
		}
		return false
	}
	return true
}

// repack packs an item's site anew, the largest first: it moves what could have stayed.
func (p *packer) repack(item int) bool {
	k := p.siteOf(item)
	old := p.clone()
	all := []int{item}
	for it, vms := range p.items {
		if len(vms) > 0 && p.at[vms[0]] != none && p.m.site[p.at[vms[0]]] == k && !p.fixed(it) {
			all = append(all, it)
			p.unseat(it)
		}
	}
	slices.SortStableFunc(all, func(a, b int) int { return cmp.Compare(p.size[b], p.size[a]) })
	for _, it := range all {
		if !p.place(it, k) {
			p.rack = old
			return false
		}
	}
	return true
}

// consolidate empties hosts whose VMs find room at others in use, where that pays.
func (p *packer) consolidate() {
	for _, hosts := range p.bySite {
		order := slices.Clone(hosts)
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(p.left(b), p.left(a)) })
		for _, h := range order {
			p.empty(h, hosts)
		}
	}
}

func (p *packer) empty(host int, hosts []int) {
	used := map[int]bool{}
	var items []int
	for it, vms := range p.items {
		if len(vms) == 0 || p.at[vms[0]] == none {
			continue
		}
		used[p.at[vms[0]]] = true
		if p.at[vms[0]] == host {
			items = append(items, it)
		}
	}
	others := slices.DeleteFunc(slices.Clone(hosts), func(h int) bool { return h == host || !used[h] })
	if len(items) == 0 || slices.ContainsFunc(items, p.fixed) {
		return
	}
	old, before := p.clone(), p.moving(items)
	for _, it := range items {
		p.unseat(it)
	}
	for _, it := range items {
		if !p.placeAt(it, others, host) {
			p.rack = old
			return
		}
	}
	gain := p.m.p.HostUSDPerHour + before - p.moving(items)
	if gain <= p.m.p.MinMoveGainUSDPerHour || p.tooMany() {
		p.rack = old
	}
}

// moving is what the moves of items to where they stand cost.
func (p *packer) moving(items []int) float64 {
	var usd float64
	for _, it := range items {
		for _, v := range p.items[it] {
			usd += p.m.moving(v, p.at[v]).Total()
		}
	}
	return usd
}

// fixed says whether an item may not be moved to make room.
func (p *packer) fixed(item int) bool {
	return slices.ContainsFunc(p.items[item], func(v int) bool {
		return p.m.s.VMs[v].Pinned || p.m.p.OnlyForced && !p.m.mustLeave(v)
	})
}

// bound says whether it matters to an item's licences at which host of its site it is.
func (p *packer) bound(item, site int) bool {
	return slices.ContainsFunc(p.items[item], func(v int) bool { return p.m.seats.Bound(v, site) })
}

// tooMany says whether more VMs move than may.
func (p *packer) tooMany() bool { return p.m.p.MaxMoves > 0 && p.away() > p.m.p.MaxMoves }

// away is how many VMs are not where they are now.
func (p *packer) away() int {
	n := 0
	for v, h := range p.at {
		if h != p.m.home[v] && p.m.home[v] != none {
			n++
		}
	}
	return n
}
