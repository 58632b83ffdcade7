package scheduler

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
)

// A VM that is to leave within an hour that is paid: what that wastes is said, and weighed,
// and it goes at once only if the rest of the hour elsewhere is worth more than what it
// leaves costs.
func TestPaidHours(t *testing.T) {
	noon := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	const takes = 64.275 // seconds
	const rate = 4*0.05 + 8*0.005
	for _, c := range []struct {
		name   string
		change func(*Snapshot)
		until  time.Time
		better time.Duration // before until; 0: now
		says   string
	}{
		{"worth it at once", func(*Snapshot) {}, noon.Add(time.Hour), 0, "its hour at dear is paid until 13:00 UTC: moving now wastes USD 0.136"},
		{"worth it later", func(s *Snapshot) { s.Flows = nil }, noon.Add(time.Hour), 30 * time.Second, "its hour at dear is paid until 13:00 UTC"},
		{"since it came", func(s *Snapshot) {
			s.Flows, s.VMs[0].PaidSince = nil, noon.Add(-10*time.Minute-5*time.Second)
		}, noon.Add(50*time.Minute - 5*time.Second), 30 * time.Second, "until 12:49:55 UTC"},
		{"by the minute", func(s *Snapshot) {
			s.Sites[0].BillingSeconds, s.Flows = 60, nil
		}, noon.Add(27 * time.Minute), 6 * time.Second, "its minute at dear is paid until 12:27 UTC"},
		{"by the week", func(s *Snapshot) {
			s.Sites[0].BillingSeconds, s.Flows, s.VMs[0].PaidSince = 7*24*3600, nil, noon.Add(-24*time.Hour)
		}, noon.Add(6 * 24 * time.Hour), 30 * time.Second, "its time of 168h at dear is paid until 2026-05-10 12:00 UTC"},
		{"unlicensed", func(s *Snapshot) {
			s.Flows, s.VMs[0].Licences = nil, map[heliotrope.LicenceID]int{"oracle": 1}
			s.Sites[1].Licences = map[heliotrope.LicenceID]int{"oracle": 1}
		}, noon.Add(time.Hour), 0, "its hour"},
		{"drained", func(s *Snapshot) { s.Flows, s.Hosts[0].Drained, s.Hosts[1].Drained = nil, true, true }, noon.Add(time.Hour), 0, "its hour"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, p := two(), preset(t, "cheapest")
			s.At, s.Sites[0].BillingSeconds = noon.Add(25*time.Minute), 3600
			c.change(&s)
			p.AmortisationHours = 24 * 30
			plan := solve(t, s, p)
			if len(plan.Moves) != 1 || plan.Moves[0].VM != "web" {
				t.Fatal(plan)
			}
			m := plan.Moves[0]
			rest := c.until.Sub(s.At).Hours() - takes/3600
			if !m.PaidUntil.Equal(c.until) || math.Abs(m.WastesUSD-rate*rest) > 1e-9 {
				t.Errorf("paid until %v, wasted USD %v; want %v, %v", m.PaidUntil, m.WastesUSD, c.until, rate*rest)
			}
			want := time.Time{}
			if c.better > 0 {
				want = c.until.Add(-c.better - seconds(takes))
			}
			if m.Better.Sub(want).Abs() > time.Millisecond {
				t.Errorf("it had better go at %v, want %v", m.Better, want)
			}
			var says []string
			for _, e := range m.Evidence {
				says = append(says, e.Text)
			}
			if !strings.Contains(strings.Join(says, "\n"), c.says) {
				t.Errorf("it says %q", says)
			}
			if usd := plan.After.Moves * p.AmortisationHours; math.Abs(usd-m.WastesUSD-p.MoveUSD-8*0.09) > 1e-9 {
				t.Errorf("the move costs USD %v", usd)
			}
		})
	}
}

// What is lost of a paid hour has to be gained within the policy's hours, and within a site nothing is.
func TestPaidHoursHold(t *testing.T) {
	s, p := two(), preset(t, "cheapest")
	s.Flows, s.VMs[0].CopyBytes = nil, 0
	s.At = time.Date(2026, 5, 4, 12, 1, 0, 0, time.UTC)
	p.AmortisationHours, p.MoveUSD = 1, 0
	if plan := solve(t, s, p); len(plan.Moves) != 1 {
		t.Errorf("paid by the moment it goes:\n%s", plan)
	}
	s.Sites[0].BillingSeconds = 3600
	if plan := solve(t, s, p); len(plan.Moves) != 0 {
		t.Errorf("it leaves an hour that has just begun:\n%s", plan)
	}
	if usd, err := Evaluate(s, p, Placement{"web": "d2", "db": "c1"}); err != nil || usd.Moves != 0 {
		t.Errorf("from host to host of a site that costs USD %v (%v)", usd.Moves, err)
	}
}

// Whoever goes when he had better does so before what is paid ends, and wastes less.
func TestBetterIsBetter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, p := draw(t)
		plan, err := Solve(s, p, quick)
		if err != nil {
			t.Fatal(err)
		}
		first := map[heliotrope.VMID]bool{}
		for _, m := range plan.Moves {
			if m.WastesUSD < 0 || m.WastesUSD > 0 && !m.PaidUntil.After(s.At) {
				t.Fatalf("%+v", m)
			}
			if m.Better.IsZero() || first[m.VM] {
				first[m.VM] = true
				continue
			}
			later := s
			later.At = m.Better
			model, err := newModel(&later, p)
			if err != nil {
				t.Fatal(err)
			}
			v, to := model.vmOf[m.VM], model.hostOf[m.To]
			if m.From != s.VMs[v].Host {
				continue // on from a temporary place
			}
			x := model.idle(v, model.site[to])
			if !m.Better.After(s.At) || x.usd > m.WastesUSD || !x.until.Equal(m.PaidUntil) {
				t.Fatalf("at %v %+v is wasted, now %+v", m.Better, x, m)
			}
		}
	})
}
