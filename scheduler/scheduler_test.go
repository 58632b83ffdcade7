package scheduler

import (
	"encoding/json"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"heliotrope"
)

// two is two sites 50 ms apart, a dear one and a cheap one, with two hosts each, and a web
// server with its database.
func two() Snapshot {
	return Snapshot{
		Sites: []Site{{ID: "dear", USDPerVCPUHour: 0.05, USDPerGiBHour: 0.005, InternetUSDPerGB: 0.1}, {ID: "cheap", USDPerVCPUHour: 0.03, USDPerGiBHour: 0.003, InternetUSDPerGB: 0.1}},
		Paths: []Path{{From: "dear", To: "cheap", RTTMs: 40, USDPerGB: 0.09}, {From: "cheap", To: "dear", RTTMs: 60, USDPerGB: 0.02}},
		Hosts: []Host{{ID: "d1", Site: "dear", VCPUs: 8, MemoryMiB: 32768}, {ID: "d2", Site: "dear", VCPUs: 8, MemoryMiB: 32768},
			{ID: "c1", Site: "cheap", VCPUs: 8, MemoryMiB: 32768}, {ID: "c2", Site: "cheap", VCPUs: 8, MemoryMiB: 32768}},
		VMs: []VM{{ID: "web", VCPUs: 4, MemoryMiB: 8192, Host: "d1", CopyBytes: 8e9, PauseMs: 100},
			{ID: "db", VCPUs: 4, MemoryMiB: 16384, Host: "c1", CopyBytes: 16e9, PauseMs: 100}},
		Flows:   []Flow{{"web", "db", 1e6}, {"db", "web", 4e6}},
		Demands: []Demand{{VM: "web", Region: "near", BytesPerSecond: 1e6, RequestsPerSecond: 1000}},
		Reaches: []Reach{{"near", "dear", 10}, {"near", "cheap", 30}},
	}
}

