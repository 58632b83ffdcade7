package pattern_test

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"

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

// The same matrix gives the same answer, to the last bit: plans are compared by it.
func TestInferAlike(t *testing.T) {
	g := synth.Generate(synth.Config{Seed: 7, VMs: 300, Background: 0.05})
	want, err := json.Marshal(pattern.Infer(g.Graph))
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if got, err := json.Marshal(pattern.Infer(g.Graph)); err != nil || string(got) != string(want) {
			t.Fatalf("two answers (%v):\n%s\n%s", err, want, got)
		}
	}
}

// A tree of 13, half of it over UDP, as it was counted in a lab of 32 VMs: twelve links that
// matter and as many that do not are few to tell what background is like.
func TestInferFewLinks(t *testing.T) {
	data, err := os.ReadFile("testdata/tree.json")
	if err != nil {
		t.Fatal(err)
	}
	var m traffic.Matrix
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	groups := pattern.Infer(pattern.FromMatrix(m)).Groups
	if len(groups) != 1 || groups[0].Kind != pattern.Tree || len(groups[0].Members) != 13 {
		t.Errorf("want a tree of 13, got %+v", groups)
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
