package pattern

import (
	"cmp"
	"math"
	"slices"
)

const (
	mostClimbs = 3
	look       = 1.2 // nats that one bond more or less than a place has costs a node while places are filled
	loss       = 0.7 // of what a likely bond would gain that the template has no place for
)

// filling is a template with some of its places filled.
type filling struct {
	at    []int // node at each place; -1: free
	used  []bool
	score float64   // of bonds between filled places
	guess float64   // and of how well nodes and places fit otherwise
	near  []float64 // of each node, what its bonds with the nodes at filled places could gain
}

// match looks for the way to put nodes into the template's places that gains most. It is a
// beam search (Lowerre 1976) over the places in their order, then exchanges pairs while
// that brings more.
func (t *template) match(g *gains, width int) (at []int, best float64) {
	fits := t.fits(g)
	b := beam{now: []filling{t.empty(g)}}
	for i, place := range t.order {
		if b.widen(t, g, fits, place, width); i == 0 && t.alike() {
			b.now = b.now[:min(len(b.now), 2)] // any node may be first
		}
	}
	best = math.Inf(-1)
	for _, f := range b.now[:min(len(b.now), mostClimbs)] {
		if score := t.climb(g, f.at, f.score); score > best {
			at, best = f.at, score
		}
	}
	return at, best
}

// empty is a filling without any place filled.
func (t *template) empty(g *gains) filling {
	return filling{at: slices.Repeat([]int{-1}, t.n), used: make([]bool, g.n), near: make([]float64, g.n)}
}

// alike says whether all places are, so that none needs to be found first.
func (t *template) alike() bool {
	return slices.Contains([]Kind{Ring, Torus1D, Torus2D, Torus3D, Butterfly}, t.kind)
}

// beam is the fillings that a search goes on with, the best first.
type beam struct {
	now, before []filling // those of before give their room to the next
	steps       []step
}

// step puts a node into the place that is next.
type step struct {
	from, turn   int // the filling, and the node's turn among those that are loud
	score, guess float64
}

func ahead(a, b step) int {
	return cmp.Or(cmp.Compare(b.guess, a.guess), a.from-b.from, a.turn-b.turn)
}

// widen fills one more place of each filling, and keeps the best.
func (b *beam) widen(t *template, g *gains, fits []float64, place, width int) {
	b.steps = b.steps[:0]
	for i, f := range b.now {
		for turn, v := range g.loud {
			if f.used[v] {
				continue
			}
			sum, lost := 0.0, f.near[v]
			for _, b := range t.bonds[place] {
				if w := f.at[b.to]; w >= 0 {
					sum += g.of(v, w, b.way)
					lost -= g.best(v, w)
				}
			}
			b.keep(step{i, turn, f.score + sum, f.guess + sum - loss*lost + fits[place*g.n+v]}, width)
		}
	}
	next := b.before[:0]
	for k, s := range b.steps {
		if next = slices.Grow(next, 1)[:k+1]; next[k].at == nil {
			next[k] = t.empty(g)
		}
		f, from, node := &next[k], &b.now[s.from], g.loud[s.turn]
		copy(f.at, from.at)
		copy(f.used, from.used)
		f.at[place], f.used[node], f.score, f.guess = node, true, s.score, s.guess
		for v := range f.near {
			f.near[v] = from.near[v] + g.best(v, node)
		}
	}
	b.now, b.before = next, b.now
}

// keep takes a step if it is one of the best so many.
func (b *beam) keep(s step, width int) {
	n := len(b.steps)
	if n == width && ahead(s, b.steps[n-1]) > 0 {
		return
	}
	at, _ := slices.BinarySearchFunc(b.steps, s, ahead)
	if n < width {
		b.steps = append(b.steps, step{})
	}
	copy(b.steps[at+1:], b.steps[at:])
	b.steps[at] = s
}

