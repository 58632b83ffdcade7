// Package anneal is what the project's searches have in common: a random source that means the
// same for ever, the choice whether something worse is taken, and the cooling.
//
// It knows no problem. Package assign walks with it through placements of VMs at sites and
// hosts, package reassign through a published benchmark's, so that what the benchmark says of
// the walk it says of the product's. What a step is, what it costs and at which toll it may
// break what must be kept in the end is the walker's.
package anneal

import "math"

// Random is a small generator of its own, so that a seed means the same for ever (splitmix64).
type Random uint64

// Next returns 64 random bits.
func (r *Random) Next() uint64 {
	*r += 0x9e3779b97f4a7c15
	z := uint64(*r)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Below returns a number from 0 to n-1.
func (r *Random) Below(n int) int { return int((r.Next() >> 32) * uint64(n) >> 32) }

// AtOnce is how many steps there are between two looks at the temperature.
const AtOnce = 1024

const (
	ChanceBits       = 12
	mostTemperatures = 9.02 // of which the least of the chances is taken
)

// Walk is a walk that takes what is better, and what is worse with a chance that falls as it cools.
type Walk struct {
	Random
	Late func() bool // ends the walk with what it has
}

// chances are -ln of evenly spread chances: how many temperatures worse is taken.
var chances = func() (table [1 << ChanceBits]float32) { // small, to stay near
	for i := range table {
		table[i] = float32(-math.Log((float64(i) + 0.5) / (1 << ChanceBits)))
	}
	return table
}()

// Draws is how many chances there are in 64 bits.
const Draws = 64 / ChanceBits

// Chance is how many temperatures worse is taken by the first ChanceBits of random bits.
func Chance(bits uint64) float64 { return float64(chances[bits>>(64-ChanceBits)]) }

// New begins a walk.
func New(seed uint64, late func() bool) Walk { return Walk{Random: Random(seed), Late: late} }

// Limit is how much more a change may cost at a temperature: x or more with a chance of e^(-x/temperature).
func (w *Walk) Limit(temperature float64) float64 {
	return temperature * float64(chances[w.Next()>>(64-ChanceBits)])
}

// Takes says whether a change is taken that costs so much more.
func (w *Walk) Takes(worse, temperature float64) bool {
	return worse < 0 || worse < temperature*mostTemperatures && worse < w.Limit(temperature)
}

// Cool calls batch for each AtOnce of steps, with the share of them that is done and a
// temperature that falls, each time by the same factor, from hot to the fraction cold of it.
func (w *Walk) Cool(hot, cold float64, steps int, batch func(share, temperature float64)) {
	done := 0
	w.Until(func() float64 { return float64(done) / float64(steps) }, func(share float64) {
		batch(share, hot*math.Pow(cold, share))
		done += AtOnce
	})
}

// Until calls batch, for AtOnce steps each time, with the share of the walk that is done: progress
// says it, of steps or of time, and that it is 1 ends the walk.
func (w *Walk) Until(progress func() float64, batch func(share float64)) {
	for share := progress(); share < 1; share = progress() {
		batch(share)
		if w.Late() {
			return
		}
	}
}
