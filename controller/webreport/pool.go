package webreport

import (
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"

	"heliotrope/controller/api"
	"heliotrope/scheduler"
	"heliotrope/scheduler/traffic/report"
)

// poolPage is what pool.html reads.
type poolPage struct {
	sheet
	sitePictures
	api.Pool
	Tiles           []tile
	Money, Distance template.HTML
	Parts           []poolPart // of the money, from below
	Moved           []movedRow
	MoreMoved       int
	From, To        time.Time
}

// poolPart is a part of the cost as the picture has it.
type poolPart struct {
	Class, Name, Means string
	Now                float64
}

// movedRow is a plan that was carried out, with its number in the pictures.
type movedRow struct {
	Number int
	api.Plan
}

// RenderPool writes a pool over time as a page, with the moves of plans that were applied,
// and what its autopilot found last.
func RenderPool(w io.Writer, p api.Pool, plans []api.Plan) error {
	return execute(w, "pool.html", newPoolPage(p, plans))
}

func newPoolPage(p api.Pool, plans []api.Plan) *poolPage {
	v := &poolPage{sheet: newSheet("Pool " + string(p.Name)), Pool: p}
	if p.Newest != nil {
		v.sitePictures = drawSites(*p.Newest)
	}
	looks := slices.SortedStableFunc(slices.Values(p.History), func(a, b api.Look) int { return a.At.Compare(b.At) })
	v.Tiles = []tile{{whole(len(p.VMs)), "VMs"}, {whole(len(looks)), "looks"}}
	if n := len(looks); n > 0 {
		last := looks[n-1]
		v.From, v.To = looks[0].At, last.At
		v.Tiles = append(v.Tiles, tile{money(last.Cost.Total()), "an hour, now"})
		for _, t := range []tile{{millis(last.Means.ClientsMs), "mean round trip to clients"}, {millis(last.Means.EastWestMs), "mean round trip between VMs"}} {
			if t.Value != "–" {
				v.Tiles = append(v.Tiles, t)
			}
		}
	}
	v.Moved = movedRows(p, plans)
	marks := make([]mark, len(v.Moved))
	for i, m := range v.Moved {
		marks[i] = mark{m.Number, report.Event{At: m.AppliedAt, What: fmt.Sprintf("%s: %s", m.ID, movesText(m.Plan.Plan.Moves))}}
	}
	if v.From.Before(v.To) {
		looks = thin(looks, func(l api.Look) float64 { return l.Cost.Total() })
		v.Money, v.Parts = drawMoney(looks, marks)
		v.Distance = drawDistance(looks, marks)
	}
	v.Moved, v.MoreMoved = cut(v.Moved, 2*rowLimit)
	return v
}

// movedRows are a pool's plans that were applied, in the order of time.
func movedRows(p api.Pool, plans []api.Plan) []movedRow {
	var rows []movedRow
	for _, q := range plans {
		if q.Pool == p.Name && !q.AppliedAt.IsZero() {
			rows = append(rows, movedRow{Plan: q})
		}
	}
	slices.SortStableFunc(rows, func(a, b movedRow) int { return a.AppliedAt.Compare(b.AppliedAt) })
	for i := range rows {
		rows[i].Number = i + 1
	}
	return rows
}

// movesText says in short what moves where.
func movesText(moves []scheduler.Move) string {
	first, more := cut(moves, arrowNames)
	text := make([]string, len(first))
	for i, m := range first {
		text[i] = fmt.Sprintf("%s → %s", clip(string(m.VM), 24), clip(string(m.To), 24))
	}
	s := strings.Join(text, ", ")
	if more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

func lookedAt(l api.Look) time.Time { return l.At }

// drawMoney draws USD an hour, its parts one above the other.
func drawMoney(looks []api.Look, marks []mark) (template.HTML, []poolPart) {
	most := 0.0
	for _, l := range looks {
		most = max(most, finite(l.Cost.Total()))
	}
	from, to := looks[0].At, looks[len(looks)-1].At
	f := newFrame(258, from, to, most)
	var d drawing
	d.open("money", lineWide, 292, "USD an hour over time",
		fmt.Sprintf("From %s to %s, at most %s, its parts one above the other; %s marked with their numbers in the list below.", clock(from), clock(to), money(most), plural(len(marks), "plan")))
	f.draw(&d, func(v float64) string { return count(v) + "\u00a0USD" })
	runs := unbroken(looks, lookedAt)
	var parts []poolPart
	under := func(api.Look) float64 { return 0 }
	for i, c := range costParts {
		if !slices.ContainsFunc(looks, func(l api.Look) bool { return finite(c.of(l.Cost)) > 0 }) {
			continue
		}
		base := under
		top := func(l api.Look) float64 { return base(l) + max(0, finite(c.of(l.Cost))) }
		class := fmt.Sprintf("g%d", i)
		for _, run := range runs {
			drawLine(&d, f, "", "share "+class, run, lookedAt, top, base)
		}
		parts = append(parts, poolPart{class, c.name, c.means, c.of(looks[len(looks)-1].Cost)})
		under = top
	}
	for _, run := range runs {
		drawLine(&d, f, "sum", "", run, lookedAt, func(l api.Look) float64 { return l.Cost.Total() }, nil)
	}
	f.drawMarks(&d, marks)
	d.put(`</svg>`)
	return d.html(), parts
}

// drawDistance draws mean round trips; nothing where there is no traffic.
func drawDistance(looks []api.Look, marks []mark) template.HTML {
	most := 0.0
	for _, l := range looks {
		most = max(most, finite(l.Means.ClientsMs), finite(l.Means.EastWestMs))
	}
	if most == 0 {
		return ""
	}
	from, to := looks[0].At, looks[len(looks)-1].At
	f := newFrame(218, from, to, most)
	var d drawing
	d.open("distance", lineWide, lineHigh, "Mean round trips over time",
		fmt.Sprintf("From %s to %s, at most %s; to clients (a full line) and between VMs (a dashed one), by bytes.", clock(from), clock(to), millis(most)))
	f.draw(&d, func(v float64) string { return count(v) + "\u00a0ms" })
	for _, run := range unbroken(looks, lookedAt) {
		drawLine(&d, f, "volume", "", run, lookedAt, func(l api.Look) float64 { return l.Means.ClientsMs }, nil)
		drawLine(&d, f, "volume dashed", "", run, lookedAt, func(l api.Look) float64 { return l.Means.EastWestMs }, nil)
	}
	f.drawMarks(&d, marks)
	d.put(`</svg>`)
	return d.html()
}
