package scheduler

import (
	"math"
	"slices"

	"heliotrope/scheduler/assign"
)

// squeeze is one site being packed: hosts may be overfull while items change places.
type squeeze struct {
	*packer
	hosts  []int   // that may be filled
	here   [][]int // items at each of them that may move
	place  []int   // of each item: its number in hosts
	until  []int   // of each item: the step before which it may not move again
	vcpus  []float64
	mib    []float64
	perCPU float64 // what a vCPU over a host's room counts
	perMiB float64
}

const (
	squeezeSteps = 60  // for each item that had no host, at most in all
	mostSqueezes = 600 // at a site
	rest         = 12  // steps for which an item that moved stays
	homesickness = 1e-3
)

// squeeze seats items at a site though no host has room for them, and exchanges what is
// there until all have it (a tabu search). It returns those that had to be taken out again.
func (p *packer) squeeze(site int, items []int, few bool) (out []int) {
	q := &squeeze{packer: p, place: slices.Repeat([]int{none}, len(p.items)), until: make([]int, len(p.items))}
	for _, h := range p.bySite[site] {
		if !p.m.s.Hosts[h].Drained {
			q.hosts = append(q.hosts, h)
		}
	}
	q.open(few)
	for _, it := range items {
		if !q.force(it) {
			out = append(out, it)
		}
	}
	best, least := q.stands(), q.over()
	for n := 1; least > 0 && n <= min(mostSqueezes, squeezeSteps*len(items)); n++ {
		if !q.step(n) {
			break
		}
		if over := q.over(); over < least {
			best, least = q.stands(), over
		}
	}
	q.restore(best)
	return append(out, q.evict()...)
}

// open takes stock of what stands at the site and may move: where few moves are wanted, not
// what is where it was.
func (q *squeeze) open(few bool) {
	number := make(map[int]int, len(q.hosts))
	var vcpus, mib float64
	for n, h := range q.hosts {
		number[h] = n
		vcpus += q.m.s.Hosts[h].VCPUs
		mib += q.m.s.Hosts[h].MemoryMiB
	}
	q.perCPU, q.perMiB = 1/max(vcpus, 1), 1/max(mib, 1)
	q.here = make([][]int, len(q.hosts))
	q.vcpus, q.mib = make([]float64, len(q.items)), make([]float64, len(q.items))
	for it, vms := range q.items {
		if len(vms) == 0 {
			continue
		}
		q.vcpus[it], q.mib[it] = q.needs(it)
		if q.at[vms[0]] == none || q.fixed(it) || few && q.at[vms[0]] == q.m.home[vms[0]] {
			continue
		}
		if n, ok := number[q.at[vms[0]]]; ok {
			q.place[it] = n
			q.here[n] = append(q.here[n], it)
		}
	}
}

// excess is how much a host would be overfull with so much more, as a share of the site's room.
func (q *squeeze) excess(n int, vcpus, mib float64) float64 {
	h := q.hosts[n]
	return q.perCPU*max(0, vcpus-q.freeVCPUs[h]-slack) + q.perMiB*max(0, mib-q.freeMiB[h]-slack)
}

func (q *squeeze) over() float64 {
	var all float64
	for n := range q.hosts {
		all += q.excess(n, 0, 0)
	}
	return all
}

// force seats an item where it adds least to what is overfull.
func (q *squeeze) force(item int) bool {
	best, least := none, math.Inf(1)
	for n, h := range q.hosts {
		if more := q.excess(n, q.vcpus[item], q.mib[item]) - q.excess(n, 0, 0); more < least && q.suits(item, h) {
			best, least = n, more
		}
	}
	if best != none {
		q.enter(item, best)
	}
	return best != none
}

func (q *squeeze) enter(item, n int) {
	q.seat(item, q.hosts[n])
	q.place[item] = n
	q.here[n] = append(q.here[n], item)
}

func (q *squeeze) leave(item int) {
	n := q.place[item]
	q.unseat(item)
	q.here[n] = slices.DeleteFunc(q.here[n], func(it int) bool { return it == item })
	q.place[item] = none
}

// step makes the best change there is for the host that is the most overfull: one of its
// items to another host, or for one of another's.
func (q *squeeze) step(now int) bool {
	full, most := none, 0.0
	for n := range q.hosts {
		if x := q.excess(n, 0, 0); x > most {
			full, most = n, x
		}
	}
	if full == none {
		return false
	}
	item, to, back, least := none, none, none, math.Inf(1)
	for _, it := range q.here[full] {
		if q.until[it] > now {
			continue
		}
		for n := range q.hosts {
			if n == full || !q.suits(it, q.hosts[n]) {
				continue
			}
			if more := q.exchange(it, none, full, n); more < least {
				item, to, back, least = it, n, none, more
			}
			for _, other := range q.here[n] {
				if more := q.exchange(it, other, full, n); more < least && q.until[other] <= now && q.suits(other, q.hosts[full]) {
					item, to, back, least = it, n, other, more
				}
			}
		}
	}
	if item == none {
		return false
	}
	q.leave(item)
	if back != none {
		q.leave(back)
		q.enter(back, full)
		q.until[back] = now + rest
	}
	q.enter(item, to)
	q.until[item] = now + rest
	return true
}

