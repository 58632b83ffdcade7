package assign

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// draw makes a field; with few units, one that can be solved by trying all.
func draw(t *rapid.T, units, sites int) *Field {
	n := rapid.IntRange(1, units).Draw(t, "units")
	k := rapid.IntRange(2, sites).Draw(t, "sites")
	usd := rapid.Float64Range(0, 10)
	f := &Field{Sites: k, Moves: make([]int, n*k), Edges: make([][]Edge, n)}
	f.Price, f.Back = make([]float64, k*k), make([]float64, k*k)
	for a := range k {
		for b := range k {
			if a != b {
				f.Price[a*k+b] = usd.Draw(t, "price")
			}
			f.Back[b*k+a] = f.Price[a*k+b]
		}
	}
	apart := make([]bool, k*k)
	for a := range k {
		apart[a*k+a] = true
	}
	f.Rules = [][]bool{apart}
	var vcpus, mib float64
	for u := range n {
		f.Home = append(f.Home, rapid.IntRange(0, k-1).Draw(t, "home"))
		f.VCPUs = append(f.VCPUs, float64(rapid.IntRange(0, 8).Draw(t, "vcpus")))
		f.MiB = append(f.MiB, 1024*float64(rapid.IntRange(0, 8).Draw(t, "mib")))
		vcpus += f.VCPUs[u]
		mib += f.MiB[u]
		for to := range k {
			f.Linear = append(f.Linear, usd.Draw(t, "linear"))
			if to != f.Home[u] {
				f.Moves[u*k+to] = 1
			}
		}
	}
	for range rapid.IntRange(0, 2*n).Draw(t, "edges") {
		f.connect(t, n, usd)
	}
	// Tight for some sites, and for some fields not to be met.
	for range k {
		f.RoomVCPUs = append(f.RoomVCPUs, math.Ceil(vcpus*rapid.Float64Range(0.2, 1).Draw(t, "room")))
		f.RoomMiB = append(f.RoomMiB, math.Ceil(mib*rapid.Float64Range(0.2, 1).Draw(t, "room")))
	}
	if rapid.Bool().Draw(t, "limited") {
		f.MaxMoves = rapid.IntRange(1, n).Draw(t, "moves")
	}
	return f
}

func (f *Field) connect(t *rapid.T, n int, usd *rapid.Generator[float64]) {
	u, v := rapid.IntRange(0, n-1).Draw(t, "u"), rapid.IntRange(0, n-1).Draw(t, "v")
	if u == v || slices.ContainsFunc(f.Edges[u], func(e Edge) bool { return e.To == v }) {
		return
	}
	out, in, rule := usd.Draw(t, "out"), usd.Draw(t, "in"), None
	if rapid.IntRange(0, 5).Draw(t, "apart") == 0 {
		rule = 0
	}
	f.Edges[u] = append(f.Edges[u], Edge{v, out, in, rule})
	f.Edges[v] = append(f.Edges[v], Edge{u, in, out, rule})
}

// keeps says whether an assignment keeps all constraints.
func (f *Field) keeps(at []int) bool {
	s := newState(f, at)
	for k := range f.Sites {
		if s.freeVCPUs[k] < -slack || s.freeMiB[k] < -slack {
			return false
		}
	}
	return s.moves <= s.maxMoves && s.USD < Never/2
}

// best tries all assignments.
func (f *Field) best() (usd float64, ok bool) {
	usd = math.Inf(1)
	at := make([]int, len(f.Home))
	for {
		if x := f.USD(at); x < usd && f.keeps(at) {
			usd, ok = x, true
		}
		i := 0
		for ; i < len(at) && at[i] == f.Sites-1; i++ {
			at[i] = 0
		}
		if i == len(at) {
			return usd, ok
		}
		at[i]++
	}
}

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-7*max(1, math.Abs(a), math.Abs(b)) }

