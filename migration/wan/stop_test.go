package wan

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// trace makes rounds of what the guest dirties in each, in KiB, over a wire of rate bytes a
// second to which what is sent again shrinks by ratio.
func trace(rate, first, ratio float64, dirty ...float64) []Round {
	var rounds []Round
	next, shrink := first, 1.0
	for _, d := range dirty {
		wire := next * shrink
		rounds = append(rounds, Round{Sent: uint64(next), Wire: uint64(wire), Dirty: uint64(d * 1024), Took: time.Duration(wire / rate * 1e9)})
		next, shrink = d*1024, ratio
	}
	return rounds
}

func TestStopRule(t *testing.T) {
	const link = 12.5e6 // 100 Mbit/s
	flat := []float64{15200, 15164, 15170, 15164, 15150, 15164, 15164}
	for name, c := range map[string]struct {
		rule   StopRule
		rounds []Round
		stop   int // after which round; 0: not in this trace
	}{
		// Measured: 128 MiB, 16 MiB of it rewritten faster than they can be sent. QEMU by itself
		// had not stopped after 33 rounds.
		"never converges":              {StopRule{}, trace(link, 69e6, 1, flat...), 2},
		"never converges, short pause": {StopRule{MaxPause: time.Second}, trace(link, 69e6, 1, flat...), 0},
		"never converges, deltas":      {StopRule{MaxPause: time.Second}, trace(link, 69e6, 0.02, flat...), 2},
		"converges":                    {StopRule{}, trace(link, 69e6, 1, 20000, 6000, 1800, 540, 160, 50), 5},
		"converges to a contract": {StopRule{MaxPause: 100 * time.Millisecond, Enough: 90 * time.Millisecond},
			trace(link, 69e6, 1, 20000, 6000, 1800, 900, 500), 4},
		"a valley":             {StopRule{}, trace(link, 69e6, 1, 20000, 21000, 23000, 25000, 24000, 19000, 26000), 6},
		"bursts":               {StopRule{MaxPause: time.Second}, trace(link, 69e6, 1, 20000, 30000, 30000, 30000, 30000, 9000, 30000), 6},
		"gets worse, for ever": {StopRule{Rounds: 6}, trace(link, 69e6, 1, 20000, 21000, 22000, 23000, 24000, 25000, 26000), 6},
		// CloudNet's figure: 242,987 pages in the first round, 21,791 dirtied in it, and level.
		"CloudNet": {StopRule{}, trace(58e6, 242987*4096, 0.4, 87164, 78000, 79500, 78400, 77900), 3},
	} {
		stop := 0
		for i := range c.rounds {
			if v := c.rule.After(c.rounds[:i+1]); v.Stop {
				stop = i + 1
				break
			}
		}
		if stop != c.stop {
			t.Errorf("%s: stops after round %d, want %d", name, stop, c.stop)
			for i := range c.rounds {
				t.Logf("  round %d: %+v", i+1, c.rule.After(c.rounds[:i+1]))
			}
		}
	}
}

// TestStalled: five rounds after the first that gained nothing, a guest that would make too long a pause is told of.
func TestStalled(t *testing.T) {
	const link = 12.5e6 // 100 Mbit/s
	first := func(r StopRule, rounds []Round) int {
		for i := range rounds {
			if r.After(rounds[:i+1]).Stalled {
				return i + 1
			}
		}
		return 0
	}
	flat := []float64{15200, 15164, 15170, 15164, 15150, 15164, 15164, 15164}
	// QEMU looks for dirty pages every 5 s while it may slow a guest down, so a long pass looks like several: this guest
	// dirties 2 MB a second, and what is left of 500 MB becomes less by 52 each time.
	var long []Round
	for left := 500.0; left > 50; left -= 52.5 {
		long = append(long, Round{Sent: 62.5e6, Wire: 62.5e6, Dirty: uint64(left * 1e6), Took: 5 * time.Second})
	}
	for name, c := range map[string]struct {
		rule   StopRule
		rounds []Round
		want   int
	}{
		"never converges, short pause": {StopRule{MaxPause: time.Second}, trace(link, 69e6, 1, flat...), 7},
		"any pause may be":             {StopRule{}, trace(link, 69e6, 1, flat...), 0},
		"deltas":                       {StopRule{MaxPause: time.Second}, trace(link, 69e6, 0.02, flat...), 0},
		"still converging":             {StopRule{MaxPause: 10 * time.Millisecond}, trace(link, 69e6, 1, 50000, 40000, 32000, 25000, 20000, 16000, 12000, 9000), 0},
		"a valley that would do":       {StopRule{MaxPause: time.Second}, trace(link, 69e6, 1, 20000, 30000, 30000, 30000, 30000, 9000, 30000, 30000), 8},
		"one pass told as several":     {StopRule{MaxPause: time.Second}, long, 0},
	} {
		if got := first(c.rule, c.rounds); got != c.want {
			t.Errorf("%s: after round %d, want %d", name, got, c.want)
		}
	}
}

func TestStopRuleKeepsItsContract(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dirty := rapid.SliceOfN(rapid.Float64Range(0, 50000), 1, 40).Draw(t, "dirty")
		rule := StopRule{
			MaxPause: time.Duration(rapid.IntRange(0, 3000).Draw(t, "pause")) * time.Millisecond,
			Fixed:    time.Duration(rapid.IntRange(0, 100).Draw(t, "fixed")) * time.Millisecond,
		}
		rounds := trace(12.5e6, 69e6, rapid.Float64Range(0.01, 1).Draw(t, "ratio"), dirty...)
		v := rule.After(rounds)
		if v.Stalled && (v.Stop || rule.MaxPause == 0 || len(rounds) < 6) {
			t.Fatalf("it has stalled: %+v", v)
		}
		if v.Stop && rule.MaxPause > 0 && v.Pause > rule.MaxPause || v.Pause < rule.Fixed || v.Why == "" {
			t.Fatalf("%+v", v)
		}
		if rule.MaxPause == 0 && slices.Max(dirty) == 0 && !v.Stop {
			t.Fatalf("nothing is left, and it goes on: %+v", v)
		}
		if rule.MaxPause == 0 && len(rounds) >= 30 && turned(rounds) && !v.Stop {
			t.Fatalf("it goes on for ever: %+v", v)
		}
	})
}
