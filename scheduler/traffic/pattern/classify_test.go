package pattern_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/synth"
)

// classified counts what is said of applications whose members are known, after change.
func classified(c synth.Config, matrices int, change func(t synth.Truth, app int) []int) synth.Confusion {
	said := synth.Confusion{}
	for seed := range matrices {
		c.Seed = uint64(seed)
		truth := synth.Generate(c)
		for i, app := range truth.Apps {
			said.Add(app.Kind, pattern.Classify(truth.Graph, change(truth, i)).Kind, 1)
		}
	}
	return said
}

// shuffled are an application's members in an order that tells nothing.
func shuffled(t synth.Truth, app int) []int {
	members := slices.Clone(t.Apps[app].Members)
	slices.Sort(members)
	return members
}

func TestClassify(t *testing.T) {
	for _, x := range []struct {
		name   string
		config synth.Config
		change func(synth.Truth, int) []int
		least  float64
	}{
		{"1 % background", synth.Config{Background: 0.01}, shuffled, 0.98},
		{"20 % background", synth.Config{Background: 0.2}, shuffled, 0.95},
		{"5 % background, 1:64", synth.Config{Background: 0.05, Sampling: 64}, shuffled, 0.93},
		{"a tenth of the VMs not counted", synth.Config{Background: 0.05, MissingHosts: 0.1}, shuffled, 0.93},
		{"half over UDP, which answers nothing", synth.Config{Background: 0.05, OneWay: 0.5}, shuffled, 0.97},
		{"unequal edges", synth.Config{Background: 0.05, Skew: 0.8}, shuffled, 0.93},
		{"one member too many", synth.Config{Background: 0.01}, func(t synth.Truth, i int) []int {
			return append(shuffled(t, i), t.Apps[(i+1)%len(t.Apps)].Members[0])
		}, 0.95},
		// Without one of its members a ring is a pipeline, and a circle a line;
		// the second of a binomial tree carries half of it.
		{"one member missing", synth.Config{Background: 0.01, Kinds: []pattern.Kind{pattern.Torus2D, pattern.Stencil2D, pattern.Torus3D,
			pattern.Stencil3D, pattern.Butterfly, pattern.AllToAll, pattern.Shuffle, pattern.Broadcast, pattern.Tree}}, func(t synth.Truth, i int) []int {
			return slices.DeleteFunc(shuffled(t, i), func(m int) bool { return m == t.Apps[i].Members[1] })
		}, 0.85},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			said := classified(x.config, 12, x.change)
			if f := said.MacroF1(); f < x.least {
				t.Errorf("macro-F1 %.3f, want %.2f\n%v", f, x.least, said)
			}
			if a := said.Abstained(); a > 0.05 {
				t.Errorf("abstains from %.1f %%", 100*a)
			}
		})
	}
}

// Of groups told with a confidence of c, a share of c is right.
func TestConfidence(t *testing.T) {
	type bin struct{ n, right, sum float64 }
	var bins [4]bin
	for seed := range uint64(36) {
		truth := synth.Generate(synth.Config{Seed: seed, Background: 0.05, Sampling: []int{1, 64, 400}[seed%3]})
		for i, app := range truth.Apps {
			g := pattern.Classify(truth.Graph, shuffled(truth, i))
			b := &bins[min(int(g.Confidence*4), 3)]
			b.n++
			b.sum += g.Confidence
			if g.Kind == app.Kind {
				b.right++
			}
		}
	}
	for i, b := range bins {
		if off := (b.right - b.sum) / max(b.n, 1); b.n >= 30 && (off < -0.15 || off > 0.3) {
			t.Errorf("bin %d: of %.0f groups %.2f are right, said %.2f", i, b.n, b.right/b.n, b.sum/b.n)
		}
	}
	if bins[3].n < 200 {
		t.Errorf("sure of %.0f groups only", bins[3].n)
	}
}

