package synth_test

import (
	"testing"

	"heliotrope/scheduler/traffic/synth"
)

// What is promised of inference, on matrices of 12 to 400 VMs. The bounds are a little
// under what it reaches over thousands of matrices.
func TestGrouping(t *testing.T) {
	const matrices = 48
	least := []struct{ rand, f1 float64 }{{0.92, 0.93}, {0.94, 0.93}, {0.93, 0.92}, {0.89, 0.88}, {0.89, 0.88}, {0.86, 0.8}}
	for i, least := range least {
		regime := synth.Regimes[i]
		t.Run(regime.Name, func(t *testing.T) {
			r := synth.Grouping(regime, 1000, matrices, nil)
			t.Logf("ARI %.3f (p10 %.3f), F1 %.3f, abstained %.3f, lost %d of %d, surplus %d, confident %.3f right\n%s",
				r.RandMean(), r.RandQuantile(0.1), r.Patterns.MacroF1(), r.Patterns.Abstained(), r.Lost, r.Apps, r.Surplus, r.Confident.Right(), r.Patterns)
			if r.RandMean() < least.rand || r.Patterns.MacroF1() < least.f1 {
				t.Errorf("adjusted Rand index %.3f, macro-F1 %.3f; want at least %.2f and %.2f", r.RandMean(), r.Patterns.MacroF1(), least.rand, least.f1)
			}
		})
	}
}
