package ahead

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/scheduler"
)

var zero = time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)

// world is web at a site, with clients at both, who get so many bytes per second.
func world(host heliotrope.HostID, at time.Time, us, eu float64) scheduler.Snapshot {
	return scheduler.Snapshot{At: at,
		VMs:   []scheduler.VM{{ID: "web", VCPUs: 1, Host: host, CopyBytes: 1e9}},
		Hosts: []scheduler.Host{{ID: "us-1", Site: "us", VCPUs: 4}, {ID: "eu-1", Site: "eu", VCPUs: 4}},
		Sites: []scheduler.Site{{ID: "us", USDPerVCPUHour: 0.02}, {ID: "eu", USDPerVCPUHour: 0.03}},
		Paths: []scheduler.Path{{From: "us", To: "eu", RTTMs: 80, USDPerGB: 0.02}},
		Reaches: []scheduler.Reach{{Region: "us", Site: "us", RTTMs: 1}, {Region: "us", Site: "eu", RTTMs: 80},
			{Region: "eu", Site: "us", RTTMs: 80}, {Region: "eu", Site: "eu", RTTMs: 1}},
		Demands: []scheduler.Demand{{VM: "web", Region: "us", BytesPerSecond: us}, {VM: "web", Region: "eu", BytesPerSecond: eu}},
	}
}

func balanced(t rapid.TB) scheduler.Policy {
	p, err := scheduler.Preset("balanced")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func to(host heliotrope.HostID) scheduler.Plan {
	return scheduler.Plan{Moves: []scheduler.Move{{VM: "web", To: host, USDPerHour: 1}}}
}

// learned knows office hours: eu from eight to sixteen, us else.
func learned(t rapid.TB, days int) *Demands {
	var d Demands
	for h := range days * 24 {
		us, eu := 1e6, 0.0
		if h%24 >= 8 && h%24 < 16 {
			us, eu = 0, 1e6
		}
		if err := d.Learn(zero.Add(time.Duration(h)*time.Hour), world("us-1", zero, us, eu).Demands); err != nil {
			t.Fatal(err)
		}
	}
	return &d
}

// What is expected is what the coming hours usually have; one day says nothing yet; what is
// asked by requests stays so, and regions that nobody knows the way to are left out.
func TestExpected(t *testing.T) {
	seven := zero.AddDate(0, 0, 21).Add(7 * time.Hour)
	now := world("us-1", seven, 1e6, 0)
	s, n := learned(t, 21).Expected(now, seven, 2*time.Hour)
	got := rates(s.Demands)
	if us, eu := got[asker{"web", "us", false}], got[asker{"web", "eu", false}]; n != 2 || us < 4.9e5 || us > 5.1e5 || eu < 4.9e5 || eu > 5.1e5 {
		t.Errorf("%d expected: %v", n, got)
	}
	if s, n := learned(t, 1).Expected(now, seven, 2*time.Hour); n != 0 || len(s.Demands) != 1 || s.Demands[0].BytesPerSecond != 1e6 {
		t.Errorf("after a day %d expected: %+v", n, s.Demands)
	}
	now.Reaches = now.Reaches[:2]
	if s, n := learned(t, 21).Expected(now, seven, 2*time.Hour); n != 1 {
		t.Errorf("of one region %d expected: %+v", n, s.Demands)
	}
}

// A move is sure where the season is, and not where days differ by more than they have in
// common.
func TestSure(t *testing.T) {
	p := balanced(t)
	eight := zero.AddDate(0, 0, 21).Add(8 * time.Hour)
	steady := learned(t, 21)
	s, _ := steady.Expected(world("us-1", eight, 1e6, 0), eight, 2*time.Hour)
	if sure, err := steady.Sure(s, p, to("eu-1"), eight, 2*time.Hour); err != nil || !sure["web"] {
		t.Errorf("%v, %v", sure, err)
	}
	var d Demands
	for h := range 21 * 24 {
		us, eu := 1e6, 4e5
		if h/24%3 == 0 {
			us, eu = 4e5, 2e6
		}
		if err := d.Learn(zero.Add(time.Duration(h)*time.Hour), world("us-1", zero, us, eu).Demands); err != nil {
			t.Fatal(err)
		}
	}
	s, n := d.Expected(world("us-1", eight, 1e6, 4e5), eight, 2*time.Hour)
	if sure, err := d.Sure(s, p, to("eu-1"), eight, 2*time.Hour); err != nil || sure["web"] || n != 2 {
		t.Errorf("%v, %v of %d: %+v", sure, err, n, s.Demands)
	}
}

// Whatever either policy does, and whatever is asked up to one and a half times the most that
// was seen, VMs never cost more than the bound above the reactive policy, from any moment of
// a window until now.
func TestBooksKeepTheBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, d := balanced(t), learned(t, 4)
		bound := rapid.Float64Range(0.05, 5).Draw(t, "bound")
		hosts := rapid.SampledFrom([]heliotrope.HostID{"us-1", "eu-1"})
		rate := rapid.Float64Range(0, margin*1e6)
		now := zero.AddDate(0, 0, 5)
		real := heliotrope.HostID("us-1")
		b, err := Open(bound, now, scheduler.Placement{"web": real})
		if err != nil {
			t.Fatal(err)
		}
		var more []float64 // than the reactive policy, in each period
		for range rapid.IntRange(1, 60).Draw(t, "periods") {
			s := world(real, now, rate.Draw(t, "us"), rate.Draw(t, "eu"))
			for _, x := range []*Paper{&b.Reactive, &b.Predictive} {
				if to := to(hosts.Draw(t, "to")); x.At["web"] != to.Moves[0].To {
					if err := x.Make(x.Seen(s), p, to); err != nil {
						t.Fatal(err)
					}
				}
			}
			follows, err := b.Choose(s, p, d, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if real = b.Reactive.At["web"]; follows {
				real = b.Predictive.At["web"]
			}
			now = now.Add(time.Hour)
			s = world(real, now, rate.Draw(t, "us then"), rate.Draw(t, "eu then"))
			if err := b.Account(s, p, now); err != nil {
				t.Fatal(err)
			}
			last := b.Guard.Past[len(b.Guard.Past)-1]
			more = append(more, last.RealUSD-last.ReactiveUSD)
			var sum float64
			for i := len(more) - 1; i >= max(0, len(more)-24); i-- {
				if sum += more[i]; sum > bound+1e-9 {
					t.Fatalf("USD %f in %d hours, bound %f: %v", sum, len(more)-i, bound, more)
				}
			}
		}
	})
}

// A VM that somebody else moves is where it is for both policies; one that is new as well.
func TestBooksSeeOthers(t *testing.T) {
	p := balanced(t)
	b, err := Open(1, zero, scheduler.Placement{"web": "us-1"})
	if err != nil {
		t.Fatal(err)
	}
	s := world("eu-1", zero, 1, 1)
	s.VMs = append(s.VMs, scheduler.VM{ID: "db", Host: "us-1"})
	if err := b.Account(s, p, zero.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, x := range []Paper{b.Reactive, b.Predictive} {
		if x.At["web"] != "eu-1" || x.At["db"] != "us-1" {
			t.Errorf("%+v", x)
		}
	}
}
