package synth

import (
	"fmt"
	"math"
	"math/rand/v2"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
)

// World makes windows of the same applications one after the other. Their rates vary by a
// tenth from window to window, over a background that is another one each time.
type World struct {
	Apps []App

	config Config
	r      *rand.Rand
	made   []placed
}

// placed is what an application sends, numbered as Make numbers its members.
type placed struct {
	edges []pattern.Edge
	scale float64 // bytes per second
}

// NewWorld fills a network with applications.
func NewWorld(c Config) *World {
	c = c.defaults()
	w := &World{config: c, r: rand.New(rand.NewPCG(c.Seed, 4))}
	places := w.r.Perm(c.VMs)
	for limit := int(float64(c.VMs) * (1 - c.Alone)); ; {
		app, edges := Make(c.Kinds[w.r.IntN(len(c.Kinds))], c.MinSize+w.r.IntN(c.MaxSize-c.MinSize+1), c.Skew, w.r)
		n := len(app.Members)
		if n > limit {
			return w
		}
		app.Members, places, limit = places[:n], places[n:], limit-n
		w.Apps = append(w.Apps, app)
		w.made = append(w.made, placed{edges, 1e5 * math.Pow(10, 2*w.r.Float64()-1)})
	}
}

// Turn gives application i another pattern among the same VMs; false: that pattern has no
// graph of so many.
func (w *World) Turn(i int, kind pattern.Kind) bool {
	n := len(w.Apps[i].Members)
	for range 8 { // a butterfly's size is drawn
		app, edges := Make(kind, n, w.config.Skew, w.r)
		if len(app.Members) == n {
			w.Apps[i].Kind, w.Apps[i].Shape, w.made[i].edges = kind, app.Shape, edges
			return true
		}
	}
	return false
}

// Window makes the next one. Of a VM of each application that moved in it a tenth is missing.
func (w *World) Window(moved bool) pattern.Graph {
	var g pattern.Graph
	for i := range w.config.VMs {
		g.Ends = append(g.Ends, traffic.VM(heliotrope.VMID(fmt.Sprintf("vm-%04d", i))))
	}
	edges := map[[2]int]pattern.Edge{}
	var rates []float64
	for i, app := range w.made {
		members := w.Apps[i].Members
		gone := w.r.IntN(len(members))
		for _, e := range app.edges {
			f := app.scale * math.Exp(0.1*w.r.NormFloat64())
			if moved && e.From == gone {
				f *= 0.9
			}
			e = scaled(e, f)
			e.From, e.To = members[e.From], members[e.To]
			edges[[2]int{e.From, e.To}] = e
			rates = append(rates, e.Bytes)
		}
	}
	background(w.config, edges, rates, w.r)
	g.Edges = seen(w.config, edges, w.r)
	return g
}
