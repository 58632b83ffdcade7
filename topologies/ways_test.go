package topologies

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
)

func join(a, b heliotrope.SiteID, delay time.Duration) heliotrope.Link {
	return heliotrope.Link{Between: [2]heliotrope.SiteID{a, b}, Delay: heliotrope.Duration(delay)}
}

// Packets take the link, else the quickest way, which a link from a site on it cuts short.
func TestWays(t *testing.T) {
	const ms = time.Millisecond
	top := heliotrope.Topology{Links: map[heliotrope.LinkID]heliotrope.Link{
		"ab": join("a", "b", 10*ms), "bc": join("b", "c", 10*ms), "ac": join("a", "c", 50*ms), "cd": join("c", "d", 0), "bd": join("b", "d", 90*ms), "xy": join("x", "y", ms),
	}}
	got := Ways(top, "a")
	want := map[heliotrope.SiteID][]heliotrope.LinkID{"b": {"ab"}, "c": {"ac"}, "d": {"ab", "bd"}}
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := Ways(top, "alone"); len(got) != 0 {
		t.Errorf("a site without links has the ways %v", got)
	}
}

// A way leads where it says, crosses no link twice, and is there for each site that links lead to.
func TestWaysLead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sites := []heliotrope.SiteID{"a", "b", "c", "d", "e", "f"}
		top := heliotrope.Topology{Links: map[heliotrope.LinkID]heliotrope.Link{}}
		for i, a := range sites {
			for _, b := range sites[i+1:] {
				if rapid.Bool().Draw(t, "linked") {
					top.Links[heliotrope.LinkID(fmt.Sprint(a, b))] = join(a, b, time.Duration(rapid.IntRange(0, 5).Draw(t, "delay"))*time.Millisecond)
				}
			}
		}
		reached := map[heliotrope.SiteID]bool{"a": true}
		for range sites {
			for _, l := range top.Links {
				if reached[l.Between[0]] || reached[l.Between[1]] {
					reached[l.Between[0]], reached[l.Between[1]] = true, true
				}
			}
		}
		ways := Ways(top, "a")
		if len(ways) != len(reached)-1 {
			t.Fatalf("ways to %d sites, of %d", len(ways), len(reached)-1)
		}
		for to, way := range ways {
			at := heliotrope.SiteID("a")
			for k, id := range way {
				l := top.Links[id]
				if slices.Contains(way[:k], id) || l.Between[0] != at && l.Between[1] != at {
					t.Fatalf("the way to %s is %v", to, way)
				}
				if at == l.Between[0] {
					at = l.Between[1]
				} else {
					at = l.Between[0]
				}
			}
			if at != to {
				t.Fatalf("the way to %s, %v, leads to %s", to, way, at)
			}
		}
	})
}
