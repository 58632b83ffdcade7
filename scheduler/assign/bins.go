package assign

import (
	"slices"

	"heliotrope/scheduler/anneal"
)

// Bins are what the room of sites is made of, with where units are. A unit that is not alone
// in what it must be with is in none, and stays where it is.
type Bins struct {
	Site               []int // of each bin
	FreeVCPUs, FreeMiB []float64
	Closed             []bool // nothing may come

	At   []int     // bin of each unit, or None: it is not to be moved
	Home []int     // bin of each unit now, or None
	Stir []float64 // USD per hour of each unit, for going to another bin of its home's site

	Away, MaxAway int // units that are not in their bin of now, and how many may be; 0: any
}

const (
	polishHot  = 0.01 // of warmth
	polishCold = 1e-2 // of that: the last temperature
	withinBits = 2    // of the chance, all of which are 0 where a unit tries another bin of its own site
)

// polisher anneals with the room of bins.
type polisher struct {
	*annealer
	*Bins
	here   [][]int // units in each bin that may move
	slot   []int   // of each unit
	bySite [][]int // bins
}

// Polish searches on from a state, and moves units only from bin to bin where there is room:
// what it ends with needs no packing. The state's rooms do not matter to it. With negative
// iterations it only takes what is better.
func (s *State) Polish(b *Bins, steps int, o Options) {
	p := &polisher{annealer: newAnnealer(s, o.Seed, o.late()), Bins: b,
		here: make([][]int, len(b.Site)), slot: make([]int, len(b.At)), bySite: make([][]int, s.f.Sites)}
	for n, k := range b.Site {
		if !b.Closed[n] {
			p.bySite[k] = append(p.bySite[k], n)
		}
	}
	for u, n := range b.At {
		if n != None {
			p.slot[u] = len(p.here[n])
			p.here[n] = append(p.here[n], u)
		}
	}
	best, at, usd := slices.Clone(s.At), slices.Clone(b.At), p.total()
	temperature := coldest
	if o.Iterations >= 0 {
		temperature = p.warmth() * polishHot
	}
	p.Cool(temperature, polishCold, steps, func(_, t float64) {
		for range anneal.AtOnce {
			p.shake(t)
		}
	})
	p.sink()
	if p.total() >= usd {
		copy(b.At, at)
		*s = *newState(s.f, best)
	}
}

// total is the cost with that of going from bin to bin.
func (p *polisher) total() float64 {
	usd := p.State.USD
	for u, n := range p.Bins.At {
		if n != None {
			usd += p.stir(u, n)
		}
	}
	return usd
}

// stir is what it costs a unit to be in another bin of its home's site.
func (p *polisher) stir(u, n int) float64 {
	if home := p.Bins.Home[u]; home != None && home != n && p.Site[home] == p.Site[n] {
		return p.Stir[u]
	}
	return 0
}

// shake tries one unit in another bin, or for a unit there where there is no room.
func (p *polisher) shake(temperature float64) {
	u := p.unit()
	from := p.Bins.At[u]
	if from == None {
		return
	}
	x := p.Next()
	k := p.target(u, x)
	if len(p.bySite[k]) == 0 || k == p.Site[from] && x>>1&(1<<withinBits-1) != 0 {
		return
	}
	if k != p.Site[from] && p.Gain(u, k)-p.Stir[u] >= temperature*mostTemperatures {
		return
	}
	to := p.bySite[k][p.Below(len(p.bySite[k]))]
	if to == from {
		return
	}
	usd := p.stir(u, to) - p.stir(u, from)
	if p.fits(u, to) {
		if !p.mayGo(p.going(u, to)) {
			return
		}
		if k != p.Site[from] {
			usd += p.Gain(u, k)
		}
		if usd <= 0 || p.Takes(usd, temperature) {
			p.carry(u, to)
		}
		return
	}
	if len(p.here[to]) == 0 {
		return
	}
	v := p.here[to][p.Below(len(p.here[to]))]
	if !p.mayGo(p.going(u, to) + p.going(v, from)) {
		return
	}
	vcpus, mib := p.f.VCPUs[u]-p.f.VCPUs[v], p.f.MiB[u]-p.f.MiB[v]
	if p.Closed[from] || vcpus > p.FreeVCPUs[to]+slack || mib > p.FreeMiB[to]+slack || -vcpus > p.FreeVCPUs[from]+slack || -mib > p.FreeMiB[from]+slack {
		return
	}
	usd += p.stir(v, from) - p.stir(v, to)
	limit := p.Limit(temperature) - usd
	if k != p.Site[from] && !p.swapsWithin(u, v, limit) {
		return
	}
	if k != p.Site[from] || limit >= 0 {
		p.carry(u, to)
		p.carry(v, from)
	}
}

// going is 1 for a unit that leaves its bin of now, and -1 for one that comes back to it.
func (p *polisher) going(u, to int) int {
	switch home := p.Bins.Home[u]; {
	case home == None:
		return 0
	case home == p.Bins.At[u]:
		return 1
	case home == to:
		return -1
	}
	return 0
}

func (p *polisher) mayGo(more int) bool {
	return p.MaxAway == 0 || more <= 0 || p.Away+more <= p.MaxAway
}

func (p *polisher) fits(u, n int) bool {
	return p.f.VCPUs[u] <= p.FreeVCPUs[n]+slack && p.f.MiB[u] <= p.FreeMiB[n]+slack
}

// carry takes a unit from its bin to another.
func (p *polisher) carry(u, to int) {
	from := p.Bins.At[u]
	p.Away += p.going(u, to)
	last := len(p.here[from]) - 1
	moved := p.here[from][last]
	p.here[from][p.slot[u]] = moved
	p.slot[moved] = p.slot[u]
	p.here[from] = p.here[from][:last]
	p.slot[u] = len(p.here[to])
	p.here[to] = append(p.here[to], u)
	p.FreeVCPUs[from] += p.f.VCPUs[u]
	p.FreeMiB[from] += p.f.MiB[u]
	p.FreeVCPUs[to] -= p.f.VCPUs[u]
	p.FreeMiB[to] -= p.f.MiB[u]
	p.Bins.At[u] = to
	if k := p.Site[to]; k != p.State.At[u] {
		p.Move(u, k)
	}
}

// sink takes what is better, unit by unit, until nothing is.
func (p *polisher) sink() {
	for better := true; better; {
		better = false
		for u, from := range p.Bins.At {
			if from == None {
				continue
			}
			best, least := None, -slack
			for k := range p.f.Sites {
				usd := p.Gain(u, k) - p.stir(u, from)
				if usd >= least {
					continue
				}
				for _, n := range p.bySite[k] {
					if usd := usd + p.stir(u, n); usd < least && p.fits(u, n) && p.mayGo(p.going(u, n)) {
						best, least = n, usd
					}
				}
			}
			if best != None {
				p.carry(u, best)
				better = true
			}
		}
	}
}
