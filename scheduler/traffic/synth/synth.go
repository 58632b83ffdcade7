// Package synth makes traffic matrices of which it is known what is in them: applications
// of every pattern, with unequal volumes, acknowledgements, background noise, sampling and
// hosts that do not count. Inference is held against them (score.go, grouping.go), and the
// lab's endpoints drive the same patterns for real.
//
// What it makes is a function of its Config alone.
//
// # What is taken to be true of applications
//
// An application's rates lie within two decades of another's. Its edges differ by a
// log-normal factor of σ = Skew. What goes one way over TCP comes back as acknowledgements of
// 1 to 4 % of the bytes. A star's clients differ by a decade, ask little and get much; a
// master's workers get even shares and send about as much back.
//
// # What is taken to be background
//
// A share of all ordered pairs, each with a rate that is log-uniform between 0.1 % and 10 % of
// the median rate of the applications' edges of the whole matrix. So the noise at an
// application that is ten times slower than the others is as loud as itself.
package synth

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
)

// Kinds are the patterns that Generate makes.
var Kinds = []pattern.Kind{pattern.Star, pattern.MasterWorker, pattern.Ring, pattern.Pipeline, pattern.Tree, pattern.Broadcast,
	pattern.Stencil1D, pattern.Torus1D, pattern.Stencil2D, pattern.Torus2D, pattern.Stencil3D, pattern.Torus3D,
	pattern.Butterfly, pattern.Shuffle, pattern.AllToAll, pattern.Random}

// Config says what to make. Zero fields take their defaults.
type Config struct {
	Seed             uint64
	VMs              int            // 150
	Kinds            []pattern.Kind // Kinds
	MinSize, MaxSize int            // VMs of one application: 6 to 20; a pattern that has no such size takes the next
	Background       float64        // share of all ordered pairs that carry background traffic
	Sampling         int            // one of so many packets is seen; 1: all
	Window           float64        // seconds that are seen: 10
	MissingHosts     float64        // share of VMs of which nothing that they send is counted
	Skew             float64        // σ of the logarithm of an edge's rate within its application: 0.5
	Alone            float64        // share of VMs in no application: 0.05
	OneWay           float64        // share of the edges that are over UDP: nothing acknowledges what they carry
	Moved            bool           // one VM of each application moved in the window: a tenth of what it sent is missing
}

func (c Config) defaults() Config {
	c.VMs, c.MinSize, c.MaxSize = cmp.Or(c.VMs, 150), cmp.Or(c.MinSize, 6), cmp.Or(c.MaxSize, 20)
	c.Sampling, c.Window, c.Skew = cmp.Or(c.Sampling, 1), cmp.Or(c.Window, 10), cmp.Or(c.Skew, 0.5)
	c.Alone = cmp.Or(c.Alone, 0.05)
	if len(c.Kinds) == 0 {
		c.Kinds = Kinds
	}
	return c
}

// App is one application: Members are nodes of the graph in the pattern's own order.
type App struct {
	Kind    pattern.Kind
	Members []int
	Shape   []int
}

// Truth is what is in a graph.
type Truth struct {
	Apps  []App
	Graph pattern.Graph // as it is seen
}

// Labels gives each VM the number of its application, and those in none -1.
func (t Truth) Labels() []int {
	labels := make([]int, len(t.Graph.Ends))
	for i := range labels {
		labels[i] = -1
	}
	for a, app := range t.Apps {
		for _, m := range app.Members {
			labels[m] = a
		}
	}
	return labels
}

