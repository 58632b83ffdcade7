// Package pictogram lays out what a communication pattern looks like: a ring of nodes, a tree, a
// grid. It draws nothing.
package pictogram

import (
	"math"
	"math/bits"

	"heliotrope/scheduler/traffic/pattern"
)

// Figure is a pattern as a small graph: nodes in a unit square, in the group's order.
type Figure struct {
	At     [][2]float64
	Links  [][2]int
	Arrows bool         // links have a direction
	Stubs  [][4]float64 // ends of links that lead around, to the other side of a torus
}

func (p *Figure) node(x, y float64) { p.At = append(p.At, [2]float64{x, y}) }
func (p *Figure) link(a, b int)     { p.Links = append(p.Links, [2]int{a, b}) }
func (p *Figure) stub(x, y, dx, dy float64) {
	p.Stubs = append(p.Stubs, [4]float64{x, y, x + dx, y + dy})
}

func (p *Figure) circle(n int) {
	for i := range n {
		sin, cos := math.Sincos(2 * math.Pi * float64(i) / float64(n))
		p.node(0.5+0.5*sin*High/Wide, 0.5-0.5*cos)
	}
}

// Wide and High are the unit square in pixels.
const Wide, High = 140.0, 110.0

// What a figure has at most: beyond, it shows the pattern and not the group.
const (
	mostNodes = 32 // a power of two
	mostSide  = 6
	mostCube  = 4
	mostSides = 10 // of each side of a shuffle, and of a line
)

// Of is the figure of a group of n. links are what the matrix has, for the patterns that have no
// figure of their own.
func Of(kind pattern.Kind, shape []int, n int, links [][2]int) Figure {
	var p Figure
	small := min(n, mostNodes)
	switch kind {
	case pattern.Pair:
		p.node(0.1, 0.5)
		p.node(0.9, 0.5)
		p.link(0, 1)
	case pattern.Star, pattern.MasterWorker:
		p.node(0.5, 0.5)
		p.circle(small - 1)
		for i := 1; i < small; i++ {
			p.link(0, i)
		}
	case pattern.Ring, pattern.Torus1D:
		p.circle(small)
		for i := range small {
			p.link(i, (i+1)%small)
		}
		p.Arrows = kind == pattern.Ring
	case pattern.Pipeline, pattern.Stencil1D:
		p.grid(1, 1, min(n, mostSides), false)
		p.Arrows = kind == pattern.Pipeline
	case pattern.Tree:
		p.tree(small, complete(max(2, sideOf(shape, 0, 2))))
	case pattern.Broadcast:
		p.tree(small, binomial)
	case pattern.Stencil2D, pattern.Torus2D:
		rows := max(1, sideOf(shape, 0, int(math.Sqrt(float64(n)))))
		cols := sideOf(shape, 1, n/rows)
		p.grid(1, min(rows, mostSide), min(cols, mostSide), kind == pattern.Torus2D)
	case pattern.Stencil3D, pattern.Torus3D:
		cube := int(math.Cbrt(float64(n)) + 0.5)
		p.grid(min(sideOf(shape, 0, cube), mostCube), min(sideOf(shape, 1, cube), mostCube), min(sideOf(shape, 2, cube), mostCube), kind == pattern.Torus3D)
	case pattern.Butterfly:
		p.circle(small)
		for i := range small {
			for bit := 1; bit < small; bit *= 2 {
				if j := i ^ bit; i < j && j < small {
					p.link(i, j)
				}
			}
		}
	case pattern.Shuffle:
		left := sideOf(shape, 0, n/2)
		p.sides(min(left, mostSides), min(sideOf(shape, 1, n-left), mostSides))
	case pattern.AllToAll:
		small = min(n, mostSides*2)
		p.circle(small)
		for i := range small {
			for j := range i {
				p.link(j, i)
			}
		}
	default:
		p.circle(small)
		for _, l := range links {
			if l[0] < small && l[1] < small {
				p.link(l[0], l[1])
			}
		}
	}
	return p
}

// sideOf is the i-th side, or what it is by default where the shape does not tell.
func sideOf(shape []int, i, otherwise int) int {
	if i < len(shape) && shape[i] > 0 {
		return shape[i]
	}
	return max(1, otherwise)
}

// spread places i of n between 0 and 1.
func spread(i, n int) float64 {
	if n < 2 {
		return 0.5
	}
	return float64(i) / float64(n-1)
}

// tree hangs n nodes from the first. Leaves stand beside each other, a parent in the
// middle of its children.
func (p *Figure) tree(n int, children func(i int) []int) {
	p.At = make([][2]float64, n)
	leaves, depth := 0, 0
	var hang func(i, level int) (x float64)
	hang = func(i, level int) float64 {
		depth = max(depth, level)
		first, last := -1.0, float64(leaves)
		for _, child := range children(i) {
			if child < n {
				p.link(i, child)
				if last = hang(child, level+1); first < 0 {
					first = last
				}
			}
		}
		if first < 0 {
			first = last
			leaves++
		}
		p.At[i] = [2]float64{(first + last) / 2, float64(level)}
		return p.At[i][0]
	}
	if n > 0 {
		hang(0, 0)
	}
	for i, a := range p.At {
		p.At[i] = [2]float64{(a[0] + 0.5) / float64(leaves), a[1] / float64(max(1, depth))}
	}
}

// complete are the children where each node has as many, level by level.
func complete(arity int) func(int) []int {
	return func(i int) (all []int) {
		for k := range arity {
			all = append(all, i*arity+k+1)
		}
		return all
	}
}

// binomial are the children in a broadcast by rounds: in round k, each i below 2^k sends to
// i+2^k.
func binomial(i int) (all []int) {
	for step := 1 << bits.Len(uint(i)); step < mostNodes; step *= 2 {
		all = append(all, i+step)
	}
	return all
}

// grid is row by row, the last side first; layers stand behind each other.
func (p *Figure) grid(layers, rows, cols int, torus bool) {
	const back, up = 0.36, 0.28 // of a step, to the layer behind
	const out = 0.1             // how far it is to be seen that a torus goes on
	wide, high := float64(cols-1)+back*float64(layers-1), float64(rows-1)+up*float64(layers-1)
	step := min(Wide/max(1, wide), High/max(1, high))
	stepX, stepY := step/Wide, step/High
	left, top := (1-wide*stepX)/2, (1-high*stepY)/2+up*float64(layers-1)*stepY
	for l := range layers {
		for r := range rows {
			for c := range cols {
				x := left + (float64(c)+back*float64(l))*stepX
				y := top + (float64(r)-up*float64(l))*stepY
				i := len(p.At)
				p.node(x, y)
				if c > 0 {
					p.link(i-1, i)
				}
				if r > 0 {
					p.link(i-cols, i)
				}
				if l > 0 {
					p.link(i-rows*cols, i)
				}
				if torus && layers == 1 && (c == 0 || c == cols-1) {
					p.stub(x, y, out*side(c), 0)
				}
				if torus && layers == 1 && (r == 0 || r == rows-1) {
					p.stub(x, y, 0, out*side(r))
				}
			}
		}
	}
}

// side is where a border leads to.
func side(i int) float64 {
	if i == 0 {
		return -1
	}
	return 1
}

// sides are two columns, and every link between them.
func (p *Figure) sides(left, right int) {
	for i := range left {
		p.node(0.12, spread(i, left))
	}
	for i := range right {
		p.node(0.88, spread(i, right))
		for j := range left {
			p.link(j, left+i)
		}
	}
}
