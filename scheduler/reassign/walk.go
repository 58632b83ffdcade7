package reassign

import (
	"math"

	"heliotrope/scheduler/anneal"
)

const (
	// In the first part rules may be broken, at tolls that rise, and in the rest they may not.
	softFraction = 0.8
	firstToll    = 1.0 // of a rule of services: as a multiple of the first temperature
	lastToll     = 100
	firstRent    = 10.0 // of a unit of room that there is not
	lastRent     = 1000
	forbidding   = 1e18

	cold    = 1e-5 // of the first temperature: the last one
	samples = 1000
)

// walker walks from assignment to assignment.
type walker struct {
	anneal.Walk
	*state
	toll     float64 // of a broken rule of services
	rent     float64 // of a unit of room that there is not
	best     Assignment
	bestCost int64
	found    func(cost int64)
	c        chain
}

// note keeps what is cheaper and breaks nothing.
func (w *walker) note() {
	if w.broken == 0 && w.over == 0 && w.cost < w.bestCost {
		w.best, w.bestCost = append(w.best[:0], w.at...), w.cost
		w.found(w.cost)
	}
}

// warmth is the mean size of the changes that random moves make.
func (w *walker) warmth() float64 {
	var sum float64
	n := 0
	for range samples {
		i, k := w.Below(len(w.at)), w.Below(len(w.here))
		if k == w.at[i] {
			continue
		}
		w.c.begin(i, w.at[i], k)
		if cost := w.gain(&w.c); cost != 0 {
			sum += math.Abs(float64(cost))
			n++
		}
	}
	return sum / float64(max(n, 1))
}

// round walks once, from a temperature down.
func (w *walker) round(hot float64, steps int) {
	w.Cool(hot, cold, steps, func(share, temperature float64) {
		w.toll, w.rent = forbidding, forbidding
		if share < softFraction {
			w.toll = hot * firstToll * math.Pow(lastToll/firstToll, share/softFraction)
			w.rent = firstRent * math.Pow(lastRent/firstRent, share/softFraction)
		}
		for range anneal.AtOnce {
			w.step(temperature)
		}
		w.note()
	})
}

// step tries a process at another machine, that one's at a third, and so on: where there is one of the same
// service it must go, and where not, one goes half the times.
func (w *walker) step(temperature float64) {
	x := w.Next()
	i := int((x >> 32) * uint64(len(w.at)) >> 32)
	k := w.home[i]
	if x&7 != 0 || k == w.at[i] {
		k = w.Below(len(w.here))
	}
	if k == w.at[i] || w.barred[i*w.machines+k] {
		return
	}
	w.c.begin(i, w.at[i], k)
	for bits := x >> 3; w.c.n < longest && !w.c.ring; bits >>= 3 {
		j := w.with[w.of[i]*w.machines+k]
		if j == none {
			if bits&1 == 0 || len(w.here[k]) == 0 {
				break
			}
			j = w.here[k][w.Below(len(w.here[k]))]
		}
		to := w.c.at[0]
		if w.c.n+1 < longest && bits&6 == 0 {
			if to = w.Below(len(w.here)); to == k {
				return
			}
		}
		w.c.push(j, to)
		i, k = j, to
	}
	w.try(w.Limit(temperature))
}

// try takes the chain if it costs less than so much more, with what it does to the rules.
func (w *walker) try(limit float64) {
	if !w.may(&w.c) {
		return
	}
	over, times := w.spills(&w.c)
	if over > 0 && w.rent == forbidding {
		return
	}
	gain := w.gain(&w.c)
	cost := float64(gain) + w.rent*float64(over) + w.toll*float64(times)
	if cost-w.toll*float64(w.broken) >= limit {
		return
	}
	before := w.broken
	w.tell(&w.c)
	if cost+w.toll*float64(w.broken-before) >= limit {
		w.untell(&w.c)
		return
	}
	w.take(&w.c, gain)
}
