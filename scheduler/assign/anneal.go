package assign

import (
	"cmp"
	"math"
	"slices"

	"heliotrope/scheduler/anneal"
)

// annealer improves a state step by step, and takes what is worse with a chance that falls
// as it cools.
type annealer struct {
	*State
	anneal.Walk
	turn     int   // the unit whose turn it is: those that talk are near each other in memory, too
	mark     []int // of each unit: the cluster that it was last in
	clusters int   // the last mark
	group    bunch
	back     bunch // what makes room for it

	best       []int
	bestUSD    float64
	bestExcess float64 // of what is asked for over the room there is
	scale      scale
}

const (
	coldFraction = 1e-3 // of the first temperature: the last one

	mostTemperatures = 10 // that worse is taken with any chance
	bondScales       = 7  // doublings of the temperature at which units stay together in a cluster
	mostBack         = 64 // units that make room
	thirds           = 4  // times of which these go to a third site once
	clusterBits      = 4  // of a step's chance, all of which are 0 where it is one of a cluster

	// In the first part a site may hold more than it has room for, at a toll that rises, as a
	// multiple of what a vCPU costs in all: without it nothing large gets into a full site.
	softFraction = 0.8

	leasedPart = 80 // of 100 steps: with the rent as a price of room
)

func newAnnealer(s *State, seed uint64, late func() bool) *annealer {
	a := &annealer{State: s, Walk: anneal.New(seed, late), mark: make([]int, len(s.At))}
	a.keep()
	return a
}

func (a *annealer) keep() {
	a.best, a.bestUSD, a.bestExcess = append(a.best[:0], a.At...), a.USD, a.excess()
}

// note keeps what is better: what is nearer to having room for all, then what is cheaper.
func (a *annealer) note() {
	if less(a.excess(), a.USD, a.bestExcess, a.bestUSD) {
		a.keep()
	}
}

func (a *annealer) beats(b *annealer) bool {
	return less(a.bestExcess, a.bestUSD, b.bestExcess, b.bestUSD)
}

func less(excessA, usdA, excessB, usdB float64) bool {
	if math.Abs(excessA-excessB) > 1e-6 {
		return excessA < excessB
	}
	return usdA < usdB-slack
}

// warmth is a temperature at which most moves of usual size are taken: the mean size of
// changes that a random move makes, without those that may not be.
func (a *annealer) warmth() float64 {
	var sum float64
	n := 0
	for range 1000 {
		if usd := math.Abs(a.Gain(a.Below(len(a.At)), a.Below(a.f.Sites))); usd > 0 && usd < Never/2 {
			sum += usd
			n++
		}
	}
	return sum / float64(max(n, 1))
}

// scale is the first and the last toll of a run, as multiples of what a vCPU costs in all; none: no site is
// ever overfull.
type scale [2]float64

// Without a price of room it is the toll alone that says which sites are worth most. Where it begins gently,
// several clusters that make room for each other, and what makes the last of it, can go one after the
// other, with sites overfull in between.
var usualScale, gentleScale, leasedScale = scale{0.3, 30}, scale{0.05, 10}, scale{0.1, 3}

// cool anneals from a multiple of warmth.
func (a *annealer) cool(hot float64, toll scale, steps int) {
	a.descend()
	a.scale = toll
	a.run(a.warmth()*hot, steps)
}

// cede anneals in a field where room has a price, and ends without it in the field itself.
func (a *annealer) cede(to *Field, hot float64, steps int) *annealer {
	a.scale = leasedScale
	hot *= a.warmth()
	a.run(hot, steps*leasedPart/100)
	b := newAnnealer(newState(to, a.best), a.Next(), a.Late)
	b.descend()
	b.run(hot*coldFraction, steps*(100-leasedPart)/100)
	return b
}

// run cools from a temperature within a number of steps.
func (a *annealer) run(hot float64, steps int) {
	if hot <= 0 || len(a.At) == 0 || a.f.Sites < 2 {
		return
	}
	usual := a.usualUSD()
	a.Cool(hot, coldFraction, steps, func(share, temperature float64) {
		a.toll = 0
		if share < softFraction && a.scale[0] > 0 {
			a.toll = usual * a.scale[0] * math.Pow(a.scale[1]/a.scale[0], share/softFraction)
		} else if a.excess() > 0 {
			a.relieveAll()
		}
		for range anneal.AtOnce {
			a.step(temperature)
		}
		a.note()
	})
	a.toll = 0
	a.relieveAll()
	a.refresh()
	a.note()
}