func preset(t *testing.T, name string) Policy {
	t.Helper()
	p, err := Preset(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func solve(t *testing.T, s Snapshot, p Policy) Plan {
	t.Helper()
	plan, err := Solve(s, p, Options{Seed: 1, Iterations: 20_000})
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(s, p, plan); err != nil {
		t.Fatalf("%v\n%s", err, plan)
	}
	return plan
}

// Every term, reckoned by hand.
func TestCost(t *testing.T) {
	s := two()
	s.Sites[1].GramsCO2PerVCPUHour, s.Sites[1].InterruptionsPerHour, s.VMs[1].InterruptionUSD = 20, 0.01, 5
	p := Policy{EastWestUSDPerGBMs: 0.001, ClientUSDPerGBMs: 0.002, ClientUSDPerMillionRequestsMs: 0.01, USDPerTonneCO2: 100,
		HostUSDPerHour: 0.5, MoveUSD: 0.1, PauseUSDPerSecond: 1, AmortisationHours: 10}
	got, err := Evaluate(s, p, Placement{"web": "d2", "db": "c1"})
	if err != nil {
		t.Fatal(err)
	}
	want := Cost{
		Compute:  4*0.05 + 8*0.005 + 4*0.03 + 16*0.003,
		Hosts:    2 * 0.5,
		Egress:   3.6*0.09 + 14.4*0.02 + 3.6*0.1,
		Clients:  10 * (3.6*0.002 + 3.6*0.01),
		EastWest: 18 * 50 * 0.001, // the mean of both ways
		Carbon:   4 * 20 * 100 / 1e6,
		Risk:     0.05,
		Moves:    (0.1 + 0.1) / 10, // within the site: no egress, no round trip
	}
	a, b := reflect.ValueOf(got), reflect.ValueOf(want)
	for i := range a.NumField() {
		if math.Abs(a.Field(i).Float()-b.Field(i).Float()) > 1e-12 {
			t.Errorf("%s is %v, must be %v", a.Type().Field(i).Name, a.Field(i), b.Field(i))
		}
	}
}

// Traffic draws the two together, where it is cheap; the reason says so.
func TestPlanSaysWhy(t *testing.T) {
	plan := solve(t, two(), preset(t, "cheapest"))
	if len(plan.Moves) != 1 || plan.Moves[0].VM != "web" || plan.Moves[0].ToSite != "cheap" {
		t.Fatal(plan)
	}
	m := plan.Moves[0]
	if !strings.Contains(m.Why, "5 MB/s with db") {
		t.Errorf("why: %s", m.Why)
	}
	if math.Abs(m.USDPerHour-plan.Gain()) > 1e-9 || plan.Gain() < 0.5 {
		t.Errorf("the move gains %v, the plan %v", m.USDPerHour, plan.Gain())
	}
	if m.PauseMs != 100+3.5*50 || math.Abs(m.Seconds-(64+0.275)) > 1e-9 {
		t.Errorf("takes %v s, pause %v ms", m.Seconds, m.PauseMs)
	}
	if !plan.Bounded || plan.Bound > plan.After.Total()+1e-9 || plan.Gap > 0.02 {
		t.Errorf("bound %v, gap %v", plan.Bound, plan.Gap)
	}
	for _, text := range []string{"USD", "web", "d1", "nothing can cost less"} {
		if !strings.Contains(plan.String(), text) {
			t.Errorf("no %q in\n%s", text, plan)
		}
	}
}

func TestNothingToDo(t *testing.T) {
	s, p := two(), preset(t, "cheapest")
	p.MinGainUSDPerHour = 10
	for name, plan := range map[string]Plan{"too little": solve(t, s, p), "together": func() Plan {
		s := two()
		s.VMs[0].Host = "c2"
		return solve(t, s, preset(t, "cheapest"))
	}()} {
		if len(plan.Moves) != 0 || !strings.HasPrefix(plan.Reason, "no beneficial move") || plan.Gain() != 0 {
			t.Errorf("%s:\n%s", name, plan)
		}
	}
}

// A move that has to pay for itself in an hour does not.
func TestHysteresis(t *testing.T) {
	s, p := two(), preset(t, "cheapest")
	p.AmortisationHours = 0.5
	s.VMs[0].CopyBytes = 100e9 // USD 9 to send
	if plan := solve(t, s, p); len(plan.Moves) > 0 && plan.Moves[0].VM == "web" {
		t.Errorf("it moves at once:\n%s", plan)
	}
}

func TestConstraints(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Snapshot, *Policy)
		moves  string // VM>site
		reason string
	}{
		{"pinned", func(s *Snapshot, _ *Policy) { s.VMs[0].Pinned = true; s.VMs[1].Pinned = true }, "", "no beneficial move"},
		{"pinned web", func(s *Snapshot, _ *Policy) { s.VMs[0].Pinned = true }, "db>dear", "gain"},
		{"residency", func(s *Snapshot, _ *Policy) { s.VMs[0].Forbidden = []heliotrope.SiteID{"cheap"} }, "db>dear", "gain"},
		{"forbidden site", func(_ *Snapshot, p *Policy) { p.ForbiddenSites = []heliotrope.SiteID{"cheap"} }, "db>dear", "constraints"},
		{"long pause", func(_ *Snapshot, p *Policy) { p.MaxPauseMs = 200 }, "", "no beneficial move"},
		{"too long a pause within the site", func(s *Snapshot, p *Policy) {
			*p = presets[4]
			p.MaxPauseMs = 50
			s.Hosts[0].Drained = true
		}, "", "no move helps"},
		{"apart", func(s *Snapshot, _ *Policy) {
			s.Apart = []Group{{"ha", []heliotrope.VMID{"web", "db"}, AtSite}}
		}, "", "no beneficial move"},
		{"together", func(s *Snapshot, p *Policy) {
			s.Flows = nil
			s.Together = []Group{{"app", []heliotrope.VMID{"web", "db"}, AtSite}}
		}, "web>cheap", "constraints"},
		{"near", func(s *Snapshot, p *Policy) {
			s.Flows = nil
			s.Sites[1].USDPerVCPUHour = 0.05
			p.RTTLimits = []RTTLimit{{"tiers", []heliotrope.VMID{"web"}, []heliotrope.VMID{"db"}, 5}}
			p.OnlyForced = false
		}, "web>cheap", "constraints"},
		{"drained", func(s *Snapshot, p *Policy) { *p = presets[4]; s.Hosts[0].Drained = true }, "web>cheap", "constraints"},
		{"drained within the site", func(s *Snapshot, p *Policy) {
			*p = presets[4]
			s.Hosts[0].Drained = true
			s.VMs[0].Allowed = []heliotrope.SiteID{"dear"}
		}, "web>dear", "constraints"},
		{"nowhere to go", func(s *Snapshot, p *Policy) {
			*p = presets[4]
			s.Hosts[0].Drained, s.Hosts[1].Drained = true, true
			s.VMs[0].Allowed = []heliotrope.SiteID{"dear"}
		}, "", "no move helps"},
		{"new", func(s *Snapshot, _ *Policy) { s.VMs[0].Host = "" }, "web>cheap", "constraints"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, p := two(), preset(t, "cheapest")
			c.change(&s, &p)
			plan := solve(t, s, p)
			var moves []string
			for _, m := range plan.Moves {
				moves = append(moves, string(m.VM)+">"+string(m.ToSite))
			}
			if strings.Join(moves, " ") != c.moves || !strings.Contains(plan.Reason, c.reason) {
				t.Errorf("moves %q, reason %q\n%s", moves, plan.Reason, plan)
			}
		})
	}
}

