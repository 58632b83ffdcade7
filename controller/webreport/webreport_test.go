package webreport

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/report"

	"golang.org/x/net/html"
)

var rewrite = flag.Bool("rewrite", false, "write testdata anew")

func render(t testing.TB, r report.Report, m traffic.Matrix) string {
	t.Helper()
	var b strings.Builder
	if err := Render(&b, r, m); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestGolden(t *testing.T) {
	r, m := sample()
	got := render(t, r, m)
	const file = "testdata/sample.golden.html"
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			t.Fatalf("line %d of %s differs (go test -rewrite, then look at it in a browser)\n got %.400s\nwant %.400s", i+1, file, g[i], strings.Join(w[min(i, len(w)-1):min(i+1, len(w))], ""))
		}
	}
	t.Fatalf("%s has %d lines, got %d", file, len(w), len(g))
}

// inert refuses what could load or run, whatever the policy says: it is the second wall.
func inert(t testing.TB, page string) (text string) {
	t.Helper()
	root, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	elements := strings.Fields("html head meta link title style body header main footer nav section article h1 h2 h3 p div span a ul ol li dl dt dd " +
		"em strong small details summary time figure figcaption table caption thead tbody tr th td svg g path rect circle text desc")
	var b strings.Builder
	for n := range root.Descendants() {
		switch n.Type {
		case html.TextNode:
			if n.Parent.Data != "style" {
				b.WriteString(n.Data + "\n")
			}
		case html.CommentNode:
			t.Errorf("a comment: %q", n.Data)
		case html.ElementNode:
			if !slices.Contains(elements, n.Data) {
				t.Errorf("element %q", n.Data)
			}
			for _, a := range n.Attr {
				switch {
				case strings.HasPrefix(a.Key, "on"), a.Key == "style", a.Key == "src", a.Key == "srcdoc", a.Key == "action":
					t.Errorf("%s has the attribute %s=%q", n.Data, a.Key, a.Val)
				case a.Key == "href" && !strings.HasPrefix(a.Val, "#") && a.Val != "data:,":
					t.Errorf("%s leads to %q", n.Data, a.Val)
				}
			}
		}
	}
	return b.String()
}

func TestLoadsNothing(t *testing.T) {
	r, m := sample()
	page := render(t, r, m)
	inert(t, page)
	for _, word := range []string{"http://", "https://", "url(", "@import", "<script", "//cdn"} {
		if strings.Contains(page, word) {
			t.Errorf("the page has %q", word)
		}
	}
	_, rest, _ := strings.Cut(page, "<style>")
	style, _, _ := strings.Cut(rest, "</style>")
	hash := sha256.Sum256([]byte(style))
	policy := html.UnescapeString(page)
	for _, rule := range []string{"default-src 'none'", "style-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'", "img-src data:"} {
		if !strings.Contains(policy, rule) {
			t.Errorf("the policy lacks %q", rule)
		}
	}
}

func TestSameReportSameBytes(t *testing.T) {
	r, m := sample()
	first := render(t, r, m)
	for range 20 {
		if again := render(t, r, m); again != first {
			t.Fatal("another rendering differs")
		}
	}
}

// named is a report in which every text that comes from outside is s.
func named(s string) (report.Report, traffic.Matrix) {
	r, m := sample()
	vm := traffic.VM(heliotrope.VMID(s))
	site, host := heliotrope.SiteID(s), heliotrope.HostID(s)
	r.Topology, r.Notes = s, []string{s}
	for i := range m.Cells {
		if m.Cells[i].Src == traffic.VM("backup") {
			m.Cells[i].Src = vm
		}
	}
	m.Missing = map[heliotrope.HostID]float64{host: 1}
	r.Talkers = append([]report.Talker{{End: vm, Site: site, Host: host, Sent: 1e9}}, r.Talkers...)
	r.Pairs = append([]report.Pair{{Src: vm, Dst: vm, Rate: 1e9, Low: 1, High: 2e9, From: site, To: "paris"}}, r.Pairs...)
	r.Services[0].Servers = []traffic.End{vm}
	r.Events = append(r.Events, report.Event{At: noon.Add(-30 * time.Minute), Kind: s, Group: s, What: s})
	r.Sites = append(r.Sites, report.Site{From: site, To: "paris", Rate: 5}, report.Site{From: "paris", To: site, Rate: 5})
	r.Savings = append(r.Savings, traffic.Saving{VMs: []heliotrope.VMID{vm.VM}, From: site, To: site, Why: s})
	r.Sources = append(r.Sources, report.Source{Host: host, Source: traffic.Source(s), Sampling: 9})
	g := &r.Groups[2]
	g.ID, g.Kind, g.Second, g.Evidence = s, pattern.Kind(s), pattern.Kind(s), []string{s}
	g.Ends = append(slices.Clone(g.Ends), vm)
	g.Sites = []heliotrope.SiteID{site}
	g.Tiers = []pattern.Tier{{Name: s, Members: []traffic.End{vm}}}
	g.Phases[0].Group.Kind = pattern.Kind(s)
	return r, m
}

