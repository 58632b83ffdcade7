package assign

import (
	"math"
	"slices"
)

// dual is the dual of the field's linear relaxation: for each edge two messages of one
// number a site, which take cost from the edge and give it to its ends, and prices for room.
// Whatever these are, what remains is a lower bound once each part is minimised by itself.
type dual struct {
	*Field
	order    []int     // of units, in which messages run forwards
	rank     []int     // of each unit in order
	messages []float64 // edge × 2 × sites + side × sites + site; side 0 is to the later unit
	told     []float64 // unit × sites + site: what a unit costs, with all messages to it
	earlier  [][]link  // of each unit's edges, those to units before it
	later    [][]link
	share    []float64 // of each unit's cost that each of its edges to later units is given
	tariff   tariff

	rent    []float64 // USD per hour for all of a site's vCPUs, its memory, and all moves
	before  []float64 // the change of rent before: it swings less so
	perVCPU []float64 // the rent of one, by site
	perMiB  []float64

	excess []float64 // what was asked for over the room, as a share of it, by what has a rent
	blur   float64   // USD per hour: what costs so much more is asked for about 1/e times as much

	own, give, want, fresh []float64 // scratch: of one unit, by site
}

// link is an edge with its number.
type link struct {
	*Edge
	number int
}

const (
	gauges     = 60   // changes of rent before there are messages
	firstGauge = 0.02 // of the bound, that the first may add
	lastGauge  = 0.001
	firstStep  = 0.15 // of the gap, likewise once there are messages
	lastStep   = 0.006

	lumpTurns     = 100  // passes of messages between lumps
	appraisedStep = 0.03 // in place of the first step where lumps have found the rent

	turnDecay    = 1.4  // powers of the usual by which a step shrinks at a right angle; the rent goes straight on as fast as it went
	settledPart  = 0.85 // of the passes, after which the rent stays
	stalled      = 2e-6 // of the bound: what a pass adds then at least, or it was the last
	rentMomentum = 0.6  // share of the change before
	blurPart     = 0.02 // of what a unit costs on average
)

func newDual(f *Field) *dual {
	n := len(f.Home)
	d := &dual{Field: f, rank: make([]int, n), share: make([]float64, n), earlier: make([][]link, n), later: make([][]link, n),
		rent: make([]float64, 2*f.Sites+1), before: make([]float64, 2*f.Sites+1),
		perVCPU: make([]float64, f.Sites), perMiB: make([]float64, f.Sites),
		excess: make([]float64, 2*f.Sites+1), tariff: newTariff(f), told: slices.Clone(f.Linear),
		own: make([]float64, f.Sites), give: make([]float64, f.Sites), want: make([]float64, f.Sites), fresh: make([]float64, f.Sites)}
	d.walk()
	edges := 0
	for _, u := range d.order {
		for i := range f.Edges[u] {
			if e := &f.Edges[u][i]; d.rank[e.To] > d.rank[u] {
				d.later[u] = append(d.later[u], link{e, edges})
				j := slices.IndexFunc(f.Edges[e.To], func(back Edge) bool { return back.To == u })
				d.earlier[e.To] = append(d.earlier[e.To], link{&f.Edges[e.To][j], edges})
				edges++
			}
		}
		d.share[u] = 1 / float64(max(len(d.later[u]), len(d.earlier[u]), 1))
	}
	d.messages = make([]float64, edges*2*f.Sites)
	return d
}

// walk orders units so that those that talk are near each other: breadth first.
func (d *dual) walk() {
	seen := make([]bool, len(d.Home))
	for first := range d.Home {
		if seen[first] {
			continue
		}
		seen[first] = true
		d.order = append(d.order, first)
		for i := len(d.order) - 1; i < len(d.order); i++ {
			u := d.order[i]
			d.rank[u] = i
			for _, e := range d.Edges[u] {
				if !seen[e.To] {
					seen[e.To] = true
					d.order = append(d.order, e.To)
				}
			}
		}
	}
}

// to is the message of an edge to one of its units.
func (d *dual) to(number int, later bool) []float64 {
	at := number * 2 * d.Sites
	if !later {
		at += d.Sites
	}
	return d.messages[at : at+d.Sites]
}

// charge reckons what one vCPU and one MiB pay of the rent.
func (d *dual) charge() {
	for k := range d.Sites {
		d.perVCPU[k], d.perMiB[k] = 0, 0
		if room := d.RoomVCPUs[k]; room > 0 {
			d.perVCPU[k] = d.rent[k] / room
		}
		if room := d.RoomMiB[k]; room > 0 {
			d.perMiB[k] = d.rent[d.Sites+k] / room
		}
	}
}

