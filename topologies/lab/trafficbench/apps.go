package trafficbench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/report"
	"heliotrope/topologies/lab/claim"
	"heliotrope/topologies/lab/endpoints"
)

const (
	appTime = 10 * time.Second
	appSize = 6 // VMs of each application
)

// appFigures are what was said of one application.
type appFigures struct {
	App     string         `json:"app"`
	Said    pattern.Kind   `json:"said"`
	Tiers   []pattern.Tier `json:"tiers"`
	Wanted  []pattern.Tier `json:"wanted"`
	Right   bool           `json:"right"`
	Members []traffic.End  `json:"members"`
}

// apps runs real applications side by side, each in VMs of its own, and looks whether the
// report tells their tiers apart: who serves which service, and who uses it.
func apps(ctx context.Context, b *Bench) (claims []claim.Claim, figures any, err error) {
	l, err := bringUp(ctx, b, "bench-apps")
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, l.down(ctx)) }()
	if err := l.count(ctx, heliotrope.Capture{Source: "packets", Sampling: 1, Budget: 1}); err != nil {
		return nil, nil, err
	}
	places, err := endpoints.Places(ctx, l.target, nil)
	if err != nil {
		return nil, nil, err
	}
	var rows []appFigures
	right := 0.0
	for _, name := range endpoints.Apps() {
		at := places[:appSize]
		places = append(slices.Clone(places[appSize:]), at...)
		f, err := l.app(ctx, name, at)
		if err != nil {
			return nil, rows, err
		}
		if f.Right {
			right++
		}
		fmt.Fprintf(b.Out, "\n%s (%s): %s\n", name, f.Said, map[bool]string{true: "tiers are right", false: "TIERS ARE WRONG"}[f.Right])
		for _, t := range f.Tiers {
			fmt.Fprintf(b.Out, "  %-34s %v\n", t.Name, t.Members)
		}
		rows = append(rows, f)
	}
	fmt.Fprintln(b.Out)
	return []claim.Claim{claim.New("real applications whose tiers are named rightly", right, "==", float64(len(rows)))}, rows, nil
}

// app runs one application, and asks for the report of the time of its load.
func (l light) app(ctx context.Context, name string, at []endpoints.Place) (f appFigures, err error) {
	a, err := endpoints.StartApp(ctx, name, at)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	from := time.Now()
	if err := a.Load(ctx, appTime); err != nil {
		return f, err
	}
	to := time.Now()
	select {
	case <-time.After(2 * time.Second):
	case <-ctx.Done():
		return f, context.Cause(ctx)
	}
	r, err := l.api.TrafficReport(ctx, api.TrafficQuery{Window: to.Sub(from).Truncate(time.Second), End: to.Truncate(time.Second)})
	if err != nil {
		return f, err
	}
	f = appFigures{App: name, Said: pattern.Unknown, Wanted: a.Tiers}
	if len(r.Groups) > 0 {
		g := r.Groups[0]
		f.Said, f.Tiers, f.Members = g.Kind, g.Tiers, g.Ends
	}
	f.Right = slices.ContainsFunc(r.Groups, func(g report.Group) bool { return tiersHold(a.Tiers, g.Tiers) })
	return f, nil
}

// tiersHold says whether every tier that there is was found: the same members, who serve and
// use the same services.
func tiersHold(wanted, said []pattern.Tier) bool {
	for _, w := range wanted {
		same := func(s pattern.Tier) bool {
			return sameEnds(w.Members, s.Members) && subset(w.Serves, s.Serves) && subset(w.Uses, s.Uses)
		}
		if !slices.ContainsFunc(said, same) {
			return false
		}
	}
	return true
}

func sameEnds(a, b []traffic.End) bool {
	return slices.Equal(slices.SortedFunc(slices.Values(a), traffic.End.Compare), slices.SortedFunc(slices.Values(b), traffic.End.Compare))
}

func subset[T comparable](a, b []T) bool {
	return !slices.ContainsFunc(a, func(x T) bool { return !slices.Contains(b, x) })
}
