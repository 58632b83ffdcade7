package atlas

import (
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

func far(a, b [2]float64) float64 { return math.Hypot(a[0]-b[0], a[1]-b[1]) }

// Points that can be on a plane are put there as they are.
func TestPlaceOfAPlane(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "n")
		real := make([][2]float64, n)
		for i := range real {
			real[i] = [2]float64{float64(i%4)*50 + rapid.Float64Range(0, 20).Draw(t, "x"), float64(i/4)*50 + rapid.Float64Range(0, 20).Draw(t, "y")}
		}
		d := make([][]float64, n)
		for i := range d {
			d[i] = make([]float64, n)
			for j := range d {
				d[i][j] = far(real[i], real[j])
			}
		}
		at := Place(d)
		for i := range at {
			for j := range at {
				if got := far(at[i], at[j]); math.Abs(got-d[i][j]) > 0.02*d[i][j]+0.5 {
					t.Fatalf("%d and %d are %.2f apart, not %.2f", i, j, got, d[i][j])
				}
			}
		}
		if n > 0 && (at[0][0] > 1e-9 || at[0][1] > 1e-9) {
			t.Errorf("the first is at %v", at[0])
		}
	})
}

// Whatever distances there are, each point has a place, always the same.
func TestPlaceOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, Most).Draw(t, "n")
		value := rapid.OneOf(rapid.Just(0.0), rapid.Just(math.Inf(1)), rapid.Just(math.NaN()), rapid.Float64Range(1e-3, 1e4))
		d := make([][]float64, n)
		for i := range d {
			d[i] = rapid.SliceOfN(value, n, n).Draw(t, "row")
		}
		at := Place(d)
		if len(at) != n || !reflect.DeepEqual(at, Place(d)) {
			t.Fatalf("%v, and then %v", at, Place(d))
		}
		for _, p := range at {
			if math.IsNaN(p[0]+p[1]) || math.IsInf(p[0]+p[1], 0) {
				t.Fatalf("%v of %v", at, d)
			}
		}
	})
}
