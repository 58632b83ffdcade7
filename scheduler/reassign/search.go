package reassign

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"heliotrope/scheduler/anneal"
)

// Options say how long to search.
type Options struct {
	Seed  uint64
	Steps int // in all; 0: until Spent says 1

	// Spent is asked now and then for the share of the time that is spent, and ends the search with what it has
	// when it says 1. What it ends with is as good as any, but not the same twice.
	Spent  func() float64
	Enough int64            // a cost that ends the search
	Found  func(cost int64) // is told of each assignment that is better than those before
}

const (
	firstWalk = 1 << 22 // steps; each has twice as many as the one before
	longWalk  = 20_000_000
	kickWalk  = 4_000_000
	patience  = 5    // walks from kicks that find nothing, before one from hot
	atLast    = 0.35 // of what there is: for kicks from the best
)

// Search looks for a cheaper assignment that breaks nothing, from one that does not. The
// same seed and steps give the same.
func (p *Problem) Search(initial Assignment, o Options) (Assignment, Cost, error) {
	if o.Steps <= 0 && o.Spent == nil {
		return nil, Cost{}, errors.New("search: there is neither a number of steps nor a measure of time")
	}
	cost, broken := p.Check(initial, initial)
	if len(broken) > 0 {
		return nil, Cost{}, fmt.Errorf("search: the initial assignment breaks rules: %s", broken[0])
	}
	w := &walker{Options: o, state: newState(p, initial, initial), best: slices.Clone(initial), bestCost: cost.Total(), kept: none}
	w.Walk = anneal.New(o.Seed, func() bool { return w.bestCost <= o.Enough || w.left() <= 0 })
	if len(initial) > 0 && len(p.Machines) > 1 {
		w.rounds()
	}
	cost, _ = p.Check(initial, w.best)
	return w.best, cost, nil
}

// left is the share of the steps or of the time that is left, whichever is less.
func (w *walker) left() float64 {
	left := 1.0
	if w.Steps > 0 {
		left -= float64(w.done) / float64(w.Steps)
	}
	if w.Spent != nil {
		left = min(left, 1-w.Spent())
	}
	return left
}

// rounds walks as long as there is time: at first short walks that cool evenly, in which what is easy is solved; then from
// hot, slowly where large processes find their places, and from what that found on by kicks, as long as they help; at last by
// kicks from the best of all.
func (w *walker) rounds() {
	warmth := w.warmth()
	for steps := firstWalk; !w.Late() && steps < longWalk; steps *= 2 {
		w.begin(math.MaxInt64)
		w.walk(even, warmth, w.within(steps))
	}
	for !w.Late() {
		last := w.left() < atLast
		if last {
			w.begin(w.bestCost)
		} else {
			w.begin(math.MaxInt64)
			w.walk(slow, warmth, w.within(longWalk))
		}
		for failed := 0; !w.Late() && (failed < patience || last); failed++ {
			before := w.nearCost
			w.state = newState(w.p, w.home, w.near)
			w.kick()
			w.walk(lukewarm, warmth, w.within(kickWalk))
			w.kept = none
			if w.nearCost < before {
				failed = -1
			}
		}
	}
}

// begin goes to the best.
func (w *walker) begin(cost int64) {
	w.state = newState(w.p, w.home, w.best)
	w.near, w.nearCost = append(w.near[:0], w.best...), cost
}

// within is so many steps, or no more than half of all that there are.
func (w *walker) within(steps int) int {
	if w.Steps > 0 {
		steps = min(steps, max(w.Steps/2, 1))
	}
	return steps
}
