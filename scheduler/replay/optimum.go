package replay

import "math"

// Costs is what one VM could have done: be at one of some places at each tick, and go from
// one to another at its beginning.
type Costs struct {
	Stay [][]float64                      // tick, place: of being there until the next tick; Inf: it cannot
	Move func(tick, from, to int) float64 // of having gone there at this tick, besides Stay of to; nil: nothing
	Day  func(tick int) int               // which day it is; nil: all one
	Most int                              // moves in a day; 0: any number
}

// Optimum is the places that cost the least in all for somebody who knows the future, and
// that cost: a dynamic programme over place and moves already made today. The first place
// is free to choose.
func Optimum(c Costs) ([]int, float64) {
	if len(c.Stay) == 0 {
		return nil, 0
	}
	places, counts := len(c.Stay[0]), c.Most+1
	best := inf(places * counts) // by place and moves made today
	for k := range places {
		best[k*counts] = c.Stay[0][k]
	}
	from := make([][]int, len(c.Stay)) // state before
	for t := 1; t < len(c.Stay); t++ {
		if c.Day != nil && c.Day(t) != c.Day(t-1) {
			best, from[t-1] = newDay(best, from[t-1], places, counts)
		}
		best, from[t] = c.advance(t, best, places, counts)
	}
	return trace(best, from, counts)
}

func inf(n int) []float64 {
	list := make([]float64, n)
	for i := range list {
		list[i] = math.Inf(1)
	}
	return list
}

// newDay forgets how many moves were made: each place keeps its best way.
func newDay(best []float64, from []int, places, counts int) ([]float64, []int) {
	fresh, kept := inf(len(best)), make([]int, len(best))
	for k := range places {
		for n := range counts {
			if i := k*counts + n; best[i] < fresh[k*counts] {
				fresh[k*counts] = best[i]
				kept[k*counts] = k*counts + n
				if from != nil {
					kept[k*counts] = from[i]
				}
			}
		}
	}
	return fresh, kept
}

func (c *Costs) advance(t int, before []float64, places, counts int) ([]float64, []int) {
	best, from := inf(len(before)), make([]int, len(before))
	for i, usd := range before {
		if math.IsInf(usd, 1) {
			continue
		}
		a, n := i/counts, i%counts
		for b := range places {
			made, price := n, 0.0
			if a != b {
				if c.Most > 0 {
					made++
				}
				if made >= counts {
					continue
				}
				if c.Move != nil {
					price = c.Move(t, a, b)
				}
			}
			if sum := usd + price + c.Stay[t][b]; sum < best[b*counts+made] {
				best[b*counts+made], from[b*counts+made] = sum, i
			}
		}
	}
	return best, from
}

// trace reads the way back.
func trace(best []float64, from [][]int, counts int) ([]int, float64) {
	at := 0
	for i, usd := range best {
		if usd < best[at] {
			at = i
		}
	}
	usd := best[at]
	path := make([]int, len(from))
	for t := len(from) - 1; t >= 0; t-- {
		path[t] = at / counts
		if t > 0 {
			at = from[t][at]
		}
	}
	return path, usd
}
