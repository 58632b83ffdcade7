package webreport

import (
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/report"

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
		p := picture(c.kind, c.shape, c.n, [][2]int{{0, 3}})
		if len(p.at) != c.nodes || len(p.links) != c.links {
			t.Errorf("%s of %d: %d nodes and %d links, want %d and %d", c.kind, c.n, len(p.at), len(p.links), c.nodes, c.links)
		}
	}
}

// Whatever shape a classifier tells of a group of whatever size, its picture stays in its
// frame, its links have ends, and no two nodes stand in one place.
func TestPicturesStayInFrame(t *testing.T) {
	known := slices.Sorted(maps.Keys(kinds))
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom(known).Draw(t, "kind")
		p := picture(kind, rapid.SliceOfN(rapid.IntRange(-1, 9), 0, 4).Draw(t, "shape"), rapid.IntRange(0, 200).Draw(t, "n"), nil)
		for i, a := range p.at {
			if !(a[0] > -1e-9 && a[0] < 1+1e-9 && a[1] > -1e-9 && a[1] < 1+1e-9) {
				t.Fatalf("%s: node %d is at %v", kind, i, a)
			}
			for j, b := range p.at[:i] {
				if math.Hypot(a[0]-b[0], a[1]-b[1]) < 0.004 {
					t.Fatalf("%s: nodes %d and %d of %d are both at %v", kind, j, i, len(p.at), a)
				}
			}
		}
		for _, l := range p.links {
			if max(l[0], l[1]) >= len(p.at) {
				t.Fatalf("%s: link %v of %d nodes", kind, l, len(p.at))
			}
		}
	})
}

func TestScaleIsMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Float64Range(0, 1e12), 2, 20).Draw(t, "rates")
		s := scaleOf([][]float64{all})
		for _, a := range all {
			class := s.class(a)
			if (class == "") != (a <= 0) || len(class) > 2 {
				t.Fatalf("%v has class %q", a, class)
			}
			for _, b := range all {
				if a < b && class > s.class(b) {
					t.Fatalf("%v is %s, %v is %s", a, class, b, s.class(b))
				}
			}
		}
	})
}

// A rate at the ends of what a number can be has no power of ten above or below it: the
// legend's ticks never ended.
func TestScaleEnds(t *testing.T) {
	for _, v := range []float64{math.MaxFloat64, math.SmallestNonzeroFloat64} {
		s := scaleOf([][]float64{{v}})
		if decades := math.Log10(s.high / s.low); !(decades > 0.5 && decades < 8) {
			t.Fatalf("the scale of %v goes from %v to %v", v, s.low, s.high)
		}
		if ticks := strings.Count(string(drawScale(s)), `class="tick"`); ticks == 0 || ticks > 20 {
			t.Errorf("the scale of %v has %d ticks", v, ticks)
		}
		if s.class(v) == "" {
			t.Errorf("%v has no class", v)
		}
	}
}

func TestTimelineBreaksWhereNothingIsKnown(t *testing.T) {
	var history []report.Volume
	for i := range 3000 {
		v := 1e6
		if i == 1501 {
			v = 9e6 // one second's peak
		}
		if i < 500 || i > 700 {
			history = append(history, report.Volume{At: noon.Add(time.Duration(i) * time.Second), Rate: v})
		}
	}
	events := []report.Event{{At: noon.Add(time.Minute), What: "b"}, {At: noon, What: "a"}, {At: noon.Add(-time.Hour), What: "before"}}
	html, marks := drawTimeline(history, events)
	svg := string(html)
	if n := strings.Count(svg, `class="volume"`); n != 2 {
		t.Errorf("%d lines, want two with a gap between them", n)
	}
	if n := strings.Count(svg, `class="eventdot"`); n != 2 || len(marks) != 3 || marks[0].What != "before" || marks[2].Number != 3 {
		t.Errorf("%d dots, marks %v", n, marks)
	}
	if !strings.Contains(svg, "10 MB/s") && !strings.Contains(svg, "10\u00a0MB/s") {
		t.Error("the peak got lost")
	}
	if len(svg) > 30_000 {
		t.Errorf("%d bytes", len(svg))
	}
}

func TestFigures(t *testing.T) {
	for _, c := range []struct{ have, want string }{
		{rate(0), "0 B/s"}, {rate(999.4), "999 B/s"}, {rate(999.6), "1.00 kB/s"}, {rate(12345), "12.3 kB/s"}, {rate(9.999e8), "1.00 GB/s"},
		{rate(math.NaN()), "0 B/s"}, {rate(math.Inf(1)), "0 B/s"}, {rate(2e24), "2000000 EB/s"}, {roundRate(2e6), "2 MB/s"}, {roundRate(100), "100 B/s"},
		{percent(0), "0 %"}, {percent(0.0001), "< 0.1 %"}, {percent(0.05), "5 %"}, {percent(0.0123), "1.2 %"}, {percent(0.9999), "99 %"}, {percent(1), "100 %"},
		{usd(0), "0.00 USD"}, {usd(0.001), "< 0.01 USD"}, {usd(12.345), "12.35 USD"}, {usd(12345.6), "12346 USD"},
		{span(90 * time.Second), "90 s"}, {span(5 * time.Minute), "5 min"}, {span(26*time.Hour + time.Minute), "1 d 2 h 1 min"},
		{whole(7), "7"}, {whole(uint64(1234567)), "1 234 567"}, {plural(1, "VM"), "1 VM"}, {clip("abcdef", 4), "abc…"}, {clip("abcd", 4), "abcd"},
	} {
		if have := strings.ReplaceAll(c.have, "\u00a0", " "); have != c.want {
			t.Errorf("got %q, want %q", have, c.want)
		}
	}
}
