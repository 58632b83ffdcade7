package traffic

import (
	"math"
	"time"
)

// Point is what was counted in one step of a time line.
type Point struct {
	At      time.Time `json:"at"` // its begin
	Bytes   float64   `json:"bytes"`
	Low     float64   `json:"low"` // with High, 95 % confidence
	High    float64   `json:"high"`
	Packets float64   `json:"packets"`
	Flows   float64   `json:"flows,omitempty"`
}

// Between chooses what goes from one end to another, one way.
func Between(src, dst End) func(src, dst End) bool {
	return func(s, d End) bool { return s == src && d == dst }
}

// Within chooses what goes on among ends.
func Within(group []End) func(src, dst End) bool {
	members := make(map[End]bool, len(group))
	for _, e := range group {
		members[e] = true
	}
	return func(s, d End) bool { return members[s] && members[d] }
}

// Everything chooses all.
func Everything(End, End) bool { return true }

// Series returns n points, one a step from a time on, of the conversations that want
// chooses. step is rounded to whole seconds, at least one. A point of which only a longer
// slot is kept has that slot's mean.
func (l *Ledger) Series(want func(src, dst End) bool, from time.Time, step time.Duration, n int) []Point {
	chosen := make([]bool, len(l.keys))
	for i, k := range l.keys {
		chosen[i] = want(l.ends[k.src], l.ends[k.dst])
	}
	grain := max(int64(step/time.Second), 1)
	points := make([]Point, n)
	sums := map[piece]*sum{} // points may share a slot
	for i := range points {
		start := from.Unix() + int64(i)*grain
		pieces, first, last := l.cover(start, start+grain, grain)
		var all sum
		for _, p := range pieces {
			s, ok := sums[p]
			if !ok {
				s = l.total(p, chosen)
				sums[p] = s
			}
			all.join(s)
		}
		scale := min(float64(grain)/float64(last-first), 1)
		low, high := all.Interval()
		points[i] = Point{At: time.Unix(start, 0).UTC(), Bytes: all.Bytes * scale, Low: low * scale, High: high * scale,
			Packets: all.packets * scale, Flows: all.flows * scale}
	}
	return points
}

// total sums one slot's tallies of the chosen keys.
func (l *Ledger) total(p piece, chosen []bool) *sum {
	all := &sum{}
	s, ok := p.ring.slots[p.start]
	if !ok {
		return all
	}
	for i := range s.tallies {
		if t := &s.tallies[i]; chosen[t.key] {
			all.add(t, 1)
		}
	}
	return all
}

// seconds is how long a window is, never 0.
func (m Matrix) seconds() float64 { return math.Max(m.To.Sub(m.From).Seconds(), 1e-9) }
