// Package webreport writes a traffic report, a plan, a pool over time or a move as one HTML file
// that can be mailed, archived, printed, and read without a network, a script or a
// controller.
//
// A page is page.html, plan.html, pool.html or move.html with style.css inside; its pictures are SVG
// that is drawn here:
//
//   - heat.go: the matrix, sorted by group, on a logarithmic scale
//   - graph.go: the same as a circle of nodes, by site, with edges inside
//   - pictogram.go: the pattern of a group, in the group's own order
//   - timeline.go: bytes per second with the events, and the phases of a group
//   - sitemap.go: sites by their distances, traffic before and after a plan, its moves
//   - siteheat.go: traffic from site to site, before and after it
//   - pairheat.go: the first of these before and after it, with what crosses sites
//   - pool.go: cost and distance over time, with the moves
//   - move.go: phases, what memory consisted of, passes over it
//
// Names come from users. Text reaches the page through html/template or drawing.put, which
// both escape it, and clean makes what cannot be printed visible. A content security policy
// forbids every load and script, and every style but ours, which it knows by its hash. The
// same values always make the same bytes: layouts are computed, not relaxed, and nothing
// reads the clock.
package webreport

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/report"
)

// What is shown at most; the page says so where more was left out.
const (
	heatLimit  = 80  // ends that get their own row of the heat map
	graphLimit = 60  // ends that are their own node of the graph
	nameLimit  = 60  // rows of the heat map whose names are written on its sides
	rowLimit   = 25  // rows of a table
	cardLimit  = 48  // groups that are drawn
	edgeLimit  = 400 // edges of the graph
	siteLimit  = 12  // sites that make a table
	gapLimit   = 8   // sentences on what is not known, before one has to ask for more
)

//go:embed *.html
var pageFiles embed.FS

//go:embed style.css
var styleText string

var pages = template.Must(template.New("pages").Funcs(template.FuncMap{
	"bar": bar, "bytes": bytesText, "caption": caption, "clean": clean, "clock": clock, "dash": dash, "day": day, "endName": endName,
	"endNames": endNames, "money": money, "moveWay": moveWay, "moves": movesText, "ms": millis, "near": near, "part": part, "percent": percent, "rate": rate, "seconds": seconds, "sentence": sentence, "shape": shape, "signed": signed,
	"siteNames": names[heliotrope.SiteID], "sum": sum, "usd": usd, "vmNames": names[heliotrope.VMID], "whole": whole[uint64],
}).ParseFS(pageFiles, "*.html"))

// sheet is what every page has.
type sheet struct {
	CSP   string // what may be loaded: nothing
	Style template.CSS
	Title string
}

func newSheet(title string) sheet {
	hash := sha256.Sum256([]byte(styleText))
	return sheet{"default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) +
		"'; img-src data:; base-uri 'none'; form-action 'none'", template.CSS(styleText), title}
}

