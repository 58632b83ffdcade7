package webreport

import (
	"cmp"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler"
	"heliotrope/scheduler/atlas"
)

// planPage is what plan.html reads.
type planPage struct {
	sheet
	sitePictures
	pairPictures
	api.Plan
	Lead    string
	Tiles   []tile
	Wrong   []string // what is not as it ought to be
	Costs   []costRow
	Totals  costRow
	MaxCost float64
	Rows    []moveRow
	More    int // moves that have no row
	Kept    bool
	Applied bool
}

// sitePictures are a map and its heat maps, before and after.
type sitePictures struct {
	Map                          template.HTML
	Hops                         bool
	LeftOut, Bare, MoreArrows    int
	Scale, HeatBefore, HeatAfter template.HTML
	Ways                         []atlas.Way
	AllWays                      int
	MaxWay                       float64
}

// costRow is one part of the cost, as the plan says and, where it is known, as it was.
type costRow struct {
	Name, Means   string
	Before, After float64
	Was, Is       float64 // by the traffic after the plan
}

// Saved is what the plan says that it saves of the part.
func (r costRow) Saved() float64 { return r.Before - r.After }

// Gained is what it did.
func (r costRow) Gained() float64 { return r.Was - r.Is }

// moveRow is a move, and how far it is.
type moveRow struct {
	scheduler.Move
	Now    *api.PlanMove
	Gained *scheduler.Share
}

// RenderPlan writes a plan as a page: p, or one that is not kept, without ID.
func RenderPlan(w io.Writer, p api.Plan) error { return execute(w, "plan.html", newPlanPage(p)) }

func newPlanPage(p api.Plan) *planPage {
	title := "A plan that is not kept"
	if p.ID != "" {
		title = "Plan " + string(p.ID)
	}
	v := &planPage{sheet: newSheet(title), sitePictures: drawSites(p.Plan), pairPictures: drawPairs(p.Plan.Map), Plan: p, Lead: sentence(p.Plan.Reason), Kept: p.ID != "", Applied: len(p.Moves) > 0}
	plan := p.Plan
	for _, b := range plan.Blocked {
		to := ""
		if b.To != "" {
			to = fmt.Sprintf(" to %s", b.To)
		}
		v.Wrong = append(v.Wrong, fmt.Sprintf("%s ought to move%s and cannot: %s", b.VM, to, b.Why))
	}
	for _, b := range plan.Broken {
		v.Wrong = append(v.Wrong, fmt.Sprintf("not kept: %s", b))
	}
	v.Costs, v.Totals = costRows(plan.Before, plan.After, p.Measured)
	for _, c := range v.Costs {
		v.MaxCost = max(v.MaxCost, c.Before, c.After)
	}
	shown, more := cut(plan.Moves, 8*rowLimit)
	v.More = more
	for i, m := range shown {
		row := moveRow{Move: m}
		if i < len(p.Moves) {
			row.Now = &p.Moves[i]
		}
		if p.Measured != nil && !m.Temporary {
			if s, ok := p.Measured.VMs[m.VM]; ok {
				row.Gained = &s
			}
		}
		v.Rows = append(v.Rows, row)
	}
	v.Tiles = planTiles(p)
	return v
}

func planTiles(p api.Plan) []tile {
	tiles := []tile{{money(p.Plan.Before.Total()), "an hour, before"}, {money(p.Plan.After.Total()), "an hour, after"}, {money(p.Plan.Gain()), "an hour gained, promised"}}
	if p.Measured != nil {
		tiles = append(tiles, tile{money(p.Measured.Gained), "an hour gained, measured"})
	}
	tiles = append(tiles, tile{whole(len(p.Plan.Moves)), "moves"}, tile{whole(len(p.Plan.Steps())), "steps"})
	if p.Plan.Bounded {
		tiles = append(tiles, tile{percent(p.Plan.Gap), "above the best, at most"})
	}
	if m := p.Plan.Map; m != nil {
		for _, t := range []struct {
			what          string
			before, after float64
		}{{"to clients", m.Before.ClientsMs, m.After.ClientsMs}, {"between VMs", m.Before.EastWestMs, m.After.EastWestMs}} {
			if t.before+t.after > 0 {
				tiles = append(tiles, tile{count(t.before) + " → " + millis(t.after), "mean round trip " + t.what})
			}
		}
	}
	return tiles
}