// What the table says that a move adds is what adding all up anew says.
func TestTableIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := draw(t, 12, 4)
		s := newState(f, f.Home)
		site, unit := rapid.IntRange(0, f.Sites-1), rapid.IntRange(0, len(f.Home)-1)
		for range 20 {
			before := f.USD(s.At)
			u, v, k := unit.Draw(t, "u"), unit.Draw(t, "v"), site.Draw(t, "k")
			var said float64
			switch rapid.IntRange(0, 2).Draw(t, "kind") {
			case 0:
				said = s.Gain(u, k)
				s.Move(u, k)
			case 1:
				if s.At[u] == s.At[v] {
					continue
				}
				said = s.Gain(u, s.At[v]) + s.Gain(v, s.At[u]) + s.amends(u, v)
				s.swap(u, v)
			case 2:
				if k == s.At[u] {
					continue
				}
				group := slices.Clone(s.here[s.At[u]])
				mark := make([]int, len(f.Home))
				for _, w := range group {
					mark[w] = 1
				}
				said = s.groupGain(group, mark, 1, k)
				for _, w := range group {
					s.Move(w, k)
				}
			}
			if after := f.USD(s.At); math.Abs(after-before-said) > 1e-6 || math.Abs(after-s.USD) > 1e-6 {
				t.Fatalf("it was to add %v and added %v; USD is %v, must be %v", said, after-before, s.USD, after)
			}
		}
		for u := range f.Home {
			for k := range f.Sites {
				fresh := newState(f, s.At)
				if math.Abs(fresh.would[u*f.Sites+k]-s.would[u*f.Sites+k]) > 1e-6 {
					t.Fatalf("unit %d at site %d: the table has drifted", u, k)
				}
			}
		}
	})
}

// What a bunch that moves, and one that makes room for it, are said to add is what adding all up
// anew says, and none of them has a unit that may not be where it goes but for its first.
func TestBunchesAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := draw(t, 12, 4)
		for i := range f.Linear {
			if rapid.IntRange(0, 9).Draw(t, "barred") == 0 {
				f.Linear[i] += Never
			}
		}
		a := newAnnealer(newState(f, f.Home), rapid.Uint64().Draw(t, "seed"), func() bool { return false })
		unit, site, bond := rapid.IntRange(0, len(f.Home)-1), rapid.IntRange(0, f.Sites-1), rapid.Float64Range(0.1, 1000)
		for range 10 {
			u, k, to := unit.Draw(t, "u"), site.Draw(t, "k"), site.Draw(t, "to")
			home := a.At[u]
			if k == home || k == to {
				continue
			}
			before := f.USD(a.At)
			a.grow(&a.group, u, k, rapid.IntRange(1, 12).Draw(t, "size"), math.Inf(1), bond.Draw(t, "bond"))
			said := a.group.usd
			a.back.units = nil
			if len(a.here[k]) > 0 && rapid.Bool().Draw(t, "displace") {
				a.grow(&a.back, a.here[k][a.Below(len(a.here[k]))], to, mostBack, a.group.vcpus, bond.Draw(t, "bond"))
				said += a.back.usd + a.crossing(home, k, to)
			}
			for _, v := range a.group.units[1:] {
				if f.Linear[v*f.Sites+k] >= Never/2 {
					t.Fatalf("%d may not be at %d", v, k)
				}
			}
			if best := a.choose(&a.group, k, coldest); best != home && len(a.back.units) == 0 {
				k = best
				if !a.holds(k, a.group.vcpus, a.group.mib) {
					t.Fatalf("there is no room for %v at %d", a.group.units, k)
				}
				a.moveAll(&a.group, k)
				if after := f.USD(a.At); after > before+1e-6 {
					t.Fatalf("%v was to be cheaper at %d, and is %v dearer", a.group.units, k, after-before)
				}
				continue
			}
			a.moveAll(&a.group, k)
			a.moveAll(&a.back, to)
			if added := f.USD(a.At) - before; math.Abs(added-said) > 1e-6 {
				t.Fatalf("it was to add %v and added %v", said, added)
			}
		}
	})
}