// usualUSD is what a vCPU costs in all.
func (a *annealer) usualUSD() float64 {
	return min(math.Abs(a.bestUSD), Never) / max(sum(a.f.VCPUs), 1e-9)
}

func (a *annealer) relieveAll() {
	for k := range a.f.Sites {
		a.relieve(k)
	}
}

func (a *annealer) step(temperature float64) {
	x := a.Next()
	u := a.unit()
	k, home := a.target(u, x), a.At[u]
	if k == home {
		return
	}
	usd := a.Gain(u, k)
	if x>>1&(1<<clusterBits-1) == 0 {
		if a.barred(u, k) {
			return
		}
		// It is dear to weigh one: where its first unit is cheaper of two sites it is more likely to be taken.
		if l := a.Below(a.f.Sites); l != home && a.Gain(u, l) < usd && !a.barred(u, l) {
			k = l
		}
		a.cluster(u, k, temperature)
		return
	}
	fits := a.Fits(u, k)
	if usd >= temperature*mostTemperatures && (usd < Never/2 && (fits || a.scale == leasedScale) || a.barred(u, k)) {
		return // most are. One that gains more in its place asks for that itself; where room has no price it takes both to
	}
	if !fits && (a.toll == 0 || x>>7&1 == 0) || !a.permits(u, k) {
		a.exchange(u, k, temperature)
		return
	}
	if usd > Never/2 {
		a.chain(u, k, temperature)
		return
	}
	if a.toll > 0 {
		usd += a.relocating(u, k)
	}
	if a.Takes(usd, temperature) {
		a.Move(u, k)
	}
}

// unit is the next one whose turn it is.
func (a *annealer) unit() int {
	if a.turn++; a.turn >= len(a.At) {
		a.turn = 0
	}
	return a.turn
}

// target chooses a site by random bits: a neighbour's, or any.
func (a *annealer) target(u int, bits uint64) int {
	if edges := a.f.Edges[u]; bits&1 == 0 && len(edges) > 0 {
		return a.At[edges[(bits>>32)*uint64(len(edges))>>32].To]
	}
	return int((bits >> 32) * uint64(a.f.Sites) >> 32)
}

// exchange tries a unit against one at a full site.
func (a *annealer) exchange(u, k int, temperature float64) {
	if len(a.here[k]) == 0 {
		return
	}
	v := a.here[k][a.Below(len(a.here[k]))]
	if a.canSwap(u, v) && a.swapsWithin(u, v, a.Limit(temperature)) {
		a.swap(u, v)
	}
}

// chain tries to exchange a unit with those at a site that may not be with it there, these
// with those that may not be with them, and so on (Kempe's chains, of graph colouring).
// One by one each would have to break a rule.
func (a *annealer) chain(u, k int, temperature float64) {
	const longest = 64
	home, usd := a.At[u], a.USD
	a.clusters++
	group := append(a.group.units[:0], u)
	a.mark[u] = a.clusters
	for i := 0; i < len(group) && len(group) < longest; i++ {
		to := home + k - a.At[group[i]]
		for _, e := range a.f.Edges[group[i]] {
			if e.Rule != None && a.At[e.To] == to && a.mark[e.To] != a.clusters && a.f.Rules[e.Rule][to*a.f.Sites+to] {
				a.mark[e.To] = a.clusters
				group = append(group, e.To)
			}
		}
	}
	a.group.units = group
	exchange := func() {
		for _, v := range group {
			a.Move(v, home+k-a.At[v])
		}
	}
	exchange()
	room := a.holds(k, 0, 0) && a.holds(home, 0, 0)
	if !room || a.moves > a.maxMoves || !a.Takes(a.USD-usd, temperature) {
		exchange()
	}
}

