package webreport

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/webreport/plane"
	"heliotrope/scheduler"
	"heliotrope/scheduler/atlas"

	"pgregory.net/rapid"
)

func planText(t testing.TB, p api.Plan) string {
	t.Helper()
	var b strings.Builder
	if err := RenderPlan(&b, p); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func poolText(t testing.TB, p api.Pool, plans []api.Plan) string {
	t.Helper()
	var b strings.Builder
	if err := RenderPool(&b, p, plans); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// golden holds a page against a file.
func golden(t *testing.T, got, file string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(g), len(w)) {
		if i >= len(w) || i >= len(g) || g[i] != w[i] {
			t.Fatalf("line %d of %s differs (go test -rewrite, then look at it in a browser)\n got %.400s\nwant %.400s", i+1, file,
				strings.Join(g[min(i, len(g)):min(i+1, len(g))], ""), strings.Join(w[min(i, len(w)):min(i+1, len(w))], ""))
		}
	}
}

func TestPlanAndPoolGolden(t *testing.T) {
	golden(t, planText(t, samplePlan()), "testdata/plan.golden.html")
	p, plans := samplePool()
	golden(t, poolText(t, p, plans), "testdata/pool.golden.html")
}

// sketch refuses pictures that are no XML, or have a number that is none, and returns how
// many there are.
func sketches(t testing.TB, page string) (n int) {
	t.Helper()
	for {
		_, rest, ok := strings.Cut(page, "<svg")
		if !ok {
			return n
		}
		svg, after, _ := strings.Cut(rest, "</svg>")
		d := xml.NewDecoder(strings.NewReader("<svg" + svg + "</svg>"))
		for {
			token, err := d.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%v in %s", err, svg)
			}
			if e, ok := token.(xml.StartElement); ok {
				for _, a := range e.Attr {
					if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
						t.Fatalf("%s is %q", a.Name.Local, a.Value)
					}
				}
			}
		}
		page = after
		n++
	}
}

// What is loaded by a page is nothing, and all pictures are well-formed.
func TestPlanAndPoolLoadNothing(t *testing.T) {
	p, plans := samplePool()
	for name, page := range map[string]string{
		"plan": planText(t, samplePlan()), "pool": poolText(t, p, plans), "no plan": planText(t, api.Plan{}), "no pool": poolText(t, api.Pool{}, nil)} {
		text := inert(t, page)
		for _, word := range []string{"http://", "https://", "url(", "@import", "<script", "//cdn"} {
			if strings.Contains(page, word) {
				t.Errorf("%s has %q", name, word)
			}
		}
		for _, word := range []string{"NaN", "Inf", "<no value>", "0001", "%!"} {
			if strings.Contains(text, word) {
				t.Errorf("%s says %q", name, word)
			}
		}
		if n := sketches(t, page); n == 0 && !strings.HasPrefix(name, "no ") {
			t.Errorf("%s has no pictures", name)
		}
	}
}

// What a plan says is in the page's text, not only in its pictures.
func TestPlanPageSays(t *testing.T) {
	p := samplePlan()
	text := inert(t, planText(t, p))
	for _, say := range []string{"The moves gain USD 0.522/h", "0.7290\u00a0USD", "+0.5221\u00a0USD", "at most 1.3\u00a0% above the best", "cache ought to move to eu-1 and cannot: eu-1 is full",
		"clients in internet are 80 ms nearer", "6 → 3 VMs", "80.3\u00a0ms", "measured +0.3348\u00a0USD", "was paused for 412\u00a0ms", "131\u00a0MB copied", "web, app, db", "2\u00a0ms farther", "within eu"} {
		if !strings.Contains(strings.ReplaceAll(text, "\u00a0", " "), strings.ReplaceAll(say, "\u00a0", " ")) {
			t.Errorf("it does not say %q", say)
		}
	}
	simulated := inert(t, planText(t, api.Plan{Plan: p.Plan}))
	if !strings.Contains(simulated, "plan that is not kept") || strings.Contains(simulated, "measured") {
		t.Error("a simulated plan is told as another")
	}
}

func TestPoolPageSays(t *testing.T) {
	p, plans := samplePool()
	page := poolText(t, p, plans)
	text := inert(t, page)
	for _, say := range []string{"No beneficial move: none adds", "p-4t7a", "p-9k2m", "web → eu-1", "distance of clients"} {
		if !strings.Contains(text, say) {
			t.Errorf("it does not say %q", say)
		}
	}
	if strings.Contains(text, "p-other") {
		t.Error("it tells of another pool's plans")
	}
	if n := strings.Count(page, `class="eventno`) + strings.Count(page, `class="mid eventno`); n != 4 {
		t.Errorf("%d marks, want two in each picture", n)
	}
	if n := strings.Count(page, `class="sum"`); n != 2 {
		t.Errorf("%d lines, want two with a gap between them", n)
	}
	for _, none := range []string{"There is no history yet", "No distances are known yet", "No plan of this pool was applied", "has not looked yet"} {
		if !strings.Contains(inert(t, poolText(t, api.Pool{Name: "new"}, nil)), none) {
			t.Errorf("an empty pool does not say %q", none)
		}
	}
}

