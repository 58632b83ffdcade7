package images

import (
	"maps"
	"math"
	"slices"

	"heliotrope"
)

// leastPart is what is worth giving, bits/s: of a link that has less left, nothing is.
const leastPart = heliotrope.BitRate(8_000)

// flow is a version that comes to a host from the store, over links that images share.
type flow struct {
	links []heliotrope.LinkID
	rank  int                // those of a higher one go first
	most  heliotrope.BitRate // that it may take; zero: any
}

// divide gives each flow what it may take of its links, of which images may take so much. Those of a
// higher rank are given all that they may take before a lower one is given anything. Inside a rank all have the same,
// but what one cannot take, since that is more than its most or than another of its links has left, the others have:
// no flow could have more without one that has no more than it having less (max-min fairness). Links that are not
// in the map are not shared; a flow of which none is gets its most.
func divide(links map[heliotrope.LinkID]heliotrope.BitRate, flows []flow) []heliotrope.BitRate {
	rates, left := make([]heliotrope.BitRate, len(flows)), maps.Clone(links)
	ranks := map[int][]int{} // the flows of each
	for k, f := range flows {
		if slices.ContainsFunc(f.links, func(l heliotrope.LinkID) bool { _, shared := links[l]; return shared }) {
			ranks[f.rank] = append(ranks[f.rank], k)
		} else {
			rates[k] = f.most
		}
	}
	for _, rank := range slices.Backward(slices.Sorted(maps.Keys(ranks))) {
		for l, rate := range left {
			if rate < leastPart {
				left[l] = 0
			}
		}
		raise(left, flows, rates, ranks[rank])
	}
	return rates
}

// raise raises the rates of open flows together, until each has its most or a link of it has nothing left. It takes
// what it gives from left.
func raise(left map[heliotrope.LinkID]heliotrope.BitRate, flows []flow, rates []heliotrope.BitRate, open []int) {
	for len(open) > 0 {
		step, on := heliotrope.BitRate(math.MaxUint64), map[heliotrope.LinkID]heliotrope.BitRate{}
		for _, k := range open {
			for _, l := range flows[k].links {
				on[l]++
			}
			if most := flows[k].most; most > 0 {
				step = min(step, most-rates[k])
			}
		}
		for l, n := range on {
			if rate, shared := left[l]; shared {
				step = min(step, rate/n)
			}
		}
		for l, n := range on {
			if _, shared := left[l]; shared {
				left[l] -= step * n
			}
		}
		for _, k := range open {
			rates[k] += step
		}
		open = slices.DeleteFunc(open, func(k int) bool {
			full := func(l heliotrope.LinkID) bool { rate, shared := left[l]; return shared && rate < on[l] }
			return flows[k].most > 0 && rates[k] == flows[k].most || slices.ContainsFunc(flows[k].links, full)
		})
	}
}

// alike is how much of a step flows may end before it does: there are fewer steps, and what is foretold is no better.
const alike = 1.01

// ends says after how many seconds each flow has all that it lacks, bits, if no other comes; infinity: never.
func ends(links map[heliotrope.LinkID]heliotrope.BitRate, flows []flow, lack []float64) []float64 {
	at, lack, now := make([]float64, len(flows)), slices.Clone(lack), 0.0
	var under []int
	for k := range flows {
		if lack[k] > 0 {
			under = append(under, k)
		}
	}
	for len(under) > 0 {
		some := make([]flow, len(under))
		for i, k := range under {
			some[i] = flows[k]
		}
		rates, step := divide(links, some), math.Inf(1)
		for i, k := range under {
			if rates[i] > 0 {
				step = min(step, lack[k]/float64(rates[i]))
			}
		}
		now += step
		var rest []int
		for i, k := range under {
			if rates[i] > 0 {
				lack[k] -= float64(rates[i]) * step * alike
			}
			if at[k] = now; lack[k] > 0 && !math.IsInf(step, 1) {
				lack[k] += float64(rates[i]) * step * (alike - 1)
				rest = append(rest, k)
			}
		}
		under = rest
	}
	return at
}
