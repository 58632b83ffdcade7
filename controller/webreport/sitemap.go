package webreport

import (
	"cmp"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"heliotrope"
	"heliotrope/controller/webreport/plane"
	"heliotrope/scheduler"
	"heliotrope/scheduler/atlas"
)

// The map of sites, in pixels.
const (
	mapWide     = 1080.0
	mapLow      = 300.0 // it is as high as its sites need, from this
	mapHigh     = 700.0 // to this
	siteHigh    = 46.0
	siteLetters = 16 // of a site's name
	allWays     = 6  // sites of which each two have a line; of more, those with traffic have
	wayLimit    = 40 // lines
	wayMany     = 12 // from which on they are thinner, and nearly straight
	arrowLimit  = 40 // arrows of moves
	arrowNames  = 3  // VMs that an arrow names
)

func (d *drawing) curve(c plane.Curve) {
	d.put("M%v %vQ%v %v %v %v", c[0][0], c[0][1], c[1][0], c[1][1], c[2][0], c[2][1])
}

// siteMap is a map with a place for all that is on it.
type siteMap struct {
	*atlas.Map
	high  float64
	sites []plane.Box
	taken []plane.Box // by sites and labels
	bare  int         // lines that were left out, and lines and arrows without a label, since there was no room
	moves int         // arrows that were left out
}

// drawMap draws sites as far from each other as their round trips say, what goes between
// them before and after as two lines side by side, and moves as arrows.
func drawMap(m *atlas.Map, moves []scheduler.Move) (picture template.HTML, bare, leftOut int) {
	g := seat(m)
	arrows := g.arrows(moves) // first: they choose where to be written
	lines := g.lines(moves)
	var d drawing
	d.open("map", mapWide, g.high, "Map of the sites",
		fmt.Sprintf("%s with their VMs, as far apart as their round trips are long; lines are traffic before and after, arrows are %s. The tables say the same in numbers.", plural(len(m.Sites), "site"), plural(len(moves), "move")))
	for _, l := range lines {
		l.draw(&d)
	}
	for _, a := range arrows {
		a.draw(&d)
	}
	for i, b := range g.sites {
		s := m.Sites[i]
		d.put(`<g><title>%v: %v</title><rect class="place" x="%v" y="%v" width="%v" height="%v" rx="7"/>`, s.ID, vmsOf(s), b.X-b.Wide/2, b.Y-b.High/2, b.Wide, b.High)
		d.text("mid sitename", b.X, b.Y-3, clip(string(s.ID), siteLetters))
		d.text("mid small", b.X, b.Y+14, vmsOf(s))
		d.put(`</g>`)
	}
	for _, l := range lines {
		l.label.draw(&d)
	}
	for _, a := range arrows {
		a.label.draw(&d)
	}
	d.put(`</svg>`)
	return d.html(), g.bare, g.moves
}

// vmsOf says how many VMs are at a site, before and after.
func vmsOf(s atlas.SiteVMs) string {
	switch {
	case s.VMs != s.After:
		return fmt.Sprintf("%d → %s", s.VMs, plural(s.After, "VM"))
	case s.VMs == 0:
		return "no VMs"
	}
	return plural(s.VMs, "VM")
}

// seat gives each site its place: where its round trips put it, and then aside, so that
// none covers another and there is room for what is written between them.
func seat(m *atlas.Map) *siteMap {
	g := &siteMap{Map: m, high: mapLow}
	widest := 0.0
	for _, s := range m.Sites {
		letters := max(min(siteLetters, utf8.RuneCountInString(string(s.ID)))*9, utf8.RuneCountInString(vmsOf(s))*7)
		g.sites = append(g.sites, plane.Box{Wide: float64(max(76, letters+24)), High: siteHigh})
		widest = max(widest, g.sites[len(g.sites)-1].Wide)
	}
	const margin = 74.0 // above and below, where arrows bend
	at := atlas.Place(m.Distances())
	first, last := [2]float64{math.Inf(1), math.Inf(1)}, [2]float64{math.Inf(-1), math.Inf(-1)}
	for _, p := range at {
		for axis := range p {
			first[axis], last[axis] = min(first[axis], p[axis]), max(last[axis], p[axis])
		}
	}
	wide, high := last[0]-first[0], last[1]-first[1]
	scale := math.Inf(1)
	if wide > 0 {
		scale = (mapWide - widest - 40) / wide
	}
	if high > 0 {
		scale = min(scale, (mapHigh-2*margin-siteHigh)/high)
	}
	if math.IsInf(scale, 0) {
		scale = 0
	}
	g.high = min(mapHigh, max(mapLow, high*scale+2*margin+siteHigh, float64(len(at))*mapHigh/10))
	f := plane.Frame{Wide: mapWide, High: g.high, Aside: 8, Margin: margin / 2}
	for _, gap := range [][2]float64{{170, 64}, {90, 40}, {30, 16}} {
		for i, p := range at {
			g.sites[i].X, g.sites[i].Y = mapWide/2+scale*(p[0]-(first[0]+last[0])/2), g.high/2+scale*(p[1]-(first[1]+last[1])/2)
		}
		if f.Part(g.sites, gap[0], gap[1]) {
			g.taken = slices.Clone(g.sites)
			return g
		}
	}
	g.grid(widest)
	g.taken = slices.Clone(g.sites)
	return g
}

