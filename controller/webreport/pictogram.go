package webreport

import (
	"html/template"
	"math"

	"heliotrope/controller/webreport/pictogram"
)

// drawFigure draws a pattern. Its nodes have the names of the group's members where it has
// as many.
func drawFigure(p pictogram.Figure, id, class, title string, names []string) template.HTML {
	const margin = 22.0
	x := func(v float64) float64 { return margin + v*pictogram.Wide }
	y := func(v float64) float64 { return margin + v*pictogram.High }
	var d drawing
	d.open(id, pictogram.Wide+2*margin, pictogram.High+2*margin, title, "Pictogram of the pattern; lines are who talks to whom.")
	weight := "links"
	if len(p.Links) > 60 {
		weight = "links many"
	}
	d.put(`<g class="%v">`, weight)
	for _, s := range p.Stubs {
		d.put(`<path class="stub" d="M%v %vL%v %v"/>`, x(s[0]), y(s[1]), x(s[2]), y(s[3]))
	}
	for _, l := range p.Links {
		a, b := p.At[l[0]], p.At[l[1]]
		d.put(`<path d="M%v %vL%v %v"/>`, x(a[0]), y(a[1]), x(b[0]), y(b[1]))
		if p.Arrows {
			d.put(`<path class="arrow" transform="translate(%v,%v) rotate(%v)" d="M4 0L-3 -3.5V3.5z"/>`,
				x((a[0]+b[0])/2), y((a[1]+b[1])/2), math.Atan2(y(b[1])-y(a[1]), x(b[0])-x(a[0]))*180/math.Pi)
		}
	}
	d.put(`</g>`)
	size := 6.0
	if len(p.At) > 12 {
		size = 4.5
	}
	for i, a := range p.At {
		d.put(`<circle class="node %v" cx="%v" cy="%v" r="%v">`, class, x(a[0]), y(a[1]), size)
		if len(names) == len(p.At) {
			d.put(`<title>%v</title>`, names[i])
		}
		d.put(`</circle>`)
	}
	d.put(`</svg>`)
	return d.html()
}
