package replay

import (
	"time"

	"heliotrope/scheduler"
	"heliotrope/scheduler/forecast"
	"heliotrope/scheduler/pace"
)

// Watched is how a policy with forecasts fared under a guard.
type Watched struct {
	Real, Reactive, Predictive Result
	Believed                   int     // ticks at which the forecast decided
	MostLostUSD                float64 // the most that the guard ever counted
}

// Guarded plays a scenario three times side by side: with the reactive policy, with the
// predictive one, and for real, where the guard says which of the two it is to be; when it
// is the reactive one's turn VMs go to the sites where that one has them. risk is the most that the
// predictive policy can cost more until the next tick, and going back after it.
func Guarded(s Scenario, reactive, predictive Decide, g *forecast.Guard, risk func(tick int) (stepUSD, backUSD float64)) (Watched, error) {
	var w Watched
	a, b, x := start(s), start(s), start(s)
	believed := false
	back := func(_ int, seen scheduler.Snapshot, _ []pace.Moved) (scheduler.Plan, error) {
		return goTo(seen, a.ends(seen))
	}
	for tick, t := range s.Ticks {
		step, home := risk(tick)
		believed = g.Allow(t.At, step, home)
		before := [3]float64{x.r.USD(), a.r.USD(), b.r.USD()}
		if err := a.step(tick, reactive); err != nil {
			return w, err
		}
		if err := b.step(tick, predictive); err != nil {
			return w, err
		}
		decide := back
		if believed {
			decide = predictive
			w.Believed++
		}
		if err := x.step(tick, decide); err != nil {
			return w, err
		}
		end := s.until(tick)
		g.Account(forecast.Period{End: end, RealUSD: x.r.USD() - before[0], ReactiveUSD: a.r.USD() - before[1], PredictiveUSD: b.r.USD() - before[2]})
		w.MostLostUSD = max(w.MostLostUSD, g.Lost(end))
	}
	w.Real, w.Reactive, w.Predictive = x.r, a.r, b.r
	return w, nil
}

// until is when a tick's time ends.
func (s *Scenario) until(tick int) time.Time {
	if tick+1 < len(s.Ticks) {
		return s.Ticks[tick+1].At
	}
	return s.End
}
