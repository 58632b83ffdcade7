package api

import (
	"reflect"
	"testing"
	"time"

	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/report"
)

func TestParseMoment(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"": {}, "now": {}, "0s": now, "10m": now.Add(-10 * time.Minute), "1h30m": now.Add(-90 * time.Minute),
		"2026-11-25T12:00:00Z": now, "2026-11-25T13:00:00+02:00": now.Add(-time.Hour), "2026-11-25T11:59:59.5Z": now.Add(-time.Second / 2),
	} {
		if got, err := ParseMoment(s, now); err != nil || !got.Equal(want) {
			t.Errorf("%q is %v, want %v, %v", s, got, want, err)
		}
	}
	for _, s := range []string{"noon", "10", "-10m", "2026-11-25", "2026-11-25T12:00:01Z", "25:00"} {
		if got, err := ParseMoment(s, now); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
}

func TestCompareTraffic(t *testing.T) {
	a, b, c, d := traffic.VM("a"), traffic.VM("b"), traffic.VM("c"), traffic.VM("d")
	group := func(id string, kind pattern.Kind, ends ...traffic.End) report.Group {
		return report.Group{ID: id, Group: pattern.Group{Kind: kind, Ends: ends}}
	}
	before := report.Report{Notes: []string{"both", "first"}, Groups: []report.Group{
		group("same", pattern.Pair, a, b), group("other", pattern.Ring, a, b, c), group("grown", pattern.Star, a, b, d), group("new-1", pattern.Pair, b, c)}}
	after := report.Report{Notes: []string{"both", "second"}, Groups: []report.Group{
		group("same", pattern.Pair, b, a), group("other", pattern.AllToAll, a, b, c), group("still", pattern.Star, d, b, a, c), group("new-1", pattern.Pair, a, c)}}
	changes := []traffic.Change{{Kind: traffic.New, Src: a, Dst: b}, {Kind: traffic.Gone, Src: b, Dst: a}}
	got := CompareTraffic(before, after, changes, 1)
	want := TrafficDiff{Pairs: changes[:1], Notes: []string{"both", "before: first", "after: second"}, Groups: []GroupChange{
		{ID: "other", Change: "pattern", Before: pattern.Ring, After: pattern.AllToAll},
		{ID: "still", Change: "members", Before: pattern.Star, After: pattern.Star, Joined: []traffic.End{c}},
		{ID: "new-1", Change: "new", After: pattern.Pair, Joined: []traffic.End{a, c}},
		{ID: "new-1", Change: "gone", Before: pattern.Pair, Left: []traffic.End{b, c}},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if len(changes) != 2 {
		t.Error("the changes were changed")
	}
}