// grid is for sites that are too many to stand where they ought to.
func (g *siteMap) grid(widest float64) {
	cols := max(1, int(mapWide/(widest+30)))
	rows := (len(g.sites) + cols - 1) / cols
	g.high = max(g.high, float64(rows)*(siteHigh+40)+40)
	order := numbers(len(g.sites))
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(g.sites[i].Y, g.sites[j].Y) })
	row := 0
	for line := range slices.Chunk(order, cols) {
		slices.SortStableFunc(line, func(i, j int) int { return cmp.Compare(g.sites[i].X, g.sites[j].X) })
		for k, i := range line {
			g.sites[i].X = mapWide * (float64(k) + 0.5) / float64(cols)
			g.sites[i].Y = 20 + (g.high-40)*(float64(row)+0.5)/float64(rows)
		}
		row++
	}
}

// label is what is written at a line, in one or two lines.
type label struct {
	plane.Box
	class string
	text  []string
}

func (l label) draw(d *drawing) {
	if l.text == nil {
		return
	}
	d.put(`<rect class="plate" x="%v" y="%v" width="%v" height="%v" rx="4"/>`, l.X-l.Wide/2, l.Y-l.High/2, l.Wide, l.High)
	for i, s := range l.text {
		class := l.class
		if i > 0 {
			class = "small"
		}
		d.text("mid "+class, l.X, l.Y+4+15*(float64(i)-float64(len(l.text)-1)/2), s)
	}
}

// write finds a place for a label along a curve.
func (g *siteMap) write(c plane.Curve, class string, text ...string) (label, bool) {
	letters := 0
	for _, s := range text {
		letters = max(letters, utf8.RuneCountInString(s))
	}
	l := label{plane.Box{Wide: 6.8*float64(letters) + 10, High: 15*float64(len(text)) + 4}, class, text}
	for _, t := range []float64{0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.18, 0.82} {
		l.X, l.Y = c.At(t)
		if l.In(mapWide, g.high, 2) && !slices.ContainsFunc(g.taken, func(b plane.Box) bool { return l.Near(b, 4, 3) }) {
			return l, true
		}
	}
	return label{}, false
}

// clear says whether a curve between two sites stays in the picture and out of all others.
func (g *siteMap) clear(c plane.Curve, from, to int) bool {
	for t := 0.04; t < 1; t += 0.04 {
		x, y := c.At(t)
		dot := plane.Box{X: x, Y: y, Wide: 12, High: 12}
		if !dot.In(mapWide, g.high, 0) {
			return false
		}
		for i, b := range g.sites {
			if i != from && i != to && dot.Near(b, 0, 0) {
				return false
			}
		}
	}
	return true
}

// way leads from one site to another by the first of some bends that is clear and has room
// for a label, or else is clear.
func (g *siteMap) way(from, to int, bends []float64, class string, text ...string) (plane.Curve, label) {
	var found *plane.Curve
	for _, aside := range bends {
		c := plane.Bent(g.sites[from], g.sites[to], aside)
		if !g.clear(c, from, to) {
			continue
		}
		if l, ok := g.write(c, class, text...); ok {
			g.taken = append(g.taken, l.Box)
			return c, l
		}
		if found == nil {
			found = &c
		}
	}
	g.bare++
	if found == nil {
		c := plane.Bent(g.sites[from], g.sites[to], bends[0])
		found = &c
	}
	return *found, label{}
}

// line is what goes between two sites.
type line struct {
	plane.Curve
	label         label
	title         string
	before, after float64 // pixels; 0: nothing
}

func (l line) draw(d *drawing) {
	if l.before+l.after == 0 {
		d.put(`<path class="far0" d="`)
		d.curve(l.Curve)
		d.put(`"><title>%v</title></path>`, l.title)
	}
	for _, s := range []struct {
		class      string
		wide, side float64
	}{{"was", l.before, -1}, {"is", l.after, 1}} {
		if s.wide > 0 {
			d.put(`<path class="%v" stroke-width="%v" d="`, s.class, s.wide)
			d.curve(l.Beside(s.side * (s.wide/2 + 0.7)))
			d.put(`"><title>%v</title></path>`, l.title)
		}
	}
}

