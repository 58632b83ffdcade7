package api

import (
	"fmt"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/report"
)

// The windows that traffic is looked at in, and how much is listed where nobody says.
const (
	MinWindow     = time.Second
	MaxWindow     = 24 * time.Hour
	DefaultWindow = time.Minute
	DefaultTop    = 20
)

// TrafficQuery says which traffic is asked about. Filters that are zero let all pass; the
// others let traffic pass that has at least one end there.
type TrafficQuery struct {
	Window  time.Duration        // MinWindow to MaxWindow; 0: DefaultWindow
	End     time.Time            // of the window; zero: now
	Network heliotrope.NetworkID // VMs with a port in it
	Site    heliotrope.SiteID    // VMs that are at it
	VMs     []heliotrope.VMID    // any of these
	Top     int                  // ends, pairs and services that are listed, 1 to PageLimit; 0: DefaultTop
}

// ParseMoment reads a time as people say it: now (or nothing), how long ago, such as 10m,
// or RFC 3339. Now is the zero time.
func ParseMoment(s string, now time.Time) (time.Time, error) {
	if s == "" || s == "now" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, fmt.Errorf("%q is no time", s)
	}
	if t.After(now) {
		return t, fmt.Errorf("%q is in the future", s)
	}
	return t, nil
}

// TrafficTop is a report's lists alone; the one that was asked for is there.
type TrafficTop struct {
	From     time.Time        `json:"from"`
	To       time.Time        `json:"to"`
	Total    report.Total     `json:"total"`
	Pairs    []report.Pair    `json:"pairs,omitempty"`
	Talkers  []report.Talker  `json:"talkers,omitempty" doc:"VMs, and prefixes outside."`
	Services []report.Service `json:"services,omitempty"`
	Notes    []string         `json:"notes,omitempty" doc:"What was not seen, or only in part."`
}

// TrafficPatterns is a report's groups alone.
type TrafficPatterns struct {
	From   time.Time      `json:"from"`
	To     time.Time      `json:"to"`
	Groups []report.Group `json:"groups"`
	Notes  []string       `json:"notes,omitempty" doc:"What was not seen, or only in part."`
}

// TrafficDiff is what changed from one window to another.
type TrafficDiff struct {
	Before TrafficWindow    `json:"before"`
	After  TrafficWindow    `json:"after"`
	Pairs  []traffic.Change `json:"pairs" doc:"Rates that surely changed, the largest changes first."`
	Groups []GroupChange    `json:"groups" doc:"Groups that came, went, or do something else."`
	Notes  []string         `json:"notes,omitempty" doc:"What was not seen in one of them, or only in part."`
}

// TrafficWindow is one side of a TrafficDiff.
type TrafficWindow struct {
	From  time.Time    `json:"from"`
	To    time.Time    `json:"to"`
	Total report.Total `json:"total"`
}

// GroupChange is a group that is not what it was.
type GroupChange struct {
	ID     string        `json:"id"`
	Change string        `json:"change" enum:"new,gone,pattern,members"`
	Before pattern.Kind  `json:"before,omitempty"`
	After  pattern.Kind  `json:"after,omitempty"`
	Joined []traffic.End `json:"joined,omitempty"`
	Left   []traffic.End `json:"left,omitempty"`
}

// CompareTraffic says what changed between two reports; changes are those of their matrices
// (traffic.Diff), of which the top first are kept.
func CompareTraffic(before, after report.Report, changes []traffic.Change, top int) TrafficDiff {
	d := TrafficDiff{
		Before: TrafficWindow{before.From, before.To, before.Total},
		After:  TrafficWindow{after.From, after.To, after.Total},
		Pairs:  append([]traffic.Change{}, changes[:min(len(changes), top)]...),
		Groups: compareGroups(before.Groups, after.Groups),
	}
	for _, n := range before.Notes {
		if slices.Contains(after.Notes, n) {
			d.Notes = append(d.Notes, n)
		} else {
			d.Notes = append(d.Notes, "before: "+n)
		}
	}
	for _, n := range after.Notes {
		if !slices.Contains(before.Notes, n) {
			d.Notes = append(d.Notes, "after: "+n)
		}
	}
	return d
}

// compareGroups takes two groups for the same that share more than half of all their members:
// a name may be another's by now.
func compareGroups(before, after []report.Group) []GroupChange {
	changes := []GroupChange{}
	over := slices.Clone(before)
	for _, a := range after {
		i := slices.IndexFunc(over, func(b report.Group) bool {
			joined := len(without(a.Ends, b.Ends))
			return 2*(len(a.Ends)-joined) > len(b.Ends)+joined
		})
		if i < 0 {
			changes = append(changes, GroupChange{ID: a.ID, Change: "new", After: a.Kind, Joined: a.Ends})
			continue
		}
		b := over[i]
		over = slices.Delete(over, i, i+1)
		c := GroupChange{ID: a.ID, Change: "members", Before: b.Kind, After: a.Kind, Joined: without(a.Ends, b.Ends), Left: without(b.Ends, a.Ends)}
		if a.Kind != b.Kind {
			c.Change = "pattern"
		}
		if a.Kind != b.Kind || len(c.Joined)+len(c.Left) > 0 {
			changes = append(changes, c)
		}
	}
	for _, b := range over {
		changes = append(changes, GroupChange{ID: b.ID, Change: "gone", Before: b.Kind, Left: b.Ends})
	}
	return changes
}

// without are the ends of a that are not in b.
func without(a, b []traffic.End) (rest []traffic.End) {
	for _, e := range a {
		if !slices.Contains(b, e) {
			rest = append(rest, e)
		}
	}
	return rest
}
