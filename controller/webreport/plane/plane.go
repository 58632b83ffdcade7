// Package plane is the geometry of pictures: boxes that are pushed apart until none covers
// another, and curves that lead from one to the other. It draws nothing.
package plane

import "math"

// Box is a rectangle by its middle.
type Box struct{ X, Y, Wide, High float64 }

// Near says whether less than a gap is between two boxes, across and down.
func (b Box) Near(c Box, across, down float64) bool {
	return math.Abs(b.X-c.X) < (b.Wide+c.Wide)/2+across && math.Abs(b.Y-c.Y) < (b.High+c.High)/2+down
}

// In says whether the box is in a picture from (0, 0), and a margin away from its border.
func (b Box) In(wide, high, margin float64) bool {
	return b.X-b.Wide/2 >= margin && b.X+b.Wide/2 <= wide-margin && b.Y-b.High/2 >= margin && b.Y+b.High/2 <= high-margin
}

// Frame is where boxes may be: in a picture from (0, 0), so far from its borders.
type Frame struct{ Wide, High, Aside, Margin float64 }

// Part pushes boxes apart until there is that much between any two of them, across or down,
// and says whether that came to an end.
func (f Frame) Part(all []Box, across, down float64) bool {
	for range 500 {
		moved := false
		for i := range all {
			for j := range i {
				if all[j].Near(all[i], across-0.5, down-0.5) {
					moved = true
					f.push(&all[j], &all[i], across, down)
				}
			}
		}
		for i := range all {
			b := &all[i]
			x := min(f.Wide-b.Wide/2-f.Aside, max(b.Wide/2+f.Aside, b.X))
			y := min(f.High-f.Margin-b.High/2, max(f.Margin+b.High/2, b.Y))
			moved = moved || x != b.X || y != b.Y // back into the frame, perhaps onto another
			b.X, b.Y = x, y
		}
		if !moved {
			return true
		}
	}
	return false
}

// push moves two boxes the shorter way, which is that of less of the picture.
func (f Frame) push(a, b *Box, across, down float64) {
	x := (a.Wide+b.Wide)/2 + across - math.Abs(b.X-a.X)
	y := (a.High+b.High)/2 + down - math.Abs(b.Y-a.Y)
	if x/f.Wide < y/f.High {
		x = math.Copysign(x/2, b.X-a.X)
		a.X, b.X = a.X-x, b.X+x
	} else {
		y = math.Copysign(y/2, b.Y-a.Y)
		a.Y, b.Y = a.Y-y, b.Y+y
	}
}

// Curve is a quadratic Bézier curve.
type Curve [3][2]float64

// At is the point at t, from 0 to 1.
func (c Curve) At(t float64) (x, y float64) {
	p := c.blossom(t, t)
	return p[0], p[1]
}

func (c Curve) blossom(s, t float64) [2]float64 {
	a, b, e := (1-s)*(1-t), s*(1-t)+t*(1-s), s*t
	return [2]float64{a*c[0][0] + b*c[1][0] + e*c[2][0], a*c[0][1] + b*c[1][1] + e*c[2][1]}
}

// Part is the curve from s to t.
func (c Curve) Part(s, t float64) Curve {
	return Curve{c.blossom(s, s), c.blossom(s, t), c.blossom(t, t)}
}

// Bent leads from the middle of a to that of b, its middle that far to the left.
func Bent(a, b Box, aside float64) Curve {
	dx, dy := b.X-a.X, b.Y-a.Y
	far := max(1, math.Hypot(dx, dy))
	return Curve{{a.X, a.Y}, {(a.X+b.X)/2 + 2*aside*dy/far, (a.Y+b.Y)/2 - 2*aside*dx/far}, {b.X, b.Y}}
}

// Beside is the curve moved to its right.
func (c Curve) Beside(by float64) Curve {
	dx, dy := c[2][0]-c[0][0], c[2][1]-c[0][1]
	far := max(1, math.Hypot(dx, dy))
	for i := range c {
		c[i][0] -= by * dy / far
		c[i][1] += by * dx / far
	}
	return c
}

// Outside is the part of a curve from a box to another that is in neither.
func (c Curve) Outside(from, to Box) Curve {
	covered := func(t float64, b Box) bool {
		x, y := c.At(t)
		return Box{x, y, 6, 6}.Near(b, 0, 0)
	}
	s, t := 0.0, 1.0
	for s < 0.5 && covered(s, from) {
		s += 0.005
	}
	for t > 0.5 && covered(t, to) {
		t -= 0.005
	}
	return c.Part(s, t)
}
