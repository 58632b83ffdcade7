package pace

import (
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/scheduler"
)

// tester is a *testing.T or a *rapid.T.
type tester interface {
	Helper()
	Fatal(...any)
}

func moment(t tester, text string) time.Time {
	t.Helper()
	at, err := time.Parse("2006-01-02 15:04 -0700", text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestPaceAllows(t *testing.T) {
	const vienna = "Europe/Vienna"
	night := heliotrope.Hours{From: 22 * 60, To: 6 * 60, Zone: vienna}
	weekend := heliotrope.Hours{Days: []heliotrope.Weekday{heliotrope.Weekday(time.Saturday), heliotrope.Weekday(time.Sunday)}, From: 0, To: 24 * 60, Zone: vienna}
	at := func(text string) time.Time { return moment(t, text) }
	// 2026-03-29 is the Sunday on which Vienna's clocks go from 2:00 to 3:00.
	for _, c := range []struct {
		name  string
		pace  Pace
		moves []Moved
		now   time.Time
		want  Allowance
	}{
		{"nothing is said", Pace{}, []Moved{{"a", at("2026-03-02 12:00 +0000")}}, at("2026-03-02 12:00 +0000"), Allowance{Moves: AnyMoves}},
		{"none has moved", Pace{MaxMovesPerHour: 2, MaxMovesPerDay: 6, CoolDownPerVM: heliotrope.Duration(time.Hour)}, nil, at("2026-03-02 12:00 +0000"), Allowance{Moves: 2}},
		{"one of two an hour", Pace{MaxMovesPerHour: 2}, []Moved{{"a", at("2026-03-02 11:30 +0000")}}, at("2026-03-02 12:00 +0000"),
			Allowance{Moves: 1, Next: at("2026-03-02 12:30 +0000")}},
		{"an hour is over", Pace{MaxMovesPerHour: 2}, []Moved{{"a", at("2026-03-02 11:00 +0000")}}, at("2026-03-02 12:00 +0000"), Allowance{Moves: 2}},
		{"the day is what binds", Pace{MaxMovesPerHour: 2, MaxMovesPerDay: 2}, []Moved{{"a", at("2026-03-02 01:00 +0000")}, {"b", at("2026-03-02 02:00 +0000")}}, at("2026-03-02 12:00 +0000"),
			Allowance{Moves: 0, Next: at("2026-03-03 01:00 +0000")}},
		{"cools down", Pace{CoolDownPerVM: heliotrope.Duration(6 * time.Hour)}, []Moved{{"b", at("2026-03-02 11:00 +0000")}, {"a", at("2026-03-02 09:00 +0000")}, {"b", at("2026-03-02 07:00 +0000")}, {"c", at("2026-03-02 01:00 +0000")}}, at("2026-03-02 12:00 +0000"),
			Allowance{Moves: AnyMoves, Stay: []heliotrope.VMID{"a", "b"}, Next: at("2026-03-02 15:00 +0000")}},
		{"before the night", Pace{Quiet: []heliotrope.Hours{night}}, nil, at("2026-03-02 20:59 +0000"), Allowance{Moves: AnyMoves, Next: at("2026-03-02 21:00 +0000")}},
		{"in the night", Pace{Quiet: []heliotrope.Hours{night}}, nil, at("2026-03-03 01:00 +0000"), Allowance{Quiet: true, Next: at("2026-03-03 05:00 +0000")}},
		{"the night of the change", Pace{Quiet: []heliotrope.Hours{night}}, nil, at("2026-03-28 23:00 +0000"), Allowance{Quiet: true, Next: at("2026-03-29 04:00 +0000")}},
		{"the midnight after the change", Pace{Quiet: []heliotrope.Hours{night}}, nil, at("2026-03-29 22:10 +0000"), Allowance{Quiet: true, Next: at("2026-03-30 04:00 +0000")}},
		{"the evening before the change", Pace{Quiet: []heliotrope.Hours{{From: 3 * 60, To: 4 * 60, Zone: vienna}}}, nil, at("2026-03-28 22:00 +0000"), Allowance{Moves: AnyMoves, Next: at("2026-03-29 01:00 +0000")}},
		{"two quiet times in a row", Pace{Quiet: []heliotrope.Hours{night, weekend}}, nil, at("2026-03-06 22:00 +0000"), Allowance{Quiet: true, Next: at("2026-03-09 05:00 +0000")}},
		{"a weekend is far", Pace{Quiet: []heliotrope.Hours{weekend}}, nil, at("2026-03-09 12:00 +0000"), Allowance{Moves: AnyMoves, Next: at("2026-03-13 23:00 +0000")}},
		{"always", Pace{Quiet: []heliotrope.Hours{{}}}, nil, at("2026-03-09 12:00 +0000"), Allowance{Quiet: true}},
	} {
		got := c.pace.Allow(c.moves, c.now)
		if !got.Next.Equal(c.want.Next) {
			t.Errorf("%s: next %v, want %v", c.name, got.Next, c.want.Next)
		}
		got.Next, c.want.Next = time.Time{}, time.Time{}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func drawPace(t *rapid.T) Pace {
	p := Pace{MaxMovesPerHour: rapid.IntRange(0, 3).Draw(t, "hour"), MaxMovesPerDay: rapid.IntRange(0, 9).Draw(t, "day"),
		CoolDownPerVM: heliotrope.Duration(rapid.IntRange(0, 30*60).Draw(t, "cool")) * heliotrope.Duration(time.Minute)}
	for range rapid.IntRange(0, 2).Draw(t, "quiet") {
		q := heliotrope.Hours{From: heliotrope.DayTime(rapid.IntRange(0, 24*60-1).Draw(t, "from")), To: heliotrope.DayTime(rapid.IntRange(0, 24*60).Draw(t, "to"))}
		q.Zone = rapid.SampledFrom([]heliotrope.Zone{"Europe/Vienna", "America/New_York", "Asia/Kolkata", "UTC", ""}).Draw(t, "zone")
		for range rapid.IntRange(0, 3).Draw(t, "days") {
			q.Days = append(q.Days, heliotrope.Weekday(rapid.IntRange(0, 6).Draw(t, "weekday")))
		}
		p.Quiet = append(p.Quiet, q)
	}
	return p
}

// Whoever moves as much as may be, whenever it may be, keeps every limit, and Next is when
// what is allowed changes: not before it, and at it.
func TestPaceKeepsItsLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPace(t)
		vms := []heliotrope.VMID{"a", "b", "c", "d"}
		now := moment(t, "2026-03-27 00:00 +0000")
		var moves []Moved
		for range rapid.IntRange(1, 60).Draw(t, "ticks") {
			a := p.Allow(moves, now)
			s, _ := a.Hold(scheduler.Snapshot{VMs: []scheduler.VM{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "d"}}}, scheduler.Policy{})
			for i, left := 0, a.Moves; i < len(vms) && left != 0; i++ {
				if !s.VMs[i].Pinned {
					moves = append(moves, Moved{vms[i], now})
					left--
				}
			}
			a = p.Allow(moves, now)
			step := time.Duration(rapid.IntRange(1, 5*60).Draw(t, "minutes")) * time.Minute
			b := p.Allow(moves, now.Add(step))
			same := a.Moves == b.Moves && a.Quiet == b.Quiet && slices.Equal(a.Stay, b.Stay)
			if before := a.Next.IsZero() || now.Add(step).Before(a.Next); before && !same {
				t.Fatalf("%+v at %v, %+v at %v", a, now, b, now.Add(step))
			}
			if !a.Next.IsZero() {
				if c := p.Allow(moves, a.Next); a.Moves == c.Moves && a.Quiet == c.Quiet && slices.Equal(a.Stay, c.Stay) {
					t.Fatalf("%+v at %v, and the same at its next", a, now)
				}
			}
			now = now.Add(step)
		}
		last := map[heliotrope.VMID]time.Time{}
		for i, m := range moves {
			var inHour, inDay int
			for _, other := range moves[:i+1] {
				if m.At.Sub(other.At) < time.Hour {
					inHour++
				}
				if m.At.Sub(other.At) < 24*time.Hour {
					inDay++
				}
			}
			if p.MaxMovesPerHour > 0 && inHour > p.MaxMovesPerHour || p.MaxMovesPerDay > 0 && inDay > p.MaxMovesPerDay {
				t.Fatalf("%d moves in an hour, %d in a day", inHour, inDay)
			}
			if before, ok := last[m.VM]; ok && m.At.Sub(before) < time.Duration(p.CoolDownPerVM) {
				t.Fatalf("%s moved at %v and at %v", m.VM, before, m.At)
			}
			last[m.VM] = m.At
			for _, q := range p.Quiet {
				zone, err := time.LoadLocation(string(q.Zone))
				if err != nil {
					t.Fatal(err)
				}
				if local := m.At.In(zone); q.From < q.To && len(q.Days) == 0 {
					if at := heliotrope.DayTime(local.Hour()*60 + local.Minute()); at >= q.From && at < q.To {
						t.Fatalf("%s moved at %v, in a quiet time", m.VM, local)
					}
				}
			}
		}
	})
}

