package pictogram

import (
	"math"
	"testing"

	"heliotrope/scheduler/traffic/pattern"

	"pgregory.net/rapid"
)

func TestPictures(t *testing.T) {
	for _, c := range []struct {
		kind         pattern.Kind
		n            int
		shape        []int
		nodes, links int
	}{
		{pattern.Pair, 2, nil, 2, 1},
		{pattern.Star, 9, nil, 9, 8},
		{pattern.MasterWorker, 5, nil, 5, 4},
		{pattern.Ring, 6, nil, 6, 6},
		{pattern.Pipeline, 8, nil, 8, 7},
		{pattern.Pipeline, 99, nil, 10, 9},
		{pattern.Tree, 13, []int{3}, 13, 12},
		{pattern.Broadcast, 16, nil, 16, 15},
		{pattern.Broadcast, 11, nil, 11, 10},
		{pattern.Stencil1D, 7, nil, 7, 6},
		{pattern.Torus1D, 7, nil, 7, 7},
		{pattern.Stencil2D, 20, []int{4, 5}, 20, 31},
		{pattern.Torus2D, 400, []int{20, 20}, 36, 60},
		{pattern.Stencil3D, 27, []int{3, 3, 3}, 27, 54},
		{pattern.Butterfly, 16, nil, 16, 32},
		{pattern.Shuffle, 11, []int{5, 6}, 11, 30},
		{pattern.AllToAll, 10, nil, 10, 45},
		{pattern.AllToAll, 500, nil, 20, 190},
		{pattern.Random, 5, nil, 5, 1},
		{"a pattern of tomorrow", 5, nil, 5, 1},
	} {
		p := Of(c.kind, c.shape, c.n, [][2]int{{0, 3}})
		if len(p.At) != c.nodes || len(p.Links) != c.links {
			t.Errorf("%s of %d: %d nodes and %d links, want %d and %d", c.kind, c.n, len(p.At), len(p.Links), c.nodes, c.links)
		}
	}
}

// Whatever shape a classifier tells of a group of whatever size, its picture stays in its
// frame, its links have ends, and no two nodes stand in one place.
func TestPicturesStayInFrame(t *testing.T) {
	known := []pattern.Kind{pattern.Pair, pattern.Star, pattern.MasterWorker, pattern.Ring, pattern.Pipeline, pattern.Tree, pattern.Broadcast, pattern.Stencil1D, pattern.Torus1D, pattern.Stencil2D,
		pattern.Torus2D, pattern.Stencil3D, pattern.Torus3D, pattern.Butterfly, pattern.Shuffle, pattern.AllToAll, pattern.Random, pattern.Unknown, "a pattern of tomorrow"}
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom(known).Draw(t, "kind")
		p := Of(kind, rapid.SliceOfN(rapid.IntRange(-1, 9), 0, 4).Draw(t, "shape"), rapid.IntRange(0, 200).Draw(t, "n"), nil)
		for i, a := range p.At {
			if !(a[0] > -1e-9 && a[0] < 1+1e-9 && a[1] > -1e-9 && a[1] < 1+1e-9) {
				t.Fatalf("%s: node %d is at %v", kind, i, a)
			}
			for j, b := range p.At[:i] {
				if math.Hypot(a[0]-b[0], a[1]-b[1]) < 0.004 {
					t.Fatalf("%s: nodes %d and %d of %d are both at %v", kind, j, i, len(p.At), a)
				}
			}
		}
		for _, l := range p.Links {
			if max(l[0], l[1]) >= len(p.At) {
				t.Fatalf("%s: link %v of %d nodes", kind, l, len(p.At))
			}
		}
	})
}
