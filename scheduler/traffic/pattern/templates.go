package pattern

import (
	"math"
	"slices"
)

// template is a pattern at one size: which of its places send to which.
type template struct {
	kind  Kind
	shape []int
	n     int
	bonds [][]bond // of each place, those to others
	pairs int      // of places that have a bond
	ways  float64  // log of the number of ways in which its places can be exchanged without a change
	order []int    // places, each but the first next to an earlier one where it can be
}

// bond is how a place and another talk.
type bond struct {
	to  int
	way way
}

// way is which of a bond's two ends sends data; the other one only acknowledges.
type way uint8

const (
	bothSend way = iota
	sends
	gets
)

func (w way) reverse() way { return [...]way{bothSend, gets, sends}[w] }

func newTemplate(kind Kind, n int, ways float64, shape ...int) *template {
	return &template{kind: kind, shape: shape, n: n, bonds: make([][]bond, n), ways: ways}
}

func (t *template) join(a, b int, w way) {
	if slices.ContainsFunc(t.bonds[a], func(x bond) bool { return x.to == b }) {
		return // round a side of two
	}
	t.bonds[a] = append(t.bonds[a], bond{b, w})
	t.bonds[b] = append(t.bonds[b], bond{a, w.reverse()})
	t.pairs++
}

func (t *template) oneWay(a, b int) { t.join(a, b, sends) }
func (t *template) both(a, b int)   { t.join(a, b, bothSend) }

// done orders the places: first the one with most bonds, then always the one with most bonds
// to those before it. Of several it takes the one after which others have most, so that
// circles close early and show whether the nodes in them are right.
func (t *template) done() *template {
	placed := make([]int, t.n) // bonds to earlier places; -1: is one
	close := func(i int) (sum int) {
		for _, b := range t.bonds[i] {
			if p := placed[b.to]; p >= 0 {
				sum += 2*p + 1
			}
		}
		return sum
	}
	for len(t.order) < t.n {
		next, most, then := -1, 0, 0
		for i, p := range placed {
			if p < 0 || p < most {
				continue
			}
			if c := close(i); next < 0 || p > most || c > then {
				next, most, then = i, p, c
			}
		}
		placed[next] = -1
		t.order = append(t.order, next)
		for _, b := range t.bonds[next] {
			if placed[b.to] >= 0 {
				placed[b.to]++
			}
		}
	}
	return t
}

// templates are the patterns that a group of n can have, but for those that need no search.
func templates(n int) []*template {
	ring, line := newTemplate(Ring, n, math.Log(float64(n))), newTemplate(Pipeline, n, 0)
	circle, row := newTemplate(Torus1D, n, math.Log(2*float64(n)), n), newTemplate(Stencil1D, n, math.Ln2, n)
	for i := range n {
		if i+1 < n {
			line.oneWay(i, i+1)
			row.both(i, i+1)
		}
		ring.oneWay(i, (i+1)%n)
		circle.both(i, (i+1)%n)
	}
	all := []*template{ring, line, row, circle}
	for _, down := range []bool{true, false} {
		for k := 2; k <= 4 && k+2 <= n; k++ {
			all = append(all, tree(newTemplate(Tree, n, 0, k), down, func(i int) int { return (i - 1) / k }))
		}
		if n >= 5 {
			all = append(all, tree(newTemplate(Broadcast, n, 0), down, func(i int) int { return i - 1<<(bitLen(i)-1) }))
		}
	}
	if n >= 8 && n&(n-1) == 0 && n > 8 {
		b := newTemplate(Butterfly, n, math.Log(float64(n))+logFactorial(bitLen(n)-1))
		for i := range n {
			for k := 1; k < n; k *= 2 {
				if j := i ^ k; i < j {
					b.both(i, j)
				}
			}
		}
		all = append(all, b)
	}
	all = append(all, grids(n)...)
	for _, t := range all {
		t.done()
	}
	return all
}

// tree joins each place with its parent.
func tree(t *template, down bool, parent func(int) int) *template {
	children := make([]int, t.n)
	for i := 1; i < t.n; i++ {
		if down {
			t.oneWay(parent(i), i)
		} else {
			t.oneWay(i, parent(i))
		}
		children[parent(i)]++
	}
	leaves := make([]int, t.n)
	for i := 1; i < t.n; i++ {
		if children[i] == 0 {
			leaves[parent(i)]++
		}
	}
	for _, l := range leaves { // leaves of one parent can be exchanged
		t.ways += logFactorial(l)
	}
	return t
}

// grids are all stencils and tori of two and three dimensions with n places.
func grids(n int) []*template {
	var all []*template
	for a := 2; a*a <= n; a++ {
		if n%a != 0 {
			continue
		}
		if b := n / a; b >= 3 || a >= 3 {
			all = append(all, grid(Stencil2D, false, a, b))
			if a >= 3 && !(a == 4 && b == 4) { // 4 × 4 round is a butterfly of 16
				all = append(all, grid(Torus2D, true, a, b))
			}
		}
		for b := a; a*b*b <= n; b++ {
			if n%(a*b) != 0 {
				continue
			}
			c := n / (a * b)
			all = append(all, grid(Stencil3D, false, a, b, c))
			if a >= 3 {
				all = append(all, grid(Torus3D, true, a, b, c))
			}
		}
	}
	return all
}

func grid(kind Kind, wraps bool, sides ...int) *template {
	n := 1
	ways := math.Ln2 * float64(len(sides)) // each dimension can be turned round
	for i, s := range sides {
		n *= s
		if wraps {
			ways += math.Log(float64(s))
		}
		if i > 0 && s == sides[i-1] {
			ways += math.Ln2
		}
	}
	t := newTemplate(kind, n, ways, sides...)
	for i := range n {
		for d, step := len(sides)-1, 1; d >= 0; d-- {
			if x := i / step % sides[d]; x+1 < sides[d] {
				t.both(i, i+step)
			} else if wraps && sides[d] > 2 {
				t.both(i, i-x*step)
			}
			step *= sides[d]
		}
	}
	return t
}

func bitLen(i int) (n int) {
	for ; i > 0; i >>= 1 {
		n++
	}
	return n
}

func logFactorial(n int) float64 {
	v, _ := math.Lgamma(float64(n) + 1)
	return v
}
