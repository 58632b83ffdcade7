package synth_test

import (
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/synth"
)

func TestAdjustedRand(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	chance := 0.0
	for range 200 {
		a, b := make([]int, 60), make([]int, 60)
		for i := range a {
			a[i], b[i] = r.IntN(4), r.IntN(4)
		}
		chance += synth.AdjustedRand(a, b) / 200
	}
	if math.Abs(chance) > 0.01 {
		t.Errorf("by chance: %.3f", chance)
	}
	for _, x := range []struct {
		a, b []int
		want float64
	}{
		{[]int{0, 0, 1, 1}, []int{5, 5, 3, 3}, 1},
		{[]int{0, 0, 1, 1}, []int{0, 0, 1, 2}, 4.0 / 7}, // Hubert and Arabie's formula by hand
		{[]int{0, 0, 1, 1}, []int{0, 1, 0, 1}, -0.5},
	} {
		if got := synth.AdjustedRand(x.a, x.b); math.Abs(got-x.want) > 1e-9 {
			t.Errorf("%v, %v: %v, want %v", x.a, x.b, got, x.want)
		}
	}
}

func TestCompleteness(t *testing.T) {
	truth := []int{0, 0, 1, 1}
	for _, x := range []struct {
		said                      []int
		homogeneity, completeness float64
	}{
		{[]int{7, 7, 8, 8}, 1, 1},
		{[]int{0, 0, 0, 0}, 0, 1},
		{[]int{0, 1, 2, 3}, 1, 0.5},
	} {
		if h, c := synth.Homogeneity(truth, x.said), synth.Homogeneity(x.said, truth); math.Abs(h-x.homogeneity) > 1e-9 || math.Abs(c-x.completeness) > 1e-9 {
			t.Errorf("%v: homogeneity %v, completeness %v", x.said, h, c)
		}
	}
}

func TestConfusion(t *testing.T) {
	c := synth.Confusion{}
	c.Add(pattern.Ring, pattern.Ring, 8)
	c.Add(pattern.Ring, pattern.Unknown, 2)
	c.Add(pattern.Star, pattern.Ring, 2)
	c.Add(pattern.Star, pattern.Star, 8)
	if f := c.F1(pattern.Ring); math.Abs(f-0.8) > 1e-9 { // precision 8/10, recall 8/10
		t.Errorf("F1 %v", f)
	}
	if f := c.MacroF1(); math.Abs(f-(0.8+16.0/18)/2) > 1e-9 {
		t.Errorf("macro-F1 %v", f)
	}
	if a := c.Abstained(); a != 0.1 {
		t.Errorf("abstained %v", a)
	}
	if s := c.String(); !strings.Contains(s, "0.800") || strings.Count(s, "\n") != 3 {
		t.Errorf("table\n%s", s)
	}
}

// A matrix is a function of its Config, and samples' intervals hold the truth 95 times of 100.
func TestGenerate(t *testing.T) {
	c := synth.Config{Seed: 4, VMs: 400, Background: 0.05, MissingHosts: 0.05}
	exact := synth.Generate(c)
	if !reflect.DeepEqual(exact, synth.Generate(c)) {
		t.Error("made twice, it differs")
	}
	truth := map[[2]int]float64{}
	c.Sampling, c.MissingHosts = 64, 0
	for _, e := range synth.Generate(synth.Config{Seed: 4, VMs: 400, Background: 0.05}).Graph.Edges {
		truth[[2]int{e.From, e.To}] = e.Bytes
	}
	in, all := 0, 0
	for _, e := range synth.Generate(c).Graph.Edges {
		b := truth[[2]int{e.From, e.To}]
		if e.Packets*c.Window < 640 && b*10/1400 < 640 { // of few samples, those seen are no fair draw
			continue
		}
		all++
		if e.Low <= b && b <= e.High {
			in++
		}
	}
	if share := float64(in) / float64(all); all < 300 || share < 0.92 {
		t.Errorf("%.3f of %d intervals hold the truth", share, all)
	}
}
