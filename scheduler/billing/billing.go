// Package billing reckons with periods that are paid as a whole: a machine that is paid by
// the started hour has its hour paid, whether it is used up or not.
//
// It is the one definition of that: plans (package scheduler) say by it what leaving now
// would waste, and replays what it did.
package billing

import (
	"strings"
	"time"
)

// Unused is what is left of the period that a place is paid for after so long a time, where
// whole periods are paid; 0: it is paid by the moment.
func Unused(paid, period time.Duration) time.Duration {
	if period <= 0 || paid <= 0 || paid%period == 0 {
		return 0
	}
	return period - paid%period
}

// Until is when the period ends within which a place is left that has been paid since a
// moment; zero: since the clock began a period, in UTC.
func Until(since, leaves time.Time, period time.Duration) time.Time {
	if since.IsZero() {
		since = leaves.Truncate(period)
	}
	return leaves.Add(Unused(leaves.Sub(since), period))
}

const (
	spareShare  = 0.25 // of the time that leaving takes
	spareLeast  = 30 * time.Second
	spareOfPaid = 0.1
)

// Spare is how long before a period ends who takes so long to leave had better have left: one
// who was to leave just then would often be a bit late, and pay another period.
func Spare(takes, period time.Duration) time.Duration {
	return min(max(time.Duration(spareShare*float64(takes)), spareLeast), time.Duration(spareOfPaid*float64(period)))
}

// Name is what people call a time that is paid as a whole.
func Name(period time.Duration) string {
	switch period {
	case time.Minute:
		return "minute"
	case time.Hour:
		return "hour"
	case 24 * time.Hour:
		return "day"
	}
	s := period.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return "time of " + s
}

// Clock writes when a period ends, as shortly as it can be told from now.
func Clock(end, now time.Time) string {
	form := "15:04"
	if end.Second() != 0 {
		form = "15:04:05"
	}
	if end.UTC().YearDay() != now.UTC().YearDay() || end.Sub(now) > 24*time.Hour {
		form = time.DateOnly + " " + form
	}
	return end.UTC().Format(form) + " UTC"
}
