package survey_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/survey"
	"heliotrope/scheduler/traffic"
)

// near is two sites with hosts and one with clients, which are near to eu.
func near() heliotrope.Topology {
	ms := heliotrope.Duration(time.Millisecond)
	return heliotrope.Topology{
		Sites: map[heliotrope.SiteID]heliotrope.Site{
			"us":       {Underlay: netip.MustParsePrefix("10.255.1.0/24"), PricePerVCPUHour: 0.03, PricePerGiBHour: 0.004},
			"eu":       {Underlay: netip.MustParsePrefix("10.255.2.0/24"), PricePerVCPUHour: 0.04, PricePerGiBHour: 0.005},
			"internet": {Underlay: netip.MustParsePrefix("10.255.9.0/24")},
		},
		Links: map[heliotrope.LinkID]heliotrope.Link{
			"us-eu":       {Between: [2]heliotrope.SiteID{"us", "eu"}, Delay: 40 * ms, PricePerGB: 0.02, Rate: 4e8},
			"internet-eu": {Between: [2]heliotrope.SiteID{"internet", "eu"}, Delay: 5 * ms, PricePerGB: 0.08, Rate: 1e9},
		},
		Hosts: map[heliotrope.HostID]heliotrope.Host{"us-1": {Site: "us", CPUs: 4, MemoryMiB: 8192}, "eu-1": {Site: "eu", CPUs: 4, MemoryMiB: 8192}},
		VMs:   map[heliotrope.VMID]heliotrope.VM{"web": {CPUs: 1, MemoryMiB: 1024, Host: "us-1"}, "db": {CPUs: 2, MemoryMiB: 9000, Host: "us-1"}},
	}
}

func minute(cells ...traffic.Cell) traffic.Matrix {
	return traffic.Matrix{From: time.Unix(0, 0), To: time.Unix(60, 0), Cells: cells}
}

func at(hosts map[heliotrope.VMID]heliotrope.HostID) map[heliotrope.VMID]heliotrope.Placement {
	all := map[heliotrope.VMID]heliotrope.Placement{}
	for vm, h := range hosts {
		all[vm] = heliotrope.Placement{VM: vm, Host: h, Epoch: 1}
	}
	return all
}

func TestSurvey(t *testing.T) {
	client, elsewhere := traffic.Outside(netip.MustParsePrefix("10.255.9.0/24")), traffic.Outside(netip.MustParsePrefix("8.8.8.0/24"))
	where := at(map[heliotrope.VMID]heliotrope.HostID{"web": "us-1", "db": "us-1"})
	p := where["db"]
	p.Incoming = "eu-1"
	where["db"] = p
	s := survey.Take(time.Unix(60, 0), near(), survey.Facts{Placements: where, Traffic: minute(
		traffic.Cell{Src: traffic.VM("web"), Dst: client, Bytes: 6000}, traffic.Cell{Src: client, Dst: traffic.VM("web"), Bytes: 60},
		traffic.Cell{Src: traffic.VM("web"), Dst: elsewhere, Bytes: 6000}, traffic.Cell{Src: traffic.VM("web"), Dst: traffic.VM("db"), Bytes: 120},
		traffic.Cell{Src: traffic.VM("web"), Dst: traffic.VM("gone"), Bytes: 120})})
	if len(s.Sites) != 2 || len(s.Hosts) != 2 || len(s.VMs) != 2 || len(s.Paths) != 2 {
		t.Fatalf("%+v", s)
	}
	if db := s.VMs[0]; db.Host != "eu-1" || !db.Pinned || db.CopyBytes != 9000<<20 {
		t.Errorf("what is on the move stays where it goes: %+v", db)
	}
	if eu := s.Hosts[0]; eu.ID != "eu-1" || eu.MemoryMiB != 9000 || eu.VCPUs != 4 {
		t.Errorf("a host has room for what it has: %+v", eu)
	}
	if len(s.Flows) != 1 || s.Flows[0].BytesPerSecond != 2 {
		t.Errorf("flows %+v", s.Flows)
	}
	if len(s.Demands) != 1 || s.Demands[0].Region != "internet" || s.Demands[0].BytesPerSecond != 100 {
		t.Errorf("demands %+v", s.Demands)
	}
	for _, r := range s.Reaches {
		if want := map[heliotrope.SiteID]float64{"eu": 10.3, "us": 90.3}[r.Site]; r.RTTMs != want {
			t.Errorf("clients are %v ms from %s, want %v", r.RTTMs, r.Site, want)
		}
	}
	for _, site := range s.Sites { // from us over eu
		if want := map[heliotrope.SiteID]float64{"eu": 0.08, "us": 0.1}[site.ID]; site.InternetUSDPerGB-want > 1e-12 || want-site.InternetUSDPerGB > 1e-12 {
			t.Errorf("egress of %s: %v, want %v", site.ID, site.InternetUSDPerGB, want)
		}
	}
}

