package forecast

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var begin = time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)

// world is places whose costs an adversary sets after every decision, and two policies in it.
type world struct {
	cost                 []float64 // of each place, in this period
	moveUSD              float64
	reactive, predictive int // where each would be
	real                 int
}

func (w *world) stay(from, to int) float64 {
	if from == to {
		return w.cost[to]
	}
	return w.cost[to] + w.moveUSD
}

// However wrong the forecasts are and whatever happens, in no time as long as the window has
// it cost more than the bound above what the reactive policy would have, with all moves there
// and back.
func TestWrongForecastsCostNoMoreThanTheBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const most = 1.0 // that a period at a place can cost
		places := rapid.IntRange(2, 4).Draw(t, "places")
		w := world{cost: make([]float64, places), moveUSD: rapid.Float64Range(0, 2).Draw(t, "move")}
		window := rapid.IntRange(1, 30).Draw(t, "window")
		g, err := NewGuard(rapid.Float64Range(0, 12).Draw(t, "bound"), time.Duration(window)*time.Hour, time.Duration(rapid.IntRange(1, 10).Draw(t, "proof"))*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		var excess []float64
		now := begin
		for range rapid.IntRange(1, 120).Draw(t, "periods") {
			believed := g.Allow(now, most+w.moveUSD, w.moveUSD)
			best := 0 // by what was seen last
			for k, usd := range w.cost {
				if usd < w.cost[best] {
					best = k
				}
			}
			forecast := rapid.IntRange(0, places-1).Draw(t, "forecast")
			for k := range w.cost {
				w.cost[k] = rapid.SampledFrom([]float64{0, 0, most, most, 0.5}).Draw(t, "cost")
			}
			real := best
			if believed {
				real = forecast
			}
			p := Period{End: now.Add(time.Hour), RealUSD: w.stay(w.real, real), ReactiveUSD: w.stay(w.reactive, best), PredictiveUSD: w.stay(w.predictive, forecast)}
			w.real, w.reactive, w.predictive = real, best, forecast
			g.Account(p)
			excess = append(excess, p.RealUSD-p.ReactiveUSD)
			now = p.End
			if text, err := json.Marshal(g); err != nil {
				t.Fatal(err)
			} else if err := json.Unmarshal(text, g); err != nil { // a controller that restarts
				t.Fatal(err)
			}
		}
		for i := range excess {
			var sum float64
			for j := i; j < min(i+window, len(excess)); j++ {
				if sum += excess[j]; sum > g.BoundUSD+1e-9 {
					t.Fatalf("from %d to %d it cost %v more, the bound is %v", i, j, sum, g.BoundUSD)
				}
			}
		}
	})
}

func TestGuardStopsAndBelievesAgain(t *testing.T) {
	g, err := NewGuard(10, 24*time.Hour, 6*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	now := begin
	period := func(real, reactive, predictive float64) {
		now = now.Add(time.Hour)
		g.Account(Period{now, real, reactive, predictive})
	}
	for range 4 { // it loses 2 an hour; 2 more and the way back no longer fit
		if !g.Allow(now, 2, 1) {
			t.Fatalf("stopped after it lost %v", g.Lost(now))
		}
		period(3, 1, 3)
	}
	if g.Allow(now, 2, 1) || g.Lost(now) != 8 {
		t.Fatalf("it goes on, having lost %v", g.Lost(now))
	}
	period(2, 1, 3) // back
	for range 18 {
		if g.Allow(now, 2, 1) {
			t.Fatal("it is believed while its losses are in the window")
		}
		period(1, 1, 0.5)
	}
	for range 30 { // the losses leave the window, but now it loses on paper
		period(1, 1, 4)
		if g.Allow(now, 2, 1) {
			t.Fatal("it is believed and loses")
		}
	}
	for range 6 {
		if g.Allow(now, 2, 1) {
			t.Fatal("it is believed too early")
		}
		period(1, 1, 0.9)
	}
	if !g.Allow(now, 2, 1) {
		t.Fatal("it is not believed, though it was the better one")
	}
	if g.Allow(now, 100, 0) {
		t.Fatal("more is risked than the bound")
	}
	if _, err := NewGuard(math.NaN(), time.Hour, time.Hour); err == nil {
		t.Error("a bound that is no number is taken")
	}
}

func TestGuardIsJSON(t *testing.T) {
	g := Guard{BoundUSD: 3, Window: 7, Proof: 8, Stopped: begin, Past: []Period{{begin, 1, 2, 3}}}
	text, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	var again Guard
	if err := json.Unmarshal(text, &again); err != nil || !reflect.DeepEqual(g, again) {
		t.Errorf("%s: %+v, %v", text, again, err)
	}
}