// anyMap is a map of anything.
func anyMap(t *rapid.T) (*atlas.Map, []scheduler.Move) {
	m := &atlas.Map{}
	n := rapid.IntRange(1, atlas.Most).Draw(t, "sites")
	long := rapid.IntRange(0, 30).Draw(t, "letters")
	for i := range n {
		m.Sites = append(m.Sites, atlas.SiteVMs{ID: heliotrope.SiteID(fmt.Sprintf("s%02d%s", i, strings.Repeat("w", long))), VMs: rapid.IntRange(0, 3000).Draw(t, "vms"), After: rapid.IntRange(0, 3000).Draw(t, "after")})
	}
	value := rapid.OneOf(rapid.Just(0.0), rapid.Float64Range(0.01, 400))
	for i := range n {
		for j := range n {
			if rapid.IntRange(0, 3).Draw(t, "way") > 0 {
				m.Ways = append(m.Ways, atlas.Way{From: m.Sites[i].ID, To: m.Sites[j].ID, RTTMs: value.Draw(t, "rtt"), Before: 1e4 * value.Draw(t, "before"), After: 1e4 * value.Draw(t, "after")})
			}
		}
	}
	var moves []scheduler.Move
	for i := range rapid.IntRange(0, 30).Draw(t, "moves") {
		a, b := rapid.SampledFrom(m.Sites).Draw(t, "from").ID, rapid.SampledFrom(m.Sites).Draw(t, "to").ID
		moves = append(moves, scheduler.Move{VM: heliotrope.VMID(fmt.Sprint("vm-", i)), FromSite: a, ToSite: b, Temporary: rapid.Bool().Draw(t, "waits")})
	}
	return m, moves
}

// Whatever sites there are, each has its place in the picture, and no site or label covers
// another; a label that has no room is counted.
func TestMapStaysInFrame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, moves := anyMap(t)
		g := seat(m)
		arrows, lines := g.arrows(moves), g.lines(moves)
		labels := 0
		for i, b := range g.taken {
			if !b.In(mapWide, g.high, -0.6) {
				t.Fatalf("%v is outside of %v by %v", b, mapWide, g.high)
			}
			for j, c := range g.taken[:i] {
				if b.Near(c, -0.6, -0.6) {
					t.Fatalf("%d, %v, covers %d, %v", i, b, j, c)
				}
			}
		}
		for _, l := range lines {
			if l.label.text != nil {
				labels++
			}
		}
		for _, a := range arrows {
			if a.label.text != nil {
				labels++
			}
			for _, p := range a.Curve {
				if math.IsNaN(p[0] + p[1]) {
					t.Fatalf("%v", a.Curve)
				}
			}
		}
		if labels+len(g.sites) != len(g.taken) || len(lines)+len(arrows) > labels+g.bare {
			t.Fatalf("%d labels of %d lines and %d arrows, %d without, %d places", labels, len(lines), len(arrows), g.bare, len(g.taken))
		}
	})
}

// A few sites, as most have, leave nothing without a label.
func TestFewSitesAreAllLabelled(t *testing.T) {
	p := samplePlan().Plan
	if v := drawSites(p); v.Bare+v.LeftOut+v.MoreArrows != 0 {
		t.Errorf("%+v", v)
	}
	g := seat(p.Map)
	at := func(id heliotrope.SiteID) plane.Box { return g.sites[g.number(id)] }
	far := func(a, b heliotrope.SiteID) float64 { return math.Hypot(at(a).X-at(b).X, at(a).Y-at(b).Y) }
	if !(far("eu", "internet") < far("eu", "us") && far("eu", "us") < far("us", "sa") && far("us", "sa") < far("eu", "sa")) {
		t.Errorf("near sites are far on the map: %+v", g.sites)
	}
}

