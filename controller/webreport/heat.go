package webreport

import (
	"fmt"
	"html/template"
	"math"
)

// The heat map, in pixels: all of it, and what names of ends and of groups need.
const (
	heatWide   = 1100.0
	heatNames  = 132.0
	heatGroups = 190.0
)

// drawHeat draws who sends (rows) how much to whom (columns). With across, what crosses sites
// is framed.
func drawHeat(id, title string, n network, s scale, across bool) template.HTML {
	count := len(n.nodes)
	named := count <= nameLimit
	left := heatNames
	if !named {
		left = 20
	}
	cell := max(10, min(24, math.Floor((heatWide-left-heatGroups)/float64(count))))
	side := cell * float64(count)
	tip := longest // a name in a tooltip: there are count² of them
	if !named {
		tip = 24
	}
	var d drawing
	d.open(id, left+side+heatGroups, left+side+10, title,
		fmt.Sprintf("%d rows that send, %d columns that get, sorted by group. The tables below tell the largest pairs in numbers.", count, count))
	d.put(`<g class="heat" transform="translate(%v,%v)">`, left, left)
	d.put(`<rect class="ground" width="%v" height="%v"/>`, side, side)
	for i, row := range n.rates {
		d.put(`<g transform="translate(0,%v)">`, float64(i)*cell)
		for j, v := range row {
			if class := s.class(v); class != "" {
				d.put(`<rect class="%v" x="%v" width="%v" height="%v"><title>%v → %v: %v</title></rect>`,
					class, float64(j)*cell, cell, cell, clip(n.nodes[i].name, tip), clip(n.nodes[j].name, tip), rate(v))
			}
			if across && n.crossing[i][j] > 0 {
				d.put(`<rect class="over" x="%v" y="1" width="%v" height="%v"/>`, float64(j)*cell+1, cell-2, cell-2)
			}
		}
		d.put(`</g>`)
	}
	if named {
		for i, w := range n.nodes {
			at := (float64(i) + 0.5) * cell
			d.put(`<text class="end name" x="-12" y="%v">%v<title>%v</title></text>`, at+4, clip(w.name, 18), w.name)
			d.put(`<text class="name" transform="translate(%v,-12) rotate(-90)">%v<title>%v</title></text>`, at+4, clip(w.name, 18), w.name)
		}
	}
	drawSections(&d, n, cell, side)
	d.put(`</g></svg>`)
	return d.html()
}

// run is where a section's rows are.
type run struct{ section, from, to int }

func (n network) runs() []run {
	var all []run
	for i, w := range n.nodes {
		if len(all) == 0 || all[len(all)-1].section != w.section {
			all = append(all, run{w.section, i, i})
		}
		all[len(all)-1].to = i + 1
	}
	return all
}

// drawSections draws where groups begin and end, and names them at the right. Names of
// narrow groups are moved down so that none covers another.
func drawSections(d *drawing, n network, cell, side float64) {
	runs := n.runs()
	for _, r := range runs[1:] {
		at := float64(r.from) * cell
		d.put(`<path class="border" d="M0 %vH%vM%v 0V%v"/>`, at, side, at, side)
	}
	free := 0.0 // where the next name may stand
	for _, r := range runs {
		s := n.sections[r.section]
		a, b := float64(r.from)*cell, float64(r.to)*cell
		d.put(`<path class="mark %v" d="M-6 %vV%vM%v -6H%v"/>`, s.class, a+1, b-1, a+1, b-1)
		if s.class != loose {
			d.put(`<rect class="box %v" x="%v" y="%v" width="%v" height="%v"/>`, s.class, a, a, b-a, b-a)
		}
		middle := (a + b) / 2
		y := max(middle, free+8)
		free = y + 8
		d.put(`<path class="lead %v" d="M%v %vL%v %v"/>`, s.class, side+4, middle, side+16, y)
		d.put(`<text class="group" x="%v" y="%v">%v<title>%v: %d rows</title></text>`, side+20, y+4, clip(s.title, 26), s.title, r.to-r.from)
	}
}
