package schedbench

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"heliotrope/scheduler"
	"heliotrope/topologies/lab/claim"
)

// inferred holds placements by traffic that was sampled against those by the true traffic,
// both at what they cost with the true one.
func inferred(_ context.Context, b *Bench) ([]claim.Claim, any, error) {
	type result struct {
		Sampling int     `json:"sampling"` // 1 of so many packets was looked at
		Error    float64 `json:"matrix_error"`
		Mean     float64 `json:"mean_excess"`
		Worst    float64 `json:"worst_excess"`
	}
	shapes := slices.Repeat([]shape{{vms: 60, sites: 5, hosts: 4, load: 0.65}}, 8)
	shapes = append(shapes, shape{vms: 1000, sites: 12, hosts: 8, load: 0.65})
	truth := make([]float64, len(shapes))
	snapshots := make([]scheduler.Snapshot, len(shapes))
	for i, sh := range shapes {
		snapshots[i] = instance(b.world, sh, b.Seed*5_000_000+uint64(i))
		cost, err := b.costBy(snapshots[i], snapshots[i])
		if err != nil {
			return nil, nil, err
		}
		truth[i] = cost
	}
	var list []result
	var claims []claim.Claim
	r := rand.New(rand.NewPCG(b.Seed, 13))
	for _, n := range []int{1, 64, 256} {
		res := result{Sampling: n, Worst: math.Inf(-1)}
		for i := range shapes {
			seen, wrong := sampled(snapshots[i], n, r)
			cost, err := b.costBy(snapshots[i], seen)
			if err != nil {
				return nil, list, err
			}
			excess := cost/truth[i] - 1
			res.Error, res.Mean, res.Worst = res.Error+wrong/float64(len(shapes)), res.Mean+excess/float64(len(shapes)), max(res.Worst, excess)
		}
		b.Say("1:%d: matrix error %.4f, costs %.3f %% more than by the true matrix, at most %.3f %%", n, res.Error, 100*res.Mean, 100*res.Worst)
		list = append(list, res)
		if n <= 64 {
			claims = append(claims, claim.New(fmt.Sprintf("excess of placements by 1 of %d packets, mean", n), res.Mean, "<=", 0.01))
		}
	}
	return claims, list, nil
}

// searches is how many are made by one matrix, of which the plan counts that seems best by
// that matrix: what is measured is what was not known, and not the luck of a search.
const searches = 2

// costBy is what a placement that is made by what was seen costs in truth.
func (b *Bench) costBy(truth, seen scheduler.Snapshot) (float64, error) {
	var best scheduler.Plan
	for i := range searches {
		plan, err := scheduler.Solve(seen, pure(), scheduler.Options{Seed: b.Seed + uint64(i), Passes: -1})
		if err != nil {
			return 0, err
		}
		if i == 0 || plan.After.Total() < best.After.Total() {
			best = plan
		}
	}
	cost, err := scheduler.Evaluate(truth, pure(), best.Apply(truth.Placement()))
	return cost.Total(), err
}

const (
	sampledSeconds = 600 // a window of ten minutes, the default
	smallShare     = 0.2 // of the bytes, in packets of 64; the rest in full ones
)

// sampled is a snapshot whose flows and demands were counted by one of n packets, each by
// chance, and by what share of all bytes that is off.
func sampled(s scheduler.Snapshot, n int, r *rand.Rand) (scheduler.Snapshot, float64) {
	var all, wrong float64
	look := func(rate float64) float64 {
		got := 0.0
		for _, p := range []struct{ share, size float64 }{{smallShare, 64}, {1 - smallShare, 1500}} {
			packets := rate * p.share * sampledSeconds / p.size
			if n > 1 {
				packets = float64(n) * poisson(packets/float64(n), r)
			} else {
				packets = math.Round(packets) // all were looked at
			}
			got += packets * p.size / sampledSeconds
		}
		all, wrong = all+rate, wrong+math.Abs(got-rate)
		return got
	}
	s.Flows, s.Demands = slices.Clone(s.Flows), slices.Clone(s.Demands)
	for i := range s.Flows {
		s.Flows[i].BytesPerSecond = look(s.Flows[i].BytesPerSecond)
	}
	for i := range s.Demands {
		s.Demands[i].BytesPerSecond = look(s.Demands[i].BytesPerSecond)
	}
	return s, wrong / all
}

// poisson draws a Poisson variable; a normal one stands for it where the mean is large.
func poisson(mean float64, r *rand.Rand) float64 {
	if mean > 500 {
		return max(0, math.Round(mean+math.Sqrt(mean)*r.NormFloat64()))
	}
	n, p := 0.0, math.Exp(-mean)
	for u := r.Float64(); u > p; n++ {
		u -= p
		p *= mean / (n + 1)
		if p == 0 {
			break
		}
	}
	return n
}
