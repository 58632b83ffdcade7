package autopilot

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"heliotrope/scheduler"
)

// Distances that hosts measure count in place of the topology's, and the plan says so.
func TestMeasuredDistances(t *testing.T) {
	p := far(func(time.Duration) time.Duration { return 160 * time.Millisecond })
	fly(t, p, func(t *testing.T, a *Autopilot) {
		time.Sleep(4 * time.Minute)
		if p.count() > 0 {
			t.Error("it moves by what was measured for a moment")
		}
		time.Sleep(10 * time.Minute)
		if at := p.at("web"); at != "eu-1" && at != "eu-2" {
			t.Fatalf("web is at %s: %v", at, p.told)
		}
		want := []scheduler.Path{{From: "eu", To: "us", RTTMs: 160, BitsPerSecond: 4e8, Source: scheduler.Measured}}
		if got := only(t, a).Plan.Ways; !slices.Equal(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

// Ways that go to and fro and hosts that measure nonsense move nothing.
func TestFlappingDistancesMoveNothing(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for name, rtt := range map[string]func(time.Duration) time.Duration{
		"to and fro": func(since time.Duration) time.Duration {
			return map[bool]time.Duration{true: 2300 * time.Microsecond, false: 160 * time.Millisecond}[since/(20*time.Minute)%2 == 0]
		},
		"bursts": func(since time.Duration) time.Duration {
			return map[bool]time.Duration{true: time.Second}[since%(time.Hour) > 50*time.Minute] + 2*time.Millisecond
		},
		"nonsense": func(time.Duration) time.Duration { return time.Duration(random.Int64N(1 << 62)) },
		"noise":    func(time.Duration) time.Duration { return time.Duration(2e6 * math.Exp(random.NormFloat64()/2)) },
		"negative": func(time.Duration) time.Duration { return -160 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			p := far(rtt)
			fly(t, p, func(t *testing.T, _ *Autopilot) {
				time.Sleep(6 * time.Hour)
				if p.count() > 0 {
					t.Errorf("%d moves: %v", p.count(), p.told[:min(9, len(p.told))])
				}
			})
		})
	}
}
