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
	Steps int // in all; 0: until Deadline or Enough

	// Deadline is asked now and then, and ends the search with what it has when it says
	// true. What it ends with is as good as any, but not the same twice.
	Deadline func() bool
	Enough   int64            // a cost that ends the search
	Found    func(cost int64) // is told of each assignment that is better than those before
}

const (
	firstRound = 1 << 22 // steps; each round has twice as many as the one before
	hot        = 0.3     // of the size of a random move: where it begins is forgotten
)

// Search looks for a cheaper assignment that breaks nothing, from one that does not. The
// same seed and steps give the same.
func (p *Problem) Search(initial Assignment, o Options) (Assignment, Cost, error) {
	if o.Steps <= 0 && o.Deadline == nil {
		return nil, Cost{}, errors.New("search: there is neither a number of steps nor a deadline")
	}
	cost, broken := p.Check(initial, initial)
	if len(broken) > 0 {
		return nil, Cost{}, fmt.Errorf("search: the initial assignment breaks rules: %s", broken[0])
	}
	w := &walker{state: newState(p, initial, initial), best: slices.Clone(initial), bestCost: cost.Total(), found: o.Found}
	if w.found == nil {
		w.found = func(int64) {}
	}
	w.Walk = anneal.New(o.Seed, func() bool { return w.bestCost <= o.Enough || o.Deadline != nil && o.Deadline() })
	left := o.Steps
	if left <= 0 {
		left = math.MaxInt
	}
	if len(initial) > 0 && len(p.Machines) > 1 {
		warmth := w.warmth()
		for n := 0; left > 0 && !w.Late(); n++ {
			steps := min(left, firstRound<<n)
			w.state = newState(p, initial, w.best)
			w.round(warmth*hot, steps)
			left -= steps
		}
	}
	cost, _ = p.Check(initial, w.best)
	return w.best, cost, nil
}
