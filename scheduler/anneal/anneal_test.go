package anneal

import (
	"math"
	"testing"
)

// A seed means the same for ever: these are splitmix64's published first numbers.
func TestRandom(t *testing.T) {
	r := Random(1234567)
	for _, want := range []uint64{6457827717110365317, 3203168211198807973, 9817491932198370423} {
		if got := r.Next(); got != want {
			t.Errorf("%d, not %d", got, want)
		}
	}
	for range 1000 {
		if n := r.Below(7); n < 0 || n > 6 {
			t.Fatalf("%d is not below 7", n)
		}
	}
}

// What is better is always taken, and what is worse with a chance of e^(-worse/temperature).
func TestTakes(t *testing.T) {
	w := New(1, nil)
	for _, worse := range []float64{0.1, 1, 3} {
		n := 0
		for range 100_000 {
			if w.Takes(2*worse, 2) {
				n++
			}
		}
		if share := float64(n) / 100_000; math.Abs(share-math.Exp(-worse)) > 0.01 {
			t.Errorf("%g temperatures worse: taken %.3f of the time, not %.3f", worse, share, math.Exp(-worse))
		}
	}
	if !w.Takes(-1, 0) || w.Takes(1, 0) {
		t.Error("without warmth what is better is taken, and nothing else")
	}
}

// Cooling goes from hot to a part of it by the same factor each time, and ends when it is late.
func TestCool(t *testing.T) {
	batches := 0
	w := New(1, func() bool { return batches == 8 })
	var before float64
	w.Cool(100, 0.01, 10*AtOnce, func(share, temperature float64) {
		if want := 100 * math.Pow(0.01, float64(batches)/10); math.Abs(temperature-want) > 1e-9 || share != float64(batches)/10 {
			t.Errorf("batch %d: %g at %g, not %g", batches, temperature, share, want)
		}
		if batches > 0 && math.Abs(temperature/before-math.Pow(0.01, 0.1)) > 1e-9 {
			t.Errorf("from %g to %g", before, temperature)
		}
		before = temperature
		batches++
	})
	if batches != 8 {
		t.Errorf("%d batches", batches)
	}
}