// FuzzNames puts a text wherever a user, a VM or a host can put one.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"web-1", "", "<script>alert(1)</script>", `"><img src=x onerror=alert(1)>`, `' onload='alert(1)`, "</title></style></svg><iframe>",
		"javascript:alert(1)", "{{.}}", "<!--", "]]>", "&lt;b&gt;", "%v%!s(int=1)", "\x00\x1b[31m\u202egnp.exe", "http://203.0.113.1/x.png",
		"\xff\xfe", strings.Repeat("long", 2000), "a b\nc"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, m := named(s)
		page := render(t, r, m)
		text := inert(t, page)
		for _, bad := range []string{"\x00", "\x1b", "\u202e"} {
			if strings.Contains(page, bad) {
				t.Errorf("the page has %q", bad)
			}
		}
		if s != "" && len(s) < longest && !strings.Contains(text, clean(s)) {
			t.Errorf("%q is not in the page's text", clean(s))
		}
	})
}

func TestEmpty(t *testing.T) {
	page := render(t, report.Report{}, traffic.Matrix{})
	text := inert(t, page)
	for _, say := range []string{"Nothing was sent in this window.", "no host said how it counted", "No groups were found.", "There is no history yet.", "no window"} {
		if !strings.Contains(text, say) {
			t.Errorf("an empty report does not say %q", say)
		}
	}
	for _, word := range []string{"NaN", "Inf", "<no value>", "0001"} {
		if strings.Contains(page, word) {
			t.Errorf("the page has %q", word)
		}
	}
}

func TestSaysWhatItDoesNotKnow(t *testing.T) {
	whole := report.Source{Host: "a", Source: traffic.SourceEBPF, Sampling: 1}
	for _, c := range []struct {
		name string
		r    report.Report
		m    traffic.Matrix
		want string
		not  string
	}{
		{name: "all is known", r: report.Report{Sources: []report.Source{whole}}, want: "Every host counted every packet", not: "does not know"},
		{name: "a note", r: report.Report{Notes: []string{"Tunnels were not read."}}, want: "Tunnels were not read.", not: "Every host"},
		{name: "missing", m: traffic.Matrix{Missing: map[heliotrope.HostID]float64{"a": 0.25}}, want: "a did not tell of 25\u00a0% of the window"},
		{name: "missing, by the source", r: report.Report{Sources: []report.Source{{Host: "a", Sampling: 1, Missing: 0.25}}}, want: "a did not tell of 25\u00a0%"},
		{name: "said already", r: report.Report{Notes: []string{"Half of a is missing."}}, m: traffic.Matrix{Missing: map[heliotrope.HostID]float64{"a": 0.5}}, want: "Half of a is missing.", not: "did not tell"},
		{name: "sampled", r: report.Report{Sources: []report.Source{whole, {Host: "b", Sampling: 64}}}, want: "b looks at 1 of 64", not: "a looks at"},
		{name: "shed", m: traffic.Matrix{Shed: 1200}, want: "could not look at 1\u00a0200 packets"},
		{name: "unpriced", r: report.Report{Sites: []report.Site{{From: "x", To: "y", Rate: 1}, {From: "y", To: "y", Rate: 1}}}, want: "no price for x to y:", not: "at least"},
		{name: "almost all", m: traffic.Matrix{Missing: map[heliotrope.HostID]float64{"a": 0.9999}}, want: "99\u00a0%"},
	} {
		text := inert(t, render(t, c.r, c.m))
		if !strings.Contains(text, c.want) || c.not != "" && strings.Contains(text, c.not) {
			t.Errorf("%s: wants %q and not %q", c.name, c.want, c.not)
		}
	}
}

