package traffictext

import (
	"testing"
	"time"

	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/report"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func TestPatternText(t *testing.T) {
	ends := func(n int) []traffic.End { return make([]traffic.End, n) }
	for want, g := range map[string]pattern.Group{
		"ring of 8 (97%)":                   {Kind: pattern.Ring, Ends: ends(8), Confidence: 0.97},
		"pair (100%)":                       {Kind: pattern.Pair, Ends: ends(2), Confidence: 1},
		"torus-2d of 4×5 (80%)":             {Kind: pattern.Torus2D, Ends: ends(20), Shape: []int{4, 5}, Confidence: 0.8},
		"shuffle of 4 to 8 (91%)":           {Kind: pattern.Shuffle, Ends: ends(12), Shape: []int{4, 8}, Confidence: 0.91},
		"tree of 15, 2 children each (88%)": {Kind: pattern.Tree, Ends: ends(15), Shape: []int{2}, Confidence: 0.88},
		"random, 5 VMs":                     {Kind: pattern.Random, Ends: ends(5), Confidence: 0.5},
		"unknown, 3 VMs":                    {Kind: pattern.Unknown, Ends: ends(3)},
		"stencil-1d of 6 (70%)":             {Kind: pattern.Stencil1D, Ends: ends(6), Shape: []int{6}, Confidence: 0.7},
	} {
		if got := patternText(g); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestUnits(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Rate(0), "-"}, {Rate(0.4), "<1 B/s"}, {Rate(999), "999 B/s"}, {Rate(1000), "1.0 kB/s"}, {Rate(12.34e6), "12.3 MB/s"}, {Rate(2e12), "2.0 TB/s"},
		{intervalText(5, 5), ""}, {intervalText(900, 1100), "0.9 to 1.1 kB/s"}, {intervalText(10, 20), "10 to 20 B/s"}, {intervalText(11.9e6, 12.8e6), "11.9 to 12.8 MB/s"},
		{countText(0), "-"}, {countText(0.5), "0.5"}, {countText(7), "7"}, {countText(9800), "9.8k"}, {durationText(90 * time.Minute), "1h30m"}, {durationText(24 * time.Hour), "24h"}, {durationText(time.Minute), "1m"}, {durationText(10 * time.Second), "10s"}, {durationText(time.Hour + time.Second), "1h0m1s"},
		{spanText(noon, noon.Add(24*time.Hour)), "2026-11-21 12:00:00Z to 2026-11-22 12:00:00Z (24h)"},
		{samplingText(1), "all"}, {samplingText(64), "1 of 64"},
		{sparkline([]report.Volume{{At: noon, Rate: 0}, {At: noon.Add(time.Second), Rate: 1000}}), "▁█  1s, peak 1.0 kB/s"}, {sparkline(nil), ""},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