// Lumps cost what their units do there together, and those of two may be at the same sites.
func TestLumpsCostAsMuch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := draw(t, 20, 4)
		for _, list := range f.Edges {
			for i := range list {
				list[i].Rule = None
			}
		}
		for i := range f.Linear {
			if rapid.IntRange(0, 9).Draw(t, "barred") == 0 {
				f.Linear[i] += Never
			}
		}
		c, of := f.lumps()
		at, units := make([]int, len(c.Home)), make([]int, len(f.Home))
		for l := range at {
			at[l] = rapid.IntRange(0, f.Sites-1).Draw(t, "at")
		}
		for u, l := range of {
			units[u] = at[l]
			if !f.alike(u, slices.Index(of, l)) {
				t.Fatalf("unit %d may not be where others of its lump may", u)
			}
		}
		if a, b := f.USD(units), c.USD(at); !near(a, b) {
			t.Fatalf("units cost %v, their lumps %v", a, b)
		}
		if a, b := sum(f.VCPUs), sum(c.VCPUs); !near(a, b) {
			t.Fatalf("units have %v vCPUs, their lumps %v", a, b)
		}
	})
}

// The bound is below the optimum, whatever the messages are; and what a pass says of it is
// what reckoning it anew says.
func TestBoundHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := draw(t, 6, 3)
		optimum, ok := f.best()
		d := newDual(f)
		for i := range d.messages {
			d.messages[i] = rapid.Float64Range(-5, 5).Draw(t, "message")
		}
		for i := range d.rent {
			d.rent[i] = rapid.Float64Range(0, 3).Draw(t, "rent")
		}
		if usd := d.certify(); ok && usd > optimum+1e-9 {
			t.Fatalf("bound %v from any messages, optimum %v", usd, optimum)
		}
		d.tell()
		d.pass(false, true)
		if said, usd := d.pass(true, true), d.certify(); !near(said, usd) {
			t.Fatalf("a pass says %v, certified is %v", said, usd)
		}
		if usd := f.Bound(30); ok && usd > optimum+1e-9 {
			t.Fatalf("bound %v, optimum %v", usd, optimum)
		}
	})
}

// Messages never lower the bound.
func TestBoundRises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := draw(t, 15, 4)
		d := newDual(f)
		last := math.Inf(-1)
		for range 10 {
			usd := d.pass(true, true)
			if usd < last-1e-6*max(1, math.Abs(last)) {
				t.Fatalf("bound fell from %v to %v", last, usd)
			}
			last = usd
			d.pass(false, true)
		}
	})
}

// Small fields with room and without rules are solved, and all are solved alike twice. Where
// units of any size fill their sites to the brim, or keep each other away, the search may
// miss the optimum, not invent a better one.
func TestSearchFindsTheBest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := draw(t, 6, 3)
		f.MaxMoves = 0 // with few moves, exchanges of three are needed now and then
		ample := rapid.Bool().Draw(t, "ample")
		if ample {
			for k := range f.Sites {
				f.RoomVCPUs[k], f.RoomMiB[k] = 100, 1e6
			}
		}
		optimum, ok := f.best()
		if !ok {
			return
		}
		o := Options{Seed: 1, Iterations: 20_000, Passes: 20}
		s, bound := f.Search(o)
		if again, bound2 := f.Search(o); !slices.Equal(s.At, again.At) || bound != bound2 {
			t.Fatal("the same seed found something else")
		}
		if f.keeps(s.At) && s.USD < optimum-1e-6 || ample && !f.ruled() && s.USD > optimum+1e-6 || ample && !f.keeps(s.At) {
			t.Fatalf("found %v, optimum %v", s.USD, optimum)
		}
		if f.keeps(f.Home) && s.USD > f.USD(f.Home)+1e-9 {
			t.Fatalf("found %v, and it was %v", s.USD, f.USD(f.Home))
		}
	})
}

// ruled says whether any two units may not be somewhere together.
func (f *Field) ruled() bool {
	return slices.ContainsFunc(f.Edges, func(edges []Edge) bool {
		return slices.ContainsFunc(edges, func(e Edge) bool { return e.Rule != None })
	})
}

// What was taken back is at home, and what is left adds enough.
func TestPrune(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := draw(t, 10, 3)
		s, _ := f.Search(Options{Iterations: 4000, Passes: 5})
		const least = 0.5
		s.Prune(least)
		for u := range s.At {
			if s.displaced(u) && s.Fits(u, f.Home[u]) && s.Gain(u, f.Home[u]) < least {
				t.Fatalf("unit %d adds %v only", u, s.Gain(u, f.Home[u]))
			}
		}
	})
}
