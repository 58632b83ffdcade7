package scheduler

import (
	"math"
	"strings"
	"testing"

	"heliotrope"
)

func oracle(n int) map[heliotrope.LicenceID]int { return map[heliotrope.LicenceID]int{"oracle": n} }

func TestLicences(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Snapshot, *Policy)
		moves  string // VM>host
		says   string
	}{
		{"none where it would go", func(s *Snapshot, _ *Policy) {
			s.VMs[0].Licences, s.Sites[0].Licences = oracle(4), oracle(4)
			s.VMs[1].Pinned = true
		}, "", "no beneficial move"},
		{"all used where it would go", func(s *Snapshot, _ *Policy) {
			s.VMs[0].Licences, s.VMs[1].Licences = oracle(4), oracle(2)
			s.Sites[0].Licences, s.Sites[1].Licences = oracle(4), oracle(5)
			s.VMs[1].Pinned = true
		}, "", "no beneficial move"},
		{"enough", func(s *Snapshot, _ *Policy) {
			s.VMs[0].Licences, s.VMs[1].Licences = oracle(4), oracle(2)
			s.Sites[0].Licences, s.Sites[1].Licences = oracle(4), oracle(6)
		}, "web>cheap", "db"},
		{"a host's own", func(s *Snapshot, _ *Policy) {
			s.VMs[0].Licences = oracle(4)
			s.Sites[0].Licences, s.Sites[1].Licences, s.Hosts[3].Licences = oracle(4), oracle(1), oracle(3)
		}, "web>cheap", "db"},
		{"too few now", func(s *Snapshot, p *Policy) {
			s.Flows = nil
			s.VMs[0].Licences, s.Sites[0].Licences, s.Sites[1].Licences = oracle(4), oracle(2), oracle(4)
		}, "web>cheap", "it needs 4 seats of licence oracle, and dear has 2"},
		{"one too many now", func(s *Snapshot, p *Policy) {
			s.Flows, s.Demands = nil, nil
			s.VMs[1].Host = "d2"
			s.VMs[0].Licences, s.VMs[1].Licences = oracle(4), oracle(4)
			s.Sites[0].Licences, s.Sites[1].Licences = oracle(4), oracle(4)
			s.Sites[1].USDPerVCPUHour = 0.05
		}, "web>cheap", "no licence of oracle left at dear: 4 of 4 seats are used by db, and it needs 4"},
		{"nowhere to go", func(s *Snapshot, p *Policy) {
			*p = presets[4]
			s.Hosts[0].Drained, s.Hosts[1].Drained = true, true
			s.VMs[0].Licences, s.VMs[1].Licences = oracle(4), oracle(4)
			s.Sites[0].Licences, s.Sites[1].Licences = oracle(8), oracle(4)
		}, "", "no licence of oracle left at cheap: 4 of 4 seats are used by db, and it needs 4"},
		{"rented is dearer", func(s *Snapshot, p *Policy) {
			s.Flows, s.Demands = nil, nil
			s.VMs[0].Licences, s.VMs[1].Pinned = oracle(4), true
			s.Sites[0].SeatUSDPerHour = map[heliotrope.LicenceID]float64{"oracle": 0.5}
			s.Sites[1].USDPerVCPUHour, s.Sites[1].Licences = 0.3, oracle(4)
		}, "web>cheap", "seats of licences are rented for USD 2/h less"},
		{"rented is cheap enough", func(s *Snapshot, p *Policy) {
			s.VMs[0].Licences, s.Sites[0].Licences = oracle(4), oracle(4)
			s.Sites[1].SeatUSDPerHour = map[heliotrope.LicenceID]float64{"oracle": 0.01}
		}, "web>cheap", "USD 0.04/h more"},
		{"rented is too dear", func(s *Snapshot, p *Policy) {
			s.VMs[0].Licences, s.Sites[0].Licences = oracle(4), oracle(4)
			s.Sites[1].SeatUSDPerHour = map[heliotrope.LicenceID]float64{"oracle": 5}
			s.VMs[1].Pinned = true
		}, "", "no beneficial move"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, p := two(), preset(t, "cheapest")
			c.change(&s, &p)
			plan := solve(t, s, p)
			says := plan.String()
			var moves []string
			for _, m := range plan.Moves {
				moves = append(moves, string(m.VM)+">"+string(m.ToSite))
				for _, e := range m.Evidence {
					says += e.Text + "\n"
				}
			}
			if strings.Join(moves, " ") != c.moves || !strings.Contains(says, c.says) {
				t.Errorf("moves %q\n%s", moves, says)
			}
			if plan.Bounded && len(plan.Broken) == 0 && (plan.Bound > plan.After.Total()+1e-9) {
				t.Errorf("bound %v of %v", plan.Bound, plan.After.Total())
			}
		})
	}
}

