package survey_test

import (
	"testing"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/survey"
	"heliotrope/scheduler/traffic"
)

// A stub is something that VMs exchange bytes with and that stays: what uses it much goes
// to it if distance is what matters.
func TestSurveyStubs(t *testing.T) {
	top := near()
	top.VMs = map[heliotrope.VMID]heliotrope.VM{"web": {CPUs: 1, MemoryMiB: 1024, Host: "us-1"}}
	top.Stubs = map[heliotrope.StubID]heliotrope.Stub{"scanner": {Host: "eu-1"}}
	s := survey.Take(time.Unix(60, 0), top, survey.Facts{Placements: at(map[heliotrope.VMID]heliotrope.HostID{"web": "us-1"}),
		Traffic: minute(traffic.Cell{Src: traffic.VM("web"), Dst: traffic.VM("scanner"), Bytes: 60e6}, traffic.Cell{Src: traffic.VM("web"), Dst: traffic.VM("gone"), Bytes: 60e6})})
	if len(s.VMs) != 2 || s.VMs[1].ID != "scanner" || !s.VMs[1].Pinned || s.VMs[1].Host != "eu-1" || len(s.Flows) != 1 {
		t.Fatalf("%+v, flows %+v", s.VMs, s.Flows)
	}
	p, err := scheduler.Preset("closest")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := scheduler.Solve(s, p, scheduler.Options{Iterations: 1000})
	if err != nil || len(plan.Moves) != 1 || plan.Moves[0].VM != "web" || plan.Moves[0].To != "eu-1" {
		t.Errorf("%+v, %v", plan, err)
	}
	if err := scheduler.Verify(s, p, plan); err != nil {
		t.Error(err)
	}
	top.Pools = map[heliotrope.PoolID]heliotrope.Pool{"shop": {VMs: []heliotrope.VMID{"web"}}, "rest": {}}
	if in, out := survey.PoolOf(top, "web"), survey.PoolOf(top, "db"); in != "shop" || out != "rest" {
		t.Errorf("web is in %q, db in %q", in, out)
	}
}