// A VM goes where its clients are if distance is what matters, and says so; by price it stays.
func TestSurveyedPlan(t *testing.T) {
	top := near()
	top.VMs = map[heliotrope.VMID]heliotrope.VM{"web": {CPUs: 1, MemoryMiB: 1024, Host: "us-1"}}
	client := traffic.Outside(netip.MustParsePrefix("10.255.9.0/24"))
	s := survey.Take(time.Unix(60, 0), top, survey.Facts{Placements: at(map[heliotrope.VMID]heliotrope.HostID{"web": "us-1"}), Traffic: minute(traffic.Cell{Src: traffic.VM("web"), Dst: client, Bytes: 60e4})})
	for policy, moves := range map[string]int{"closest": 1, "cheapest": 0} {
		p, err := scheduler.Preset(policy)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := scheduler.Solve(s, p, scheduler.Options{Iterations: 1000})
		if err != nil || len(plan.Moves) != moves {
			t.Fatalf("%s: %v moves, %v: %s", policy, len(plan.Moves), err, plan.Reason)
		}
		if err := scheduler.Verify(s, p, plan); err != nil {
			t.Errorf("%s: %v", policy, err)
		}
		if moves == 1 && (plan.Moves[0].To != "eu-1" || !strings.Contains(plan.Moves[0].Why, "internet") || plan.Moves[0].Ms < 79) {
			t.Errorf("%s: %+v", policy, plan.Moves[0])
		}
		if moves == 0 && !strings.Contains(plan.Reason, "no beneficial move") {
			t.Errorf("%s: %s", policy, plan.Reason)
		}
	}
}

// Rules of the topology are constraints of the snapshot and the policy.
func TestSurveyRules(t *testing.T) {
	top := near()
	ms := heliotrope.Duration(time.Millisecond)
	both := []heliotrope.VMID{"web", "db"}
	top.Rules = map[heliotrope.RuleID]heliotrope.Rule{
		"apart":    {VMs: both, Apart: heliotrope.AtSite},
		"together": {VMs: both, Together: heliotrope.AtHost},
		"in":       {VMs: both, Sites: []heliotrope.SiteID{"us", "eu"}},
		"also":     {VMs: []heliotrope.VMID{"web"}, Sites: []heliotrope.SiteID{"us"}},
		"out":      {VMs: []heliotrope.VMID{"db"}, NotSites: []heliotrope.SiteID{"us"}},
		"near":     {VMs: []heliotrope.VMID{"web"}, To: []heliotrope.VMID{"db"}, MaxRTT: 20 * ms},
	}
	top.Pools = map[heliotrope.PoolID]heliotrope.Pool{"shop": {VMs: []heliotrope.VMID{"web"}, Policy: "closest", MinGain: 3, MaxPause: 700 * ms}, "rest": {}}
	s := survey.Take(time.Unix(60, 0), top, survey.Facts{Placements: at(map[heliotrope.VMID]heliotrope.HostID{"web": "us-1", "db": "us-1"}), Traffic: minute()})
	if db, web := s.VMs[0].Forbidden, s.VMs[1].Forbidden; !slices.Equal(db, []heliotrope.SiteID{"internet", "us"}) || !slices.Equal(web, []heliotrope.SiteID{"eu", "internet"}) {
		t.Errorf("db may not be at %v, web not at %v", db, web)
	}
	if len(s.Apart) != 1 || s.Apart[0].Scope != scheduler.AtSite || len(s.Together) != 1 || s.Together[0].Scope != scheduler.AtHost {
		t.Errorf("apart %+v, together %+v", s.Apart, s.Together)
	}
	p, err := survey.Policy(top, "shop")
	if err != nil || p.Name != "closest" || p.MinGainUSDPerHour != 3 || p.MaxPauseMs != 700 || len(p.RTTLimits) != 1 || p.RTTLimits[0].Ms != 20 {
		t.Errorf("%+v, %v", p, err)
	}
	if m := survey.Members(top, "rest"); !slices.Equal(m, []heliotrope.VMID{"db"}) {
		t.Errorf("the rest is %v", m)
	}
	if o := s.Only([]heliotrope.VMID{"web"}); !o.VMs[0].Pinned || o.VMs[1].Pinned || s.VMs[0].Pinned {
		t.Errorf("%+v", o.VMs)
	}
}

