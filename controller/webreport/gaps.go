package webreport

import (
	"fmt"
	"slices"
	"strings"

	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/report"
)

// gaps is what the report does not know: its notes or, where it has none, what its figures
// say; and what is not priced.
func gaps(r report.Report, m traffic.Matrix) []string {
	all := slices.Clone(r.Notes)
	if len(r.Notes) == 0 {
		for _, host := range sortedKeys(m.Missing) {
			all = append(all, fmt.Sprintf("%s did not tell of %s of the window", host, percent(m.Missing[host])))
		}
		for _, s := range r.Sources {
			if s.Missing > 0 && m.Missing[s.Host] == 0 {
				all = append(all, fmt.Sprintf("%s did not tell of %s of the window", s.Host, percent(s.Missing)))
			}
			if s.Sampling > 1 {
				all = append(all, fmt.Sprintf("%s looks at 1 of %d packets", s.Host, s.Sampling))
			}
			if s.Shed > 0 {
				all = append(all, fmt.Sprintf("%s could not look at %s packets", s.Host, whole(s.Shed)))
			}
		}
		if m.Shed > 0 && !slices.ContainsFunc(r.Sources, func(s report.Source) bool { return s.Shed > 0 }) {
			all = append(all, fmt.Sprintf("hosts could not look at %s packets", whole(m.Shed)))
		}
	}
	var unpriced []string
	for _, s := range r.Sites {
		if !s.Priced && s.From != s.To && s.Rate > 0 {
			unpriced = append(unpriced, fmt.Sprintf("%s to %s", s.From, s.To))
		}
	}
	if first, more := cut(unpriced, gapLimit); len(first) > 0 {
		ways := strings.Join(first, ", ")
		if more > 0 {
			ways += fmt.Sprintf(" and %d more ways", more)
		}
		all = append(all, fmt.Sprintf("the topology has no price for %s: costs leave that out", ways))
	}
	if len(all) == 0 && len(r.Sources) == 0 {
		all = append(all, "no host said how it counted, so what is missing is not known")
	}
	return all
}
