// Package axis divides what a picture shows into round parts: values by 1, 2 and 5 times
// powers of ten, time by what a clock and a calendar have.
package axis

import (
	"math"
	"time"
)

// Step is v or a little more: 1, 2 or 5 times a power of ten.
func Step(v float64) float64 {
	if !(v > 0) || math.IsInf(v, 0) {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, k := range []float64{1, 2, 5} {
		if v <= k*power*1.0001 {
			return k * power
		}
	}
	return 10 * power
}

// Scale is the distance of rules from each other, and the value of the highest, for values
// from 0 to most and about that many parts.
func Scale(most float64, parts int) (step, top float64) {
	if most > 0 {
		most = max(1e-300, min(most, 1e300)) // beyond, rules that are added up never pass the highest
	}
	step = Step(most / float64(parts))
	return step, step * max(1, math.Ceil(most/step))
}

var steps = []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second,
	time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 6 * time.Hour, 12 * time.Hour, day}

const (
	day  = 24 * time.Hour
	long = 400 * day // from which on time is told by half years
	most = 9         // ticks
)

// Times are at most nine moments from one time to another, in UTC, and the layout that
// tells them apart; none where from is not before to.
func Times(from, to time.Time) (ticks []time.Time, layout string) {
	from, to = from.UTC(), to.UTC()
	span := to.Sub(from)
	if span <= 0 {
		return nil, time.TimeOnly
	}
	if span > long {
		return months(from, to), "Jan 2006"
	}
	step := steps[0]
	for i := 1; span/step >= most; i++ {
		if step *= 2; i < len(steps) {
			step = steps[i]
		}
	}
	switch {
	case step >= day:
		layout = "2 Jan"
	case from.Truncate(day) != to.Truncate(day):
		layout = "2 Jan 15:04"
	case step >= time.Minute:
		layout = "15:04"
	default:
		layout = time.TimeOnly
	}
	t := from.Truncate(step)
	if t.Before(from) {
		t = t.Add(step)
	}
	for ; !t.After(to); t = t.Add(step) {
		ticks = append(ticks, t)
	}
	return ticks, layout
}

// months are beginnings of half years, or of as many as it takes.
func months(from, to time.Time) (ticks []time.Time) {
	each := 6
	for int(to.Sub(from)/(30*day))/each >= most-1 {
		each += 6
	}
	for t := time.Date(from.Year(), 1, 1, 0, 0, 0, 0, time.UTC); !t.After(to); t = t.AddDate(0, each, 0) {
		if !t.Before(from) {
			ticks = append(ticks, t)
		}
	}
	return ticks
}
