package autopilot

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler/traffic"
)

// stubbed is a planet with a scanner at eu-1, which web, at us-1, may use.
func stubbed(access string) *planet {
	p := newPlanet("web", "idle")
	p.topology.Stubs = map[heliotrope.StubID]heliotrope.Stub{"scanner": {Host: "eu-1", Access: access, Linger: heliotrope.Duration(5 * time.Minute)}}
	return p
}

// scans makes web talk to the scanner with so many bytes per second, both ways together.
func scans(rate float64) func(from, to time.Time) []traffic.Cell {
	return func(from, to time.Time) []traffic.Cell {
		bytes := rate / 2 * to.Sub(from).Seconds()
		return []traffic.Cell{{Src: traffic.VM("web"), Dst: traffic.VM("scanner"), Bytes: bytes, Low: bytes, High: bytes},
			{Src: traffic.VM("scanner"), Dst: traffic.VM("web"), Bytes: bytes, Low: bytes, High: bytes}}
	}
}

func silence(time.Time, time.Time) []traffic.Cell { return nil }

func theUse(t *testing.T, a *Autopilot) api.StubUse {
	t.Helper()
	s, err := a.Stub(t.Context(), "scanner")
	if err != nil || len(s.Uses) != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	return s.Uses[0]
}

// What a VM sends to a stub of access local waits, and the VM goes there at once, though no
// pool has an autopilot. It stays as long as it uses the stub and lingers then, whatever its
// pool's autopilot would gain elsewhere.
func TestLocalStub(t *testing.T) {
	p := stubbed(heliotrope.AccessLocal)
	fly(t, p, func(t *testing.T, a *Autopilot) {
		time.Sleep(time.Hour)
		if p.count() > 0 {
			t.Fatalf("nobody used it: %v", p.told)
		}
		p.turn(scans(60)) // a SYN now and then
		time.Sleep(2 * time.Second)
		if u := theUse(t, a); u.State != api.UseMoving {
			t.Errorf("%+v", u)
		}
		time.Sleep(5 * time.Second)
		if p.at("web") != "eu-1" && p.at("web") != "eu-2" || p.at("idle") != "us-1" {
			t.Fatalf("web is at %s: %v", p.at("web"), p.told)
		}
		if u := theUse(t, a); u.State != api.UseNear || u.Site != "eu" {
			t.Errorf("%+v", u)
		}
		if plan := only(t, a); plan.By != "stub" || plan.Pool != "" {
			t.Errorf("%+v", plan)
		}
		// Its clients are in us.
		p.mu.Lock()
		p.pool(heliotrope.AutopilotAuto, heliotrope.Pace{})
		p.mu.Unlock()
		both := func(from, to time.Time) []traffic.Cell {
			return append(scans(60)(from, to), serves("web", "us", 1e6)(from, to)...)
		}
		p.turn(both)
		time.Sleep(20 * time.Minute)
		if p.count() != 1 {
			t.Fatalf("it left while it used the scanner: %v", p.told)
		}
		p.turn(serves("web", "us", 1e6))
		time.Sleep(4 * time.Minute)
		if p.count() != 1 {
			t.Errorf("it did not linger: %v", p.told)
		}
		time.Sleep(3 * time.Minute)
		if p.at("web") != "us-1" && p.at("web") != "us-2" {
			t.Errorf("it did not go back to its clients: %v", p.told)
		}
	})
}

// What cannot come is told, with the reason, and comes when it can.
func TestLocalStubWithoutRoom(t *testing.T) {
	p := stubbed(heliotrope.AccessLocal)
	p.drained["eu-1"], p.drained["eu-2"] = true, true
	p.traffic = scans(60)
	fly(t, p, func(t *testing.T, a *Autopilot) {
		time.Sleep(time.Minute)
		if u := theUse(t, a); p.count() != 0 || u.State != api.UseWaiting {
			t.Fatalf("%+v, %v", u, p.told)
		}
		if told := strings.Join(p.told, "\n"); !strings.Contains(told, "web cannot come to eu: ") || strings.Count(told, "web uses it") != 1 {
			t.Error(told)
		}
		p.mu.Lock()
		p.drained["eu-2"] = false
		p.mu.Unlock()
		time.Sleep(10 * time.Second)
		if p.at("web") != "eu-2" {
			t.Errorf("web is at %s: %v", p.at("web"), p.told)
		}
	})
}