// Both heat maps have one scale: a rate that is in both has one colour.
func TestHeatMapsShareTheirScale(t *testing.T) {
	v := drawSites(samplePlan().Plan)
	class := func(svg, title string) string {
		at := strings.Index(svg, title)
		before := svg[:max(at, 0)]
		_, after, _ := strings.Cut(before[strings.LastIndex(before, "<rect"):], `class="`)
		class, _, _ := strings.Cut(after, `"`)
		return class
	}
	const stays = "sa → sa: 900"
	if a, b := class(string(v.HeatBefore), stays), class(string(v.HeatAfter), stays); a != b || !strings.HasPrefix(a, "c") {
		t.Errorf("%q before, %q after", a, b)
	}
}

func TestPlanPageStaysSmall(t *testing.T) {
	p := samplePlan()
	m := &atlas.Map{}
	for i := range 40 {
		m.Sites = append(m.Sites, atlas.SiteVMs{ID: heliotrope.SiteID(fmt.Sprintf("site-%02d", i)), VMs: i, After: 40 - i})
		for j := range 40 {
			m.Ways = append(m.Ways, atlas.Way{From: heliotrope.SiteID(fmt.Sprintf("site-%02d", i)), To: heliotrope.SiteID(fmt.Sprintf("site-%02d", j)), RTTMs: float64(1 + i + j), Before: float64(i * j * 1000), After: float64(i * 1000)})
		}
	}
	p.Plan.Map = m
	for i := range 3000 {
		move := p.Plan.Moves[1]
		move.VM, move.FromSite = heliotrope.VMID(fmt.Sprint("vm-", i)), m.Sites[i%40].ID
		move.ToSite = m.Sites[(i*7+1)%40].ID
		p.Plan.Moves = append(p.Plan.Moves, move)
	}
	page := planText(t, p)
	if sketches(t, page); len(page) > 1_000_000 {
		t.Errorf("%d bytes", len(page))
	}
	for _, say := range []string{"16 sites with less traffic are left out", "more are not listed here"} {
		if !strings.Contains(page, say) {
			t.Errorf("it does not say %q", say)
		}
	}
}

// FuzzPlanNames puts a text wherever a user, a VM or a host can put one.
func FuzzPlanNames(f *testing.F) {
	for _, s := range []string{"web-1", "", "<script>alert(1)</script>", `"><img src=x onerror=alert(1)>`, `' onload='alert(1)`, "</title></style></svg><iframe>",
		"a & b < c", "{{.}}", "<!--", "]]>", "%v%!s(int=1)", "\x00\x1b[31m\u202egnp.exe", "http://203.0.113.1/x.png", "\xff\xfe", strings.Repeat("long", 2000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := samplePlan()
		site, host, vm := heliotrope.SiteID(s), heliotrope.HostID(s), heliotrope.VMID(s)
		p.ID, p.Pool, p.Note, p.By, p.Plan.Policy, p.Plan.Reason = heliotrope.PlanID("p-"+s), heliotrope.PoolID(s), s, s, s, "because "+s
		for i := range p.Plan.Map.Ways {
			w := &p.Plan.Map.Ways[i]
			if w.From == "us" {
				w.From = site
			}
			if w.To == "us" {
				w.To = site
			}
		}
		p.Plan.Map.Sites[3].ID = site
		p.Plan.Moves = slices.Clone(p.Plan.Moves)
		m := &p.Plan.Moves[1]
		m.VM, m.FromSite, m.From, m.To, m.Why, m.Evidence = vm, site, host, host, s, []scheduler.Evidence{{USDPerHour: 1, Text: s}}
		p.Moves[1].Error, p.Moves[1].Phase = s, s
		p.Plan.Blocked = []scheduler.Blocked{{VM: vm, To: host, Why: s}}
		pool, plans := samplePool()
		pool.Name, pool.Says, pool.Newest = p.Pool, s, &p.Plan
		for _, page := range []string{planText(t, p), poolText(t, pool, append(plans, p))} {
			text := inert(t, page)
			sketches(t, page)
			for _, bad := range []string{"\x00", "\x1b", "\u202e"} {
				if strings.Contains(page, bad) {
					t.Errorf("the page has %q", bad)
				}
			}
			if s != "" && len(s) < longest && !strings.Contains(text, clean(s)) {
				t.Errorf("%q is not in the page's text", clean(s))
			}
		}
	})
}

func TestUnbroken(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []time.Time
		at := noon
		for range rapid.IntRange(1, 50).Draw(t, "n") {
			at = at.Add(time.Duration(rapid.IntRange(1, 100).Draw(t, "s")) * time.Second)
			all = append(all, at)
		}
		var again []time.Time
		for _, part := range unbroken(all, func(t time.Time) time.Time { return t }) {
			if len(part) == 0 {
				t.Fatal("an empty part")
			}
			again = append(again, part...)
		}
		if !slices.Equal(all, again) {
			t.Fatalf("%v became %v", all, again)
		}
	})
}