// bunch is some units of one site, and what it adds to the cost when they go to another together.
type bunch struct {
	units      []int
	first      int // the mark of the first of them; each other's is one more
	usd        float64
	vcpus, mib float64
	gb         float64 // per hour between them
	ruled      bool    // there is a rule between two of them
}

// cluster tries a unit with some of those around it wherever it is cheapest for them, and where that is
// at home and k is full, against others of as much room there.
func (a *annealer) cluster(u, k int, temperature float64) {
	g, bond := &a.group, temperature*float64(int(1)<<a.Below(bondScales))
	a.grow(g, u, k, 2<<a.Below(5), math.Inf(1), bond)
	if to := a.choose(g, k, temperature); to != a.At[u] {
		a.moveAll(g, to)
	} else if g.usd < Never/2 && !a.holds(k, g.vcpus, g.mib) && len(a.here[k]) > 0 {
		a.displace(u, k, temperature, bond)
	}
}

// choose is the site at which a bunch costs least, home included: what is dearer has at each other site a chance of
// its own. A bunch is dear to grow, and cheap to weigh at all sites. One with a rule within it, which grow
// reckoned for k alone, is only weighed there.
func (a *annealer) choose(g *bunch, k int, temperature float64) int {
	f, n, home := a.f, a.f.Sites, a.At[g.units[0]]
	sum := a.out[:n]
	clear(sum)
	for _, v := range g.units {
		for l, usd := range a.would[v*n : v*n+n] {
			sum[l] += usd
		}
	}
	leaves := a.tolls(home, -g.vcpus, -g.mib)
	best, least, hot := home, 0.0, temperature*mostTemperatures
	draws, bits := 0, uint64(0)
	for l, usd := range sum {
		usd -= sum[home] + g.gb*(f.Price[l*n+home]+f.Back[l*n+home]-f.Price[l*n+l]-f.Price[home*n+home])
		if g.ruled {
			if l != k {
				continue
			}
			usd = g.usd
		}
		if usd+leaves >= least+hot || l == home || a.toll == 0 && !a.holds(l, g.vcpus, g.mib) || !a.permitsGroup(g.units, l) {
			continue
		}
		if draws == 0 {
			bits, draws = a.Next(), anneal.Draws
		}
		usd += leaves + a.tolls(l, g.vcpus, g.mib) - temperature*anneal.Chance(bits)
		bits <<= anneal.ChanceBits
		draws--
		if usd < least {
			best, least = l, usd
		}
	}
	return best
}

// displace tries the group at a full site, and some of those there, of as much room, at the group's
// site or, where room has no price, at a third.
func (a *annealer) displace(u, k int, temperature, bond float64) {
	if a.maxMoves < math.MaxInt {
		return
	}
	home, g, back := a.At[u], &a.group, &a.back
	v := a.here[k][a.Below(len(a.here[k]))]
	to := home
	if a.scale[0] > 0 && a.scale != leasedScale && a.Below(thirds) == 0 {
		if to = a.target(v, a.Next()); to == k {
			to = home
		}
	}
	if a.barred(v, to) {
		return
	}
	a.grow(back, v, to, mostBack, g.vcpus, bond)
	in, inMiB := g.vcpus-back.vcpus, g.mib-back.mib
	if a.toll == 0 {
		fits := a.holds(k, in, inMiB)
		if to == home {
			fits = fits && a.holds(home, -in, -inMiB)
		} else {
			fits = fits && a.holds(to, back.vcpus, back.mib)
		}
		if !fits {
			return
		}
	}
	usd := g.usd + back.usd + a.crossing(home, k, to)
	switch {
	case a.toll == 0:
	case to == home:
		usd += a.tolls(k, in, inMiB) + a.tolls(home, -in, -inMiB)
	default:
		usd += a.tolls(k, in, inMiB) + a.tolls(home, -g.vcpus, -g.mib) + a.tolls(to, back.vcpus, back.mib)
	}
	if a.Takes(usd, temperature) {
		a.moveAll(g, k)
		a.moveAll(back, to)
	}
}

func (a *annealer) moveAll(b *bunch, k int) {
	for _, u := range b.units {
		a.Move(u, k)
	}
}

