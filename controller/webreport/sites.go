package webreport

import (
	"cmp"
	"slices"

	"heliotrope/scheduler/traffic/report"
)

// siteRow is what one site sends to each of SiteNames.
type siteRow struct {
	Name  string
	Cells []siteCell
	Rate  float64
	Cost  string
}

type siteCell struct {
	report.Site
	Class string
	Same  bool
}

// sites makes the table of what crosses sites or, where there are too many, lists the most.
// What stays at a site is in no sum.
func (p *page) sites(all []report.Site) {
	names := map[string]bool{}
	at := map[[2]string]report.Site{}
	var crossing []report.Site
	for _, s := range all {
		from, to := string(s.From), string(s.To)
		names[from], names[to] = true, true
		at[[2]string{from, to}] = s
		if s.From != s.To {
			crossing = append(crossing, s)
			p.SiteRate += s.Rate
			p.SiteUSD += s.USDPerHour
			p.Unpriced = p.Unpriced || s.Rate > 0 && !s.Priced
		}
	}
	if len(names) > siteLimit {
		slices.SortStableFunc(crossing, func(a, b report.Site) int { return cmp.Compare(b.Rate, a.Rate) })
		p.AllWays = len(crossing)
		p.Ways, _ = cut(crossing, rowLimit)
		return
	}
	p.SiteNames = sortedKeys(names)
	rates := make([]float64, len(crossing))
	for i, s := range crossing {
		rates[i] = s.Rate
	}
	scale := scaleOf([][]float64{rates})
	for _, from := range p.SiteNames {
		row, cost, unpriced := siteRow{Name: from}, 0.0, false
		for _, to := range p.SiteNames {
			c := siteCell{Site: at[[2]string{from, to}], Same: from == to}
			if !c.Same {
				row.Rate += c.Rate
				cost += c.USDPerHour
				unpriced = unpriced || c.Rate > 0 && !c.Priced
				c.Class = scale.class(c.Rate)
			}
			row.Cells = append(row.Cells, c)
		}
		row.Cost = atLeast(unpriced) + usd(cost) + "/h"
		if unpriced && cost == 0 {
			row.Cost = "no price"
		}
		p.SiteRows = append(p.SiteRows, row)
	}
}

func atLeast(unpriced bool) string {
	if unpriced {
		return "at least "
	}
	return ""
}
