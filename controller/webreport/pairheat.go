package webreport

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler/atlas"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/report"
)

// pairPictures are who talks to whom, VM by VM: the heat map of the traffic report, before
// and after a plan. What is sent is the same in both; where it crosses sites is not.
type pairPictures struct {
	PairScale, PairsBefore, PairsAfter template.HTML

	All, Rest                   float64 // bytes per second between the VMs that are drawn, and between others
	CrossedBefore, CrossedAfter float64
	PairRows                    []pairRow
	AllPairs                    int
}

// pairRow is a pair of which a plan changes whether it crosses sites, and the sites of its ends.
type pairRow struct {
	From, To      string
	Rate          float64
	Before, After string
}

// drawPairs draws what a map has of VMs. They are sorted by the groups that they form, as in
// a report.
func drawPairs(m *atlas.Map) (p pairPictures) {
	if m == nil {
		return p
	}
	matrix, places := matrixOf(m)
	if len(matrix.Cells) == 0 {
		return p
	}
	r := communities(matrix)
	before, after := newView(r, matrix), newView(r, matrix)
	for i, e := range before.ends {
		before.sites[i], after.sites[i] = siteName(places[e.VM].Before), siteName(places[e.VM].After)
	}
	n, then := before.network(heatLimit), after.network(heatLimit)
	s := scaleOf(n.rates)
	p.PairScale, p.Rest = drawScale(s), finite(m.Rest)
	p.PairsBefore = drawHeat("pairs-before", "Traffic between VMs before the plan", n, s, true)
	p.PairsAfter = drawHeat("pairs-after", "Traffic between VMs after the plan", then, s, true)
	for i, row := range n.rates {
		for j, rate := range row {
			was, is := n.crossing[i][j], then.crossing[i][j]
			p.All += rate
			p.CrossedBefore += was
			p.CrossedAfter += is
			if (was > 0) != (is > 0) {
				a, b, c, d := n.nodes[i], n.nodes[j], then.nodes[i], then.nodes[j]
				p.PairRows = append(p.PairRows, pairRow{a.name, b.name, rate, wayName(a.site, b.site), wayName(c.site, d.site)})
			}
		}
	}
	slices.SortStableFunc(p.PairRows, func(a, b pairRow) int { return cmp.Compare(b.Rate, a.Rate) })
	p.AllPairs = len(p.PairRows)
	p.PairRows, _ = cut(p.PairRows, rowLimit)
	return p
}

// communities are the groups of a matrix, by no more than who talks to whom.
func communities(m traffic.Matrix) (r report.Report) {
	g := pattern.FromMatrix(m)
	for _, members := range pattern.Communities(g) {
		if len(members) < 2 {
			continue
		}
		group := report.Group{ID: fmt.Sprintf("group %d", len(r.Groups)+1)}
		for _, i := range members {
			group.Ends = append(group.Ends, g.Ends[i])
		}
		r.Groups = append(r.Groups, group)
	}
	return r
}

// matrixOf is a map's pairs as a matrix of one second, and its VMs by name.
func matrixOf(m *atlas.Map) (traffic.Matrix, map[heliotrope.VMID]atlas.PlacedVM) {
	matrix := traffic.Matrix{From: time.Unix(0, 0), To: time.Unix(1, 0)}
	places := map[heliotrope.VMID]atlas.PlacedVM{}
	vms, _ := cut(m.VMs, atlas.MostVMs)
	for _, vm := range vms {
		places[vm.ID] = vm
	}
	vm := func(i int) traffic.End {
		if i < 0 || i >= len(vms) {
			return traffic.End{}
		}
		return traffic.VM(vms[i].ID)
	}
	for _, p := range m.Pairs {
		src, dst, bytes := vm(p.From), vm(p.To), finite(p.BytesPerSecond)
		if src.IsVM() && dst.IsVM() && src != dst && bytes > 0 {
			matrix.Cells = append(matrix.Cells, traffic.Cell{Src: src, Dst: dst, Bytes: bytes, Low: bytes, High: bytes})
		}
	}
	slices.SortStableFunc(matrix.Cells, func(a, b traffic.Cell) int { return cmp.Or(a.Src.Compare(b.Src), a.Dst.Compare(b.Dst)) })
	return matrix, places
}

func siteName(id heliotrope.SiteID) string {
	if id == "" {
		return notTold
	}
	return clip(string(id), longest)
}

// wayName is where a pair's traffic goes.
func wayName(from, to string) string {
	if from == to {
		return "within " + from
	}
	return from + " → " + to
}
