package webreport

import (
	"fmt"
	"html/template"
	"math"

	"heliotrope/scheduler/atlas"
)

// drawWays draws what sites (rows) send to sites (columns). Two such pictures stand side by
// side, with one scale.
func drawWays(id, title string, m *atlas.Map, rates [][]float64, s scale) template.HTML {
	const half, names, bigCell = 530.0, 108.0, 66.0
	count := float64(len(m.Sites))
	cell := max(12, min(bigCell, math.Floor((half-names)/count)))
	side, top := cell*count, names
	big := cell == bigCell // then there is room for numbers, and for names that lie
	if big {
		top = 24
	}
	var d drawing
	d.open(id, names+side+6, top+side+6, title, fmt.Sprintf("%s of rows send, those of columns get; the table below tells the ways in numbers.", plural(len(m.Sites), "site")))
	d.put(`<g class="heat" transform="translate(%v,%v)"><rect class="ground" width="%v" height="%v"/>`, names, top, side, side)
	for i, row := range rates {
		at := (float64(i) + 0.5) * cell
		name := m.Sites[i].ID
		d.put(`<text class="end name" x="-8" y="%v">%v<title>%v</title></text>`, at+4, clip(string(name), 15), name)
		if big {
			d.put(`<text class="mid name" x="%v" y="-9">%v<title>%v</title></text>`, at, clip(string(name), 10), name)
		} else {
			d.put(`<text class="name" transform="translate(%v,-8) rotate(-90)">%v<title>%v</title></text>`, at+4, clip(string(name), 15), name)
		}
		for j, v := range row {
			x, y := float64(j)*cell, float64(i)*cell
			if class := s.class(v); class != "" {
				d.put(`<rect class="%v" x="%v" y="%v" width="%v" height="%v"><title>%v → %v: %v</title></rect>`, class, x, y, cell, cell, name, m.Sites[j].ID, rate(v))
				if big {
					d.put(`<text class="mid on%v" x="%v" y="%v">%v</text>`, class, x+cell/2, y+cell/2+4, rate(v))
				}
			}
		}
	}
	for i := range m.Sites { // what stays within a site
		d.put(`<rect class="within" x="%v" y="%v" width="%v" height="%v"/>`, float64(i)*cell, float64(i)*cell, cell, cell)
	}
	d.put(`</g></svg>`)
	return d.html()
}
