package forecast

import (
	"errors"
	"slices"
	"time"

	"heliotrope"
)

// Guard bounds what it can cost to follow forecasts. Two policies are reckoned in each period:
// the predictive one, and the reactive one, which knows only what is now. One of them is real,
// the other is followed on paper; going back from one to the other is real too.
//
// It lets the predictive one go on only while what was lost already, the worst that the next
// period can bring and the way back fit into the bound together. So in no time as long as
// Window has the whole cost more than BoundUSD above the reactive policy, whatever the
// forecasts are, as far as the worst that it is told is the worst. What was gained before
// does not count: it is no licence to lose.
//
// Once stopped, the forecast must have been the better one on paper for as long as Proof, and
// must have room in the bound again: old losses leave the window.
type Guard struct {
	BoundUSD float64             `json:"bound_usd"`
	Window   heliotrope.Duration `json:"window"`
	Proof    heliotrope.Duration `json:"proof"`

	Stopped time.Time `json:"stopped,omitzero"` // since when the forecast is off; zero: it is not
	Past    []Period  `json:"past,omitempty"`   // of the last Window or Proof
}

// Period is what some time has cost. It begins where the one before ended.
type Period struct {
	End           time.Time `json:"end"`
	RealUSD       float64   `json:"real_usd"` // moves included, here and below
	ReactiveUSD   float64   `json:"reactive_usd"`
	PredictiveUSD float64   `json:"predictive_usd"`
}

// NewGuard makes a guard that lets forecasts be followed.
func NewGuard(boundUSD float64, window, proof time.Duration) (*Guard, error) {
	if !(boundUSD >= 0) || window <= 0 || proof <= 0 {
		return nil, errors.New("make guard: the bound is negative, or a duration is not positive")
	}
	return &Guard{BoundUSD: boundUSD, Window: heliotrope.Duration(window), Proof: heliotrope.Duration(proof)}, nil
}

// Account takes what a period has cost.
func (g *Guard) Account(p Period) {
	g.Past = append(g.Past, p)
	keep := p.End.Add(-time.Duration(max(g.Window, g.Proof)))
	g.Past = slices.DeleteFunc(g.Past, func(q Period) bool { return !q.End.After(keep) })
}

// Lost is the most, in USD, that the whole has cost more than the reactive policy from any
// moment of the last window until now.
func (g *Guard) Lost(now time.Time) float64 {
	var sum, most float64
	for _, p := range slices.Backward(g.Past) {
		if !p.End.After(now.Add(-time.Duration(g.Window))) {
			break
		}
		sum += p.RealUSD - p.ReactiveUSD
		most = max(most, sum)
	}
	return most
}

// Allow says whether the predictive policy may decide about the next period: stepUSD is the
// most that the period can cost more than with the reactive one, moves included, and backUSD
// the most that it can cost more to go back after it.
func (g *Guard) Allow(now time.Time, stepUSD, backUSD float64) bool {
	fits := g.Lost(now)+stepUSD+backUSD <= g.BoundUSD
	switch {
	case !fits && g.Stopped.IsZero():
		g.Stopped = now
	case fits && !g.Stopped.IsZero() && g.proven(now):
		g.Stopped = time.Time{}
	}
	return g.Stopped.IsZero()
}

// proven says whether the forecast would have saved something since it was stopped, over the
// time that it is asked for.
func (g *Guard) proven(now time.Time) bool {
	if now.Sub(g.Stopped) < time.Duration(g.Proof) {
		return false
	}
	var saved float64
	for _, p := range g.Past {
		if p.End.After(now.Add(-time.Duration(g.Proof))) {
			saved += p.ReactiveUSD - p.PredictiveUSD
		}
	}
	return saved > 0
}
