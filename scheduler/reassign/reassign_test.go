package reassign

import (
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"heliotrope/scheduler/anneal"
)

// example is that of the challenge's definition.
func example(t testing.TB) (*Problem, Assignment) {
	t.Helper()
	open := func(name string) *os.File {
		f, err := os.Open("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	p, err := ReadProblem(open("model_example.txt"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := p.ReadAssignment(open("assignment_example.txt"))
	if err != nil {
		t.Fatal(err)
	}
	return p, a
}

// The definition says what its example costs, before and after one move.
func TestCheckExample(t *testing.T) {
	p, a := example(t)
	if cost, broken := p.Check(a, a); cost.Total() != 4200 || len(broken) > 0 {
		t.Errorf("%+v, %v", cost, broken)
	}
	want := Cost{Load: 1500, Balance: 1700, ProcessMove: 100, ServiceMove: 10, MachineMove: 200}
	if cost, broken := p.Check(a, Assignment{0, 2, 0}); cost != want || len(broken) > 0 {
		t.Errorf("%+v, %v", cost, broken)
	}
	for _, c := range []struct {
		at   Assignment
		says string
	}{
		{Assignment{1, 3, 0}, "machine 1 holds 12 of resource 0"},
		{Assignment{1, 1, 1}, "machine 1 holds 28 of resource 0"},
		{Assignment{0, 0, 0}, "machine 0 has 2 processes of service 0"},
		{Assignment{0, 0, 0}, "service 0 is in 1 locations: its spread is 2"},
		{Assignment{3, 2, 0}, "process 2 of service 1 is in neighbourhood 0 without service 0"},
	} {
		if _, broken := p.Check(a, c.at); !strings.Contains(strings.Join(broken, "; "), c.says) {
			t.Errorf("%v: %v, and not that %s", c.at, broken, c.says)
		}
	}
	// What is transient is held at both ends: two of 10 and 12 where there is room for 15.
	moved := *p
	moved.Machines = slices.Clone(p.Machines)
	moved.Machines[3].Capacity = []int64{15, 100}
	if _, broken := moved.Check(a, Assignment{3, 2, 0}); !strings.Contains(strings.Join(broken, "; "), "machine 3 holds 22 of resource 0") {
		t.Error(broken)
	}
}

// generate makes a problem, and an assignment that breaks nothing, of numbers from 0 to n-1.
func generate(below func(n int) int) (*Problem, Assignment) {
	p := &Problem{ProcessMoveWeight: int64(below(3)), ServiceMoveWeight: int64(below(20)), MachineMoveWeight: int64(below(5))}
	list := func(n, most int) []int64 {
		var l []int64
		for range n {
			l = append(l, int64(below(most)))
		}
		return l
	}
	kinds, machines, services := 1+below(3), 2+below(4), 1+below(4)
	for range kinds {
		p.Resources = append(p.Resources, Resource{below(2) == 0, int64(below(3))})
	}
	var a Assignment
	taken := map[[2]int]bool{}
	for range 1 + below(8) {
		q := Process{below(services), list(kinds, 10), int64(below(4))}
		if k := below(machines); !taken[[2]int{q.Service, k}] {
			taken[[2]int{q.Service, k}] = true
			p.Processes, a = append(p.Processes, q), append(a, k)
		}
	}
	for k := range machines {
		m := Machine{below(3), below(3), list(kinds, 15), nil, list(machines, 5)}
		for i, q := range p.Processes {
			for r, n := range q.Needs {
				if a[i] == k {
					m.Capacity[r] += n
				}
			}
		}
		for _, c := range m.Capacity {
			m.Safety = append(m.Safety, int64(below(int(c)+1)))
		}
		p.Machines = append(p.Machines, m)
	}
	for range below(3) {
		p.Balances = append(p.Balances, Balance{below(kinds), below(kinds), int64(below(4)), int64(below(4))})
	}
	for range services {
		p.Services = append(p.Services, Service{})
	}
	for s := range p.Services {
		try := p.Services[s]
		try.Spread = below(4)
		for range below(3) {
			try.DependsOn = append(try.DependsOn, below(services))
		}
		before := p.Services[s]
		if p.Services[s] = try; len(p.brokenServices(a)) > 0 {
			p.Services[s] = before
		}
	}
	return p, a
}

// The tables say what the judge says, whatever moves: costs, rooms and rules.
func TestTablesAreRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, home := generate(func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "n") })
		if len(home) == 0 {
			return
		}
		w := &walker{Walk: anneal.New(rapid.Uint64().Draw(t, "seed"), nil), state: newState(p, home, home), kept: none}
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			w.toll, w.rent = float64(rapid.IntRange(0, 50).Draw(t, "toll")), float64(rapid.IntRange(0, 5).Draw(t, "rent"))
			w.step(rapid.Float64Range(0, 1000).Draw(t, "temperature"))
			cost, broken := p.Check(home, w.at)
			if cost.Total() != w.cost || (len(broken) > 0) != (w.broken+w.full > 0) {
				t.Fatalf("cost %d, %d rules broken, %d rooms too full; the judge says %d, %v", w.cost, w.broken, w.full, cost.Total(), broken)
			}
			fresh := newState(p, home, w.at)
			if fresh.cost != w.cost || fresh.broken != w.broken || fresh.over != w.over || !slices.Equal(fresh.sums, w.sums) || !slices.Equal(fresh.free, w.free) || !slices.Equal(fresh.with, w.with) {
				t.Fatal("tables that were kept and tables made anew differ")
			}
			if cost.Total() < p.Bound() {
				t.Fatalf("cost %d is below the bound %d", cost.Total(), p.Bound())
			}
		}
	})
}