// A vCPU means the same everywhere: what a host has room for and what a vCPU costs are in
// reference vCPUs.
func TestSurveyAtSpeeds(t *testing.T) {
	top := near()
	top.Hosts["us-2"] = heliotrope.Host{Site: "us", CPUs: 12, MemoryMiB: 8192}
	speeds := map[heliotrope.HostID]float64{"us-1": 0.5, "eu-1": 1.25}
	s := survey.Take(time.Unix(60, 0), top, survey.Facts{Placements: at(map[heliotrope.VMID]heliotrope.HostID{"web": "us-1", "db": "us-1"}), Traffic: minute(), Speeds: speeds})
	for _, h := range s.Hosts {
		// us-1 has room for 4 × 0.5, and for the 3 vCPUs that are there.
		if want := map[heliotrope.HostID]float64{"us-1": 3, "us-2": 12, "eu-1": 5}[h.ID]; h.VCPUs != want {
			t.Errorf("%s has room for %v, want %v", h.ID, h.VCPUs, want)
		}
	}
	for _, site := range s.Sites {
		// us has 16 vCPUs that are worth 14, eu 4 that are worth 5.
		if want := map[heliotrope.SiteID]float64{"us": 0.03 / 0.875, "eu": 0.04 / 1.25}[site.ID]; site.USDPerVCPUHour != want {
			t.Errorf("a reference vCPU costs %v in %s, want %v", site.USDPerVCPUHour, site.ID, want)
		}
	}
}

// Where nothing was measured, or everything is alike, the snapshot, and so the plan, is what
// it is without speeds; and whatever is measured, no host is fuller than it may be with what
// it has now.
func TestSpeedsDoNoHarm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		top, where := near(), map[heliotrope.VMID]heliotrope.HostID{}
		top.VMs, top.Hosts = map[heliotrope.VMID]heliotrope.VM{}, map[heliotrope.HostID]heliotrope.Host{}
		var hosts []heliotrope.HostID
		some, alike := map[heliotrope.HostID]float64{}, map[heliotrope.HostID]float64{}
		for i := range rapid.IntRange(1, 6).Draw(t, "hosts") {
			id := heliotrope.HostID(fmt.Sprintf("h%d", i))
			top.Hosts[id] = heliotrope.Host{Site: rapid.SampledFrom([]heliotrope.SiteID{"us", "eu"}).Draw(t, "site"),
				CPUs: rapid.IntRange(0, 16).Draw(t, "cpus"), MemoryMiB: 1024 * rapid.IntRange(0, 16).Draw(t, "memory")}
			hosts, alike[id] = append(hosts, id), 1
			if rapid.Bool().Draw(t, "measured") {
				some[id] = rapid.Float64Range(0.5, 2).Draw(t, "speed")
			}
		}
		for i := range rapid.IntRange(1, 8).Draw(t, "vms") {
			id := heliotrope.VMID(fmt.Sprintf("v%d", i))
			top.VMs[id] = heliotrope.VM{CPUs: rapid.IntRange(1, 8).Draw(t, "size"), MemoryMiB: 1024}
			where[id] = rapid.SampledFrom(hosts).Draw(t, "host")
		}
		survey := func(speeds map[heliotrope.HostID]float64) scheduler.Snapshot {
			return survey.Take(time.Unix(60, 0), top, survey.Facts{Placements: at(where), Traffic: minute(), Speeds: speeds})
		}
		without := survey(nil)
		if !reflect.DeepEqual(without, survey(map[heliotrope.HostID]float64{})) || !reflect.DeepEqual(without, survey(alike)) {
			t.Fatal("hosts that are alike make another snapshot")
		}
		policy, err := scheduler.Preset("cheapest")
		if err != nil {
			t.Fatal(err)
		}
		s := survey(some)
		plan, err := scheduler.Solve(s, policy, scheduler.Options{Iterations: 200})
		if err != nil || len(plan.Broken) > 0 {
			t.Fatalf("broken %v, %v", plan.Broken, err)
		}
		if err := scheduler.Verify(s, policy, plan); err != nil {
			t.Fatal(err)
		}
	})
}

