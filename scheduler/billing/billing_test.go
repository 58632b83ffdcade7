package billing

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestUnused(t *testing.T) {
	for _, c := range []struct{ paid, billing, want time.Duration }{
		{0, time.Hour, 0}, {time.Hour, time.Hour, 0}, {time.Second, time.Hour, time.Hour - time.Second}, {90 * time.Minute, time.Hour, 30 * time.Minute},
		{time.Minute, 0, 0}, {-time.Minute, time.Hour, 0},
	} {
		if got := Unused(c.paid, c.billing); got != c.want {
			t.Errorf("after %v of %v: %v, want %v", c.paid, c.billing, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		paid, billing := time.Duration(rapid.Int64Range(1, 1e15).Draw(t, "paid")), time.Duration(rapid.Int64Range(1, 1e13).Draw(t, "billing"))
		if rest := Unused(paid, billing); rest < 0 || rest >= billing || (paid+rest)%billing != 0 {
			t.Fatalf("after %v of %v: %v", paid, billing, rest)
		}
	})
}

// Who has had a place since the clock began a period leaves within one, and spares less than all of it.
func TestUntil(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		leaves := time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "leaves"), 0)
		period := time.Duration(rapid.IntRange(1, 1e6).Draw(t, "period")) * time.Second
		var since time.Time
		if rapid.Bool().Draw(t, "known") {
			since = leaves.Add(-time.Duration(rapid.IntRange(0, 1e7).Draw(t, "paid")) * time.Second)
		}
		end := Until(since, leaves, period)
		if end.Before(leaves) || end.Sub(leaves) >= period || !since.IsZero() && end.Sub(since)%period != 0 || since.IsZero() && !end.Equal(end.Truncate(period)) {
			t.Fatalf("paid since %v by %v, left at %v: until %v", since, period, leaves, end)
		}
		if spare := Spare(time.Duration(rapid.IntRange(0, 1e6).Draw(t, "takes"))*time.Second, period); spare <= 0 || spare > period/10 {
			t.Fatalf("%v of %v are spared", spare, period)
		}
	})
}

func TestNames(t *testing.T) {
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{time.Minute: "minute", time.Hour: "hour", 24 * time.Hour: "day", 90 * time.Second: "time of 1m30s", 10 * time.Minute: "time of 10m", 168 * time.Hour: "time of 168h"} {
		if got := Name(d); got != want {
			t.Errorf("%v is a %q, want %q", d, got, want)
		}
	}
	for end, want := range map[time.Time]string{now.Add(time.Hour): "13:00 UTC", now.Add(time.Second): "12:00:01 UTC", now.Add(13 * time.Hour): "2026-05-05 01:00 UTC", now.AddDate(1, 0, 0): "2027-05-04 12:00 UTC"} {
		if got := Clock(end, now); got != want {
			t.Errorf("%v is %q, want %q", end, got, want)
		}
	}
}