// Generate makes a matrix.
func Generate(c Config) Truth {
	c = c.defaults()
	r := rand.New(rand.NewPCG(c.Seed, 0x5eed))
	var t Truth
	for i := range c.VMs {
		t.Graph.Ends = append(t.Graph.Ends, traffic.VM(heliotrope.VMID(fmt.Sprintf("vm-%d", i))))
	}
	places := r.Perm(c.VMs)
	edges := map[[2]int]pattern.Edge{}
	var rates []float64
	limit := int(math.Ceil(float64(c.VMs) * (1 - c.Alone)))
	for misses := 0; ; {
		app, made := Make(c.Kinds[r.IntN(len(c.Kinds))], c.MinSize+r.IntN(c.MaxSize-c.MinSize+1), c.Skew, r)
		n := len(app.Members)
		if n > limit && len(t.Apps) == 0 && misses < 100 {
			misses++
			continue // a small network has room for a smaller one
		}
		if n > limit {
			break
		}
		mine := places[:n]
		places, limit = places[n:], limit-n
		scale := 1e5 * math.Pow(10, 2*r.Float64()-1)
		moved := r.IntN(n)
		for _, e := range made {
			if c.Moved && e.From == moved {
				e = scaled(e, 0.9)
			}
			e.From, e.To = mine[e.From], mine[e.To]
			e = scaled(e, scale)
			if c.OneWay > 0 && e.Reply && e.Bytes <= ack*e.Packets && r.Float64() < c.OneWay {
				continue
			}
			edges[[2]int{e.From, e.To}] = e
			rates = append(rates, e.Bytes)
		}
		for i, m := range app.Members {
			app.Members[i] = mine[m]
		}
		t.Apps = append(t.Apps, app)
	}
	background(c, edges, rates, r)
	t.Graph.Edges = seen(c, edges, r)
	return t
}

func scaled(e pattern.Edge, f float64) pattern.Edge {
	e.Bytes, e.Packets, e.Flows = e.Bytes*f, e.Packets*f, e.Flows*f
	return e
}

// background adds noise between random ordered pairs.
func background(c Config, edges map[[2]int]pattern.Edge, rates []float64, r *rand.Rand) {
	// Acknowledgements are not what an application's rate is.
	slices.Sort(rates)
	median := 1e5
	if strong := rates[len(rates)/3:]; len(strong) > 0 {
		median = strong[len(strong)/2]
	}
	for range int(c.Background * float64(c.VMs) * float64(c.VMs-1)) {
		from, to := r.IntN(c.VMs), r.IntN(c.VMs)
		if from == to {
			continue
		}
		bytes := median * math.Pow(10, -1-2*r.Float64())
		e := edges[[2]int{from, to}]
		if e.Bytes == 0 {
			e = pattern.Edge{From: from, To: to, Service: traffic.Service{Protocol: traffic.TCP, Port: uint16(1024 + r.IntN(30000))}}
		}
		e.Bytes += bytes
		e.Packets += bytes / float64(80+r.IntN(1200))
		e.Flows += 0.1
		edges[[2]int{from, to}] = e
	}
}

// seen is what of edges is counted, ordered by From and To.
func seen(c Config, edges map[[2]int]pattern.Edge, r *rand.Rand) []pattern.Edge {
	deaf := map[int]bool{}
	for range int(math.Round(c.MissingHosts * float64(c.VMs))) {
		deaf[r.IntN(c.VMs)] = true
	}
	keys := make([][2]int, 0, len(edges))
	for k := range edges {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b [2]int) int { return cmp.Or(a[0]-b[0], a[1]-b[1]) })
	var list []pattern.Edge
	for _, k := range keys {
		e := edges[k]
		e.Low, e.High = e.Bytes, e.Bytes
		if deaf[e.From] || c.Sampling > 1 && !sample(&e, c, r) {
			continue
		}
		list = append(list, e)
	}
	return list
}

// sample sees one of N packets of an edge, and says whether that is any.
func sample(e *pattern.Edge, c Config, r *rand.Rand) bool {
	size := e.Bytes / max(e.Packets, 1e-9)
	k := poisson(e.Packets*c.Window/float64(c.Sampling), r)
	if k == 0 {
		return false
	}
	per := float64(c.Sampling) / c.Window
	e.Packets = k * per
	e.Bytes = e.Packets * size
	half := 1.96 * math.Sqrt(k) * per * size
	e.Low, e.High = max(e.Bytes-half, size*per/20), e.Bytes+half+2*per*size
	e.Flows *= 1 / float64(c.Sampling)
	return true
}

// poisson draws a number of events of which mean are expected.
func poisson(mean float64, r *rand.Rand) float64 {
	if mean > 50 {
		return max(math.Round(mean+math.Sqrt(mean)*r.NormFloat64()), 0)
	}
	n, p, least := 0.0, 1.0, math.Exp(-mean)
	for p *= r.Float64(); p > least; p *= r.Float64() {
		n++
	}
	return n
}
