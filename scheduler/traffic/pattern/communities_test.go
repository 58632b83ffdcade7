package pattern_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
)

func vm(i int) traffic.End { return traffic.VM(heliotrope.VMID(fmt.Sprintf("vm-%04d", i))) }

// rates makes a graph of bytes per second from one VM to another.
func rates(edges map[[2]int]float64) pattern.Graph {
	m := traffic.Matrix{From: time.Unix(0, 0), To: time.Unix(60, 0)}
	for ends, rate := range edges {
		m.Cells = append(m.Cells, traffic.Cell{Src: vm(ends[0]), Dst: vm(ends[1]), Bytes: 60 * rate, Packets: rate / 10})
	}
	return pattern.FromMatrix(m)
}

func TestFromMatrix(t *testing.T) {
	web := traffic.Service{Protocol: traffic.TCP, Port: 443}
	users := traffic.Outside(netip.MustParsePrefix("198.51.100.0/24"))
	g := pattern.FromMatrix(traffic.Matrix{
		From: time.Unix(100, 0), To: time.Unix(110, 0),
		Cells: []traffic.Cell{
			{Src: users, Dst: vm(2), Bytes: 10, Low: 5, High: 20, Packets: 1, Flows: 1},
			{Src: vm(2), Dst: vm(1), Bytes: 1000, Low: 900, High: 1100, Packets: 20, Flows: 2,
				Services: []traffic.ServiceShare{{Service: web, Reply: true, Bytes: 900}, {Bytes: 100}}},
			{Src: vm(2), Dst: vm(2), Bytes: 7},
			{Src: vm(1), Dst: vm(2)},
		},
	})
	want := pattern.Graph{
		Ends: []traffic.End{vm(1), vm(2), users},
		Edges: []pattern.Edge{
			{From: 1, To: 0, Bytes: 100, Low: 90, High: 110, Packets: 2, Flows: 0.2, Service: web, Reply: true},
			{From: 2, To: 1, Bytes: 1, Low: 0.5, High: 2, Packets: 0.1, Flows: 0.1},
		},
	}
	if !reflect.DeepEqual(g, want) {
		t.Errorf("got  %+v\nwant %+v", g, want)
	}
}

// A community has no least density and no size that the others' sizes dictate: where
// modularity joins neighbouring rings or parts long ones, each is found as it is.
func TestNoResolutionLimit(t *testing.T) {
	for _, size := range []int{3, 8, 40} {
		for _, rings := range []int{1, 30} {
			r := rand.New(rand.NewPCG(1, uint64(size)))
			edges := make(map[[2]int]float64)
			for k := range rings * size {
				next := k + 1
				if next%size == 0 {
					next -= size
				}
				edges[[2]int{k, next}] = 1e6 * math.Exp(0.3*r.NormFloat64())
				edges[[2]int{next, k}] = 3e4
			}
			for k := range rings { // a trickle ties each to the next
				if rings > 1 {
					edges[[2]int{k * size, (k + 1) % rings * size}] = 1e3
				}
			}
			got := pattern.Communities(rates(edges))
			if len(got) != rings {
				t.Errorf("%d rings of %d: %d communities", rings, size, len(got))
			}
			for _, c := range got {
				if len(c) != size || c[0]%size != 0 || c[size-1] != c[0]+size-1 {
					t.Errorf("%d rings of %d: found %v", rings, size, c)
				}
			}
		}
	}
}

// Whatever is counted, communities are of VMs, apart, ordered, and the same again.
func TestCommunitiesOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(t, "ends")
		g := pattern.Graph{}
		for i := range n {
			g.Ends = append(g.Ends, vm(i))
		}
		g.Ends = append(g.Ends, traffic.Outside(netip.MustParsePrefix("192.0.2.0/24")))
		for from := range g.Ends {
			for to := range g.Ends {
				if from != to && rapid.Bool().Draw(t, "talk") {
					g.Edges = append(g.Edges, pattern.Edge{From: from, To: to, Bytes: rapid.Float64Range(0, 1e15).Draw(t, "bytes")})
				}
			}
		}
		all := pattern.Communities(g)
		seen := make(map[int]bool)
		for _, c := range all {
			if len(c) < 2 || !slices.IsSorted(c) {
				t.Fatalf("community %v", c)
			}
			for _, i := range c {
				if seen[i] || !g.Ends[i].IsVM() {
					t.Fatalf("%d is in %v, and no VM or in two", i, all)
				}
				seen[i] = true
			}
		}
		if again := pattern.Communities(g); !reflect.DeepEqual(all, again) {
			t.Fatalf("%v, then %v", all, again)
		}
	})
}

// Where there is nothing but background, and not so little of it that who talks at all
// stands out, next to nothing is found in it.
func TestBackgroundIsNoCommunity(t *testing.T) {
	for _, share := range []float64{0.1, 0.2, 0.5} {
		grouped, vms := 0, 0
		for seed := range uint64(20) {
			r := rand.New(rand.NewPCG(seed, 2))
			edges := make(map[[2]int]float64)
			for a := range 150 {
				for b := range a {
					if r.Float64() < share {
						edges[[2]int{a, b}] = math.Pow(10, 3+2*r.Float64())
					}
				}
			}
			g := rates(edges)
			vms += len(g.Ends)
			for _, c := range pattern.Communities(g) {
				grouped += len(c)
			}
		}
		if grouped > vms/20 {
			t.Errorf("%v of the pairs: %d of %d VMs in communities", share, grouped, vms)
		}
	}
}