// lines are those between sites, the strongest first.
func (g *siteMap) lines(moves []scheduler.Move) []line {
	type pair struct {
		a, b          int
		before, after float64
		moves         bool
	}
	before, after := g.Rates(func(w atlas.Way) float64 { return w.Before }), g.Rates(func(w atlas.Way) float64 { return w.After })
	far := g.Distances()
	var pairs []pair
	most := 0.0
	for a := range g.Sites {
		for b := a + 1; b < len(g.Sites); b++ {
			p := pair{a, b, finite(before[a][b] + before[b][a]), finite(after[a][b] + after[b][a]), false}
			p.moves = slices.ContainsFunc(moves, func(m scheduler.Move) bool {
				x, y := g.Sites[a].ID, g.Sites[b].ID
				return m.FromSite == x && m.ToSite == y || m.FromSite == y && m.ToSite == x
			})
			most = max(most, p.before, p.after)
			if p.before+p.after > 0 || far[a][b] > 0 && (len(g.Sites) <= allWays || p.moves) {
				pairs = append(pairs, p)
			}
		}
	}
	slices.SortStableFunc(pairs, func(p, q pair) int { return cmp.Compare(q.before+q.after, p.before+p.after) })
	pairs, more := cut(pairs, wayLimit)
	g.bare += more
	bends, widest := []float64{0, 45, -45, 80, -80, 120, -120, 170, -170}, 9.0
	if len(pairs) > wayMany {
		bends, widest = bends[:5], 9*math.Sqrt(wayMany/float64(len(pairs)))
	}
	wide := func(rate float64) float64 {
		if rate <= 0 {
			return 0
		}
		return 1.5 + widest*math.Sqrt(rate/most)
	}
	var lines []line
	for _, p := range pairs {
		l := line{before: wide(p.before), after: wide(p.after)}
		text := []string{millis(far[p.a][p.b])}
		switch {
		case p.before == p.after && p.before > 0:
			text = append(text, rate(p.before))
		case p.before+p.after > 0:
			text = append(text, rate(p.before)+" → "+rate(p.after))
		}
		l.title = fmt.Sprintf("%s – %s: round trip %s; %s before, %s after", g.Sites[p.a].ID, g.Sites[p.b].ID, millis(far[p.a][p.b]), rate(p.before), rate(p.after))
		l.Curve, l.label = g.way(p.a, p.b, bends, "group", text...)
		lines = append(lines, l)
	}
	return lines
}

// arrow is the moves from one site to another.
type arrow struct {
	plane.Curve
	label label
	title string
	hop   bool
}

func (a arrow) draw(d *drawing) {
	class := "go"
	if a.hop {
		class = "go hop"
	}
	d.put(`<path class="%v" d="`, class)
	d.curve(a.Curve)
	d.put(`"><title>%v</title></path>`, a.title)
	degrees := math.Atan2(a.Curve[2][1]-a.Curve[1][1], a.Curve[2][0]-a.Curve[1][0]) * 180 / math.Pi
	d.put(`<path class="gohead" transform="translate(%v,%v) rotate(%v)" d="M1 0L-11 -5.5V5.5z"/>`, a.Curve[2][0], a.Curve[2][1], degrees)
}

// arrows are the moves from site to site.
func (g *siteMap) arrows(moves []scheduler.Move) []arrow {
	type key struct {
		from, to heliotrope.SiteID
		hop      bool
	}
	var order []key
	vms := map[key][]string{}
	for _, m := range moves {
		k := key{m.FromSite, m.ToSite, m.Temporary}
		if k.from == k.to || g.number(k.from) < 0 || g.number(k.to) < 0 {
			continue
		}
		if vms[k] == nil {
			order = append(order, k)
		}
		vms[k] = append(vms[k], string(m.VM))
	}
	order, g.moves = cut(order, arrowLimit)
	var arrows []arrow
	for _, k := range order {
		from, to := g.number(k.from), g.number(k.to)
		names, more := cut(vms[k], arrowNames)
		short := make([]string, len(names))
		for i, name := range names {
			short[i] = clip(name, 12)
		}
		text := strings.Join(short, ", ")
		if more > 0 {
			text = fmt.Sprintf("%s and %d more", text, more)
		}
		a := arrow{hop: k.hop, title: fmt.Sprintf("%s → %s: %s", k.from, k.to, clip(strings.Join(vms[k], ", "), 400))}
		var c plane.Curve
		c, a.label = g.way(from, to, []float64{52, 70, 95, 125, 160, -52, -70, -95, -125, -160}, "moved", text)
		a.Curve = c.Outside(g.sites[from], g.sites[to])
		arrows = append(arrows, a)
	}
	return arrows
}

func (g *siteMap) number(id heliotrope.SiteID) int {
	return slices.IndexFunc(g.Sites, func(s atlas.SiteVMs) bool { return s.ID == id })
}
