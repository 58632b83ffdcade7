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
	number   [][]int   // of each unit's edges
	share    []float64 // of each unit's cost that each of its edges to later units is given

	rent   []float64 // USD per hour for all of a site's vCPUs, its memory, and all moves
	before []float64 // the change of rent before: it swings less so

	excess []float64 // what was asked for over the room, as a share of it, by what has a rent
	blur   float64   // USD per hour: what costs so much more is asked for 1/e times as much

	own, give, want []float64 // scratch: of one unit, by site
}

const (
	gauges       = 60   // changes of rent before there are messages
	firstGauge   = 0.02 // of the bound, that the first may add
	lastGauge    = 0.001
	firstStep    = 0.15 // of the gap, likewise once there are messages
	lastStep     = 0.006
	turnDecay    = 2    // powers of the usual by which a step shrinks at a right angle; the rent goes straight on as fast as it went
	settledPart  = 0.7  // of the passes, after which the rent stays
	rentMomentum = 0.6  // share of the change before
	blurPart     = 0.02 // of what a unit costs on average
)

func newDual(f *Field) *dual {
	n := len(f.Home)
	d := &dual{Field: f, rank: make([]int, n), share: make([]float64, n), number: make([][]int, n),
		rent: make([]float64, 2*f.Sites+1), before: make([]float64, 2*f.Sites+1),
		excess: make([]float64, 2*f.Sites+1),
		own:    make([]float64, f.Sites), give: make([]float64, f.Sites), want: make([]float64, f.Sites)}
	d.walk()
	edges := 0
	for u, list := range f.Edges {
		d.number[u] = make([]int, len(list))
	}
	for _, u := range d.order {
		later := 0
		for i, e := range f.Edges[u] {
			if d.rank[e.To] < d.rank[u] {
				continue
			}
			later++
			d.number[u][i] = edges
			j := slices.IndexFunc(f.Edges[e.To], func(back Edge) bool { return back.To == u })
			d.number[e.To][j] = edges
			edges++
		}
		d.share[u] = 1 / float64(max(later, len(f.Edges[u])-later, 1))
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

// rented is what a unit costs at each site by itself, room paid for.
func (d *dual) rented(u int, row []float64) {
	for k := range row {
		row[k] = d.Linear[u*d.Sites+k]
		if d.RoomVCPUs[k] > 0 {
			row[k] += d.rent[k] * d.VCPUs[u] / d.RoomVCPUs[k]
		}
		if d.RoomMiB[k] > 0 {
			row[k] += d.rent[d.Sites+k] * d.MiB[u] / d.RoomMiB[k]
		}
		if most := d.MaxMoves; most > 0 {
			row[k] += d.rent[2*d.Sites] * float64(d.Moves[u*d.Sites+k]) / float64(most)
		}
	}
}

// gather is rented with all messages to the unit.
func (d *dual) gather(u int) {
	d.rented(u, d.own)
	for i, e := range d.Edges[u] {
		for k, usd := range d.to(d.number[u][i], d.rank[e.To] < d.rank[u]) {
			d.own[k] += usd
		}
	}
}

// forget starts to add up anew what is asked for.
func (d *dual) forget() {
	for i := range d.excess {
		d.excess[i] = -1
	}
}

// ask adds what a unit asks for, of which own is the cost by site and least its minimum.
// Sites that are nearly as good share it: whole clusters that change their mind at each pass
// would make the rent swing.
func (d *dual) ask(u int, least float64) {
	var all float64
	for k, usd := range d.own {
		d.want[k] = 0
		switch more := usd - least; {
		case more == 0:
			d.want[k] = 1
		case more < 8*d.blur:
			d.want[k] = math.Exp(-more / d.blur)
		}
		all += d.want[k]
	}
	for k, share := range d.want {
		if share == 0 {
			continue
		}
		share /= all
		if d.RoomVCPUs[k] > 0 {
			d.excess[k] += share * d.VCPUs[u] / d.RoomVCPUs[k]
		}
		if d.RoomMiB[k] > 0 {
			d.excess[d.Sites+k] += share * d.MiB[u] / d.RoomMiB[k]
		}
		if most := d.MaxMoves; most > 0 {
			d.excess[2*d.Sites] += share * float64(d.Moves[u*d.Sites+k]) / float64(most)
		}
	}
}

// gauge finds a rent to begin with, as if nothing talked.
func (d *dual) gauge(late func() bool) {
	step := firstGauge
	for range gauges {
		if late() {
			return
		}
		d.forget()
		var usd float64
		for u := range d.Home {
			d.rented(u, d.own)
			least := slices.Min(d.own)
			usd += least
			d.ask(u, least)
		}
		d.raise(step * math.Abs(usd-sum(d.rent)))
		d.blur = blurPart * math.Abs(usd) / float64(len(d.Home))
		step *= math.Pow(lastGauge/firstGauge, 1.0/gauges)
	}
	clear(d.before)
}

// pass sends messages from each unit to those after it (forwards) or before it. It returns
// what it took out, which with the rent is the bound.
func (d *dual) pass(forwards bool) float64 {
	var usd float64
	d.forget()
	for i := range d.order {
		u := d.order[i]
		if !forwards {
			u = d.order[len(d.order)-1-i]
		}
		d.gather(u)
		least := slices.Min(d.own)
		usd += least
		d.ask(u, least)
		for k := range d.own {
			d.own[k] = (d.own[k] - least) * d.share[u]
		}
		for i, e := range d.Edges[u] {
			if later := d.rank[e.To] > d.rank[u]; later == forwards {
				usd += d.send(d.number[u][i], e, later)
			}
		}
	}
	return usd - sum(d.rent)
}

// send gives an edge its share of a unit's cost, and hands on what that leaves to the other
// end; it returns the part that is the same wherever that is.
func (d *dual) send(number int, e Edge, later bool) float64 {
	for k, usd := range d.to(number, !later) {
		d.give[k] = d.own[k] - usd
	}
	message := d.to(number, later)
	d.cheapest(e, d.give, message)
	least := slices.Min(message)
	for k := range message {
		message[k] -= least
	}
	return least
}

// cheapest fills in, for each site of an edge's other end, what the edge and this end cost
// at least.
func (d *dual) cheapest(e Edge, give, row []float64) {
	n := d.Sites
	for l := range row {
		row[l] = math.Inf(1)
	}
	if e.Rule != None {
		for k, usd := range give {
			for l := range row {
				row[l] = min(row[l], usd+d.PairUSD(e, k, l))
			}
		}
		return
	}
	for k, usd := range give {
		out, in := d.Price[k*n:k*n+n], d.Back[k*n:k*n+n]
		in, row := in[:len(out)], row[:len(out)]
		for l, x := range out {
			if x = usd + e.Out*x + e.In*in[l]; x < row[l] {
				row[l] = x
			}
		}
	}
}

// certify reckons the bound anew from the messages and the rent alone. It is true whatever
// they are: each edge is given a share of its earlier unit's cost and minimised by itself,
// and so is what is left of each unit. Nothing that the search did can make it wrong.
func (d *dual) certify() float64 {
	var sum, size float64
	add := func(usd float64) {
		sum += usd
		size += math.Abs(usd)
	}
	for _, u := range d.order {
		d.gather(u)
		later := 0
		for i, e := range d.Edges[u] {
			if d.rank[e.To] < d.rank[u] {
				continue
			}
			later++
			back, there := d.to(d.number[u][i], false), d.to(d.number[u][i], true)
			least := math.Inf(1)
			for k := range d.Sites {
				for l := range d.Sites {
					least = min(least, d.own[k]*d.share[u]-back[k]+d.PairUSD(e, k, l)-there[l])
				}
			}
			add(least)
		}
		least := slices.Min(d.own)
		add(least * (1 - float64(later)*d.share[u]))
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
	f := *d.Field
	f.Linear = slices.Clone(f.Linear)
	for u := range f.Home {
		d.rented(u, d.own)
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
	free := [2][]float64{slices.Clone(d.RoomVCPUs), slices.Clone(d.RoomMiB)}
	moves := 0
	at := make([]int, len(d.Home))
	for _, u := range d.order {
		d.rented(u, d.own)
		for i, e := range d.Edges[u] {
			if d.rank[e.To] < d.rank[u] {
				for k := range d.own {
					d.own[k] += d.PairUSD(e, k, at[e.To])
				}
				continue
			}
			for k, usd := range d.to(d.number[u][i], false) {
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
	d.gauge(late)
	top, rent := math.Inf(-1), slices.Clone(d.rent)
	settled := int(float64(passes) * settledPart)
	step := firstStep
	read := func() {
		if s := d.read(); best == nil || less(s.excess(), s.USD, best.excess(), best.USD) {
			best = s
		}
		if best.excess() == 0 && best.moves <= best.maxMoves {
			ceiling = min(ceiling, best.USD)
		}
	}
	for n := range 2 * passes {
		if n == 2*settled {
			copy(d.rent, rent)
		}
		if late() {
			break
		}
		usd := d.pass(n%2 == 0)
		if n >= 2*settled {
			continue
		}
		if usd > top {
			top = usd
			copy(rent, d.rent)
		}
		if n%16 == 14 {
			read()
		}
		d.blur = blurPart * math.Abs(usd) / float64(len(d.Home))
		turn := d.raise(step * min(max(ceiling-usd, 0), 0.1*math.Abs(usd)))
		step *= math.Pow(lastStep/firstStep, turnDecay*turn/float64(2*settled))
	}
	copy(d.rent, rent)
	d.pass(true)
	read()
	return d.certify(), best
}
