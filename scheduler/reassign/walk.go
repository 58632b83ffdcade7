package reassign

import (
	"math"

	"heliotrope/scheduler/anneal"
)

// cooling is how a walk cools. Temperatures are fractions of the size of a random move.
type cooling struct {
	hot, frozen, cold float64
	slowly            float64 // the share of the walk that is spent from hot to frozen, in which rules may be broken
	rent, lastRent    float64 // of a unit of room that there is not
	homeward          uint64  // of eight processes that are away so many are sent home
}

var (
	// By the same factor all the way: what is easy is solved by that.
	even = cooling{hot: 0.3, frozen: 3e-5, cold: 3e-6, slowly: 0.8, rent: 10, lastRent: 1000, homeward: 1}
	// Where large processes find their places, and then fast.
	slow = cooling{hot: 0.3, frozen: 0.009, cold: 9e-9, slowly: 0.85, rent: 10, lastRent: 100, homeward: 7}
	// After a kick: what is large stays.
	lukewarm = cooling{hot: 0.03, frozen: 0.009, cold: 9e-9, slowly: 0.85, rent: 100, lastRent: 100, homeward: 7}
)

const (
	firstToll  = 1.0 // of a rule of services: as a multiple of the first temperature
	lastToll   = 100.0
	forbidding = 1e18

	samples = 1000
)

// walker walks from assignment to assignment.
type walker struct {
	Options
	anneal.Walk
	*state
	toll     float64 // of a broken rule of services
	rent     float64 // of a unit of room that there is not
	homeward uint64  // as of a cooling
	kept     int     // a process that stays where it is, or none
	done     int     // steps
	best     Assignment
	bestCost int64
	near     Assignment // the best since the last walk from hot
	nearCost int64
	c        chain
}

// note keeps what is cheaper and breaks nothing.
func (w *walker) note() {
	if w.broken > 0 || w.over > 0 || w.cost >= w.nearCost {
		return
	}
	w.near, w.nearCost = append(w.near[:0], w.at...), w.cost
	if w.cost < w.bestCost {
		w.best, w.bestCost = append(w.best[:0], w.at...), w.cost
		if w.Found != nil {
			w.Found(w.cost)
		}
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

// walk walks so many steps. Warmth is the size of a random move.
func (w *walker) walk(c cooling, warmth float64, steps int) {
	done := w.done
	w.homeward = c.homeward
	w.Until(func() float64 { return float64(w.done-done) / float64(steps) }, func(share float64) {
		part := share / c.slowly
		temperature := warmth * c.hot * math.Pow(c.frozen/c.hot, part)
		w.toll, w.rent = warmth*c.hot*firstToll*math.Pow(lastToll/firstToll, part), c.rent*math.Pow(c.lastRent/c.rent, part)
		if part >= 1 {
			temperature = warmth * c.frozen * math.Pow(c.cold/c.frozen, (share-c.slowly)/(1-c.slowly))
			w.toll, w.rent = forbidding, forbidding
		}
		for range anneal.AtOnce {
			w.step(temperature)
		}
		w.done += anneal.AtOnce
		w.note()
	})
}

// step tries a process at another machine, that one's at a third, and so on: where there is one of the same
// service it must go, and where not, one goes half the times.
func (w *walker) step(temperature float64) {
	x := w.Next()
	i := int((x >> 32) * uint64(len(w.at)) >> 32)
	k := w.home[i]
	if x&7 >= w.homeward || k == w.at[i] {
		k = w.Below(len(w.here))
	}
	if k == w.at[i] || i == w.kept || w.barred[i*w.machines+k] {
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
		if j == w.kept {
			return
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
