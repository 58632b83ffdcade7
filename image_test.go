package heliotrope

import (
	"testing"
	"time"
)

// A time is in a week's hours or not, until one of them begins or ends, also when clocks change.
func TestInHours(t *testing.T) {
	const vienna = "Europe/Vienna"
	night := Hours{From: 22 * 60, To: 6 * 60, Zone: vienna}
	weekend := Hours{Days: []Weekday{Weekday(time.Saturday), Weekday(time.Sunday)}, To: 24 * 60, Zone: vienna}
	for _, c := range []struct {
		name  string
		hours []Hours
		at    string
		in    bool
		until string // empty: never
	}{
		{"no hours are always", nil, "2026-03-02T12:00:00Z", true, ""},
		{"before the night", []Hours{night}, "2026-03-02T20:59:00Z", false, "2026-03-02T21:00:00Z"},
		{"as it begins", []Hours{night}, "2026-03-02T21:00:00Z", true, "2026-03-03T05:00:00Z"},
		{"after midnight", []Hours{night}, "2026-03-03T01:00:00Z", true, "2026-03-03T05:00:00Z"},
		{"as it ends", []Hours{night}, "2026-03-03T05:00:00Z", false, "2026-03-03T21:00:00Z"},
		{"the night in which clocks change", []Hours{night}, "2026-03-28T23:00:00Z", true, "2026-03-29T04:00:00Z"},
		{"a night and the weekend after it are one", []Hours{night, weekend}, "2026-03-06T22:00:00Z", true, "2026-03-09T05:00:00Z"},
		{"the weekend is far", []Hours{weekend}, "2026-03-09T12:00:00Z", false, "2026-03-13T23:00:00Z"},
		{"all day, each day", []Hours{{}}, "2026-03-09T12:00:00Z", true, ""},
		{"day and night", []Hours{night, {From: 6 * 60, To: 22 * 60, Zone: vienna}}, "2026-03-09T12:00:00Z", true, ""},
	} {
		at, err := time.Parse(time.RFC3339, c.at)
		if err != nil {
			t.Fatal(err)
		}
		in, until := InHours(c.hours, at)
		got := ""
		if !until.IsZero() {
			got = until.UTC().Format(time.RFC3339)
		}
		if in != c.in || got != c.until {
			t.Errorf("%s: %v until %q, want %v until %q", c.name, in, got, c.in, c.until)
		}
		if open, again := (ImagePolicy{Windows: c.hours}).Open(at); open != in || !again.Equal(until) {
			t.Errorf("%s: a policy says %v until %v", c.name, open, again)
		}
	}
}