// exchange is what it adds to what is overfull when an item goes from one host to another,
// and another, or none, comes back. Items had better stay where they are now.
func (q *squeeze) exchange(item, other, from, to int) float64 {
	vcpus, mib := q.vcpus[item], q.mib[item]
	more := homesickness * (q.homesick(item, to) - q.homesick(item, from))
	if other != none {
		vcpus -= q.vcpus[other]
		mib -= q.mib[other]
		more += homesickness * (q.homesick(other, from) - q.homesick(other, to))
	}
	return more + q.excess(to, vcpus, mib) - q.excess(to, 0, 0) + q.excess(from, -vcpus, -mib) - q.excess(from, 0, 0)
}

// away is the room, as a share of the site's, of an item that is not at home.
func (q *squeeze) homesick(item, n int) float64 {
	if q.m.home[q.items[item][0]] == q.hosts[n] {
		return 0
	}
	return q.perCPU*q.vcpus[item] + q.perMiB*q.mib[item]
}

// stands is where each item is.
func (q *squeeze) stands() []int { return slices.Clone(q.place) }

func (q *squeeze) restore(place []int) {
	var moved []int
	for it, n := range place {
		if q.place[it] != n {
			q.leave(it)
			moved = append(moved, it)
		}
	}
	for _, it := range moved {
		q.enter(it, place[it])
	}
}

// evict takes items from hosts that are overfull yet: of each those whose units lose least
// elsewhere for the room that they take too much.
func (q *squeeze) evict() (out []int) {
	for n := range q.hosts {
		for q.excess(n, 0, 0) > 0 {
			best, least := none, math.Inf(1)
			for _, it := range q.here[n] {
				relief := q.excess(n, 0, 0) - q.excess(n, -q.vcpus[it], -q.mib[it])
				if usd := q.loss(it) / relief; relief > 0 && (best == none || usd < least) {
					best, least = it, usd
				}
			}
			if best == none {
				break
			}
			q.leave(best)
			out = append(out, best)
		}
	}
	return out
}

// loss is what an item's unit loses at the best other site that has room.
func (q *squeeze) loss(item int) float64 {
	u := q.f.unitOf[q.items[item][0]]
	least := math.Inf(1)
	for k := range q.f.Sites {
		if k != q.s.At[u] && q.s.Fits(u, k) {
			least = min(least, q.s.Gain(u, k))
		}
	}
	return least
}

const (
	polishStepsPerVM = 1000
	quickStepsPerVM  = 20
)

// polish looks on from host to host, for VMs that need not be with or apart from others at
// one. Then those go home that gain too little elsewhere, and have room there.
func (p *packer) polish(least float64, o Options) {
	if len(p.m.s.VMs) == 0 {
		return
	}
	b := &assign.Bins{Site: p.m.site, FreeVCPUs: p.freeVCPUs, FreeMiB: p.freeMiB, At: slices.Repeat([]int{none}, len(p.f.units)),
		Home: slices.Repeat([]int{none}, len(p.f.units)), Stir: make([]float64, len(p.f.units)), Away: p.away(), MaxAway: p.m.p.MaxMoves}
	for _, h := range p.m.s.Hosts {
		b.Closed = append(b.Closed, h.Drained)
	}
	for u, vms := range p.f.units {
		v := vms[0]
		if free := len(vms) == 1 && p.at[v] != none && !p.fixed(p.itemOf[v]) && !p.m.private(v); free {
			b.At[u], b.Home[u] = p.at[v], p.m.home[v]
			if h := p.m.home[v]; h != none {
				b.Stir[u] = p.m.going(v, p.m.site[h]).Total()
			}
		}
	}
	steps := polishStepsPerVM * len(p.m.s.VMs)
	switch {
	case o.Iterations > 0:
		steps = min(steps, o.Iterations)
	case o.Iterations < 0:
		steps = quickStepsPerVM * len(p.m.s.VMs)
	}
	p.s.Polish(b, steps, o)
	fresh := newRack(p.m)
	for v, h := range p.at {
		if n := b.At[p.f.unitOf[v]]; n != none {
			h = n
		}
		if h != none {
			fresh.put(v, h)
		}
	}
	p.rack = fresh
	for u, n := range b.At {
		if v := p.f.units[u][0]; n != none && p.m.home[v] != none && p.at[v] != p.m.home[v] && p.s.Gain(u, p.f.Home[u]) < least && p.fits(p.itemOf[v], p.m.home[v]) {
			p.remove(v)
			p.put(v, p.m.home[v])
			p.s.Move(u, p.f.Home[u])
		}
	}
}

// private says whether a VM must be apart from others at hosts.
func (m *model) private(vm int) bool {
	return slices.ContainsFunc(m.apartOf[vm], func(g int) bool { return m.apart[g].scope == AtHost })
}