// rented fills own with what a unit costs at each site, room paid for.
func (d *dual) rented(costs []float64, u int) {
	row := d.own
	vcpus, mib := d.VCPUs[u], d.MiB[u]
	perVCPU, perMiB := d.perVCPU[:len(row)], d.perMiB[:len(row)]
	for k, usd := range costs[:len(row)] {
		row[k] = usd + perVCPU[k]*vcpus + perMiB[k]*mib
	}
	if most := d.MaxMoves; most > 0 {
		for k := range row {
			row[k] += d.rent[2*d.Sites] * float64(d.Moves[u*d.Sites+k]) / float64(most)
		}
	}
}

// gather is what a unit costs at each site, with all messages to it.
func (d *dual) gather(u int) {
	copy(d.own, d.Linear[u*d.Sites:])
	for _, l := range d.later[u] {
		for k, usd := range d.to(l.number, false) {
			d.own[k] += usd
		}
	}
	for _, l := range d.earlier[u] {
		for k, usd := range d.to(l.number, true) {
			d.own[k] += usd
		}
	}
}

// tell reckons told anew.
func (d *dual) tell() {
	for u := range d.Home {
		d.gather(u)
		copy(d.told[u*d.Sites:], d.own)
	}
}

// ask adds what a unit asks for, of which own is the cost by site and least its minimum.
// Sites that are nearly as good share it: whole clusters that change their mind at each pass
// would make the rent swing.
func (d *dual) ask(u int, least float64) {
	const power = 8 // (1 - x/8)^8 is near e^-x, and 0 from where that is next to nothing
	var all float64
	scale := 1 / (power * max(d.blur, 1e-300))
	want := d.want[:len(d.own)]
	for k, usd := range d.own {
		x := max(0, 1-(usd-least)*scale)
		x *= x
		x *= x
		x *= x
		want[k] = x
		all += x
	}
	vcpus, mib := d.VCPUs[u]/all, d.MiB[u]/all
	askedVCPUs, askedMiB := d.excess[:len(want)], d.excess[d.Sites:][:len(want)]
	for k, share := range want {
		askedVCPUs[k] += share * vcpus
		askedMiB[k] += share * mib
	}
	if d.MaxMoves > 0 {
		for k, share := range want {
			d.excess[2*d.Sites] += share / all * float64(d.Moves[u*d.Sites+k])
		}
	}
}

// tally makes excess of all that was asked for.
func (d *dual) tally() {
	over := func(i int, room float64) {
		if room > 0 {
			d.excess[i] /= room
		} else {
			d.excess[i] = 0
		}
		d.excess[i]--
	}
	for k := range d.Sites {
		over(k, d.RoomVCPUs[k])
		over(d.Sites+k, d.RoomMiB[k])
	}
	over(2*d.Sites, float64(d.MaxMoves))
}

// gauge finds a rent to begin with, as if nothing talked.
func (d *dual) gauge(late func() bool) {
	step := firstGauge
	for range gauges {
		if late() {
			return
		}
		clear(d.excess)
		d.charge()
		var usd float64
		for u := range d.Home {
			d.rented(d.Linear[u*d.Sites:], u)
			least := slices.Min(d.own)
			usd += least
			d.ask(u, least)
		}
		d.tally()
		d.raise(step * math.Abs(usd-sum(d.rent)))
		d.blur = blurPart * math.Abs(usd) / float64(len(d.Home))
		step *= math.Pow(lastGauge/firstGauge, 1.0/gauges)
	}
	clear(d.before)
}

// certify reckons the bound anew from the messages and the rent alone. It is true whatever
// they are: each edge is given a share of its earlier unit's cost and minimised by itself,
// and so is what is left of each unit. Nothing that the search did can make it wrong.
func (d *dual) certify() float64 {
	d.charge()
	var sum, size float64
	add := func(usd float64) {
		sum += usd
		size += math.Abs(usd)
	}
	for _, u := range d.order {
		d.gather(u)
		d.rented(d.own, u)
		for _, to := range d.later[u] {
			back, there := d.to(to.number, false), d.to(to.number, true)
			least := math.Inf(1)
			for k := range d.Sites {
				for l := range d.Sites {
					least = min(least, d.own[k]*d.share[u]-back[k]+d.PairUSD(*to.Edge, k, l)-there[l])
				}
			}
			add(least)
		}
		least := slices.Min(d.own)
		add(least * (1 - float64(len(d.later[u]))*d.share[u]))
	}
	for _, rent := range d.rent {
		add(-rent)
	}
	return sum - size*1e-12 // what the sums may have rounded
}

// leaseShare is the share of the rent that a search pays. At all of it, what is not taken of a
// site's room is worth as much as what is, and some would stay empty.
const leaseShare = 0.95

// lease is the field with most of the rent as a price of room. To the search sites that are
// full are then no better than others, but for those that gain most there.
func (d *dual) lease() *Field {
	d.charge()
	f := *d.Field
	f.Linear = slices.Clone(f.Linear)
	for u := range f.Home {
		d.rented(d.Linear[u*d.Sites:], u)
		for k, usd := range d.own {
			f.Linear[u*f.Sites+k] += leaseShare * (usd - f.Linear[u*f.Sites+k])
		}
	}
	return &f
}