// full is two sites of one host each that two VMs fill, each at the other's better place.
func full(spare bool) Snapshot {
	s := two()
	s.Hosts = []Host{{ID: "d1", Site: "dear", VCPUs: 4, MemoryMiB: 16384}, {ID: "c1", Site: "cheap", VCPUs: 4, MemoryMiB: 16384}}
	if spare {
		s.Hosts = append(s.Hosts, Host{ID: "d2", Site: "dear", VCPUs: 4, MemoryMiB: 8192}) // too small for db
	}
	s.Flows = nil
	s.Demands = []Demand{{VM: "db", Region: "near", BytesPerSecond: 1e8}, {VM: "web", Region: "far", BytesPerSecond: 1e8}}
	s.Reaches = append(s.Reaches, Reach{"far", "dear", 60}, Reach{"far", "cheap", 10})
	return s
}

// A cycle is broken by a temporary place, and where there is none it is said.
func TestCycle(t *testing.T) {
	p := preset(t, "closest")
	plan := solve(t, full(true), p)
	if plan.Gain() <= 0 || len(plan.Blocked) > 0 || len(plan.Moves) != 3 || !plan.Moves[0].Temporary || plan.Moves[0].To != "d2" {
		t.Errorf("a spare host helps:\n%s", plan)
	}
	plan = solve(t, full(false), p)
	if len(plan.Moves) != 0 {
		t.Errorf("there is no room to move:\n%s", plan)
	}
	if len(plan.Blocked) == 0 || !strings.Contains(plan.Blocked[0].Why, "no temporary place") {
		t.Errorf("it is not said:\n%s", plan)
	}
}

// Where neither site of a move has a temporary place, one at any other will do, unless a
// pause may be too long.
func TestDetourByAThirdSite(t *testing.T) {
	s := full(false)
	s.Sites = append(s.Sites, Site{ID: "far", USDPerVCPUHour: 1, USDPerGiBHour: 1, InternetUSDPerGB: 1})
	s.Paths = append(s.Paths, Path{From: "dear", To: "far", RTTMs: 300, USDPerGB: 0.1}, Path{From: "cheap", To: "far", RTTMs: 300, USDPerGB: 0.1})
	s.Hosts = append(s.Hosts, Host{ID: "f1", Site: "far", VCPUs: 4, MemoryMiB: 8192})
	s.Reaches = append(s.Reaches, Reach{"near", "far", 300}, Reach{"far", "far", 300})
	p := preset(t, "closest")
	plan := solve(t, s, p)
	if len(plan.Moves) != 3 || !plan.Moves[0].Temporary || plan.Moves[0].To != "f1" || len(plan.Blocked) > 0 {
		t.Errorf("the third site has room:\n%s", plan)
	}
	p.MaxPauseMs = 500
	if plan = solve(t, s, p); len(plan.Moves) != 0 {
		t.Errorf("that pause is too long:\n%s", plan)
	}
}

