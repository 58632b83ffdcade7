package pattern_test

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/synth"
)

// An application is found where it is all that its network has: no link between strangers
// tells then what background is like.
func TestInferOneApplication(t *testing.T) {
	const least, seeds = 0.85, 40
	for _, kind := range synth.Kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			right, all := 0, 0
			for seed := range uint64(seeds) {
				app, _ := synth.Make(kind, 12, 0.4, rand.New(rand.NewPCG(seed, 1)))
				n := len(app.Members)
				g := synth.Generate(synth.Config{Seed: seed, Kinds: []pattern.Kind{kind}, VMs: n, MinSize: n, MaxSize: n,
					Alone: 1e-9, Background: 0.1, Skew: 0.4, OneWay: float64(seed%2) / 2})
				if len(g.Apps) != 1 || len(g.Apps[0].Members) != n { // another size was drawn
					continue
				}
				all++
				a := pattern.Infer(g.Graph)
				if len(a.Groups) > 0 && a.Groups[0].Kind == kind && len(a.Groups[0].Members) == n {
					right++
				}
			}
			if share := float64(right) / float64(all); share < least || all < seeds/4 {
				t.Errorf("%d of %d are found and named, want %v", right, all, least)
			}
		})
	}
}

// What is outside joins no group, but a group's traffic with it is told; every VM is in
// one group or alone, and the bytes add up.
func TestInfer(t *testing.T) {
	g := synth.Generate(synth.Config{Seed: 3, Background: 0.05}).Graph
	users := len(g.Ends)
	g.Ends = append(g.Ends, traffic.Outside(netip.MustParsePrefix("203.0.113.0/24")))
	for i := range 20 {
		g.Edges = append(g.Edges, pattern.Edge{From: users, To: i, Bytes: 1e6, Low: 1e6, High: 1e6, Packets: 1e3})
	}
	a := pattern.Infer(g)
	if len(a.Groups) < 5 {
		t.Fatalf("%d groups", len(a.Groups))
	}
	places := make(map[traffic.End]int)
	outside, last := 0.0, math.Inf(1)
	for _, x := range a.Groups {
		if x.Bytes > last || len(x.Members) != len(x.Ends) {
			t.Errorf("group of %v bytes after one of %v; %d members are %d ends", x.Bytes, last, len(x.Members), len(x.Ends))
		}
		last = x.Bytes
		outside += x.Outside
		for k, e := range x.Ends {
			places[e]++
			if g.Ends[x.Members[k]] != e {
				t.Errorf("member %d is %v, not %v", k, g.Ends[x.Members[k]], e)
			}
		}
	}
	for _, e := range a.Alone {
		places[e]++
	}
	for _, e := range g.Ends {
		if want := map[bool]int{true: 1}[e.IsVM()]; places[e] != want {
			t.Errorf("%v is in %d places", e, places[e])
		}
	}
	if outside < 15e6 {
		t.Errorf("%v bytes to and from others, with 20e6 of the users'", outside)
	}
	if a.Inside > a.Bytes || a.Inside < 0.8*a.Bytes-20e6 {
		t.Errorf("%v of %v bytes within groups", a.Inside, a.Bytes)
	}
}

// world makes windows of the same applications, whose rates vary by a tenth from window to
// window, over a background that is another one each time.
type world struct {
	*rand.Rand
	apps []placed
}

type placed struct {
	edges []pattern.Edge
	vms   []int
	scale float64
}

// newWorld has a ring of 9 first.
func newWorld(seed uint64) *world {
	w := &world{Rand: rand.New(rand.NewPCG(seed, 4))}
	places := w.Perm(150)
	_, edges := synth.Make(pattern.Ring, 9, 0.5, w.Rand)
	w.apps = append(w.apps, placed{edges, places[:9], 1e5})
	places = places[9:]
	for len(places) > 28 {
		kind := synth.Kinds[w.IntN(len(synth.Kinds)-1)] // without random
		places = places[w.put(kind, 6+w.IntN(15), places):]
	}
	return w
}

func (w *world) put(kind pattern.Kind, n int, places []int) int {
	app, edges := synth.Make(kind, n, 0.5, w.Rand)
	n = len(app.Members)
	if n > len(places) {
		return len(places)
	}
	w.apps = append(w.apps, placed{edges, places[:n], 1e5 * math.Pow(10, 2*w.Float64()-1)})
	return n
}

func (w *world) window(share float64) pattern.Graph {
	var g pattern.Graph
	for i := range 150 {
		g.Ends = append(g.Ends, vm(i))
	}
	edges := make(map[[2]int]pattern.Edge)
	for _, a := range w.apps {
		for _, e := range a.edges {
			f := a.scale * math.Exp(0.1*w.NormFloat64())
			e.From, e.To = a.vms[e.From], a.vms[e.To]
			e.Bytes, e.Packets, e.Low, e.High = e.Bytes*f, e.Packets*f, e.Bytes*f, e.Bytes*f
			edges[[2]int{e.From, e.To}] = e
		}
	}
	for range int(share * 150 * 149) {
		k := [2]int{w.IntN(150), w.IntN(150)}
		if bytes := 1e5 * math.Pow(10, -1-2*w.Float64()); k[0] != k[1] && edges[k].Bytes == 0 {
			edges[k] = pattern.Edge{From: k[0], To: k[1], Bytes: bytes, Low: bytes, High: bytes, Packets: bytes / 500,
				Service: traffic.Service{Protocol: traffic.TCP, Port: uint16(1024 + w.IntN(30000))}}
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(edges), func(a, b [2]int) int { return slices.Compare(a[:], b[:]) }) {
		g.Edges = append(g.Edges, edges[k])
	}
	return g
}

// In quiet windows nothing is reported, and a ring that becomes an all-to-all exchange is
// within three windows.
func TestChangeIsTold(t *testing.T) {
	const quiet, within = 50, 3
	late, falsely := 0, 0
	for seed := range uint64(20) {
		w := newWorld(seed)
		var tr pattern.Tracker
		told := make(map[int]string)
		at := 0
		add := func() (all []pattern.Change) {
			at++
			return tr.Add(time.Unix(int64(at)*60, 0), time.Minute, pattern.Infer(w.window(0.05)))
		}
		for range 10 {
			add()
		}
		for range quiet {
			for _, c := range add() {
				falsely++
				told[at] += fmt.Sprintf(" group %d %s %s->%s +%v -%v;", c.Group, c.Of, c.From, c.To, c.Joined, c.Left)
			}
		}
		_, w.apps[0].edges = synth.Make(pattern.AllToAll, 9, 0.5, w.Rand)
		found := false
		for range within {
			for _, c := range add() {
				found = found || c.Of == pattern.PatternChanged && c.From == pattern.Ring && c.To == pattern.AllToAll
			}
		}
		if !found {
			late++
		}
		if len(told) > 0 || !found {
			t.Logf("seed %d: found %v, told %v", seed, found, told)
		}
	}
	if late > 0 || falsely > 0 {
		t.Errorf("%d changes were not told within %d windows, %d were that are none", late, within, falsely)
	}
}

func BenchmarkInfer150(b *testing.B) {
	g := synth.Generate(synth.Config{Seed: 1, Background: 0.05}).Graph
	for b.Loop() {
		pattern.Infer(g)
	}
}

// 10,000 VMs, 200,000 edges.
func BenchmarkInfer10000(b *testing.B) {
	g := synth.Generate(synth.Config{Seed: 1, VMs: 10000, Background: 0.00135}).Graph
	b.ReportMetric(float64(len(g.Edges)), "edges")
	for b.Loop() {
		pattern.Infer(g)
	}
}