// draw makes a dear site and a cheap one, with VMs at both.
func draw(t *rapid.T) scheduler.Snapshot {
	s := scheduler.Snapshot{
		Sites: []scheduler.Site{{ID: "dear", USDPerVCPUHour: 1}, {ID: "cheap", USDPerVCPUHour: 0.1}},
		Paths: []scheduler.Path{{From: "dear", To: "cheap", RTTMs: 10}},
	}
	for i, site := range []heliotrope.SiteID{"dear", "dear", "cheap", "cheap"} {
		s.Hosts = append(s.Hosts, scheduler.Host{ID: heliotrope.HostID(rune('a' + i)), Site: site, VCPUs: 8, MemoryMiB: 8192, Drained: rapid.IntRange(0, 3).Draw(t, "drained") == 0})
	}
	for i := range rapid.IntRange(3, 8).Draw(t, "vms") {
		s.VMs = append(s.VMs, scheduler.VM{ID: heliotrope.VMID("v" + strconv.Itoa(i)), VCPUs: 1, MemoryMiB: 1024, Host: s.Hosts[rapid.IntRange(0, 3).Draw(t, "host")].ID})
	}
	return s
}

// What is held does not move, but for VMs whose host is drained.
func TestPaceHoldsPlans(t *testing.T) {
	cheapest, err := scheduler.Preset("cheapest")
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		s, p := Allowance{Moves: rapid.IntRange(AnyMoves, 3).Draw(t, "moves"), Stay: []heliotrope.VMID{"v0", "v2"}}.Hold(draw(t), cheapest)
		plan, err := scheduler.Solve(s, p, scheduler.Options{Seed: 1, Iterations: 4096, Passes: 10})
		if err != nil {
			t.Fatal(err)
		}
		drained := map[heliotrope.HostID]bool{}
		for _, h := range s.Hosts {
			drained[h.ID] = h.Drained
		}
		for _, m := range plan.Moves {
			if (m.VM == "v0" || m.VM == "v2") && m.From != "" && !drained[m.From] {
				t.Fatalf("it moves %s\n%s", m.VM, plan)
			}
		}
	})
	s := scheduler.Snapshot{VMs: []scheduler.VM{{ID: "a", Host: "h"}, {ID: "b", Host: "h"}}}
	held, p := Allowance{Moves: 1, Stay: []heliotrope.VMID{"b"}}.Hold(s, scheduler.Policy{MaxMoves: 5})
	if held.VMs[0].Pinned || !held.VMs[1].Pinned || p.MaxMoves != 1 || s.VMs[1].Pinned {
		t.Errorf("%+v, %d moves, was %+v", held.VMs, p.MaxMoves, s.VMs)
	}
	if held, _ = (Allowance{}).Hold(s, scheduler.Policy{}); !held.VMs[0].Pinned || !held.VMs[1].Pinned {
		t.Errorf("none may move: %+v", held.VMs)
	}
}