// What is rented is the objective's, by the seats beyond those that are there.
func TestRent(t *testing.T) {
	s := two()
	s.VMs[0].Licences, s.VMs[1].Licences = oracle(4), oracle(3)
	s.Sites[1].Licences, s.Hosts[3].Licences = oracle(2), oracle(3)
	s.Sites[1].SeatUSDPerHour = map[heliotrope.LicenceID]float64{"oracle": 0.5}
	for where, want := range map[heliotrope.HostID]float64{"c1": 5 * 0.5, "c2": (1 + 3 - 2) * 0.5} {
		if usd, err := Evaluate(s, Policy{}, Placement{"web": where, "db": "c1"}); err != nil || math.Abs(usd.Licences-want) > 1e-12 {
			t.Errorf("at %s: USD %v, want %v (%v)", where, usd.Licences, want, err)
		}
	}
}

// Two VMs that would take each other's seats go by a third site, and Verify refuses both at once.
func TestLicencesOnTheWay(t *testing.T) {
	s := two()
	s.Flows = nil
	s.Demands = []Demand{{VM: "db", Region: "near", BytesPerSecond: 1e8}, {VM: "web", Region: "far", BytesPerSecond: 1e8}}
	s.Reaches = append(s.Reaches, Reach{"far", "dear", 60}, Reach{"far", "cheap", 10})
	s.VMs[0].Licences, s.VMs[1].Licences = oracle(4), oracle(4)
	s.Sites[0].Licences, s.Sites[1].Licences = oracle(4), oracle(4)
	p := preset(t, "closest")
	plan := solve(t, s, p)
	if len(plan.Moves) != 0 || len(plan.Blocked) == 0 || !strings.Contains(plan.Blocked[0].Why, "4 of 4 seats are used by") {
		t.Errorf("there are no seats to move:\n%s", plan)
	}
	at := []Move{{Step: 1, VM: "web", From: "d1", To: "c2"}, {Step: 1, VM: "db", From: "c1", To: "d2"}}
	if err := Verify(s, p, Plan{Moves: at}); err == nil || !strings.Contains(err.Error(), "4 seats of licence oracle") {
		t.Errorf("both at once: %v", err)
	}
	s.Sites = append(s.Sites, Site{ID: "third", USDPerVCPUHour: 1, Licences: oracle(4)})
	s.Hosts = append(s.Hosts, Host{ID: "t1", Site: "third", VCPUs: 8, MemoryMiB: 32768})
	s.Paths = append(s.Paths, Path{From: "third", To: "dear", RTTMs: 90}, Path{From: "third", To: "cheap", RTTMs: 90})
	s.Reaches = append(s.Reaches, Reach{"far", "third", 200}, Reach{"near", "third", 200})
	plan = solve(t, s, p)
	if plan.Gain() <= 0 || len(plan.Blocked) > 0 || len(plan.Moves) != 3 || !plan.Moves[0].Temporary || plan.Moves[0].To != "t1" {
		t.Errorf("a third site's seats help:\n%s", plan)
	}
}

func TestLicencesAreChecked(t *testing.T) {
	s := two()
	s.VMs[0].Licences, s.VMs[1].Licences = oracle(4), oracle(4)
	s.Sites[0].Licences, s.Sites[1].Licences = oracle(4), oracle(4)
	broken, err := Check(s, Policy{}, Placement{"web": "c2", "db": "c1"})
	if err != nil || len(broken) != 1 || broken[0].String() != "licence oracle at cheap" {
		t.Errorf("%v, %v", broken, err)
	}
	s.VMs[0].Licences = oracle(-1)
	if _, err = Check(s, Policy{}, Placement{}); err == nil || !strings.Contains(err.Error(), "vm web: its seats of oracle are negative") {
		t.Errorf("negative seats: %v", err)
	}
}
