package forecast

import (
	"math"
	"slices"
)

// ahead are the distances, in slots, at which intervals are learned. One in between has that
// of the next farther; one beyond has the last.
var ahead = []int{1, 3, 6, 12, 24}

const (
	steer = 0.005 // how much a miss changes the quantile
	kept  = 336   // errors kept, of each distance
	most  = 1e9   // times the scale, that an error counts as
)

// Horizon is what is known of forecasts of one distance.
type Horizon struct {
	Slots int       `json:"slots"`
	Below float64   `json:"below"` // share of errors that the lower end leaves out now
	Above float64   `json:"above"` // the same of the upper end
	Next  int       `json:"next"`  // in Off, which of the oldest is replaced
	Off   []float64 `json:"off"`   // errors over their scale, signed
	Open  []Pending `json:"open"`  // forecasts whose slot has yet to come

	Judged int `json:"judged"` // intervals whose slot has come
	Under  int `json:"under"`  // values below them
	Over   int `json:"over"`   // values above them
}

// Pending is a forecast that was made.
type Pending struct {
	Slot  int64   `json:"slot"`
	Mid   float64 `json:"mid"`
	Scale float64 `json:"scale"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// expect makes the forecasts that the coming slots will be held against.
func (s *Series) expect() {
	for i := range s.Ways {
		w := &s.Ways[i]
		slot := s.Closed + int64(w.Slots)
		p := s.point(slot)
		w.Open = append(w.Open, Pending{slot, p.Mid, s.scale(slot), p.Low, p.High})
	}
}

// judge holds the forecasts of a slot against what it has.
func (s *Series) judge(slot int64, value float64) {
	for i := range s.Ways {
		w := &s.Ways[i]
		for _, p := range w.Open {
			if p.Slot == slot {
				w.learn(p, value, (1-s.Coverage)/2)
			}
		}
		w.Open = slices.DeleteFunc(w.Open, func(p Pending) bool { return p.Slot <= slot })
	}
}

// learn steers each end so that it leaves out the share that it should.
func (w *Horizon) learn(p Pending, value, share float64) {
	w.Judged++
	w.Below += steer * share
	w.Above += steer * share
	if value < p.Low {
		w.Under++
		w.Below -= steer
	}
	if value > p.High {
		w.Over++
		w.Above -= steer
	}
	off := 0.0
	if p.Scale > 0 {
		off = max(-most, min(most, (value-p.Mid)/p.Scale))
	} else if value != p.Mid {
		return // nothing is known of how far it may be off
	}
	if len(w.Off) < kept {
		w.Off = append(w.Off, off)
		return
	}
	w.Off[w.Next] = off
	w.Next = (w.Next + 1) % kept
}

// point is the forecast of a slot.
func (s *Series) point(slot int64) Point {
	w := &s.Ways[len(s.Ways)-1]
	for i := range s.Ways {
		if slot-s.Closed <= int64(s.Ways[i].Slots) {
			w = &s.Ways[i]
			break
		}
	}
	p := Point{Mid: s.guess(slot), High: NoBound}
	scale := s.scale(slot)
	sorted := slices.Clone(w.Off)
	slices.Sort(sorted)
	n := float64(len(sorted))
	if k := int(math.Floor((n + 1) * w.Below)); k >= len(sorted)+1 {
		p.Low = p.Mid
	} else if k >= 1 {
		p.Low = min(p.Mid, max(0, p.Mid+scale*sorted[k-1]))
	}
	if k := int(math.Ceil((n + 1) * (1 - w.Above))); k < 1 {
		p.High = p.Mid
	} else if k <= len(sorted) {
		p.High = max(p.Mid, p.Mid+scale*sorted[k-1])
	}
	return p
}