func TestPaceIsText(t *testing.T) {
	const text = `{"cool_down":"6h0m0s","max_moves_per_hour":2,"quiet":[{"days":["mon","fri"],"from":"22:30","to":"24:00","zone":"Europe/Vienna"},{"from":"00:00","to":"06:00"}]}`
	var p Pace
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(p)
	if err != nil || string(again) != text {
		t.Errorf("%s, %v\nwant %s", again, err, text)
	}
	for _, bad := range []string{`{"quiet":[{"from":"25:00","to":"01:00"}]}`, `{"quiet":[{"days":["someday"]}]}`, `{"quiet":[{"zone":"Mars/Olympus"}]}`, `{"quiet":[{"zone":"Local"}]}`, `{"cool_down":"-1s"}`} {
		if err := json.Unmarshal([]byte(bad), &p); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func FuzzPace(f *testing.F) {
	f.Add([]byte(`{"cool_down":"6h0m0s","quiet":[{"days":["mon"],"from":"22:30","to":"24:00","zone":"Europe/Vienna"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var p, q Pace
		if json.Unmarshal(text, &p) != nil {
			return
		}
		again, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(again, &q); err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		now := time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC)
		if a, b := p.Allow(nil, now), q.Allow(nil, now); !reflect.DeepEqual(a, b) {
			t.Fatalf("%s: %+v, written and read %+v", again, a, b)
		}
	})
}