// costParts names the parts of a cost.
var costParts = []struct {
	name, means string
	of          func(scheduler.Cost) float64
}{
	{"compute", "vCPUs and memory", func(c scheduler.Cost) float64 { return c.Compute }},
	{"hosts", "hosts in use", func(c scheduler.Cost) float64 { return c.Hosts }},
	{"egress", "bytes that leave a site", func(c scheduler.Cost) float64 { return c.Egress }},
	{"clients", "distance of clients", func(c scheduler.Cost) float64 { return c.Clients }},
	{"east–west", "distance between VMs", func(c scheduler.Cost) float64 { return c.EastWest }},
	{"carbon", "CO₂ of vCPUs", func(c scheduler.Cost) float64 { return c.Carbon }},
	{"risk", "interruptions", func(c scheduler.Cost) float64 { return c.Risk }},
	{"moves", "the moves themselves, spread", func(c scheduler.Cost) float64 { return c.Moves }},
	{"licences", "seats that are rented", func(c scheduler.Cost) float64 { return c.Licences }},
}

// costRows are the parts that are not nothing, and their sum.
func costRows(before, after scheduler.Cost, measured *api.PlanGain) ([]costRow, costRow) {
	var was, is scheduler.Cost
	if measured != nil {
		was, is = measured.Before, measured.After
	}
	var rows []costRow
	for _, p := range costParts {
		r := costRow{p.name, p.means, p.of(before), p.of(after), p.of(was), p.of(is)}
		if r.Before != 0 || r.After != 0 || r.Was != 0 || r.Is != 0 {
			rows = append(rows, r)
		}
	}
	return rows, costRow{"all", "", before.Total(), after.Total(), was.Total(), is.Total()}
}

// drawSites draws what a plan has a map of.
func drawSites(p scheduler.Plan) (v sitePictures) {
	m := p.Map
	if m == nil || len(m.Sites) == 0 {
		return v
	}
	m = sane(m)
	v.LeftOut = m.LeftOut
	v.Hops = slices.ContainsFunc(p.Moves, func(m scheduler.Move) bool { return m.Temporary })
	v.Map, v.Bare, v.MoreArrows = drawMap(m, p.Moves)
	before, after := m.Rates(func(w atlas.Way) float64 { return w.Before }), m.Rates(func(w atlas.Way) float64 { return w.After })
	s := scaleOf(slices.Concat(before, after))
	if s.high == 0 {
		return v
	}
	v.Scale = drawScale(s)
	v.HeatBefore = drawWays("before", "Traffic between sites before the plan", m, before, s)
	v.HeatAfter = drawWays("after", "Traffic between sites after the plan", m, after, s)
	ways := slices.SortedStableFunc(slices.Values(m.Ways), func(a, b atlas.Way) int { return cmp.Compare(b.Before+b.After, a.Before+a.After) })
	v.AllWays = len(ways)
	v.Ways, _ = cut(ways, 2*rowLimit)
	for _, w := range v.Ways {
		v.MaxWay = max(v.MaxWay, w.Before, w.After)
	}
	return v
}

// sane is a map that can be drawn: with numbers that are some, and not more sites than
// there are places.
func sane(m *atlas.Map) *atlas.Map {
	c := *m
	var more int
	c.Sites, more = cut(m.Sites, atlas.Most)
	c.LeftOut += more
	c.Ways = slices.Clone(m.Ways)
	for i := range c.Ways {
		w := &c.Ways[i]
		w.RTTMs, w.Before, w.After = max(0, finite(w.RTTMs)), max(0, finite(w.Before)), max(0, finite(w.After))
	}
	return &c
}

// sentence is a text as a heading.
func sentence(s string) string {
	if s == "" {
		return "Nothing is said."
	}
	r := []rune(clean(s))
	return strings.ToUpper(string(r[:1])) + strings.TrimSuffix(string(r[1:]), ".") + "."
}

// money writes USD with what a plan differs by.
func money(v float64) string {
	v = finite(v)
	digits := 4
	if math.Abs(v) >= 100 {
		digits = 2
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + "\u00a0USD"
}

// signed is money that is gained or lost.
func signed(v float64) string {
	if v = finite(v); v > 0 {
		return "+" + money(v)
	}
	return strings.Replace(money(v), "-", "−", 1)
}

// near writes milliseconds that traffic is nearer.
func near(v float64) string {
	switch v = finite(v); {
	case v == 0:
		return "–"
	case v < 0:
		return millis(-v) + " farther"
	}
	return millis(v)
}

// seconds writes a time that a move takes.
func seconds(v float64) string { return count(v) + "\u00a0s" }

// bytesText writes an amount.
func bytesText(v uint64) string { return strings.TrimSuffix(rate(float64(v)), "/s") }

// moveWay is where a move leads.
func moveWay(m scheduler.Move) template.HTML {
	var d drawing
	from := cmp.Or(m.From, heliotrope.HostID("nowhere"))
	d.put(`<span class="id">%v</span> → <span class="id">%v</span>`, clip(string(from), longest), clip(string(m.To), longest))
	if m.FromSite != m.ToSite {
		d.put(` <span class="soft">%v → %v</span>`, clip(string(m.FromSite), longest), clip(string(m.ToSite), longest))
	} else {
		d.put(` <span class="soft">within %v</span>`, clip(string(m.ToSite), longest))
	}
	return d.html()
}