// crossing is what the gains of the group, which goes from home to k, and of those that make room there and go
// elsewhere leave out: what is between the two.
func (a *annealer) crossing(home, k, to int) float64 {
	var usd float64
	for _, u := range a.group.units {
		for _, e := range a.f.Edges[u] {
			if a.mark[e.To] >= a.back.first {
				usd += a.f.PairUSD(e, k, to) - a.f.PairUSD(e, k, k) - a.f.PairUSD(e, home, to) + a.f.PairUSD(e, home, k)
			}
		}
	}
	return usd
}

// grow makes a bunch of a unit and some of those around it at its site, breadth first, up to
// a number of units, or of vCPUs, for them to go to another site k. Who talks so much that one
// of two would hardly go without the other at a temperature comes along (after Wolff's
// clusters, of spins): what is cut is little. Who may not be at k does not.
func (a *annealer) grow(b *bunch, u, k, size int, vcpus, temperature float64) {
	f, n, home := a.f, a.f.Sites, a.At[u]
	out, in := f.Price[k*n+home], f.Back[k*n+home]
	apart := out + in - f.Price[k*n+k] - f.Price[home*n+home] // of a GB, either way
	group := append(b.units[:0], u)
	first := a.clusters + 1
	a.mark[u] = first
	vcpus -= f.VCPUs[u]
	b.usd, b.vcpus, b.mib = 0, 0, 0
	b.gb, b.ruled = 0, false
	draws, bits := 0, uint64(0)
	for i := 0; i < len(group); i++ {
		v := group[i]
		b.usd += a.Gain(v, k)
		b.vcpus += f.VCPUs[v]
		b.mib += f.MiB[v]
		edges := f.Edges[v]
		for x := range edges {
			e := &edges[x]
			if a.At[e.To] != home {
				continue
			}
			if there := a.mark[e.To] - first; there >= 0 {
				if there < i {
					if b.gb += e.Out + e.In; e.Rule != None {
						b.ruled = true
						b.usd += f.ruleUSD(*e, k, k) + f.ruleUSD(*e, home, home) - f.ruleUSD(*e, k, home) - f.ruleUSD(*e, home, k)
					}
				}
				continue
			}
			if len(group) >= size || vcpus < f.VCPUs[e.To] {
				continue
			}
			if draws == 0 {
				bits, draws = a.Next(), anneal.Draws
			}
			if worse := e.Out*out + e.In*in; worse >= temperature*mostTemperatures || worse >= temperature*anneal.Chance(bits) {
				if !a.barred(e.To, k) {
					a.mark[e.To] = first + len(group)
					group = append(group, e.To)
					vcpus -= f.VCPUs[e.To]
				}
			}
			bits <<= anneal.ChanceBits
			draws--
		}
	}
	b.usd -= b.gb * apart
	b.units, b.first = group, first
	a.clusters = first + len(group)
}

// descend takes what is better, unit by unit, those first that gain most, until no single
// move is.
func (a *annealer) descend() {
	queue := make([]int, len(a.At))
	queued := slices.Repeat([]bool{true}, len(a.At))
	gain := make([]float64, len(a.At))
	for u := range queue {
		queue[u] = u
		if k := a.bestSite(u); k != None {
			gain[u] = a.Gain(u, k)
		}
	}
	slices.SortStableFunc(queue, func(u, v int) int { return cmp.Compare(gain[u], gain[v]) })
	for n := 0; len(queue) > 0; n++ {
		u := queue[0]
		queue = queue[1:]
		queued[u] = false
		if n%anneal.AtOnce == 0 && a.Late() {
			break
		}
		if k := a.bestSite(u); k != None {
			a.Move(u, k)
			for _, e := range a.f.Edges[u] {
				if !queued[e.To] {
					queued[e.To] = true
					queue = append(queue, e.To)
				}
			}
		}
	}
	a.note()
}

// bestSite is where a unit costs least, or None where it is there.
func (a *annealer) bestSite(u int) int {
	best, usd := None, -1e-9
	for k := range a.f.Sites {
		if g := a.Gain(u, k); g < usd && k != a.At[u] && a.Fits(u, k) && a.permits(u, k) {
			best, usd = k, g
		}
	}
	return best
}