// raise changes the rent: more where what was asked for exceeds the room. gain is how much
// that may add to the bound. It returns how much it turned: 0 where what is asked for exceeds the
// room as it did in the changes before, 1 at a right angle, 2 where it is the other way round.
func (d *dual) raise(gain float64) (turn float64) {
	var length, dot, a, b float64
	for i, x := range d.excess {
		if x < 0 && d.rent[i] == 0 {
			x = 0
		}
		dot += x * d.before[i]
		a += x * x
		b += d.before[i] * d.before[i]
		x = (1-rentMomentum)*x + rentMomentum*d.before[i]
		d.before[i] = x
		length += x * x
	}
	if length == 0 {
		return 1
	}
	for i := range d.rent {
		d.rent[i] = max(0, d.rent[i]+gain/length*d.before[i])
	}
	if a*b == 0 {
		return 1
	}
	return 1 - dot/math.Sqrt(a*b)
}

// read makes a placement of the messages: units in order, each where it costs least given
// those before it and what the messages say of those after it, and where there is room.
func (d *dual) read() *State {
	d.charge()
	free := [2][]float64{slices.Clone(d.RoomVCPUs), slices.Clone(d.RoomMiB)}
	moves := 0
	at := make([]int, len(d.Home))
	for _, u := range d.order {
		d.rented(d.Linear[u*d.Sites:], u)
		for _, l := range d.earlier[u] {
			for k := range d.own {
				d.own[k] += d.PairUSD(*l.Edge, k, at[l.To])
			}
		}
		for _, l := range d.later[u] {
			for k, usd := range d.to(l.number, false) {
				d.own[k] += usd
			}
		}
		best := None
		for k, usd := range d.own {
			fits := d.VCPUs[u] <= free[0][k] && d.MiB[u] <= free[1][k] &&
				(d.MaxMoves == 0 || moves+d.Moves[u*d.Sites+k] <= d.MaxMoves)
			if fits && (best == None || usd < d.own[best]) {
				best = k
			}
		}
		if best == None || d.own[best] > Never/2 {
			best = slices.Index(d.own, slices.Min(d.own))
		}
		at[u] = best
		free[0][best] -= d.VCPUs[u]
		free[1][best] -= d.MiB[u]
		moves += d.Moves[u*d.Sites+best]
	}
	s := newState(d.Field, at)
	for k := range d.Sites {
		s.relieve(k)
	}
	return s
}

// climb passes messages up and down, and changes the rent in the first part of them. It
// returns the bound and the best placement that it read. ceiling is what is known to be
// possible.
func (d *dual) climb(passes int, ceiling float64, late func() bool) (bound float64, best *State) {
	read := func() {
		if s := d.read(); best == nil || less(s.excess(), s.USD, best.excess(), best.USD) {
			best = s
		}
		if best.excess() == 0 && best.moves <= best.maxMoves {
			ceiling = min(ceiling, best.USD)
		}
	}
	step := firstStep
	if len(d.Home) > smallField {
		d.appraise(late)
		step = appraisedStep
	} else {
		d.gauge(late)
	}
	turns := int(2 * float64(passes) * settledPart)
	d.haggle(turns, step, late, func(n int) float64 {
		if n%16 == 14 {
			read()
		}
		return ceiling
	})
	last := math.Inf(-1)
	for n := turns; n < 2*passes && !late(); n++ {
		usd := d.pass(n%2 == 0, false)
		if usd-last < stalled*math.Abs(usd) {
			break
		}
		last = usd
	}
	d.pass(true, false)
	read()
	return d.certify(), best
}

// appraise finds a rent to begin with, by that of lumps: they know already what units learn from
// each other by many messages only, and are a tenth as many.
func (d *dual) appraise(late func() bool) {
	field, _ := d.lumps()
	lumps := newDual(field)
	lumps.gauge(late)
	lumps.haggle(lumpTurns, firstStep, late, func(int) float64 { return math.Inf(1) })
	copy(d.rent, lumps.rent)
	d.blur = lumps.blur * float64(len(lumps.Home)) / float64(len(d.Home))
}

// haggle passes messages so many times, up and down in turns, and changes the rent each time. It leaves
// the rent that made the best bound. ceiling is what is known to be possible then.
func (d *dual) haggle(turns int, step float64, late func() bool, ceiling func(n int) float64) {
	top, rent := math.Inf(-1), slices.Clone(d.rent)
	for n := 0; n < turns && !late(); n++ {
		usd := d.pass(n%2 == 0, true)
		if usd > top {
			top = usd
			copy(rent, d.rent)
		}
		d.blur = blurPart * math.Abs(usd) / float64(len(d.Home))
		turn := d.raise(step * min(max(ceiling(n)-usd, 0), 0.1*math.Abs(usd)))
		step *= math.Pow(lastStep/firstStep, turnDecay*turn/float64(turns))
	}
	copy(d.rent, rent)
}