// Names and order of nodes are of no account, and whoever is put in comes out.
func TestClassifyOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 14).Draw(t, "nodes")
		g := pattern.Graph{}
		for i := range n {
			g.Ends = append(g.Ends, vm(i))
		}
		for i := range n {
			for j := range n {
				if i != j && rapid.IntRange(0, 3).Draw(t, "edge") == 0 {
					b := rapid.Float64Range(1, 1e9).Draw(t, "bytes")
					g.Edges = append(g.Edges, pattern.Edge{From: i, To: j, Bytes: b, Low: b / 2, High: b * 2, Packets: b / 100})
				}
			}
		}
		members := rapid.SliceOfNDistinct(rapid.IntRange(0, n-1), 1, n, rapid.ID).Draw(t, "members")
		x := pattern.Classify(g, members)
		if got, want := slices.Sorted(slices.Values(x.Members)), slices.Sorted(slices.Values(members)); !slices.Equal(got, want) {
			t.Fatalf("members %v of %v", got, want)
		}
		if x.Confidence < 0 || x.Confidence > 1 || x.Coverage < 0 || x.Coverage > 1+1e-9 {
			t.Fatalf("confidence %v, coverage %v", x.Confidence, x.Coverage)
		}
		told := 0
		for _, tier := range x.Tiers {
			told += len(tier.Members)
		}
		if told != len(members) {
			t.Fatalf("%d of %d members are in tiers", told, len(members))
		}
	})
}

// Members come in the pattern's own order.
func TestOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, kind := range []pattern.Kind{pattern.Ring, pattern.Pipeline, pattern.Torus2D, pattern.Stencil2D, pattern.Broadcast, pattern.Tree, pattern.Shuffle} {
		app, edges := synth.Make(kind, 15, 0.3, r)
		n := len(app.Members)
		names := r.Perm(n)
		g := pattern.Graph{}
		talks := map[[2]int]float64{}
		for i := range n {
			g.Ends = append(g.Ends, vm(i))
		}
		for _, e := range edges {
			talks[[2]int{e.From, e.To}] = e.Bytes
			e.From, e.To = names[e.From], names[e.To]
			g.Edges = append(g.Edges, e)
		}
		x := pattern.Classify(g, r.Perm(n))
		if x.Kind != kind || !slices.Equal(x.Shape, app.Shape) && kind != pattern.Broadcast {
			t.Errorf("%s %v: said %s %v", kind, app.Shape, x.Kind, x.Shape)
			continue
		}
		// With its members renamed by their places, what was seen is the pattern itself.
		place := make([]int, n)
		for k, m := range x.Members {
			place[m] = k
		}
		for pair := range talks {
			if at := [2]int{place[names[pair[0]]], place[names[pair[1]]]}; talks[at] == 0 {
				t.Errorf("%s: %v is no bond at %v", kind, pair, at)
			}
		}
		if x.Coverage < 0.99 || len(x.Evidence) < 3 {
			t.Errorf("%s: coverage %v, evidence %q", kind, x.Coverage, x.Evidence)
		}
	}
}

// deployment makes a graph of conversations, "client server port request reply".
func deployment(lines ...string) (g pattern.Graph, members []int) {
	number := map[string]int{}
	node := func(name string) int {
		if _, ok := number[name]; !ok {
			number[name] = len(g.Ends)
			members = append(members, len(g.Ends))
			var end traffic.End
			if err := end.UnmarshalText([]byte(name)); err != nil {
				panic(err)
			}
			g.Ends = append(g.Ends, end)
		}
		return number[name]
	}
	for _, line := range lines {
		var client, server string
		var port uint16
		var request, reply float64
		if _, err := fmt.Sscan(line, &client, &server, &port, &request, &reply); err != nil {
			panic(err)
		}
		s := traffic.Service{Protocol: traffic.TCP, Port: port}
		c, d := node(client), node(server)
		g.Edges = append(g.Edges,
			pattern.Edge{From: c, To: d, Bytes: request, Low: request, High: request, Packets: request/200 + 1, Service: s},
			pattern.Edge{From: d, To: c, Bytes: reply, Low: reply, High: reply, Packets: reply/1000 + 1, Service: s, Reply: true})
	}
	members = slices.DeleteFunc(members, func(i int) bool { return !g.Ends[i].IsVM() })
	slices.SortFunc(g.Edges, func(a, b pattern.Edge) int { return 1000*(a.From-b.From) + a.To - b.To })
	return g, members
}