// Rooms count in whole multiples of what all sizes are multiples of.
func TestGrain(t *testing.T) {
	size := func(v VM) float64 { return v.VCPUs }
	if g := grain([]VM{{VCPUs: 6}, {VCPUs: 0}, {VCPUs: 4}}, size); g != 2 || grains(7, g) != 6 || grains(6, g) != 6 {
		t.Errorf("grain %v", g)
	}
	if g := grain([]VM{{VCPUs: 1.5}}, size); g != 0 || grains(7, g) != 7 {
		t.Errorf("grain %v", g)
	}
}

func TestConsolidate(t *testing.T) {
	s := two()
	s.Flows, s.Demands = nil, nil
	for i := range s.VMs {
		s.VMs[i].VCPUs, s.VMs[i].MemoryMiB, s.VMs[i].CopyBytes = 2, 4096, 1e9
		s.VMs[i].Host = s.Hosts[2+i].ID
	}
	if plan := solve(t, s, preset(t, "consolidate")); len(plan.Moves) != 1 || plan.After.Hosts != 0.5 {
		t.Error(plan)
	}
}

func TestJSON(t *testing.T) {
	plan := solve(t, two(), preset(t, "cheapest"))
	text, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	var back Plan
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, plan) {
		t.Errorf("%v: read back\n%s", err, back)
	}
}

func TestWrongSnapshots(t *testing.T) {
	for name, change := range map[string]func(*Snapshot){
		"no site \"mars\"":   func(s *Snapshot) { s.Hosts[0].Site = "mars" },
		"no path between":    func(s *Snapshot) { s.Paths = nil },
		"no vm \"ghost\"":    func(s *Snapshot) { s.Flows[0].Src = "ghost" },
		"there twice":        func(s *Snapshot) { s.VMs[1].ID = "web" },
		"no region \"moon\"": func(s *Snapshot) { s.Demands[0].Region = "moon" },
		"no round trip":      func(s *Snapshot) { s.Reaches = s.Reaches[:1] },
		"scope is":           func(s *Snapshot) { s.Apart = []Group{{Name: "g"}} },
		"negative":           func(s *Snapshot) { s.VMs[0].VCPUs = -1 },
	} {
		s := two()
		change(&s)
		if _, err := Solve(s, Policy{}, Options{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Preset("best"); err == nil || !strings.Contains(err.Error(), "balanced") {
		t.Errorf("no such policy: %v", err)
	}
}

// A bound is of placements of all VMs, each of which may go anywhere; plans that are
// something else have none.
func TestWhatHasNoBound(t *testing.T) {
	s := Snapshot{VMs: []VM{{ID: "a", VCPUs: 1, MemoryMiB: 64, Host: "h"}}, Sites: []Site{{ID: "s", USDPerVCPUHour: 1}}, Hosts: []Host{{ID: "h", Site: "s", VCPUs: 4, MemoryMiB: 1024}}}
	large := s
	large.VMs = append(slices.Clone(s.VMs), VM{ID: "b", VCPUs: 9, MemoryMiB: 64})
	for _, c := range []struct {
		s       Snapshot
		policy  string
		bounded bool
	}{{s, "balanced", true}, {s, "evacuate", false}, {large, "balanced", false}} {
		p, err := Preset(c.policy)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := Solve(c.s, p, quick)
		if err != nil || plan.Bounded != c.bounded {
			t.Errorf("%s of %d VMs: bounded %t, %v\n%s", c.policy, len(c.s.VMs), plan.Bounded, err, plan)
		}
	}
}
