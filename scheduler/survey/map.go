package survey

import (
	"cmp"
	"maps"
	"slices"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/atlas"
)

// way is from a site to a site.
type way = [2]heliotrope.SiteID

// chart is a map in the making.
type chart struct {
	sites map[heliotrope.SiteID]*atlas.SiteVMs
	ways  map[way]*atlas.Way
}

// Map draws a plan of a snapshot up as sums of sites. Regions of clients are sites on it:
// those of Take are.
func Map(s scheduler.Snapshot, p scheduler.Plan) *atlas.Map {
	c := chart{map[heliotrope.SiteID]*atlas.SiteVMs{}, map[way]*atlas.Way{}}
	for _, site := range s.Sites {
		c.site(site.ID)
		c.way(site.ID, site.ID).RTTMs = site.LANRTTMs
	}
	for _, w := range s.Paths {
		c.far(w.From, w.To, w.RTTMs)
	}
	for _, r := range s.Reaches {
		c.far(r.Site, heliotrope.SiteID(r.Region), r.RTTMs)
	}
	site := map[heliotrope.HostID]heliotrope.SiteID{}
	for _, h := range s.Hosts {
		site[h.ID] = h.Site
	}
	where := func(hosts scheduler.Placement) map[heliotrope.VMID]heliotrope.SiteID {
		at := map[heliotrope.VMID]heliotrope.SiteID{}
		for vm, h := range hosts {
			at[vm] = site[h]
		}
		return at
	}
	m := &atlas.Map{}
	now := where(s.Placement())
	then := where(p.Apply(s.Placement()))
	for _, at := range now {
		c.site(at).VMs++
	}
	for _, at := range then {
		c.site(at).After++
	}
	m.Before = c.add(s, now, func(w *atlas.Way) *float64 { return &w.Before })
	m.After = c.add(s, then, func(w *atlas.Way) *float64 { return &w.After })
	c.fill(m)
	talk(m, s, now, then)
	return m
}

// talk writes the VMs that talk most, and what they send to each other.
func talk(m *atlas.Map, s scheduler.Snapshot, now, then map[heliotrope.VMID]heliotrope.SiteID) {
	type pair = [2]heliotrope.VMID
	sent, volume := map[pair]float64{}, map[heliotrope.VMID]float64{}
	for _, f := range s.Flows {
		if f.Src == f.Dst || f.BytesPerSecond <= 0 {
			continue
		}
		sent[pair{f.Src, f.Dst}] += f.BytesPerSecond
		m.Rest += f.BytesPerSecond
	}
	pairs := slices.SortedFunc(maps.Keys(sent), func(a, b pair) int { return cmp.Or(cmp.Compare(sent[b], sent[a]), slices.Compare(a[:], b[:])) })
	for _, p := range pairs { // in one order: sums of floats
		volume[p[0]] += sent[p]
		volume[p[1]] += sent[p]
	}
	vms := slices.SortedFunc(maps.Keys(volume), func(a, b heliotrope.VMID) int { return cmp.Or(cmp.Compare(volume[b], volume[a]), cmp.Compare(a, b)) })
	vms = vms[:min(len(vms), atlas.MostVMs)]
	slices.Sort(vms)
	at := map[heliotrope.VMID]int{}
	for i, vm := range vms {
		at[vm] = i
		m.VMs = append(m.VMs, atlas.PlacedVM{ID: vm, Before: now[vm], After: then[vm]})
	}
	for _, p := range pairs {
		from, ok := at[p[0]]
		to, ok2 := at[p[1]]
		if ok && ok2 && len(m.Pairs) < atlas.MostPairs {
			m.Pairs = append(m.Pairs, atlas.VMPair{From: from, To: to, BytesPerSecond: sent[p]})
			m.Rest -= sent[p]
		}
	}
	slices.SortFunc(m.Pairs, func(a, b atlas.VMPair) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	if m.Rest = max(0, m.Rest); len(m.Pairs) == len(sent) {
		m.Rest = 0 // and not what its sums have rounded
	}
}

func (c chart) site(id heliotrope.SiteID) *atlas.SiteVMs {
	if c.sites[id] == nil {
		c.sites[id] = &atlas.SiteVMs{ID: id}
	}
	return c.sites[id]
}

func (c chart) way(from, to heliotrope.SiteID) *atlas.Way {
	if w := (way{from, to}); c.ways[w] == nil {
		c.site(from)
		c.site(to)
		c.ways[w] = &atlas.Way{From: from, To: to}
	}
	return c.ways[way{from, to}]
}

// far takes in a round trip; where both ways tell one, their mean counts.
func (c chart) far(a, b heliotrope.SiteID, ms float64) {
	if a == b {
		return // what is within a site is told already
	}
	there, back := c.way(a, b), c.way(b, a)
	if there.RTTMs > 0 {
		ms = (there.RTTMs + ms) / 2
	}
	there.RTTMs, back.RTTMs = ms, ms
}

// add puts traffic on the ways between where VMs are, and tells how far it goes.
func (c chart) add(s scheduler.Snapshot, at map[heliotrope.VMID]heliotrope.SiteID, rate func(*atlas.Way) *float64) atlas.Means {
	var far, sum [2]float64
	put := func(kind int, from, to heliotrope.SiteID, bytes float64) {
		w := c.way(from, to)
		*rate(w) += bytes
		far[kind] += bytes * w.RTTMs
		sum[kind] += bytes
	}
	for _, d := range s.Demands {
		if from, ok := at[d.VM]; ok {
			put(0, from, heliotrope.SiteID(d.Region), d.BytesPerSecond)
		}
	}
	for _, f := range s.Flows {
		from, here := at[f.Src]
		to, there := at[f.Dst]
		if here && there {
			put(1, from, to, f.BytesPerSecond)
		}
	}
	return atlas.Means{ClientsMs: far[0] / max(sum[0], 1e-9), EastWestMs: far[1] / max(sum[1], 1e-9)}
}

// fill writes the sites that matter most, and the ways between them.
func (c chart) fill(m *atlas.Map) {
	traffic := map[heliotrope.SiteID]float64{}
	for _, w := range slices.SortedFunc(maps.Keys(c.ways), func(a, b way) int { return slices.Compare(a[:], b[:]) }) {
		for _, end := range w {
			traffic[end] += c.ways[w].Before + c.ways[w].After
		}
	}
	order := slices.SortedFunc(maps.Keys(c.sites), func(a, b heliotrope.SiteID) int {
		x, y := c.sites[a], c.sites[b]
		return cmp.Or(cmp.Compare(y.VMs+y.After, x.VMs+x.After), cmp.Compare(traffic[b], traffic[a]), cmp.Compare(a, b))
	})
	kept := order[:min(len(order), atlas.Most)]
	m.LeftOut = len(order) - len(kept)
	slices.Sort(kept)
	for _, a := range kept {
		m.Sites = append(m.Sites, *c.sites[a])
		for _, b := range kept {
			if w := c.ways[way{a, b}]; w != nil && (w.Before+w.After > 0 || a < b) {
				m.Ways = append(m.Ways, *w)
			}
		}
	}
}
