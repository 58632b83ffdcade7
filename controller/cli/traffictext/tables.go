// Package traffictext writes what was counted of traffic for those who ask at a terminal:
// tables for people, records for spreadsheets, and a screen that is drawn over.
package traffictext

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/cli/output"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/report"
)

// Report is everything on one page.
func Report(t *output.Table, r report.Report) {
	t.Line("%s", windowText(r.From, r.To, r.Total))
	if s := sparkline(r.History); s != "" {
		t.Line("%s", s)
	}
	section(t, len(r.Pairs), func() { pairsTable(t, r.Pairs) })
	section(t, len(r.Talkers), func() { talkersTable(t, r.Talkers) })
	section(t, len(r.Services), func() { servicesTable(t, r.Services) })
	section(t, len(r.Groups), func() { groupsTable(t, r.Groups) })
	section(t, len(r.Sites), func() {
		t.Head("FROM SITE", "TO SITE", "RATE", "USD/HOUR")
		for _, s := range r.Sites {
			t.Row(s.From, s.To, Rate(s.Rate), money(s))
		}
	})
	section(t, len(r.Savings), func() {
		t.Head("MOVE", "FROM", "TO", "SAVES USD/HOUR", "KEEPS AT HOME", "WHY")
		for _, s := range r.Savings {
			t.Row(output.Join(s.VMs), s.From, s.To, fmt.Sprintf("%.4f", s.USDPerHour), Rate(s.Bytes), s.Why)
		}
		t.Line("an estimate: the scheduler decides")
	})
	section(t, len(r.Events), func() {
		t.Head("WHEN", "CHANGE", "GROUP", "WHAT")
		for _, e := range r.Events {
			t.Row(e.At, e.Kind, e.Group, e.What)
		}
	})
	section(t, len(r.Sources), func() {
		t.Head("HOST", "COUNTS BY", "LOOKS AT", "PORTS", "CPU", "SHED", "CROWDED", "MISSING", "LAST")
		for _, s := range r.Sources {
			t.Row(s.Host, s.Source, samplingText(s.Sampling), s.Ports, fmt.Sprintf("%.1f%%", 100*s.CPU), s.Shed, s.Crowded, output.Percent(s.Missing), s.LastBin)
		}
	})
	notes(t, r.Notes)
}

// Top is the pairs, VMs or services with most traffic.
func Top(t *output.Table, top api.TrafficTop, by string) {
	t.Line("%s", windowText(top.From, top.To, top.Total))
	switch by {
	case "vms":
		talkersTable(t, top.Talkers)
	case "services":
		servicesTable(t, top.Services)
	default:
		pairsTable(t, top.Pairs)
	}
	notes(t, top.Notes)
}

// Patterns are the groups of VMs; explained, each says why, and what its VMs do.
func Patterns(t *output.Table, p api.TrafficPatterns, explained bool) {
	groupsTable(t, p.Groups)
	for _, g := range p.Groups {
		if explained {
			explainGroup(t, g)
		}
	}
	notes(t, p.Notes)
}

// section is a table with an empty line before it, where it has rows.
func section(t *output.Table, rows int, table func()) {
	if rows > 0 {
		t.Line("")
		table()
	}
}

func notes(t *output.Table, all []string) {
	for _, n := range all {
		t.Line("note: %s", n)
	}
}

func windowText(from, to time.Time, total report.Total) string {
	s := spanText(from, to) + ": "
	if total.Pairs == 0 {
		return s + "no traffic"
	}
	s += fmt.Sprintf("%s, %s packets/s, %s new flows/s; ", Rate(total.BytesPerSecond), countText(total.PacketsPerSecond), countText(total.FlowsPerSecond))
	s += fmt.Sprintf("%s of %s", output.Plural(total.Pairs, "pair"), output.Plural(total.VMs, "VM"))
	if total.Outside > 0 {
		s += fmt.Sprintf(" and %s outside", map[bool]string{true: "1 prefix", false: fmt.Sprintf("%d prefixes", total.Outside)}[total.Outside == 1])
	}
	return s
}

// spanText is a window: its day once, unless it ends on another.
func spanText(from, to time.Time) string {
	end := output.Cell(to)
	if day := "2006-01-02"; from.UTC().Format(day) == to.UTC().Format(day) {
		end = to.UTC().Format("15:04:05Z")
	}
	return fmt.Sprintf("%s to %s (%s)", output.Cell(from), end, durationText(to.Sub(from)))
}

// durationText is 1h rather than 1h0m0s.
func durationText(d time.Duration) string {
	s := d.Round(time.Second).String()
	if short, ok := strings.CutSuffix(s, "m0s"); ok {
		s = short + "m"
	}
	if short, ok := strings.CutSuffix(s, "h0m"); ok {
		s = short + "h"
	}
	return s
}

