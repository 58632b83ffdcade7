package webreport

import (
	"cmp"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// The graph, in pixels.
const (
	graphWide, graphHigh = 1000.0, 800.0
	graphLabel           = 18 // runes of a node's name
)

// graph is a network with a place for all.
type graph struct {
	network
	places  []place
	sectors []float64 // the middle angle of each
	arcs    []arc
	radius  float64 // of the nodes
	border  float64 // radius of the arcs, outside the names
}

// place is where a node stands on the circle.
type place struct {
	angle  float64 // clockwise, 0 is up
	sector int     // nodes of one site and section stand together
}

// arc is the part of the circle that a site has.
type arc struct {
	site     string
	from, to float64
	nodes    int
}

// drawGraph draws nodes on a circle, by site and then by group, and a line between any two
// that talk. Lines between the same two groups come near each other in the middle, so that
// what is large stays visible; names stand outside, where no line is.
func drawGraph(n network) template.HTML {
	g := arrange(n)
	var d drawing
	d.open("graph", graphWide, graphHigh, "Graph of who talks to whom",
		fmt.Sprintf("%d nodes on a circle, by site and group. Wider lines are more bytes per second; of orange lines, most bytes cross sites.", len(n.nodes)))
	left := g.drawEdges(&d)
	for i := range g.nodes {
		g.drawNode(&d, i)
	}
	for _, a := range g.arcs {
		g.drawArc(&d, a)
	}
	if left > 0 {
		d.text("small", 0, graphHigh-4, fmt.Sprintf("The %d weakest lines are left out.", left))
	}
	d.put(`</svg>`)
	return d.html()
}

// siteRank puts what is no site behind those that are.
func siteRank(site string) int { return 1 + slices.Index([]string{manySite, notTold, outside}, site) }

// arrange gives each node its angle, each sector its middle, and each site its arc. A node
// has one unit of the circle, and so have the gaps: 0.7 between sectors, 1.7 between sites.
func arrange(n network) graph {
	const gap, siteGap = 0.7, 1.7
	g := graph{network: n, places: make([]place, len(n.nodes))}
	letters := 0
	for _, w := range n.nodes {
		letters = max(letters, min(graphLabel, utf8.RuneCountInString(w.name)))
	}
	g.border = graphHigh/2 - 26
	g.radius = g.border - 34 - 6.3*float64(letters)
	order := numbers(len(n.nodes))
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(siteRank(n.nodes[a].site), siteRank(n.nodes[b].site)),
			strings.Compare(n.nodes[a].site, n.nodes[b].site), cmp.Compare(n.nodes[a].section, n.nodes[b].section))
	})
	at, first := 0.0, 0.0 // units, of the next node and of its sector's first
	last := node{section: -1}
	for k, i := range order {
		w := n.nodes[i]
		site := k == 0 || w.site != last.site
		if site || w.section != last.section {
			switch {
			case k > 0 && site:
				at += siteGap
			case k > 0:
				at += gap
			}
			first = at
			g.sectors = append(g.sectors, at)
		}
		if site {
			g.arcs = append(g.arcs, arc{site: w.site, from: at - 0.5})
		}
		s, a := &g.sectors[len(g.sectors)-1], &g.arcs[len(g.arcs)-1]
		*s, a.to = (first+at)/2, at+0.5
		a.nodes++
		g.places[i] = place{at, len(g.sectors) - 1}
		last = w
		at++
	}
	turn := 2 * math.Pi / (at + siteGap)
	for i := range g.places {
		g.places[i].angle *= turn
	}
	for i := range g.sectors {
		g.sectors[i] *= turn
	}
	for i := range g.arcs {
		g.arcs[i].from *= turn
		g.arcs[i].to *= turn
	}
	return g
}

// point is at angle on a circle around the middle.
func point(angle, radius float64) (x, y float64) {
	sin, cos := math.Sincos(angle)
	return graphWide/2 + radius*sin, graphHigh/2 - radius*cos
}

