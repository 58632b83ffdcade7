package autopilot

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/survey"
	"heliotrope/scheduler/traffic"
)

// far is a world in which web talks to db, which stays at eu-1; the topology says that the
// sites are 2 ms apart, which no move would pay for.
func far(rtt func(time.Duration) time.Duration) *planet {
	p := newPlanet("web", "db")
	l := p.topology.Links["us-eu"]
	l.Delay, l.PricePerGB = heliotrope.Duration(time.Millisecond), 0
	p.topology.Links["us-eu"] = l
	p.placements["db"] = heliotrope.Placement{VM: "db", Host: "eu-1", Epoch: 1}
	p.topology.Pools["all"] = heliotrope.Pool{VMs: []heliotrope.VMID{"web"}, Autopilot: heliotrope.AutopilotAuto, Window: heliotrope.Duration(time.Minute), Interval: heliotrope.Duration(2 * time.Minute)}
	p.traffic = func(from, to time.Time) []traffic.Cell {
		bytes := 1e6 * to.Sub(from).Seconds()
		return []traffic.Cell{{Src: traffic.VM("web"), Dst: traffic.VM("db"), Bytes: bytes, Low: bytes, High: bytes}}
	}
	var began time.Time
	p.rtt = func(from, to heliotrope.HostID) time.Duration {
		if began.IsZero() {
			began = time.Now()
		}
		if p.topology.Hosts[from].Site == p.topology.Hosts[to].Site {
			return time.Millisecond
		}
		return rtt(time.Since(began))
	}
	return p
}

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
		want := []scheduler.Path{{From: "eu", To: "us", RTTMs: 160, BitsPerSecond: 4e8, Source: survey.Measured}}
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
