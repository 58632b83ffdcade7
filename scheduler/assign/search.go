package assign

import (
	"cmp"
	"math"
	"slices"

	"heliotrope/scheduler/anneal"
)

// Options say how long to search. The zero value is a good search.
type Options struct {
	Seed       uint64
	Iterations int // steps of annealing; 0: as many as the size asks for; negative: only better moves, from the placement of now
	Passes     int // of messages up and down, for the bound and a start; 0: as the size allows; negative: none, and no bound

	// Deadline is asked now and then, and ends the search with what it has when it says
	// true. A plan that ended so is as good as any, but not the same twice.
	Deadline func() bool
}

const (
	smallIterations   = 13_000_000
	iterationsPerUnit = 4_000
	mostIterations    = 7_000_000
	quickSteps        = 50_000
	quickStepsPerUnit = 50

	usualPasses = 100
	leastPasses = 40
	passesWork  = 45_000_000 // edges × sites² × passes: less than that many

	wide      = 0.014 // of the bound: a large field whose best is so far above it is searched on from there
	againPart = 75    // of 100 steps

	smallField = 400 // units
	fewUnits   = 130 // a small field of more is searched on by walks that forget where they began
	onSteps    = 3_500_000

	warmStart     = 0.1   // of warmth
	lukewarmStart = 0.04  // of warmth
	coldest       = 1e-12 // USD per hour: only what is better is taken
)

func (o Options) late() func() bool {
	if o.Deadline == nil {
		return func() bool { return false }
	}
	return o.Deadline
}

// settle is the start: where units are now, and where that may not be, or is too full, the
// cheapest site with room.
func settle(f *Field) *State {
	at := slices.Clone(f.Home)
	var homeless []int
	for u, k := range at {
		if k == None {
			row := f.Linear[u*f.Sites : (u+1)*f.Sites]
			at[u] = slices.Index(row, slices.Min(row))
			homeless = append(homeless, u)
		}
	}
	s := newState(f, at)
	for u, k := range s.At {
		if f.Linear[u*f.Sites+k] >= Never/2 {
			homeless = append(homeless, u)
		}
	}
	for _, u := range homeless {
		if k := s.cheapest(u); k != None {
			s.Move(u, k)
		}
	}
	for k := range f.Sites {
		s.relieve(k)
	}
	return s
}

// cheapest is the site with room where a unit costs least, but for where it is: None where
// there is no other.
func (s *State) cheapest(u int) int {
	best := None
	for k := range s.f.Sites {
		if k != s.At[u] && s.Fits(u, k) && s.permits(u, k) && s.would[u*s.f.Sites+k] < Never/2 &&
			(best == None || s.Gain(u, k) < s.Gain(u, best)) {
			best = k
		}
	}
	return best
}

// relieve takes units from a site that is too full: first those that lose least.
func (s *State) relieve(k int) {
	over := func() bool { return s.freeVCPUs[k] < -slack || s.freeMiB[k] < -slack }
	if !over() {
		return
	}
	units := slices.Clone(s.here[k])
	loss := map[int]float64{}
	for _, u := range units {
		loss[u] = math.Inf(1)
		if to := s.cheapest(u); to != None {
			loss[u] = s.Gain(u, to) / max(s.f.VCPUs[u]/max(s.f.RoomVCPUs[k], 1)+s.f.MiB[u]/max(s.f.RoomMiB[k], 1), 1e-12)
		}
	}
	slices.SortStableFunc(units, func(u, v int) int { return cmp.Compare(loss[u], loss[v]) })
	for _, u := range units {
		if to := s.cheapest(u); over() && to != None {
			s.Move(u, to)
		}
	}
}

// Search looks for the cheapest assignment and a bound; -Inf where none was asked for.
func (f *Field) Search(o Options) (*State, float64) {
	late := o.late()
	best := newAnnealer(settle(f), o.Seed, late)
	best.descend()
	bound := math.Inf(-1)
	var read *State
	leased := f
	if o.Passes >= 0 {
		d := newDual(f)
		bound, read = d.climb(cmp.Or(o.Passes, passes(f)), best.bestUSD, late)
		if len(f.Home) > smallField {
			leased = d.lease()
		}
	}
	if o.Iterations < 0 {
		best.run(coldest, min(quickSteps, quickStepsPerUnit*len(f.Home)))
		best.finish()
		return best.found(), bound
	}
	steps := cmp.Or(o.Iterations, f.iterations())
	starts := f.starts(read)
	starts = starts[:min(len(starts), max(1, steps/anneal.AtOnce))]
	walk := func(from start, steps int) {
		at := best.best
		if from.messages {
			at = read.At
		}
		a := newAnnealer(newState(leased, at), best.Next(), late)
		if leased == f {
			a.cool(from.hot, from.scale, steps)
		} else {
			a = a.cede(f, from.hot, steps)
		}
		a.finish()
		if a.beats(best) {
			best = a
		}
	}
	for _, from := range starts {
		walk(from, steps/len(starts))
	}
	if n := len(f.Home); o.Iterations == 0 && n > fewUnits && n <= smallField && !late() {
		for _, hot := range []float64{3, 1} { // each twice as long as one before
			walk(start{false, hot, usualScale}, onSteps)
		}
	}
	if leased != f && o.Iterations == 0 && best.bestUSD-bound > wide*math.Abs(bound) && !late() {
		walk(start{false, lukewarmStart, leasedScale}, steps*againPart/100)
	}
	return best.found(), bound
}

// start is where annealing begins.
type start struct {
	messages bool    // at what was read from them, not at the best so far
	hot      float64 // multiple of warmth
	scale    scale
}

// starts are several for small fields, some so hot that where they begin is forgotten, the others
// with a gentle toll; a large field has time for one.
func (f *Field) starts(read *State) []start {
	list := []start{
		{true, 0.03, gentleScale}, {false, 0.3, gentleScale}, {true, 0.1, gentleScale}, {false, 3, usualScale},
		{false, 0.1, gentleScale}, {false, 1, usualScale}, {false, 3, usualScale}, {false, 0.3, gentleScale},
	}
	switch {
	case len(f.Home) > smallField && read != nil:
		return []start{{true, lukewarmStart, leasedScale}}
	case len(f.Home) > smallField:
		return []start{{false, warmStart, usualScale}}
	case read == nil:
		list = slices.DeleteFunc(list, func(s start) bool { return s.messages })
	}
	return list
}

// finish descends from the best.
func (a *annealer) finish() {
	a.State = a.found()
	a.descend()
}

// found is the state of the best.
func (a *annealer) found() *State {
	if slices.Equal(a.At, a.best) {
		return a.State
	}
	return newState(a.f, a.best)
}

// iterations is how many the size asks for: a small field is searched several times over.
func (f *Field) iterations() int {
	if len(f.Home) <= smallField {
		return smallIterations
	}
	return min(iterationsPerUnit*len(f.Home), mostIterations)
}

// passes is how many the size of a field allows.
func passes(f *Field) int {
	edges := 0
	for _, list := range f.Edges {
		edges += len(list)
	}
	return min(usualPasses, max(leastPasses, passesWork/max(edges*f.Sites*f.Sites, 1)))
}

// Bound tells what no assignment that keeps all constraints can cost less than, after so
// many passes of messages; 0: as many as the size allows.
func (f *Field) Bound(n int) float64 {
	usd, _ := newDual(f).climb(cmp.Or(n, passes(f)), settle(f).USD, Options{}.late())
	return usd
}
