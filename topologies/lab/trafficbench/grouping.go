package trafficbench

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"heliotrope/scheduler/traffic/synth"
	"heliotrope/topologies/lab/claim"
)

// groupingFigures are those of one regime.
type groupingFigures struct {
	Matrices   int     `json:"matrices"`
	Apps       int     `json:"applications"`
	Rand       float64 `json:"adjusted_rand_mean"`
	RandP10    float64 `json:"adjusted_rand_p10"`
	MacroF1    float64 `json:"macro_f1"`
	Abstained  float64 `json:"abstained"`
	Confident  float64 `json:"right_when_confident"` // share that is right of those told with 0.9 and more
	Confidents int     `json:"confident"`
}

// grouping infers what is in generated matrices of every regime.
func grouping(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	each := b.Matrices / len(synth.Regimes)
	figures := map[string]groupingFigures{}
	var claims []claim.Claim
	total := 0
	for _, regime := range synth.Regimes {
		r, err := judged(ctx, b, regime, each)
		if err != nil {
			return nil, figures, err
		}
		total += r.Matrices
		f := groupingFigures{Matrices: r.Matrices, Apps: r.Apps, Rand: r.RandMean(), RandP10: r.RandQuantile(0.1),
			MacroF1: r.Patterns.MacroF1(), Abstained: r.Patterns.Abstained(), Confident: r.Confident.Right()}
		for _, row := range r.Confident {
			for _, n := range row {
				f.Confidents += n
			}
		}
		figures[regime.Name] = f
		fmt.Fprintf(b.Out, "\n%s: %d matrices, %d applications; adjusted Rand %.3f (p10 %.3f), macro-F1 %.3f, abstained %.1f %%; of %d told with confidence 0.9 or more, %.1f %% are right\n%s\n",
			regime.Name, f.Matrices, f.Apps, f.Rand, f.RandP10, f.MacroF1, 100*f.Abstained, f.Confidents, 100*f.Confident, r.Patterns)
		claims = append(claims, groupingClaims(regime, f)...)
	}
	return append(claims, claim.New("generated matrices", float64(total), ">=", 10000)), figures, nil
}

// groupingClaims are what is required of a regime.
func groupingClaims(r synth.Regime, f groupingFigures) []claim.Claim {
	named := func(what string) string { return what + ", " + r.Name }
	claims := []claim.Claim{claim.New(named("share of applications of which nothing is said"), f.Abstained, "<=", 0.05)}
	switch {
	case r.Blind:
		return nil // harder than what is required: shown
	case r.Sampling > 1:
		return append(claims, claim.New(named("macro-F1"), f.MacroF1, ">=", 0.85))
	case r.Background == 0.01:
		return append(claims, claim.New(named("macro-F1"), f.MacroF1, ">=", 0.95))
	case r.Background == 0.05:
		return append(claims, claim.New(named("adjusted Rand"), f.Rand, ">=", 0.95))
	}
	return append(claims, claim.New(named("macro-F1"), f.MacroF1, ">=", 0.9), claim.New(named("adjusted Rand"), f.Rand, ">=", 0.85))
}

// judged judges so many matrices on all cores.
func judged(ctx context.Context, b *Bench, regime synth.Regime, matrices int) (all synth.Result, err error) {
	var mu sync.Mutex
	var workers sync.WaitGroup
	var next atomic.Int64
	said := time.Now()
	for range runtime.NumCPU() {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(matrices) && ctx.Err() == nil; i = next.Add(1) - 1 {
				r := synth.Judge(b.Seed*1_000_000+uint64(i), regime)
				mu.Lock()
				all.Join(r)
				if time.Since(said) > 10*time.Second {
					said = time.Now()
					b.Say("  %s: %d of %d matrices", regime.Name, all.Matrices, matrices)
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	return all, context.Cause(ctx)
}
