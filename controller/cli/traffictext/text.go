package traffictext

import (
	"fmt"
	"math"
	"strings"

	"heliotrope/controller/api"
	"heliotrope/scheduler/traffic/report"
)

// units are decimal, as those of networks are.
var units = []struct {
	size float64
	name string
}{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}}

// scale is the unit in which x is said.
func scale(x float64) (size float64, name string) {
	for _, u := range units {
		if x >= u.size {
			return u.size, u.name
		}
	}
	return 1, ""
}

// Rate is bytes per second in words.
func Rate(x float64) string {
	size, unit := scale(x)
	switch {
	case x <= 0:
		return "-"
	case x < 1:
		return "<1 B/s"
	case size == 1:
		return fmt.Sprintf("%.0f B/s", x)
	}
	return fmt.Sprintf("%.1f %sB/s", x/size, unit)
}

// intervalText is where a rate is with 95 % confidence, both ends in one unit; nothing where
// all packets were counted.
func intervalText(low, high float64) string {
	if high <= low {
		return ""
	}
	size, unit := scale(high)
	digits := map[bool]int{true: 0, false: 1}[size == 1]
	return fmt.Sprintf("%.*f to %.*f %sB/s", digits, low/size, digits, high/size, unit)
}

// countText is how many of something there are.
func countText(x float64) string {
	size, unit := scale(x)
	switch {
	case x <= 0:
		return "-"
	case size > 1:
		return fmt.Sprintf("%.1f%s", x/size, unit)
	case x < 10 && x != math.Trunc(x):
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.0f", x)
}

func samplingText(n uint32) string {
	switch n {
	case 0:
		return ""
	case 1:
		return "all"
	}
	return fmt.Sprintf("1 of %d", n)
}

func money(s report.Site) string {
	if !s.Priced {
		return "no price"
	}
	return fmt.Sprintf("%.4f", s.USDPerHour)
}

// TopRecords is Top as a table of numbers.
func TopRecords(top api.TrafficTop, by string) (head []string, rows [][]any) {
	switch by {
	case "vms":
		head = []string{"end", "site", "host", "sent_bytes_per_second", "got_bytes_per_second", "ends"}
		for _, x := range top.Talkers {
			rows = append(rows, []any{x.End, x.Site, x.Host, x.Sent, x.Got, x.Ends})
		}
	case "services":
		head = []string{"service", "bytes_per_second", "clients", "servers"}
		for _, s := range top.Services {
			rows = append(rows, []any{serviceText(s.Service, false), s.Rate, s.Clients, words(s.Servers)})
		}
	default:
		head = []string{"src", "dst", "bytes_per_second", "low", "high", "packets_per_second", "flows_per_second", "service", "reply",
			"from_site", "to_site", "rtt_ms", "rtt_min_ms", "burst"}
		for _, p := range top.Pairs {
			rows = append(rows, []any{p.Src, p.Dst, p.Rate, p.Low, p.High, p.Packets, p.Flows, serviceText(p.Service, false), p.Reply,
				p.From, p.To, p.RTTMs, p.RTTMinMs, p.Burst})
		}
	}
	return head, rows
}

// GroupRecords are groups, a record each.
func GroupRecords(groups []report.Group) (head []string, rows [][]any) {
	head = []string{"group", "pattern", "shape", "confidence", "coverage", "bytes_per_second", "outside_per_second", "since", "sites", "members"}
	for _, g := range groups {
		rows = append(rows, []any{g.ID, g.Kind, strings.Trim(strings.ReplaceAll(fmt.Sprint(g.Shape), " ", "x"), "[]"), g.Confidence, g.Coverage,
			g.Bytes, g.Outside, g.Since, words(g.Sites), words(g.Ends)})
	}
	return head, rows
}

// DiffRecords is what changed, a record for each pair.
func DiffRecords(d api.TrafficDiff) (head []string, rows [][]any) {
	head = []string{"src", "dst", "change", "before_bytes_per_second", "after_bytes_per_second", "least_bytes_per_second"}
	for _, p := range d.Pairs {
		rows = append(rows, []any{p.Src, p.Dst, p.Kind, p.Before, p.After, p.Least})
	}
	return head, rows
}

// words are names with spaces between them: one field of a record.
func words[T any](all []T) string { return strings.Trim(fmt.Sprint(all), "[]") }
