package scheduler

import (
	"fmt"
	"math"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
)

// draw makes a world with every kind of constraint, kept or not.
func draw(t *rapid.T) (Snapshot, Policy) {
	number := func(from, to int, what string) int { return rapid.IntRange(from, to).Draw(t, what) }
	usd := rapid.Float64Range(0, 0.2)
	s := Snapshot{At: time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)}
	sites, vms := number(1, 4, "sites"), number(1, 10, "vms")
	for k := range sites {
		id := heliotrope.SiteID(fmt.Sprintf("s%d", k))
		s.Sites = append(s.Sites, Site{ID: id, USDPerVCPUHour: usd.Draw(t, "vcpu"), USDPerGiBHour: usd.Draw(t, "gib"),
			InternetUSDPerGB: usd.Draw(t, "internet"), LANRTTMs: 0.1, InterruptionsPerHour: usd.Draw(t, "risk"), GramsCO2PerVCPUHour: 100 * usd.Draw(t, "co2")})
		for _, other := range s.Sites[:k] {
			s.Paths = append(s.Paths, Path{From: id, To: other.ID, RTTMs: rapid.Float64Range(1, 200).Draw(t, "rtt"), USDPerGB: usd.Draw(t, "egress")})
		}
		if number(0, 2, "billed") == 0 {
			s.Sites[k].BillingSeconds = float64(number(1, 7200, "billing"))
		}
		if number(0, 1, "licences") == 0 {
			s.Sites[k].Licences = map[heliotrope.LicenceID]int{"oracle": number(0, 6, "seats"), "sap": number(0, 3, "seats")}
		}
		if number(0, 3, "rented") == 0 {
			s.Sites[k].SeatUSDPerHour = map[heliotrope.LicenceID]float64{"oracle": usd.Draw(t, "rent")}
		}
		s.Reaches = append(s.Reaches, Reach{"r", id, rapid.Float64Range(1, 200).Draw(t, "reach")})
		for h := range number(1, 3, "hosts") {
			s.Hosts = append(s.Hosts, Host{ID: heliotrope.HostID(fmt.Sprintf("h%d-%d", k, h)), Site: id, VCPUs: float64(number(2, 16, "vcpus")), MemoryMiB: float64(number(2, 16, "gib")) * 1024, Drained: number(0, 8, "drained") == 0})
			if number(0, 3, "own") == 0 {
				s.Hosts[len(s.Hosts)-1].Licences = map[heliotrope.LicenceID]int{"oracle": number(0, 4, "own seats")}
			}
		}
	}
	for i := range vms {
		v := VM{ID: heliotrope.VMID(fmt.Sprintf("v%d", i)), VCPUs: float64(number(1, 6, "size")), MemoryMiB: float64(number(1, 6, "mem")) * 1024,
			CopyBytes: 1e9, PauseMs: 50, Pinned: number(0, 9, "pinned") == 0, InterruptionUSD: 1}
		if number(0, 20, "placed") > 0 {
			v.Host = s.Hosts[number(0, len(s.Hosts)-1, "host")].ID
		}
		if number(0, 1, "since") == 0 {
			v.PaidSince = s.At.Add(-time.Duration(number(0, 100_000, "paid")) * time.Second)
		}
		switch number(0, 9, "licensed") {
		case 0, 1:
			v.Licences = map[heliotrope.LicenceID]int{"oracle": number(1, 4, "needs")}
		case 2:
			v.Licences = map[heliotrope.LicenceID]int{"oracle": 1, "sap": number(1, 2, "needs")}
		}
		if number(0, 6, "resident") == 0 {
			v.Forbidden = []heliotrope.SiteID{s.Sites[number(0, sites-1, "site")].ID}
		}
		s.VMs = append(s.VMs, v)
		if number(0, 3, "asked") == 0 {
			s.Demands = append(s.Demands, Demand{v.ID, "r", 1e6 * usd.Draw(t, "demand"), 1000 * usd.Draw(t, "requests")})
		}
	}
	some := func(n int) []heliotrope.VMID {
		var ids []heliotrope.VMID
		for range n {
			ids = append(ids, s.VMs[number(0, vms-1, "member")].ID)
		}
		return ids
	}
	for range number(0, 2*vms, "flows") {
		pair := some(2)
		s.Flows = append(s.Flows, Flow{pair[0], pair[1], 1e7 * usd.Draw(t, "rate")})
	}
	scope := rapid.SampledFrom([]Scope{AtHost, AtSite})
	for range number(0, 2, "apart") {
		s.Apart = append(s.Apart, Group{"a", some(3), scope.Draw(t, "scope")})
	}
	for range number(0, 1, "together") {
		s.Together = append(s.Together, Group{"t", some(3), scope.Draw(t, "scope")})
	}
	p := rapid.SampledFrom(presets).Draw(t, "policy")
	if number(0, 2, "limited") == 0 {
		p.RTTLimits = []RTTLimit{{"near", some(2), some(2), rapid.Float64Range(1, 200).Draw(t, "limit")}}
	}
	if number(0, 2, "few") == 0 {
		p.MaxMoves = number(1, 4, "moves")
	}
	if number(0, 3, "gentle") == 0 {
		p.MaxPauseMs = float64(number(50, 800, "pause"))
	}
	return s, p
}