// sparkline is a time line in one line.
func sparkline(history []report.Volume) string {
	const width = 60
	history = history[max(0, len(history)-width):]
	peak := 0.0
	for _, v := range history {
		peak = max(peak, v.Rate)
	}
	if peak == 0 || len(history) < 2 {
		return ""
	}
	bars := []rune("▁▂▃▄▅▆▇█")
	var b strings.Builder
	for _, v := range history {
		b.WriteRune(bars[min(max(int(v.Rate/peak*float64(len(bars))), 0), len(bars)-1)])
	}
	span := history[len(history)-1].At.Sub(history[0].At)
	return fmt.Sprintf("%s  %s, peak %s", b.String(), durationText(span), Rate(peak))
}

// pairsTable has a column for intervals only where packets were sampled.
func pairsTable(t *output.Table, pairs []report.Pair) {
	sampled := slices.ContainsFunc(pairs, func(p report.Pair) bool { return p.High > p.Low })
	head := []string{"SOURCE", "DESTINATION", "RATE", "95%", "PACKETS/S", "SERVICE", "SITES", "RTT", "BURST"}
	if !sampled {
		head = slices.Delete(head, 3, 4)
	}
	t.Head(head...)
	for _, p := range pairs {
		row := []any{p.Src, p.Dst, Rate(p.Rate), intervalText(p.Low, p.High), countText(p.Packets), serviceText(p.Service, p.Reply),
			sitesText(p), output.Milliseconds(p.RTTMs), burstText(p.Burst)}
		if !sampled {
			row = slices.Delete(row, 3, 4)
		}
		t.Row(row...)
	}
}

func sitesText(p report.Pair) string {
	if p.From == p.To {
		return string(p.From)
	}
	name := func(s heliotrope.SiteID) string { return cmp.Or(string(s), "outside") }
	return name(p.From) + " → " + name(p.To)
}

func serviceText(s traffic.Service, reply bool) string {
	switch {
	case s == (traffic.Service{}):
		return ""
	case reply:
		return s.String() + " reply"
	}
	return s.String()
}

func burstText(x float64) string {
	if x == 0 {
		return ""
	}
	return fmt.Sprintf("×%.1f", x)
}

func talkersTable(t *output.Table, talkers []report.Talker) {
	t.Head("END", "SITE", "HOST", "SENDS", "GETS", "TALKS TO")
	for _, x := range talkers {
		t.Row(x.End, x.Site, x.Host, Rate(x.Sent), Rate(x.Got), x.Ends)
	}
}

func servicesTable(t *output.Table, services []report.Service) {
	t.Head("SERVICE", "RATE", "CLIENTS", "SERVERS")
	for _, s := range services {
		t.Row(serviceText(s.Service, false), Rate(s.Rate), s.Clients, endsText(s.Servers, 8))
	}
}

func groupsTable(t *output.Table, groups []report.Group) {
	if len(groups) == 0 {
		t.Line("no VMs that belong together were seen")
		return
	}
	t.Head("GROUP", "PATTERN", "RATE", "OUTSIDE", "SITES", "SINCE", "VMS")
	for _, g := range groups {
		t.Row(g.ID, patternText(g.Group), Rate(g.Bytes), Rate(g.Outside), output.Join(g.Sites), g.Since, endsText(g.Ends, 4))
	}
}

// patternText is a group's pattern with its size, its shape and how sure that is.
func patternText(g pattern.Group) string {
	n := len(g.Ends)
	sides := make([]string, len(g.Shape))
	for i, s := range g.Shape {
		sides[i] = fmt.Sprint(s)
	}
	var s string
	switch {
	case g.Kind == pattern.Random || g.Kind == pattern.Unknown:
		return fmt.Sprintf("%s, %d VMs", g.Kind, n)
	case g.Kind == pattern.Pair:
		s = string(g.Kind)
	case g.Kind == pattern.Shuffle && len(sides) == 2:
		s = fmt.Sprintf("shuffle of %s to %s", sides[0], sides[1])
	case g.Kind == pattern.Tree && len(sides) == 1:
		s = fmt.Sprintf("tree of %d, %s children each", n, sides[0])
	case len(sides) > 1:
		s = fmt.Sprintf("%s of %s", g.Kind, strings.Join(sides, "×"))
	default:
		s = fmt.Sprintf("%s of %d", g.Kind, n)
	}
	return fmt.Sprintf("%s (%s)", s, output.Percent(g.Confidence))
}

// endsText lists n ends at most, and how many more there are.
func endsText(ends []traffic.End, n int) string {
	names := make([]string, 0, n+1)
	for _, e := range ends[:min(n, len(ends))] {
		names = append(names, e.String())
	}
	if more := len(ends) - n; more > 0 {
		names = append(names, fmt.Sprintf("+%d", more))
	}
	return strings.Join(names, ",")
}

