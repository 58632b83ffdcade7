package scheduler

import (
	"slices"

	"heliotrope/scheduler/assign"
)

const (
	polishStepsPerVM = 500
	polishSteps      = 2_500_000
	quickStepsPerVM  = 20
	quickSteps       = 50_000
)

// polish looks on from host to host, for VMs that need not be with or apart from others at
// one, nor licences. Then those go home that gain too little elsewhere, and have room there.
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
		if v := vms[0]; len(vms) == 1 && p.loose(v) && !p.m.seats.Licensed(v) {
			b.At[u], b.Home[u] = p.at[v], p.m.home[v]
			if h := p.m.home[v]; h != none {
				b.Stir[u] = p.m.going(v, p.m.site[h]).Total()
			}
		}
	}
	steps := min(polishSteps, polishStepsPerVM*len(p.m.s.VMs))
	switch {
	case o.Iterations > 0:
		steps = min(steps, o.Iterations)
	case o.Iterations < 0:
		steps = min(quickSteps, quickStepsPerVM*len(p.m.s.VMs))
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

// loose says whether a VM may go on by itself, to any host of a site that it may be at.
func (p *packer) loose(vm int) bool {
	home := p.m.siteAt(p.m.home[vm])
	return p.at[vm] != none && !p.fixed(p.itemOf[vm]) && (home == none || p.m.soon(vm, home, home)) &&
		!slices.ContainsFunc(p.m.apartOf[vm], func(g int) bool { return p.m.apart[g].scope == AtHost })
}