// fits says of each place and node, in nats, how ill the node's likely bonds become the
// place: those that it has itself, and those that its peers have.
func (t *template) fits(g *gains) []float64 {
	places, nodes := make([][4]float64, t.n), make([][4]float64, g.n)
	for i, bonds := range t.bonds {
		for _, b := range bonds {
			places[i][b.way]++
		}
	}
	near := make([][]int, g.n)
	for v := range g.n {
		for w := range g.n {
			if v == w {
				continue
			}
			both, out, in := g.of(v, w, bothSend), g.of(v, w, sends), g.of(v, w, gets)
			switch most := max(both, out, in); {
			case most <= 0:
				continue
			case most == both:
				nodes[v][bothSend]++
			case most == out:
				nodes[v][sends]++
			default:
				nodes[v][gets]++
			}
			near[v] = append(near[v], w)
		}
	}
	degree := func(f [4]float64) float64 { return f[0] + f[1] + f[2] }
	for i, bonds := range t.bonds {
		for _, b := range bonds {
			places[i][3] += degree(places[b.to]) / float64(len(bonds))
		}
	}
	for v, peers := range near {
		for _, w := range peers {
			nodes[v][3] += degree(nodes[w]) / float64(len(peers))
		}
	}
	fits := make([]float64, t.n*g.n)
	for i, p := range places {
		for v, f := range nodes[:g.n-g.ghosts] {
			for k := range p {
				fits[i*g.n+v] -= look * min(math.Abs(p[k]-f[k]), 4)
			}
		}
		for v := g.n - g.ghosts; v < g.n; v++ {
			fits[i*g.n+v] = -2 * look
		}
	}
	return fits
}

// bound is about the most that the template can gain: no place has more bonds of a way
// than it has, so a node there gains no more than its so many best.
func (t *template) bound(g *gains) float64 {
	least := math.Inf(1)
	for w := bothSend; w <= gets; w++ {
		degrees := make([]int, t.n)
		for i, bonds := range t.bonds {
			for _, b := range bonds {
				if b.way == w {
					degrees[i]++
				}
			}
		}
		slices.Sort(degrees)
		slices.Reverse(degrees)
		if degrees[0] == 0 {
			continue
		}
		sums := make([][]float64, g.n) // of each node, what its so many best gain
		for v := range sums {
			row := slices.Clone(g.table[w][v*g.n : (v+1)*g.n])
			row[v] = math.Inf(-1)
			slices.Sort(row)
			sums[v] = make([]float64, degrees[0]+1)
			for d := range degrees[0] {
				sums[v][d+1] = sums[v][d] + row[g.n-1-d]
			}
		}
		slices.SortFunc(sums, func(a, b []float64) int { return cmp.Compare(b[degrees[0]], a[degrees[0]]) })
		sum := 0.0
		for i, d := range degrees {
			sum += sums[i][d]
		}
		if w == bothSend {
			sum /= 2
		}
		least = min(least, sum)
	}
	return least
}

func (t *template) score(g *gains, at []int) (sum float64) {
	for i, bonds := range t.bonds {
		for _, b := range bonds {
			if i < b.to {
				sum += g.of(at[i], at[b.to], b.way)
			}
		}
	}
	return sum
}

// local is what node gains at a place, if with were at the other.
func (t *template) local(g *gains, at []int, place, node, other, with int) (sum float64) {
	for _, b := range t.bonds[place] {
		peer := at[b.to]
		if b.to == other {
			peer = with
		}
		sum += g.of(node, peer, b.way)
	}
	return sum
}

// climb exchanges the nodes of two places, or one with a node that has none, while that
// gains something.
func (t *template) climb(g *gains, at []int, score float64) float64 {
	free := make([]bool, g.n)
	for v := range free {
		free[v] = true
	}
	for _, v := range at {
		free[v] = false
	}
	for better := true; better; {
		better = false
		for i := range t.n {
			for v := range free {
				if !free[v] {
					continue
				}
				if d := t.local(g, at, i, v, -1, 0) - t.local(g, at, i, at[i], -1, 0); d > 1e-9 {
					free[v], free[at[i]] = false, true
					at[i] = v
					score, better = score+d, true
				}
			}
			for j := range i {
				if d := t.swap(g, at, i, j); d > 1e-9 {
					at[i], at[j] = at[j], at[i]
					score, better = score+d, true
				}
			}
		}
	}
	return score
}

// swap is what it brings to exchange the nodes at i and j.
func (t *template) swap(g *gains, at []int, i, j int) float64 {
	a, b := at[i], at[j]
	d := t.local(g, at, i, b, j, a) + t.local(g, at, j, a, i, b) - t.local(g, at, i, a, j, b) - t.local(g, at, j, b, i, a)
	for _, x := range t.bonds[i] {
		if x.to == j { // both ends have counted it
			d -= g.of(b, a, x.way) - g.of(a, b, x.way)
		}
	}
	return d
}