// drawEdges draws the largest edges, the weakest first so that the strongest lie on top.
// It returns how many it left out.
func (g graph) drawEdges(d *drawing) int {
	type edge struct {
		a, b              int
		there, back, both float64
	}
	var edges []edge
	for a := range g.nodes {
		for b := a + 1; b < len(g.nodes); b++ {
			if there, back := g.rates[a][b], g.rates[b][a]; there+back > 0 {
				edges = append(edges, edge{a, b, there, back, there + back})
			}
		}
	}
	slices.SortStableFunc(edges, func(x, y edge) int { return cmp.Compare(y.both, x.both) })
	edges, left := cut(edges, edgeLimit)
	thin := min(1, math.Sqrt(50/float64(len(edges)))) // many wide lines would hide each other
	d.put(`<g class="edges">`)
	for _, e := range slices.Backward(edges) {
		a, b := g.nodes[e.a], g.nodes[e.b]
		class := "near"
		if g.crossing[e.a][e.b]+g.crossing[e.b][e.a] > e.both/2 {
			class = "far"
		}
		strength := thin * math.Sqrt(e.both/edges[0].both)
		d.put(`<path class="%v o%v" stroke-width="%v" d="`, class, int(min(4, 5*math.Sqrt(strength))), 0.8+6.2*strength)
		g.drawCurve(d, g.places[e.a], g.places[e.b])
		d.put(`"><title>%v → %v: %v, back: %v</title></path>`, a.name, b.name, rate(e.there), rate(e.back))
	}
	d.put(`</g>`)
	return left
}

// drawCurve leads from a to b: by way of their sectors' middles or, within a sector,
// towards the middle of the circle the more the farther they are apart.
func (g graph) drawCurve(d *drawing, a, b place) {
	ends, bundle := g.radius-8, g.radius*0.42
	ax, ay := point(a.angle, ends)
	bx, by := point(b.angle, ends)
	if a.sector == b.sector {
		x, y := point((a.angle+b.angle)/2, ends*max(-0.2, 0.93-0.6*math.Abs(a.angle-b.angle)))
		d.put("M%v %vQ%v %v %v %v", ax, ay, x, y, bx, by)
		return
	}
	x, y := point((3*g.sectors[a.sector]+a.angle)/4, bundle)
	z, w := point((3*g.sectors[b.sector]+b.angle)/4, bundle)
	d.put("M%v %vC%v %v %v %v %v %v", ax, ay, x, y, z, w, bx, by)
}

func (g graph) drawNode(d *drawing, i int) {
	w, angle := g.nodes[i], g.places[i].angle
	x, y := point(angle, g.radius)
	s := g.sections[w.section]
	size := 6.0
	if w.ends > 1 {
		size = 9
	}
	d.put(`<circle class="node %v" cx="%v" cy="%v" r="%v"><title>%v, %v, %v: sends and gets %v</title></circle>`,
		s.class, x, y, size, w.name, s.title, w.site, rate(w.volume))
	x, y = point(angle, g.radius+15)
	degrees, class := angle*180/math.Pi-90, "name"
	if angle > math.Pi { // not upside down
		degrees, class = degrees+180, "end name"
	}
	d.put(`<text class="%v" transform="translate(%v,%v) rotate(%v)" dy="4">%v<title>%v</title></text>`,
		class, x, y, degrees, clip(w.name, graphLabel), w.name)
}

// drawArc draws a site around its nodes' names, and its name.
func (g graph) drawArc(d *drawing, a arc) {
	x1, y1 := point(a.from, g.border)
	x2, y2 := point(a.to, g.border)
	large := 0
	if a.to-a.from > math.Pi {
		large = 1
	}
	d.put(`<path class="site" d="M%v %vA%v %v 0 %v 1 %v %v"/>`, x1, y1, g.border, g.border, large, x2, y2)
	middle := (a.from + a.to) / 2
	x, y := point(middle, g.border+12)
	class := "mid"
	switch sin := math.Sin(middle); {
	case sin > 0.3:
		class = "start"
	case sin < -0.3:
		class = "end"
	}
	d.put(`<text class="%v sitename" x="%v" y="%v">%v<title>%v: %d nodes</title></text>`,
		class, x, y+5-5*math.Cos(middle), clip(a.site, 14), a.site, a.nodes)
}
