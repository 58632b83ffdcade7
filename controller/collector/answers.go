package collector

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/webreport"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/report"
)

var _ api.Traffic = (*Collector)(nil)

// historyPoints are those of a report's time line, which goes back three windows more.
const (
	historyPoints  = 120
	historyWindows = 4
)

// Report says who talked to whom in a window.
func (c *Collector) Report(ctx context.Context, q api.TrafficQuery) (report.Report, error) {
	if !c.world.Leads() {
		return report.Report{}, errNotLeading
	}
	r, _, err := c.report(ctx, q)
	return r, err
}

var errNotLeading = api.Unavailable("traffic is known to the controller that leads: ask that one (heliotrope status)")

// Brief is the last minute's report without groups: cheap enough to be asked for often.
func (c *Collector) Brief(top int) report.Report {
	end, _ := c.window(api.TrafficQuery{})
	c.mu.Lock()
	m := c.ledger.Matrix(end, api.DefaultWindow)
	c.mu.Unlock()
	return report.Build(report.Input{Now: c.now().UTC(), Matrix: m, Topology: c.fabric().Topology, Sources: c.sources(m)}, report.Options{Top: top})
}

// Matrix is what was counted in a window.
func (c *Collector) Matrix(ctx context.Context, q api.TrafficQuery) (traffic.Matrix, error) {
	if !c.world.Leads() {
		return traffic.Matrix{}, errNotLeading
	}
	end, span := c.window(q)
	m, err := c.matrix(ctx, end, span)
	return filter(m, q, c.fabric()), err
}

// Diff compares two windows, pair by pair and group by group.
func (c *Collector) Diff(ctx context.Context, before, after api.TrafficQuery) (api.TrafficDiff, error) {
	if !c.world.Leads() {
		return api.TrafficDiff{}, errNotLeading
	}
	top := cmp.Or(after.Top, api.DefaultTop)
	before.Top, after.Top = math.MaxInt, math.MaxInt
	a, was, err := c.report(ctx, before)
	if err != nil {
		return api.TrafficDiff{}, err
	}
	b, is, err := c.report(ctx, after)
	return api.CompareTraffic(a, b, traffic.Diff(was, is), top), err
}

// Page is a report as a page of HTML that needs nothing else.
func (c *Collector) Page(ctx context.Context, q api.TrafficQuery) ([]byte, error) {
	if !c.world.Leads() {
		return nil, errNotLeading
	}
	q.Top = math.MaxInt // the page cuts by itself, and has to know where every end is
	r, m, err := c.report(ctx, q)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := webreport.Render(&b, r, m); err != nil {
		return nil, fmt.Errorf("draw report: %w", err)
	}
	return b.Bytes(), nil
}

// window is what a query asks for. Now is the newest second that all hosts have told.
func (c *Collector) window(q api.TrafficQuery) (end time.Time, span time.Duration) {
	end = q.End
	if newest := c.now().Add(-settle).Truncate(traffic.BinLength); end.IsZero() || end.After(newest.Add(settle)) {
		end = newest
	}
	return end, cmp.Or(q.Window, api.DefaultWindow)
}

func (c *Collector) report(ctx context.Context, q api.TrafficQuery) (report.Report, traffic.Matrix, error) {
	end, span := c.window(q)
	fabric := c.fabric()
	m, err := c.matrix(ctx, end, span)
	if err != nil {
		return report.Report{}, m, err
	}
	m = filter(m, q, fabric)
	in := report.Input{Now: c.now().UTC(), Matrix: m, Topology: fabric.Topology, HostOf: fabric.HostOf(),
		Groups: c.groups(pattern.Infer(pattern.FromMatrix(m))), Events: c.newest(m.From, m.To), Sources: c.sources(m)}
	step := max(historyWindows*span/historyPoints, traffic.BinLength).Truncate(traffic.BinLength)
	in.History = c.line(end, step)
	in.Events = append(in.Events, levels(in.History)...)
	slices.SortStableFunc(in.Events, func(a, b report.Event) int { return b.At.Compare(a.At) })
	for i := range in.Groups {
		in.Groups[i].Sites = sitesOf(in.Groups[i].Ends, in.HostOf, fabric.Topology)
	}
	in.Savings = savings(m, in)
	return report.Build(in, report.Options{Top: q.Top}), m, nil
}

// levels are the changes of a time line's level, as events.
func levels(line []report.Volume) []report.Event {
	rates := make([]float64, len(line))
	for i, v := range line {
		rates[i] = v.Rate
	}
	mean := func(part []float64) (sum float64) {
		for _, r := range part {
			sum += r / float64(len(part))
		}
		return sum
	}
	var events []report.Event
	points := append(traffic.ChangePoints(rates), len(rates))
	for from, k := 0, 0; k+1 < len(points); k++ {
		at := points[k]
		events = append(events, report.Event{At: line[at].At, Kind: "volume",
			What: fmt.Sprintf("all traffic went from about %.3g to %.3g kB/s", mean(rates[from:at])/1e3, mean(rates[at:points[k+1]])/1e3)})
		from = at
	}
	return events
}