var quick = Options{Seed: 1, Iterations: 4096, Passes: 10}

// What is always true of a plan, whatever the world.
func TestPlansHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, p := draw(t)
		plan, err := Solve(s, p, quick)
		if err != nil {
			t.Fatal(err)
		}
		if err := Verify(s, p, plan); err != nil {
			t.Fatalf("%v\n%s", err, plan)
		}
		if again, _ := Solve(s, p, quick); !reflect.DeepEqual(again, plan) {
			t.Fatalf("the same seed has two plans\n%s\n%s", plan, again)
		}
		after := plan.Apply(s.Placement())
		broken, err := Check(s, p, after)
		if err != nil {
			t.Fatal(err)
		}
		if len(broken) != len(plan.Broken) {
			t.Fatalf("broken: %v, and the plan says %v", broken, plan.Broken)
		}
		if usd, _ := Evaluate(s, p, after); math.Abs(usd.Total()-plan.After.Total()) > 1e-9 {
			t.Fatalf("it costs %v, and the plan says %v", usd.Total(), plan.After.Total())
		}
		before, _ := Check(s, p, s.Placement())
		if len(plan.Broken) >= len(before) && plan.Gain() < 0 {
			t.Fatalf("it costs more and mends nothing\n%s", plan)
		}
		if len(plan.Broken) == 0 && plan.Bounded && plan.Bound > plan.After.Total()+1e-7 {
			t.Fatalf("bound %v is above %v", plan.Bound, plan.After.Total())
		}
		if plan.Reason == "" {
			t.Fatal("no reason")
		}
	})
}

// The moves' shares add up to what the plan gains, but for hosts that are emptied and VMs
// that had no place.
func TestSharesAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, p := draw(t)
		plan, err := Solve(s, p, quick)
		if err != nil {
			t.Fatal(err)
		}
		sum := plan.Before.Hosts - plan.After.Hosts // seats that are rented are in the shares
		for _, m := range plan.Moves {
			if m.From == "" {
				return
			}
			sum += m.USDPerHour
		}
		if math.Abs(sum-plan.Gain()) > 1e-9 {
			t.Fatalf("shares add up to %v, the plan gains %v\n%s", sum, plan.Gain(), plan)
		}
	})
}

// No placement that keeps all constraints is below the bound, and the field says the same
// of a placement as the evaluator, hosts in use, rented licences and moves within sites aside.
func TestFieldAgreesWithEvaluator(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, p := draw(t)
		p.HostUSDPerHour, p.OnlyForced, p.MaxMoves = 0, false, 0
		m, err := newModel(&s, p)
		if err != nil {
			t.Fatal(err)
		}
		f := newField(m)
		units := make([]int, len(f.units))
		hosts := make([]int, len(s.VMs))
		for u, vms := range f.units {
			h := rapid.IntRange(0, len(s.Hosts)-1).Draw(t, "host")
			units[u] = m.site[h]
			for _, v := range vms {
				hosts[v] = h
				if home := m.home[v]; m.siteAt(home) == m.site[h] && !m.mustLeave(v) {
					hosts[v] = home
				} else if home == h {
					return // it must leave, and does not
				}
			}
		}
		cost, broken := m.cost(hosts), m.check(hosts)
		usd := cost.Total()
		if said := f.USD(units) + cost.Licences; said < 1e6 && math.Abs(said-usd) > 1e-9 {
			t.Fatalf("the field says %v, the evaluator %v", said, usd)
		}
		if bound, _ := Bound(s, p, 10); len(broken) == 0 && bound > usd+1e-9 {
			t.Fatalf("bound %v, and %v keeps all constraints", bound, usd)
		}
	})
}

// Once a plan is carried out there is nothing more to do.
func TestPlanOfPlanIsEmpty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, p := draw(t)
		s.Apart, s.Together, p.RTTLimits, p.MaxMoves = nil, nil, nil, 0
		// From elsewhere another place may be nearer, or cheaper to go to.
		p.PauseUSDPerSecond, p.MaxPauseMs, p.HostUSDPerHour = 0, 0, 0
		for i := range s.VMs {
			s.VMs[i].CopyBytes, s.VMs[i].Licences = 0, nil
		}
		for k := range s.Sites {
			s.Sites[k].BillingSeconds = 0
		}
		for i := range s.Hosts {
			s.Hosts[i].VCPUs, s.Hosts[i].MemoryMiB = 1000, 1e6 // room is no matter: the search finds the optimum
		}
		plan, err := Solve(s, p, quick)
		if err != nil {
			t.Fatal(err)
		}
		after := plan.Apply(s.Placement())
		for i := range s.VMs {
			s.VMs[i].Host = after[s.VMs[i].ID]
		}
		if again, _ := Solve(s, p, quick); len(again.Moves) > 0 {
			t.Fatalf("first\n%s\nthen\n%s", plan, again)
		}
	})
}
