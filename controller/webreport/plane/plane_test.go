package plane

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

var anyBox = rapid.Custom(func(t *rapid.T) Box {
	at, size := rapid.Float64Range(-100, 1100), rapid.Float64Range(1, 120)
	return Box{at.Draw(t, "x"), at.Draw(t, "y"), size.Draw(t, "wide"), size.Draw(t, "high")}
})

// Boxes that could be pushed apart are apart, and within their frame, whatever they were.
func TestParted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := Frame{Wide: 1000, High: 700, Aside: 8, Margin: 20}
		all := rapid.SliceOfN(anyBox, 0, 20).Draw(t, "boxes")
		if !f.Part(all, 10, 10) {
			return
		}
		for i, b := range all {
			if !b.In(f.Wide, f.High, f.Aside-0.01) {
				t.Fatalf("%+v is outside", b)
			}
			for _, c := range all[:i] {
				if b.Near(c, 9, 9) {
					t.Fatalf("%+v and %+v are near", b, c)
				}
			}
		}
	})
}

// What is outside of both ends is in neither, or its middle where they cover all of it.
func TestOutside(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyBox.Draw(t, "from"), anyBox.Draw(t, "to")
		c := Bent(a, b, rapid.Float64Range(-100, 100).Draw(t, "aside"))
		o := c.Outside(a, b)
		for i, k := range []float64{0, 1} {
			x, y := o.At(k)
			mx, my := c.At(0.5)
			if dot := (Box{x, y, 5, 5}); math.Hypot(x-mx, y-my) > 1e-6 && dot.Near([]Box{a, b}[i], -0.5, -0.5) {
				t.Fatalf("%v, %v is within %+v", x, y, []Box{a, b}[i])
			}
		}
	})
}
