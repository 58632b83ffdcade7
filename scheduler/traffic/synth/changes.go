package synth

import (
	"time"

	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/phases"
)

// Changed is what was told of a world in which one application changes its pattern.
type Changed struct {
	From, To pattern.Kind
	Told     int // windows after which the change was told; 0: not in Patience
	Falsely  int // changes that were told and were none
	Quiet    int // windows in which there were none, times the applications
}

// A world's windows are so long, and there are so many of each kind.
const (
	Settling = 10 // windows that nothing is asked of
	Quiet    = 10 // in which nothing changes, but a VM of each application moves in the fifth
	Patience = 6  // after the change
	window   = 10 * time.Second
)

// Watch follows a world over windows, turns one application's pattern into another, and
// says what was told of it.
func Watch(seed uint64, r Regime) Changed {
	w := NewWorld(Config{Seed: seed, Background: r.Background, Sampling: r.Sampling, VMs: 60})
	var tracker phases.Tracker
	at := time.Unix(0, 0)
	next := func(moved bool) []phases.Change {
		at = at.Add(window)
		return tracker.Add(at, window, pattern.Infer(w.Window(moved)))
	}
	for range Settling {
		next(false)
	}
	var c Changed
	for i := range Quiet {
		c.Falsely += len(next(i == Quiet/2))
		c.Quiet += len(w.Apps)
	}
	app := int(seed) % len(w.Apps)
	c.From = w.Apps[app].Kind
	for c.To = c.From; c.To == c.From || !w.Turn(app, c.To); {
		c.To = Kinds[w.r.IntN(len(Kinds))]
	}
	for i := range Patience {
		for _, x := range next(false) {
			if x.Of == phases.PatternChanged && x.To == c.To && c.Told == 0 {
				c.Told = i + 1
			}
		}
	}
	return c
}
