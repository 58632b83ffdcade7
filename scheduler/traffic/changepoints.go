package traffic

import (
	"math"
	"slices"
)

// ChangePoints returns where the level of rates changes: the indices of the first of each
// new level. It is binary segmentation (Scott and Knott, Biometrics 1974) of log-rates: the
// place that takes most off the sum of squares parts them, and so on in both parts, while
// that is more than chance takes off. The spread around a level is read off the
// differences of neighbours. A rate of zero counts as a thousandth of the least other one.
func ChangePoints(rates []float64) []int {
	x, scale := logRates(rates)
	sum := make([]float64, len(x)+1)
	for i, v := range x {
		sum[i+1] = sum[i] + v/scale
	}
	chance := 4 * math.Log(float64(len(x))+1)
	var points []int
	var part func(from, to int)
	part = func(from, to int) {
		at, most := 0, chance
		for i := from + shortest; i+shortest <= to; i++ {
			a, b := float64(i-from), float64(to-i)
			step := (sum[i]-sum[from])/a - (sum[to]-sum[i])/b
			if gain := step * step * a * b / (a + b); gain > most {
				at, most = i, gain
			}
		}
		if at > 0 {
			part(from, at)
			points = append(points, at)
			part(at, to)
		}
	}
	part(0, len(x))
	return points
}

const shortest = 2 // windows that a level lasts

// logRates returns the logarithms of rates, and how much they spread around a level.
func logRates(rates []float64) (x []float64, scale float64) {
	least := math.Inf(1)
	for _, r := range rates {
		if r > 0 {
			least = min(least, r)
		}
	}
	x = make([]float64, len(rates))
	if math.IsInf(least, 1) {
		return x, 1
	}
	for i, r := range rates {
		x[i] = math.Log(max(r, least/1000))
	}
	steps := make([]float64, 0, len(x))
	for i := 1; i < len(x); i++ {
		if x[i] != x[i-1] { // silence does not spread
			steps = append(steps, math.Abs(x[i]-x[i-1]))
		}
	}
	slices.Sort(steps)
	const leastScale = 0.05 // changes under 5 % are none
	if len(steps) > 0 {     // median of |N(0,σ√2)| is 0.954 σ
		scale = steps[len(steps)/2] / 0.954
	}
	smooth := slices.Clone(x)
	for i := 1; i+1 < len(x); i++ { // a median of three: the burst of a window is no level
		smooth[i] = max(min(x[i-1], x[i]), min(max(x[i-1], x[i]), x[i+1]))
	}
	return smooth, max(scale, leastScale)
}