// explainGroup says why a group has its pattern, and what its VMs do.
func explainGroup(t *output.Table, g report.Group) {
	t.Line("")
	t.Line("%s: %s", g.ID, patternText(g.Group))
	t.Row("  VMs", endsText(g.Ends, 32))
	for _, e := range g.Evidence {
		t.Row("  why", e)
	}
	t.Row("  explains", fmt.Sprintf("%s of its %s", output.Percent(g.Coverage), Rate(g.Bytes)))
	if g.Second != "" {
		t.Row("  else", string(g.Second))
	}
	for _, tier := range g.Tiers {
		t.Row("  tier", fmt.Sprintf("%s (%s): %s", tier.Name, output.Percent(tier.Confidence), endsText(tier.Members, 16)))
	}
	for _, p := range slices.Backward(g.Phases) {
		t.Row("  before", fmt.Sprintf("%s, %s", patternText(p.Group), spanText(p.From, p.To)))
	}
}

// Matrix is a grid where that fits on a screen, and a list of the top cells.
func Matrix(t *output.Table, m traffic.Matrix, top int) {
	seconds := max(m.To.Sub(m.From).Seconds(), 1e-9)
	rates := map[[2]traffic.End]float64{}
	var ends []traffic.End
	for _, c := range m.Cells {
		rates[[2]traffic.End{c.Src, c.Dst}] = c.Bytes / seconds
		ends = append(ends, c.Src, c.Dst)
	}
	slices.SortFunc(ends, traffic.End.Compare)
	ends = slices.Compact(ends)
	if len(ends) > 0 && len(ends) <= 12 {
		head := []string{"FROM\\TO"}
		for _, e := range ends {
			head = append(head, e.String())
		}
		t.Head(head...)
		for _, src := range ends {
			row := []any{src}
			for _, dst := range ends {
				rate, ok := rates[[2]traffic.End{src, dst}]
				row = append(row, map[bool]string{true: Rate(rate), false: "·"}[ok])
			}
			t.Row(row...)
		}
		t.Line("")
	}
	cells := slices.Clone(m.Cells)
	slices.SortStableFunc(cells, func(a, b traffic.Cell) int { return cmp.Compare(b.Bytes, a.Bytes) })
	t.Head("SOURCE", "DESTINATION", "BYTES", "RATE", "PACKETS", "FLOWS", "SERVICES")
	for _, c := range cells[:min(top, len(cells))] {
		t.Row(c.Src, c.Dst, output.Bytes(uint64(math.Round(c.Bytes))), Rate(c.Bytes/seconds), countText(c.Packets), countText(c.Flows), sharesText(c))
	}
	t.Line("%s: %d of %s between %s", spanText(m.From, m.To), min(top, len(cells)), output.Plural(len(cells), "cell"), output.Plural(len(ends), "end"))
	if m.Shed > 0 {
		t.Line("note: %s packets were not looked at", countText(float64(m.Shed)))
	}
	for _, h := range slices.Sorted(maps.Keys(m.Missing)) {
		t.Line("note: %s of what %s was to count is missing", output.Percent(m.Missing[h]), h)
	}
}

// sharesText are a cell's three largest services with their shares.
func sharesText(c traffic.Cell) string {
	var all []string
	for _, s := range c.Services[:min(3, len(c.Services))] {
		all = append(all, fmt.Sprintf("%s %s", serviceText(s.Service, s.Reply), output.Percent(s.Bytes/max(c.Bytes, 1))))
	}
	return strings.Join(all, ", ")
}

// Diff is what changed from one window to another.
func Diff(t *output.Table, d api.TrafficDiff) {
	t.Line("before  %s", windowText(d.Before.From, d.Before.To, d.Before.Total))
	t.Line("after   %s", windowText(d.After.From, d.After.To, d.After.Total))
	section(t, len(d.Pairs), func() {
		t.Head("SOURCE", "DESTINATION", "BEFORE", "AFTER", "CHANGE", "AT LEAST")
		for _, p := range d.Pairs {
			t.Row(p.Src, p.Dst, Rate(p.Before), Rate(p.After), changeText(p), Rate(p.Least))
		}
	})
	section(t, len(d.Groups), func() {
		t.Head("GROUP", "CHANGE", "BEFORE", "AFTER", "JOINED", "LEFT")
		for _, g := range d.Groups {
			t.Row(g.ID, g.Change, string(g.Before), string(g.After), endsText(g.Joined, 4), endsText(g.Left, 4))
		}
	})
	if len(d.Pairs)+len(d.Groups) == 0 {
		t.Line("nothing changed")
	}
	notes(t, d.Notes)
}

func changeText(c traffic.Change) string {
	if c.Before == 0 || c.After == 0 {
		return string(c.Kind)
	}
	return fmt.Sprintf("%+.0f%%", 100*(c.After/c.Before-1))
}