// What is kicked stays where it is put, and the tables know of it.
func TestKick(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, home := generate(func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "n") })
		if len(home) == 0 {
			return
		}
		w := &walker{Walk: anneal.New(rapid.Uint64().Draw(t, "seed"), nil), state: newState(p, home, home), kept: none, homeward: 7}
		w.kick()
		if w.kept == none { // there is no other place for what was chosen
			return
		}
		to := w.at[w.kept]
		if to == home[w.kept] {
			t.Fatalf("process %d is where it was", w.kept)
		}
		for range 20 {
			w.step(1000)
		}
		if w.at[w.kept] != to {
			t.Fatalf("process %d was put at %d, and is at %d", w.kept, to, w.at[w.kept])
		}
		cost, broken := p.Check(home, w.at)
		if cost.Total() != w.cost || (len(broken) > 0) != (w.broken+w.full > 0) {
			t.Fatalf("cost %d, %d rules broken, %d rooms too full; the judge says %d, %v", w.cost, w.broken, w.full, cost.Total(), broken)
		}
	})
}

// A search breaks nothing, ends no dearer than it began, and does the same again.
func TestSearch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, home := generate(func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "n") })
		o := Options{Seed: rapid.Uint64().Draw(t, "seed"), Steps: 10_000}
		a, cost, err := p.Search(home, o)
		if err != nil {
			t.Fatal(err)
		}
		judged, broken := p.Check(home, a)
		before, _ := p.Check(home, home)
		if judged != cost || len(broken) > 0 || cost.Total() > before.Total() || cost.Total() < p.Bound() {
			t.Fatalf("from %d to %d (said) or %d (judged), bound %d, broken %v", before.Total(), cost.Total(), judged.Total(), p.Bound(), broken)
		}
		if again, _, _ := p.Search(home, o); !slices.Equal(a, again) {
			t.Fatalf("%v, and then %v", a, again)
		}
	})
}

// best tries all assignments.
func best(p *Problem, home Assignment) int64 {
	a := slices.Clone(home)
	least, _ := p.Check(home, home)
	cheapest := least.Total()
	var try func(i int)
	try = func(i int) {
		if i < len(a) {
			for k := range p.Machines {
				a[i] = k
				try(i + 1)
			}
			return
		}
		if cost, broken := p.Check(home, a); len(broken) == 0 {
			cheapest = min(cheapest, cost.Total())
		}
	}
	try(0)
	return cheapest
}

// What is small is solved.
func TestSearchFindsTheBest(t *testing.T) {
	p, home := example(t)
	if _, cost, err := p.Search(home, Options{Steps: 10_000}); err != nil || cost.Total() != best(p, home) {
		t.Errorf("%d, %v; the best is %d", cost.Total(), err, best(p, home))
	}
	missed := 0
	for seed := range uint64(100) {
		p, home := generate(rand.New(rand.NewPCG(seed, 1)).IntN)
		if len(home) > 6 {
			continue
		}
		if _, cost, err := p.Search(home, Options{Seed: seed, Steps: 20_000}); err != nil || cost.Total() != best(p, home) {
			missed++
			t.Logf("seed %d: %d, %v; the best is %d", seed, cost.Total(), err, best(p, home))
		}
	}
	if missed > 0 {
		t.Errorf("missed %d", missed)
	}
}

// A search ends at a deadline, and at what is enough; it tells what it finds on the way.
func TestSearchEnds(t *testing.T) {
	p, home := example(t)
	asked := 0
	if _, _, err := p.Search(home, Options{Spent: func() float64 { asked++; return float64(asked) / 10 }}); err != nil || asked > 20 {
		t.Errorf("%v after being asked %d times", err, asked)
	}
	var found []int64
	_, cost, err := p.Search(home, Options{Spent: func() float64 { return 0 }, Enough: 3600, Found: func(c int64) { found = append(found, c) }})
	if err != nil || cost.Total() > 3600 || len(found) == 0 || found[len(found)-1] != cost.Total() {
		t.Errorf("%v, %d, %v", err, cost.Total(), found)
	}
	if _, _, err := p.Search(home, Options{}); err == nil {
		t.Error("a search without an end")
	}
	if _, _, err := p.Search(Assignment{0, 0, 0}, Options{Steps: 1}); err == nil || !strings.Contains(err.Error(), "2 processes of service 0") {
		t.Errorf("a start that breaks rules: %v", err)
	}
}
