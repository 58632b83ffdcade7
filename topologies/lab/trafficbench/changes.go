package trafficbench

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"heliotrope/controller/api"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/synth"
	"heliotrope/topologies/lab/claim"
	"heliotrope/topologies/lab/endpoints"
)

const (
	worlds = 400
	// within is how many windows a change of pattern may take to be told.
	within = 3
	// window is the controller's for following groups.
	window = 10 * time.Second
	// phaseTime is how long the lab's VMs keep to a pattern: until a change is told, and a
	// window more that it has to be late in.
	phaseTime = (within + 1) * window
)

// changeFigures are those of generated worlds.
type changeFigures struct {
	Worlds   int     `json:"worlds"`
	Told     []int   `json:"told_after"` // by windows; at 0 those that were not told
	Within   float64 `json:"told_within_3"`
	Falsely  int     `json:"false_changes"`
	Quiet    int     `json:"quiet_windows"` // times the applications
	FalseRow float64 `json:"false_share"`
}

// changes follows generated worlds over windows, in each of which an application changes
// its pattern.
func changes(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	f := changeFigures{Told: make([]int, synth.Patience+1)}
	var mu sync.Mutex
	var workers sync.WaitGroup
	var next atomic.Int64
	for range runtime.NumCPU() {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < worlds && ctx.Err() == nil; i = next.Add(1) - 1 {
				c := synth.Watch(b.Seed*1_000_000+uint64(i), synth.Regimes[1])
				mu.Lock()
				f.Worlds++
				f.Told[c.Told]++
				f.Falsely, f.Quiet = f.Falsely+c.Falsely, f.Quiet+c.Quiet
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	if ctx.Err() != nil {
		return nil, f, context.Cause(ctx)
	}
	for i := 1; i <= within; i++ {
		f.Within += float64(f.Told[i]) / float64(f.Worlds)
	}
	f.FalseRow = float64(f.Falsely) / float64(max(f.Quiet, 1))
	fmt.Fprintf(b.Out, "\n%d worlds of applications, one of which changes its pattern: %.1f %% told within %d windows (after 1, 2, …: %v; never: %d); %d changes told that are none, in %d windows of an application, in one of which a VM of each moved\n\n",
		f.Worlds, 100*f.Within, within, f.Told[1:], f.Told[0], f.Falsely, f.Quiet)
	return []claim.Claim{
		claim.New("generated changes of pattern that are told within 3 windows, share", f.Within, ">=", 0.95),
		claim.New("windows of an application that tell a change which is none, share", f.FalseRow, "<=", 0.01),
	}, f, nil
}

// turnFigures are one change of pattern in the lab.
type turnFigures struct {
	From    pattern.Kind `json:"from"`
	To      pattern.Kind `json:"to"`
	Told    string       `json:"told"`    // what the controller said
	Windows float64      `json:"windows"` // whole ones, from the change on
	Seconds float64      `json:"seconds"`
}

// turns has the lab's VMs keep to one pattern after the other, and looks when the
// controller tells of it.
func (l light) turns(ctx context.Context, b *Bench, fleet *endpoints.Fleet) ([]claim.Claim, []turnFigures, error) {
	order := []pattern.Kind{pattern.Ring, pattern.AllToAll, pattern.Star, pattern.Pipeline}
	var rows []turnFigures
	w := tabwriter.NewWriter(b.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "from\tto\ttold after s\twhole windows\tas\t")
	late := 0.0
	for i, kind := range order {
		plan, _, err := endpoints.Pattern{Kind: kind, VMs: l.vms(), Size: truthSize, Rate: truthRate, Skew: 0.4, Noise: 0.02, UDP: 0.5, For: phaseTime, Seed: b.Seed}.Plan()
		if err != nil {
			return nil, rows, err
		}
		truth, err := fleet.Drive(ctx, plan)
		if err != nil {
			return nil, rows, fmt.Errorf("drive %s: %w", kind, err)
		}
		if i == 0 {
			continue
		}
		f := turnFigures{From: order[i-1], To: kind}
		r, err := l.api.TrafficReport(ctx, api.TrafficQuery{Window: time.Since(truth.From).Truncate(time.Second)})
		if err != nil {
			return nil, rows, err
		}
		for _, e := range r.Events {
			if e.Kind == "pattern" && e.At.After(truth.From) && strings.HasSuffix(e.What, " to "+string(kind)) {
				f.Told, f.Seconds = e.What, e.At.Sub(truth.From).Seconds()
				f.Windows = math.Floor(f.Seconds / window.Seconds())
			}
		}
		if f.Told == "" || f.Windows > within {
			late++
			b.Say("  %s to %s was not told in time; all that was told: %+v", f.From, f.To, r.Events)
		}
		rows = append(rows, f)
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%.0f\t%s\t\n", f.From, f.To, f.Seconds, f.Windows, f.Told)
	}
	w.Flush()
	return []claim.Claim{claim.New("changes of pattern in the lab that are not told within 3 windows", late, "==", 0)}, rows, nil
}
