package webreport

import (
	"cmp"
	"fmt"
	"html/template"
	"time"

	"heliotrope/controller/webreport/pictogram"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/report"
)

// card is a group as the page shows it.
type card struct {
	report.Group
	Class   string
	Means   string // the pattern in words
	Size    int
	Sketch  bool // the picture has fewer nodes than the group
	Picture template.HTML
	Strip   template.HTML // its phases
	Phases  []phase
	More    int // phases that were not drawn
}

// phase is a time with one pattern.
type phase struct {
	From, To time.Time
	Kind     pattern.Kind
	Now      bool
}

// kinds says each pattern in words; patterns of one family have one colour.
var kinds = map[pattern.Kind]struct{ means, class string }{
	pattern.Pair:         {"two VMs with each other", "g6"},
	pattern.Star:         {"clients around a server that answers them", "g0"},
	pattern.MasterWorker: {"a master hands work out evenly and takes results back", "g0"},
	pattern.Ring:         {"each to the next, the last to the first", "g1"},
	pattern.Pipeline:     {"each to the next", "g1"},
	pattern.Tree:         {"parents and children", "g4"},
	pattern.Broadcast:    {"a binomial tree, from or to its root", "g4"},
	pattern.Stencil1D:    {"neighbours on a line, both ways", "g5"},
	pattern.Torus1D:      {"neighbours on a circle, both ways", "g5"},
	pattern.Stencil2D:    {"neighbours on a grid", "g5"},
	pattern.Torus2D:      {"neighbours on a grid that closes around", "g5"},
	pattern.Stencil3D:    {"neighbours in a box", "g5"},
	pattern.Torus3D:      {"neighbours in a box that closes around", "g5"},
	pattern.Butterfly:    {"each with those whose number differs in one bit", "g2"},
	pattern.Shuffle:      {"everyone of one side to everyone of the other", "g3"},
	pattern.AllToAll:     {"everyone with everyone", "g2"},
	pattern.Random:       {"they talk, but in none of the known patterns", loose},
	pattern.Unknown:      {"too little was seen to say", loose},
}

func kindClass(k pattern.Kind) string { return cmp.Or(kinds[k].class, loose) }

func newCards(r report.Report, v *view) []card {
	groups, _ := cut(r.Groups, cardLimit)
	cards := make([]card, len(groups))
	for i, g := range groups {
		c := card{Group: g, Class: v.sections[i].class, Means: kinds[g.Kind].means, Size: len(g.Ends)}
		names := make([]string, len(g.Ends))
		for k, e := range g.Ends {
			names[k] = endName(e)
		}
		p := pictogram.Of(g.Kind, g.Shape, len(g.Ends), v.linksOf(g, i))
		c.Sketch = len(p.At) < len(g.Ends)
		c.Picture = drawFigure(p, fmt.Sprintf("picture%d", i), c.Class, fmt.Sprintf("%v of %s", g.Kind, plural(len(g.Ends), "VM")), names)
		c.Phases, c.More = phasesOf(g, r.To)
		if len(c.Phases) > 1 {
			c.Strip = drawStrip(fmt.Sprintf("strip%d", i), c.Phases)
		}
		cards[i] = c
	}
	return cards
}

// linksOf are the pairs of the i-th group that talk, as numbers in the group's order.
func (v *view) linksOf(g report.Group, i int) [][2]int {
	if g.Kind != pattern.Random && kinds[g.Kind].means != "" {
		return nil
	}
	number := map[int]int{}
	for k, e := range g.Ends {
		if at, ok := v.index[e]; ok && v.section[at] == i {
			number[at] = k
		}
	}
	var links [][2]int
	for _, f := range v.flows {
		a, here := number[f.from]
		b, there := number[f.to]
		if here && there {
			links = append(links, [2]int{a, b})
		}
	}
	return links
}

// phasesOf are the newest phases of a group and the one that it is in.
func phasesOf(g report.Group, to time.Time) (all []phase, more int) {
	for _, p := range g.Phases {
		if p.From.Before(p.To) {
			all = append(all, phase{p.From, p.To, p.Group.Kind, false})
		}
	}
	if !g.Since.IsZero() && g.Since.Before(to) {
		all = append(all, phase{g.Since, to, g.Kind, true})
	}
	more = max(0, len(all)-2*rowLimit)
	return all[more:], more
}

// drawStrip draws phases on a line of time.
func drawStrip(id string, all []phase) template.HTML {
	const width, high = 560.0, 26.0
	from, to := all[0].From, all[len(all)-1].To
	at := func(t time.Time) float64 {
		return width * min(1, max(0, float64(t.Sub(from))/float64(to.Sub(from))))
	}
	var d drawing
	d.open(id, width, high, "Phases", fmt.Sprintf("%d phases from %s to %s, listed below.", len(all), clock(from), clock(to)))
	for _, p := range all {
		a, b := at(p.From), at(p.To)
		d.put(`<rect class="phase %v" x="%v" width="%v" height="%v" rx="2"><title>%v, %v to %v</title></rect>`,
			kindClass(p.Kind), a, max(1, b-a-1), high, p.Kind, clock(p.From), clock(p.To))
		if b-a > 8*float64(len(p.Kind))+8 {
			d.text("mid onphase", (a+b)/2, 17.5, clean(p.Kind))
		}
	}
	d.put(`</svg>`)
	return d.html()
}
