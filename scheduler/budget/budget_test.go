package budget_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/budget"
)

// three is two VMs at cheap, whose clients are at dear; fair is in between.
func three() scheduler.Snapshot {
	s := scheduler.Snapshot{}
	ms := map[heliotrope.SiteID]float64{"cheap": 100, "fair": 50, "dear": 1}
	for site, usd := range map[heliotrope.SiteID]float64{"cheap": 0.01, "fair": 0.05, "dear": 0.2} {
		s.Sites = append(s.Sites, scheduler.Site{ID: site, USDPerVCPUHour: usd})
		s.Hosts = append(s.Hosts, scheduler.Host{ID: heliotrope.HostID(site + "-1"), Site: site, VCPUs: 8, MemoryMiB: 8192})
		s.Reaches = append(s.Reaches, scheduler.Reach{Region: "clients", Site: site, RTTMs: ms[site]})
		for to := range ms {
			if to != site {
				s.Paths = append(s.Paths, scheduler.Path{From: site, To: to, RTTMs: 50, USDPerGB: 0.02})
			}
		}
	}
	for _, id := range []heliotrope.VMID{"a", "b"} {
		s.VMs = append(s.VMs, scheduler.VM{ID: id, VCPUs: 1, Host: "cheap-1", CopyBytes: 5e9})
		s.Demands = append(s.Demands, scheduler.Demand{VM: id, Region: "clients", BytesPerSecond: 1e6})
	}
	return s
}

func closest(t interface{ Fatal(...any) }) scheduler.Policy {
	p, err := scheduler.Preset("closest")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func solve(s scheduler.Snapshot, p scheduler.Policy) (scheduler.Plan, error) {
	return scheduler.Solve(s, p, scheduler.Options{Iterations: 2000})
}

var both = []heliotrope.VMID{"a", "b"}

// Without a budget VMs go where clients are; with one as near as it allows; with too little
// nowhere, and the plan says what the cheapest costs.
func TestBudget(t *testing.T) {
	for _, c := range []struct {
		usd    float64
		spends float64
		says   string
	}{
		{0, 0.4, "the moves gain"},
		{0.5, 0.4, "the moves gain"},
		{0.3, 0.1, "within the budget of USD 0.3/h, USD 0.1/h are spent; without it, USD 0.4/h"},
		{0.05, 0.02, "within the budget of USD 0.05/h"},
		{0.015, 0.02, "the cheapest place for these VMs that was found costs USD 0.02/h, and the budget is USD 0.015/h"},
	} {
		s, p := three(), closest(t)
		plan, err := budget.Limits{VMs: both, USDPerHour: c.usd}.Solve(s, p, solve)
		if err != nil {
			t.Fatal(err)
		}
		spends, err := budget.Limits{VMs: both}.Spends(s, p, plan.Apply(s.Placement()))
		// At one price of distance both VMs would rather be at fair, or both not.
		if err != nil || spends > c.spends+1e-9 || !strings.Contains(plan.Reason, c.says) {
			t.Errorf("budget %v: spends %v, %v: %s", c.usd, spends, err, plan.Reason)
		}
	}
}

// Who spends too much already goes to where it is cheaper, though that is farther away.
func TestOverBudget(t *testing.T) {
	s, p := three(), closest(t)
	for i := range s.VMs {
		s.VMs[i].Host = "dear-1"
	}
	plan, err := budget.Limits{VMs: both, USDPerHour: 0.03}.Solve(s, p, solve)
	if err != nil || len(plan.Moves) != 2 || plan.Moves[0].ToSite != "cheap" || plan.Moves[0].USDPerHour >= 0 || plan.Gain() >= 0 {
		t.Errorf("%v: %s", err, plan)
	}
}

// Copies cost no more than is left of the day.
func TestMovesBudget(t *testing.T) {
	for moved, want := range map[float64]int{0: 2, 0.05: 1, 0.15: 0} { // a copy costs USD 0.1
		plan, err := budget.Limits{VMs: both, MovesUSD: 0.2, MovedUSD: moved}.Solve(three(), closest(t), solve)
		if err != nil || len(plan.Moves) != want || want == 0 && !strings.Contains(plan.Reason, "of the USD 0.2 that moves may cost in 24 hours USD 0.15 are spent") {
			t.Errorf("after USD %v: %d moves, %v: %s", moved, len(plan.Moves), err, plan.Reason)
		}
	}
}

// No plan spends more than its budget, unless it moves nothing.
func TestNeverOverBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, p := three(), closest(t)
		for i := range s.VMs {
			s.VMs[i].Host = rapid.SampledFrom([]heliotrope.HostID{"cheap-1", "fair-1", "dear-1"}).Draw(t, "host")
			s.Demands[i].BytesPerSecond = rapid.Float64Range(0, 1e7).Draw(t, "rate")
		}
		l := budget.Limits{VMs: both, USDPerHour: rapid.Float64Range(0.01, 0.5).Draw(t, "budget"), MovesUSD: rapid.Float64Range(0.01, 0.3).Draw(t, "moves")}
		plan, err := l.Solve(s, p, solve)
		if err != nil {
			t.Fatal(err)
		}
		spends, err := l.Spends(s, p, plan.Apply(s.Placement()))
		if err != nil || len(plan.Moves) > 0 && (spends > l.USDPerHour+1e-9 || budget.Copies(s, plan) > l.MovesUSD+1e-9) {
			t.Fatalf("spends USD %v/h and %v, %v: %s", spends, budget.Copies(s, plan), err, plan)
		}
	})
}