func TestTiers(t *testing.T) {
	for _, x := range []struct {
		name  string
		kind  pattern.Kind
		lines []string
		want  string
	}{
		{"nginx before three backends", "", []string{"198.51.100.0/24 nginx 443 40e3 900e3",
			"nginx b1 8080 15e3 310e3", "nginx b2 8080 14e3 290e3", "nginx b3 8080 16e3 300e3"},
			"tcp/443 server, client of tcp/8080: nginx; tcp/8080 servers: b1 b2 b3"},
		{"pgbench", pattern.Star, []string{"c1 db 5432 30e3 60e3", "c2 db 5432 9e3 20e3", "c3 db 5432 50e3 110e3", "c4 db 5432 20e3 35e3", "c5 db 5432 11e3 24e3", "c1 c2 22 200 300"},
			"tcp/5432 server: db; clients of tcp/5432: c1 c2 c3 c4 c5"},
		{"redis", pattern.Star, []string{"w1 redis 6379 80e3 40e3", "w2 redis 6379 9e3 20e3", "w3 redis 6379 30e3 90e3"},
			"tcp/6379 server: redis; clients of tcp/6379: w1 w2 w3"},
		{"etcd", "", []string{"e1 e2 2380 50e3 20e3", "e2 e3 2380 30e3 22e3", "e3 e1 2380 25e3 45e3",
			"k1 e1 2379 10e3 30e3", "k2 e2 2379 9e3 28e3", "k1 e3 2379 8e3 25e3"},
			"tcp/2379 servers, peers over tcp/2380: e1 e2 e3; clients of tcp/2379: k1 k2"},
		{"iperf3 mesh", pattern.AllToAll, []string{"a b 5201 9e6 8e6", "b c 5201 9e6 9e6", "c d 5201 8e6 9e6", "d a 5201 9e6 8e6", "a c 5201 7e6 9e6", "b d 5201 9e6 8e6"},
			"peers over tcp/5201: a b c d"},
	} {
		t.Run(x.name, func(t *testing.T) {
			g, members := deployment(x.lines...)
			group := pattern.Classify(g, members)
			if x.kind != "" && group.Kind != x.kind {
				t.Errorf("said %s, for %q", group.Kind, group.Evidence)
			}
			var said []string
			for _, tier := range group.Tiers {
				var names []string
				for _, m := range tier.Members {
					names = append(names, m.String())
				}
				slices.Sort(names)
				said = append(said, tier.Name+": "+strings.Join(names, " "))
			}
			slices.Sort(said)
			want := strings.Split(x.want, "; ")
			slices.Sort(want)
			if !slices.Equal(said, want) {
				t.Errorf("%s: said\n%s\nwant\n%s", group.Kind, strings.Join(said, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

func BenchmarkClassify(b *testing.B) {
	for _, n := range []int{12, 64} {
		for _, kind := range synth.Kinds {
			truth := synth.Generate(synth.Config{Seed: 1, Kinds: []pattern.Kind{kind}, VMs: 2*n + 32, MinSize: n, MaxSize: n, Background: 0.05})
			b.Run(fmt.Sprintf("%s-%d", kind, n), func(b *testing.B) {
				for b.Loop() {
					pattern.Classify(truth.Graph, truth.Apps[0].Members)
				}
			})
		}
	}
}
