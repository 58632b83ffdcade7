package perf

import (
	"cmp"
	"math"
	"slices"
)

// quantile is the value below which a share q of sorted values is, between two of them in
// proportion.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// round leaves four digits: no measurement has more to say.
func round(x float64) float64 {
	digits := 3 - math.Floor(math.Log10(math.Abs(x)))
	if unit := math.Pow(10, math.Abs(digits)); digits > 0 {
		return math.Round(x*unit) / unit
	} else {
		return math.Round(x/unit) * unit
	}
}

func median(values []float64) float64 { return quantile(slices.Sorted(slices.Values(values)), 0.5) }

// spread is the standard deviation that values would have if they were normal and the wild
// ones were left out.
func spread(values []float64) float64 {
	centre := median(values)
	off := make([]float64, len(values))
	for i, v := range values {
		off[i] = math.Abs(v - centre)
	}
	return 1.4826 * median(off)
}

// tail is the last n of values.
func tail(values []float64, n int) []float64 { return values[max(0, len(values)-n):] }

// Histogram counts values in buckets whose bounds are evenly spaced in logarithms, so that
// each is as much wider as it is larger.
type Histogram struct {
	Bounds []float64 `json:"bounds" nullable:"false" doc:"One more than counts; bucket i is from bounds[i], included, to bounds[i+1]."`
	Counts []int     `json:"counts" nullable:"false"`
}

// The finest bucket is 9 % wide. Where that would make more than maxBuckets they are wider.
const (
	finestPerOctave = 8.0
	maxBuckets      = 24
)

// histogram is that of the logarithms of values. The bounds are powers of two (or their
// roots) whatever the values, so histograms of the same width have them in common.
func histogram(logs []float64) Histogram {
	if len(logs) == 0 {
		return Histogram{}
	}
	low, high := slices.Min(logs)/math.Ln2, slices.Max(logs)/math.Ln2
	perOctave := finestPerOctave
	first, last := math.Floor(low*perOctave), math.Floor(high*perOctave)
	for last-first >= maxBuckets {
		perOctave /= 2
		first, last = math.Floor(low*perOctave), math.Floor(high*perOctave)
	}
	h := Histogram{Counts: make([]int, int(last-first)+1)}
	for i := range len(h.Counts) + 1 {
		h.Bounds = append(h.Bounds, round(math.Exp2((first+float64(i))/perOctave)))
	}
	for _, x := range logs {
		h.Counts[int(math.Floor(x/math.Ln2*perOctave)-first)]++
	}
	return h
}

// Distribution is how a metric is spread over the measurements of a class.
type Distribution struct {
	Metric    Metric    `json:"metric"`
	Count     int       `json:"count" doc:"Measurements."`
	Min       float64   `json:"min"`
	P10       float64   `json:"p10"`
	Median    float64   `json:"median"`
	P90       float64   `json:"p90"`
	Max       float64   `json:"max"`
	Histogram Histogram `json:"histogram"`
}

// distribution is that of the logarithms of values, of which there is one at least.
func distribution(m Metric, logs []float64) Distribution {
	sorted := slices.SortedFunc(slices.Values(logs), cmp.Compare[float64])
	at := func(q float64) float64 { return round(math.Exp(quantile(sorted, q))) }
	return Distribution{Metric: m, Count: len(logs), Min: at(0), P10: at(0.1), Median: at(0.5), P90: at(0.9), Max: at(1), Histogram: histogram(logs)}
}