// A use that goes on is carried until that has cost what a move costs; a short one is only
// carried.
func TestAutoStub(t *testing.T) {
	const rate = 1e6
	for name, c := range map[string]struct {
		lasts time.Duration
		moves int
	}{"short": {time.Minute, 0}, "long": {time.Hour, 1}} {
		t.Run(name, func(t *testing.T) {
			p := stubbed("")
			fly(t, p, func(t *testing.T, a *Autopilot) {
				time.Sleep(time.Minute)
				begun := time.Now()
				p.turn(scans(rate))
				time.Sleep(30 * time.Second)
				u := theUse(t, a)
				// 3.6 GB/h over 80 ms at USD 0.0005 per GB and ms, and USD 0.02 per GB.
				if u.State != api.UseCarried || math.Abs(u.GainUSDPerHour-3.6*(80*0.0005+0.02)) > 0.01 || u.SpentUSD < 0.8*u.GainUSDPerHour/120 || u.SpentUSD > 1.1*u.GainUSDPerHour/120 {
					t.Errorf("%+v", u)
				}
				if !strings.Contains(u.Says, "a move costs USD 0.0") || u.BreakEvenBytesPerHour <= 0 || u.BreakEvenBytesPerHour > rate*3600 {
					t.Errorf("%+v", u)
				}
				due := time.Duration(u.MoveUSD / u.GainUSDPerHour * float64(time.Hour))
				if c.moves > 0 {
					for p.count() == 0 && time.Since(begun) < c.lasts {
						time.Sleep(time.Second)
					}
					if took := time.Since(begun); took < due*9/10 || took > due*11/10+useWindow {
						t.Errorf("it was moved after %v, due after %v", took, due)
					}
				} else {
					time.Sleep(c.lasts)
					p.turn(silence)
				}
				time.Sleep(time.Hour)
				if p.count() != c.moves {
					t.Errorf("%d moves: %v", p.count(), p.told)
				}
			})
		})
	}
}

// What only passes through the mesh never moves anything; what it costs is told.
func TestProxiedStub(t *testing.T) {
	p := stubbed(heliotrope.AccessProxy)
	p.traffic = scans(1e6)
	fly(t, p, func(t *testing.T, a *Autopilot) {
		time.Sleep(time.Hour)
		if u := theUse(t, a); p.count() != 0 || u.State != api.UseCarried || u.SpentUSD < 0.1 || strings.Contains(u.Says, "due") {
			t.Errorf("%+v, %v", u, p.told)
		}
	})
}

// A VM whose clients would then be far does not go to a stub that it uses little, and a
// place that is cheaper for other reasons is no reason of the stub's.
func TestAutoStubIsNoPretext(t *testing.T) {
	for name, world := range map[string]func(p *planet){
		"clients": func(p *planet) {
			p.traffic = func(from, to time.Time) []traffic.Cell {
				return append(scans(1e4)(from, to), serves("web", "us", 1e6)(from, to)...)
			}
		},
		"price": func(p *planet) {
			p.traffic = scans(1)
			site := p.topology.Sites["us"]
			site.PricePerVCPUHour = 3
			p.topology.Sites["us"] = site
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := stubbed("")
			world(p)
			fly(t, p, func(t *testing.T, _ *Autopilot) {
				time.Sleep(6 * time.Hour)
				if p.count() != 0 {
					t.Errorf("%d moves: %v", p.count(), p.told)
				}
			})
		})
	}
}

// Whatever a use costs over time and however long it lasts, rent costs at most twice what
// knowing it beforehand would, but for one look.
func TestRentIsCompetitive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rates := rapid.SliceOfN(rapid.Float64Range(0, 100), 1, 200).Draw(t, "USD per hour")
		move := rapid.Float64Range(0.001, 1).Draw(t, "USD of a move")
		const look = time.Minute
		var r rent
		paid, all, most := 0.0, 0.0, 0.0
		moved := false
		for _, rate := range rates {
			each := rate * look.Hours()
			all, most = all+each, max(most, each)
			if !moved {
				paid += each
				if moved = r.pay(rate, look, move); moved {
					paid += move
				}
			}
		}
		if best := min(all, move); paid > 2*best+most+1e-9 {
			t.Fatalf("paid USD %v, the best is %v", paid, best)
		}
	})
}

// The stub of a topology that is no longer there is forgotten, and so are its uses.
func TestStubsAreListed(t *testing.T) {
	p := stubbed(heliotrope.AccessProxy)
	p.traffic = scans(1e4)
	fly(t, p, func(t *testing.T, a *Autopilot) {
		time.Sleep(time.Minute)
		list, err := a.Stubs(t.Context())
		if err != nil || len(list) != 1 || list[0].Site != "eu" || list[0].Access != "proxy" || len(list[0].Uses) != 1 || len(p.told) != 1 {
			t.Errorf("%+v, %v, %v", list, err, p.told)
		}
		if _, err := a.Stub(t.Context(), "nothing"); err == nil {
			t.Error("there is no stub nothing")
		}
		p.mu.Lock()
		p.topology.Stubs = nil
		p.mu.Unlock()
		time.Sleep(2 * time.Second)
		if list, err = a.Stubs(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("%+v, %v", list, err)
		}
	})
}