// What the topology says that clients ask stands in where nothing of them was counted, by the
// hour of their clocks; what was counted counts.
func TestSurveyDemand(t *testing.T) {
	top := near()
	hours := make([]float64, 24)
	hours[9] = 36000
	top.Demand = map[heliotrope.RegionID]heliotrope.Demand{
		"tokyo": {Zone: "Asia/Tokyo", Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/16")},
			RTT: map[heliotrope.SiteID]heliotrope.Duration{"us": heliotrope.Duration(160 * time.Millisecond), "eu": heliotrope.Duration(240 * time.Millisecond)},
			Asks: []heliotrope.Ask{{VMs: []heliotrope.VMID{"web"}, Days: []heliotrope.Weekday{1, 2, 3, 4, 5}, Requests: hours},
				{VMs: []heliotrope.VMID{"web", "db"}, Days: []heliotrope.Weekday{0, 6}, Bytes: []float64{3600}}}},
	}
	us := top.Sites["us"]
	us.PricePerGB = 0.09
	top.Sites["us"] = us
	facts := survey.Facts{Placements: at(map[heliotrope.VMID]heliotrope.HostID{"web": "us-1", "db": "us-1"})}
	for when, want := range map[string][]scheduler.Demand{
		"2026-11-27T00:30:00Z": {{VM: "web", Region: "tokyo", RequestsPerSecond: 10}}, // Friday, 9:30 there
		"2026-11-27T09:30:00Z": nil,
		"2026-11-27T16:00:00Z": {{VM: "db", Region: "tokyo", BytesPerSecond: 1}, {VM: "web", Region: "tokyo", BytesPerSecond: 1}}, // Saturday there
	} {
		now, err := time.Parse(time.RFC3339, when)
		if err != nil {
			t.Fatal(err)
		}
		s := survey.Take(now, top, facts)
		if !slices.Equal(s.Demands, want) {
			t.Errorf("%s: got %+v, want %+v", when, s.Demands, want)
		}
		if len(want) > 0 && (len(s.Reaches) != 2 || s.Reaches[0].RTTMs != 240 || s.Reaches[1].RTTMs != 160) {
			t.Errorf("%s: %+v", when, s.Reaches)
		}
		if len(want) == 2 && (s.Sites[0].InternetUSDPerGB != 0 || s.Sites[1].InternetUSDPerGB != 0.09) {
			t.Errorf("%s: %+v", when, s.Sites)
		}
	}
	facts.Traffic = minute(traffic.Cell{Src: traffic.VM("web"), Dst: traffic.Outside(netip.MustParsePrefix("198.18.7.0/24")), Bytes: 600})
	saturday := time.Date(2026, 11, 27, 16, 0, 0, 0, time.UTC)
	want := []scheduler.Demand{{VM: "web", Region: "tokyo", BytesPerSecond: 10}, {VM: "db", Region: "tokyo", BytesPerSecond: 1}}
	if s := survey.Take(saturday, top, facts); !slices.Equal(s.Demands, want) {
		t.Errorf("got %+v, want %+v", s.Demands, want)
	}
}

// So is what it says of paid periods, and since when a VM's place is paid.
func TestSurveyBilling(t *testing.T) {
	top, since := near(), time.Unix(50, 0)
	us := top.Sites["us"]
	us.Billing = heliotrope.Duration(time.Hour)
	top.Sites["us"] = us
	s := survey.Take(time.Unix(60, 0), top, survey.Facts{Since: map[heliotrope.VMID]time.Time{"web": since}, Placements: at(map[heliotrope.VMID]heliotrope.HostID{"web": "us-1", "db": "us-1"})})
	for _, site := range s.Sites {
		if want := map[heliotrope.SiteID]float64{"us": 3600}[site.ID]; site.BillingSeconds != want {
			t.Errorf("%s: %v s, want %v", site.ID, site.BillingSeconds, want)
		}
	}
	for _, v := range s.VMs {
		if v.PaidSince.IsZero() == (v.ID == "web") || v.ID == "web" && !v.PaidSince.Equal(since) {
			t.Errorf("%s is paid since %v", v.ID, v.PaidSince)
		}
	}
}

// What a topology says of licences is in the snapshot.
func TestSurveyLicences(t *testing.T) {
	top := near()
	seats := func(n int) map[heliotrope.LicenceID]int { return map[heliotrope.LicenceID]int{"oracle": n} }
	us, host, web := top.Sites["us"], top.Hosts["us-1"], top.VMs["web"]
	us.Licences, us.PricePerSeat = seats(4), map[heliotrope.LicenceID]float64{"oracle": 0.5}
	host.Licences, web.Licences = seats(2), seats(3)
	top.Sites["us"], top.Hosts["us-1"], top.VMs["web"] = us, host, web
	s := survey.Take(time.Unix(60, 0), top, survey.Facts{Placements: at(map[heliotrope.VMID]heliotrope.HostID{"web": "us-1", "db": "us-1"})})
	for _, site := range s.Sites {
		if site.ID == "us" && (site.Licences["oracle"] != 4 || site.SeatUSDPerHour["oracle"] != 0.5) || site.ID == "eu" && len(site.Licences) > 0 {
			t.Errorf("%+v", site)
		}
	}
	for _, h := range s.Hosts {
		if n := h.Licences["oracle"]; n != map[heliotrope.HostID]int{"us-1": 2}[h.ID] {
			t.Errorf("%s has %d", h.ID, n)
		}
	}
	for _, v := range s.VMs {
		if n := v.Licences["oracle"]; n != map[heliotrope.VMID]int{"web": 3}[v.ID] {
			t.Errorf("%s needs %d", v.ID, n)
		}
	}
}