// execute writes a page, or nothing.
func execute(w io.Writer, file string, data any) error {
	var b bytes.Buffer // half a page is worse than none
	if err := pages.ExecuteTemplate(&b, file, data); err != nil {
		return fmt.Errorf("execute %s: %w", file, err)
	}
	if _, err := b.WriteTo(w); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

// page is what page.html reads.
type page struct {
	report.Report
	sheet
	Lead  string   // the report in one sentence
	Tiles []tile   // the totals
	Gaps  []string // what is not known
	More  []string // of it, beyond what fits
	Whole bool     // nothing is known to be missing

	Heat, Scale, Graph, Line template.HTML
	HeatLumped, GraphLumped  bool // there are too many ends to draw each
	Ends                     int
	Marks                    []mark
	MoreMarks                int
	Cards                    []card
	MoreCards                int
	SiteNames                []string
	SiteRows                 []siteRow     // where there are not too many sites
	Ways                     []report.Site // else, the largest
	AllWays                  int
	SiteRate, SiteUSD        float64
	Unpriced                 bool // the topology has no price for some of it
	SavingUSD                float64
	Intervals                bool // some of the pairs are estimates
	MaxTalker, MaxPair       float64
	AllTalkers, AllPairs     int
	AllServices              int
}

type tile struct{ Value, Label string }

// Render writes r, and the matrix m that it was made of, as HTML. Sites of ends are taken
// from r.Talkers and r.Pairs: make r with Options.Top as large as the number of ends, and
// every VM is drawn at its site; tables are cut here. The error is w's.
func Render(w io.Writer, r report.Report, m traffic.Matrix) error {
	return execute(w, "page.html", newPage(r, m))
}

func newPage(r report.Report, m traffic.Matrix) *page {
	p := &page{Report: r, AllTalkers: len(r.Talkers), AllPairs: len(r.Pairs), AllServices: len(r.Services)}
	p.sheet = newSheet(p.title())
	v := newView(r, m)
	p.Ends = len(v.ends)
	p.HeatLumped, p.GraphLumped = p.Ends > heatLimit, p.Ends > graphLimit
	if p.Ends > 0 {
		heat := v.network(heatLimit)
		s := scaleOf(heat.rates)
		p.Heat, p.Scale = drawHeat("heat", "Heat map of the traffic matrix", heat, s, false), drawScale(s)
		p.Graph = drawGraph(v.network(graphLimit))
	}
	p.Line, p.Marks = drawTimeline(r.History, r.Events)
	p.Marks, p.MoreMarks = cut(p.Marks, 2*rowLimit)
	p.Cards = newCards(r, v)
	p.MoreCards = len(r.Groups) - len(p.Cards)
	p.sites(r.Sites)
	for _, s := range r.Savings {
		p.SavingUSD += s.USDPerHour
	}
	p.Savings, _ = cut(r.Savings, rowLimit)
	p.Talkers, _ = cut(r.Talkers, rowLimit)
	p.Pairs, _ = cut(r.Pairs, rowLimit)
	p.Services, _ = cut(r.Services, rowLimit)
	for _, t := range p.Talkers {
		p.MaxTalker = max(p.MaxTalker, t.Sent+t.Got)
	}
	for _, q := range p.Pairs {
		p.MaxPair = max(p.MaxPair, q.Rate)
		p.Intervals = p.Intervals || q.Low < q.High
	}
	p.head(m)
	return p
}

func (p *page) title() string {
	if p.Topology == "" {
		return "Traffic, " + p.Window()
	}
	return "Traffic of " + p.Topology + ", " + p.Window()
}

func cut[T any](all []T, most int) ([]T, int) {
	n := min(len(all), most)
	return all[:n], len(all) - n
}

// head says what the page is about, and what it is not.
func (p *page) head(m traffic.Matrix) {
	t := p.Total
	p.Tiles = []tile{
		{rate(t.BytesPerSecond), "IP bytes"}, {count(t.PacketsPerSecond) + "/s", "packets"}, {count(t.FlowsPerSecond) + "/s", "new flows"},
		{whole(t.VMs), "VMs that talk"}, {whole(t.Pairs), "directed pairs"}, {whole(t.Outside), "prefixes outside"},
	}
	p.Lead = "Nothing was sent in this window."
	if t.BytesPerSecond > 0 {
		p.Lead = fmt.Sprintf("%s sent %s in %s.", plural(t.VMs, "VM"), rate(t.BytesPerSecond), plural(t.Pairs, "pair"))
		if n := len(p.Groups); n > 0 {
			p.Lead += fmt.Sprintf(" They form %s.", plural(n, "group"))
		}
	}
	if p.SiteRate > 0 {
		p.Lead += fmt.Sprintf(" %s crossed sites", rate(p.SiteRate))
		if p.SiteUSD > 0 {
			p.Tiles = append(p.Tiles, tile{usd(p.SiteUSD), "an hour, cross-site"})
			p.Lead += fmt.Sprintf(", for %s%s an hour", atLeast(p.Unpriced), usd(p.SiteUSD))
		}
		p.Lead += "."
	}
	all := gaps(p.Report, m)
	p.Whole = len(all) == 0
	p.Gaps, _ = cut(all, gapLimit)
	p.More = all[len(p.Gaps):]
}

// Window is the time that the report is of.
func (p *page) Window() string {
	if p.From.IsZero() || p.To.IsZero() {
		return "no window"
	}
	from, to := p.From.UTC(), p.To.UTC()
	end := clock(to)
	if from.Format(time.DateOnly) != to.Format(time.DateOnly) {
		end = day(to) + ", " + end
	}
	return fmt.Sprintf("%s, %s – %s UTC (%s)", day(from), clock(from), end, span(to.Sub(from)))
}