// crowd is n VMs in groups of 7, each of which sends to peers others.
func crowd(n, peers int) (report.Report, traffic.Matrix) {
	s := newSampler()
	var vms []traffic.End
	for i := range n {
		vms = append(vms, s.vm(heliotrope.SiteID("site-"+string(rune('a'+i%5))), fmt.Sprintf("customer-%04d-vm-%%d", i), 1)...)
	}
	m := traffic.Matrix{From: noon.Add(-window), To: noon}
	slices.SortFunc(vms, traffic.End.Compare)
	for i, a := range vms {
		var row []traffic.Cell
		for k := range peers {
			b := vms[(i+1+k)%n]
			v := 1e6 * s.vary()
			row = append(row, traffic.Cell{Src: a, Dst: b, Bytes: v, Low: v, High: v, Packets: 1e3, Services: []traffic.ServiceShare{{Service: traffic.Service{Protocol: 6, Port: 80}, Bytes: v}}})
		}
		slices.SortFunc(row, func(a, b traffic.Cell) int { return a.Dst.Compare(b.Dst) })
		m.Cells = append(m.Cells, row...)
	}
	r := s.report(m)
	kinds := []pattern.Kind{pattern.AllToAll, pattern.Ring, pattern.Random, pattern.Tree}
	for i := 0; i+7 <= n; i += 7 {
		g := group(fmt.Sprintf("group-%d", i/7), kinds[i/7%len(kinds)], vms[i:i+7])
		g.Evidence = []string{"Of 42 pairs between its 7 VMs, 42 talk.", "The smallest rate is a third of the largest."}
		r.Groups = append(r.Groups, g)
	}
	return r, m
}

func TestStaysSmall(t *testing.T) {
	for _, c := range []struct{ n, peers int }{{80, 79}, {200, 199}, {1000, 20}} {
		r, m := crowd(c.n, c.peers)
		page := render(t, r, m)
		t.Logf("%d VMs, %d cells: %d kB", c.n, len(m.Cells), len(page)/1000)
		if len(page) > 1_000_000 {
			t.Errorf("%d VMs: %d bytes", c.n, len(page))
		}
	}
}

func BenchmarkRender(b *testing.B) {
	r, m := crowd(1000, 200)
	for b.Loop() {
		render(b, r, m)
	}
}

// In a matrix that is too large to draw, no byte gets lost.
func TestLumpsKeepTheSum(t *testing.T) {
	r, m := crowd(300, 40)
	m.Cells = append(m.Cells, traffic.Cell{Src: traffic.VM("zz"), Dst: traffic.Outside(netip.MustParsePrefix("192.0.2.0/24")), Bytes: 5e6})
	v := newView(r, m)
	for _, limit := range []int{20, 60, 400} {
		n := v.network(limit)
		have, want := 0.0, 0.0
		for _, row := range n.rates {
			for _, x := range row {
				have += x
			}
		}
		for _, c := range m.Cells {
			want += c.Bytes / window.Seconds()
		}
		if diff := have/want - 1; diff > 1e-9 || diff < -1e-9 {
			t.Errorf("limit %d: %v of %v bytes", limit, have, want)
		}
		ends := 0
		for _, w := range n.nodes {
			ends += w.ends
		}
		if ends != 302 {
			t.Errorf("limit %d: %d ends", limit, ends)
		}
		if limit < 302 && len(n.nodes) > 80 {
			t.Errorf("limit %d: %d nodes", limit, len(n.nodes))
		}
	}
}

func TestManySites(t *testing.T) {
	var r report.Report
	for i := range 40 {
		for k := range 40 {
			if i != k {
				r.Sites = append(r.Sites, report.Site{From: heliotrope.SiteID(fmt.Sprint("site-", i)), To: heliotrope.SiteID(fmt.Sprint("site-", k)), Rate: float64(i), USDPerHour: 1, Priced: true})
			}
		}
	}
	page := render(t, r, traffic.Matrix{})
	text := inert(t, page)
	for _, say := range []string{"The 25 largest of 1560 ways", "30.4\u00a0kB/s", "1560\u00a0USD"} {
		if !strings.Contains(text, say) {
			t.Errorf("does not say %q", say)
		}
	}
	if len(page) > 60_000 {
		t.Errorf("%d bytes", len(page))
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errBroken }

var errBroken = errors.New("disk is full")

func TestRenderTellsTheWritersError(t *testing.T) {
	if err := Render(broken{}, report.Report{}, traffic.Matrix{}); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
}