// savings estimates what other places for VMs would save of what crosses sites.
func savings(m traffic.Matrix, in report.Input) []traffic.Saving {
	prices := report.Prices(in.Topology)
	p := traffic.Places{
		Where: func(e traffic.End) (heliotrope.SiteID, bool) {
			s := in.Topology.Hosts[in.HostOf[e.VM]].Site
			return s, s != ""
		},
		Price: func(from, to heliotrope.SiteID) float64 { return prices[[2]heliotrope.SiteID{from, to}] },
		Room:  func(s heliotrope.SiteID) int { return room(in, s) },
	}
	for _, h := range in.Topology.Hosts {
		if !slices.Contains(p.Sites, h.Site) {
			p.Sites = append(p.Sites, h.Site)
		}
	}
	slices.Sort(p.Sites)
	for _, g := range in.Groups {
		var vms []heliotrope.VMID
		for _, e := range g.Ends {
			vms = append(vms, e.VM)
		}
		p.Groups = append(p.Groups, vms)
	}
	return traffic.Savings(m, p)
}

// room is how many more VMs of mean size fit a site's hosts, by the memory that the
// topology says they have. Where it does not say, it is taken to be enough.
func room(in report.Input, site heliotrope.SiteID) int {
	free, sizes := 0, 0
	for _, h := range in.Topology.Hosts {
		if h.Site == site && h.MemoryMiB == 0 {
			return len(in.Topology.VMs)
		}
		if h.Site == site {
			free += h.MemoryMiB
		}
	}
	for id, vm := range in.Topology.VMs {
		sizes += vm.MemoryMiB
		if in.Topology.Hosts[in.HostOf[id]].Site == site {
			free -= vm.MemoryMiB
		}
	}
	return max(free*len(in.Topology.VMs)/max(sizes, 1), 0)
}

// line is the time line up to end.
func (c *Collector) line(end time.Time, step time.Duration) []report.Volume {
	c.mu.Lock()
	defer c.mu.Unlock()
	var line []report.Volume
	for _, p := range c.ledger.Series(traffic.Everything, end.Add(-historyPoints*step), step, historyPoints) {
		line = append(line, report.Volume{At: p.At, Rate: p.Bytes / step.Seconds()})
	}
	first := slices.IndexFunc(line, func(v report.Volume) bool { return v.Rate > 0 })
	return line[max(first, 0):]
}

// sources is how each host counts.
func (c *Collector) sources(m traffic.Matrix) []report.Source {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []report.Source
	for _, h := range slices.Sorted(maps.Keys(c.hosts)) {
		b := c.hosts[h].last
		if b.Seq == 0 {
			continue
		}
		list = append(list, report.Source{Host: h, Source: b.Source, Sampling: b.Sampling, Ports: b.Ports, CPU: b.CPU.Seconds() / traffic.BinLength.Seconds(),
			Shed: b.Shed, Crowded: b.Crowded, LastBin: b.Start, Missing: m.Missing[h]})
	}
	return list
}

// groups gives those of a window the names, and the past, of the groups that are followed.
func (c *Collector) groups(a pattern.Analysis) []report.Group {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := map[int]bool{}
	list := []report.Group{}
	for _, g := range a.Groups {
		named := report.Group{Group: g}
		if t := c.tracker.Find(g.Ends); t != nil && !taken[t.ID] {
			taken[t.ID] = true
			named.ID, named.Phases = groupName(t.ID), slices.Clone(t.Phases)
			named.Since = t.Phases[len(t.Phases)-1].From
		}
		list = append(list, named)
	}
	for i, next := 0, 1; i < len(list); i++ { // those that nobody follows yet
		if list[i].ID == "" {
			list[i].ID = fmt.Sprintf("new-%d", next)
			next++
		}
	}
	return list
}

func sitesOf(ends []traffic.End, at map[heliotrope.VMID]heliotrope.HostID, t heliotrope.Topology) []heliotrope.SiteID {
	sites := map[heliotrope.SiteID]bool{}
	for _, e := range ends {
		if s := t.Hosts[at[e.VM]].Site; s != "" {
			sites[s] = true
		}
	}
	return slices.Sorted(maps.Keys(sites))
}

// filter leaves the cells that have an end where the query asks.
func filter(m traffic.Matrix, q api.TrafficQuery, f Fabric) traffic.Matrix {
	if q.Network == "" && q.Site == "" && len(q.VMs) == 0 {
		return m
	}
	passes := func(e traffic.End) bool {
		if !e.IsVM() {
			return false
		}
		in := func(nic heliotrope.NIC) bool { return nic.Network == q.Network }
		return (q.Network == "" || slices.ContainsFunc(f.Topology.VMs[e.VM].NICs, in)) &&
			(q.Site == "" || f.Topology.Hosts[f.Placements[e.VM].Host].Site == q.Site) &&
			(len(q.VMs) == 0 || slices.Contains(q.VMs, e.VM))
	}
	m.Cells = slices.DeleteFunc(slices.Clone(m.Cells), func(c traffic.Cell) bool { return !passes(c.Src) && !passes(c.Dst) })
	return m
}
