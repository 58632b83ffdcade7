package traffic

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// grains are the lengths of slots, in seconds, and how many of each are kept; where memory
// is short, at least least of them. A grain's length is a multiple of the one before.
var grains = [...]struct {
	seconds, slots, least int64
}{
	{1, 120, 10},
	{10, 60, 6},
	{60, 60, 10},
	{600, 36, 6},
	{3600, 25, 25},
}

// tally is what one slot has of one conversation.
type tally struct {
	key     uint32 // its place in Ledger.keys
	flows   uint32
	active  uint32 // 10 ms slots with a packet
	peak    uint32 // bytes in the fullest 10 ms
	rtts    uint32
	rttMin  uint32 // µs
	rttSum  time.Duration
	packets float64
	Estimate
}

func (t *tally) add(c *Count, sampling uint32) {
	t.Count(c, sampling)
	t.packets += float64(c.Packets)
	t.flows += c.Flows
	t.active += uint32(c.Active)
	t.peak = max(t.peak, uint32(min(c.Peak, math.MaxUint32)))
	if c.RTTs > 0 {
		least := uint32(min(max(c.RTTMin.Microseconds(), 0), math.MaxUint32))
		if t.rtts == 0 || least < t.rttMin {
			t.rttMin = least
		}
		t.rtts += c.RTTs
		t.rttSum += c.RTTSum
	}
}

// slot is what was counted in one grain of time.
type slot struct {
	tallies  []tally
	places   []uint32 // of a key in tallies, plus 1; nil while nobody adds to the slot
	shed     uint64
	sampling uint32 // the largest of its bins
}

// open makes the slot ready for adding, to as many keys as there are.
func (s *slot) open(keys int) {
	if len(s.places) >= keys {
		return
	}
	s.places = make([]uint32, keys+keys/4+64)
	for i, t := range s.tallies {
		s.places[t.key] = uint32(i) + 1
	}
}

func (s *slot) tally(key uint32) *tally {
	i := s.places[key]
	if i == 0 {
		s.tallies = append(s.tallies, tally{key: key})
		i = uint32(len(s.tallies))
		s.places[key] = i
	}
	return &s.tallies[i-1]
}

// seal frees what only adding needs.
func (s *slot) seal() {
	s.places = nil
	if cap(s.tallies) > len(s.tallies)*9/8 {
		s.tallies = slices.Clone(s.tallies)
	}
}

// smallest takes the quarter with the fewest bytes out, and returns how many those are and
// their bytes.
func (s *slot) smallest() (n int, bytes float64) {
	slices.SortFunc(s.tallies, func(a, b tally) int { return cmp.Compare(b.Bytes, a.Bytes) })
	keep := len(s.tallies) * 3 / 4
	for _, t := range s.tallies[keep:] {
		bytes += t.Bytes
	}
	n = len(s.tallies) - keep
	s.tallies = s.tallies[:keep]
	s.seal()
	return n, bytes
}

// ring is the slots of one grain. A slot that is not there and is not before since had
// nothing.
type ring struct {
	grain int64
	since int64 // earlier slots are not kept any more
	slots map[int64]*slot
	usual int // tallies of a slot
}

// at returns the slot of a second, nil where it is not kept any more.
func (r *ring) at(second int64) *slot {
	start := second - second%r.grain
	if start < r.since {
		return nil
	}
	s, ok := r.slots[start]
	if !ok {
		s = &slot{tallies: make([]tally, 0, r.usual)}
		r.slots[start] = s
	}
	return s
}

// drop forgets the slots before a second and returns how many tallies those had.
func (r *ring) drop(before int64) (n int) {
	if before <= r.since {
		return 0
	}
	r.since = before
	for start, s := range r.slots {
		if start < before {
			n += len(s.tallies)
			delete(r.slots, start)
		}
	}
	return n
}

// piece is a slot's place in a window.
type piece struct {
	ring  *ring
	start int64
}

// cover returns the slots that make up [from, end), as coarse as they come and at most
// coarsest seconds long. Where the grain that would be needed is not kept any more, slots
// are longer, and the window may be larger than was asked.
func (l *Ledger) cover(from, end, coarsest int64) (pieces []piece, first, last int64) {
	first, last = from, from
	for t := from; t < end; t = last {
		p, ok := l.piece(t, end, coarsest)
		if !ok { // nothing is kept of it
			oldest := l.rings[len(l.rings)-1].since
			last = min(max(oldest, t+1), end)
			continue
		}
		if len(pieces) == 0 {
			first = min(first, p.start)
		}
		pieces = append(pieces, p)
		last = p.start + p.ring.grain
	}
	return pieces, first, max(last, end)
}

// piece chooses the longest slot that begins at t and ends by end, else the finest that
// has t in it.
func (l *Ledger) piece(t, end, coarsest int64) (piece, bool) {
	for i := len(l.rings) - 1; i >= 0; i-- {
		if r := &l.rings[i]; r.grain <= coarsest && t%r.grain == 0 && t >= r.since && t+r.grain <= end {
			return piece{r, t}, true
		}
	}
	for i := range l.rings {
		if r := &l.rings[i]; t-t%r.grain >= r.since {
			return piece{r, t - t%r.grain}, true
		}
	}
	return piece{}, false
}

// sum is tallies of one conversation or cell taken together.
type sum struct {
	Estimate
	packets, flows        float64
	active, peak          float64
	rtts, rttSum          float64 // ns
	rttMin                uint32  // µs
	largest, largestBurst float64 // of the services, that with the most bytes and its burst
}

// add takes a tally in with a weight.
func (s *sum) add(t *tally, w float64) {
	s.Estimate.Add(t.Estimate, w)
	s.packets += w * t.packets
	s.flows += w * float64(t.flows)
	s.active += w * float64(t.active)
	s.peak = max(s.peak, float64(t.peak))
	if t.rtts > 0 {
		if s.rtts == 0 || t.rttMin < s.rttMin {
			s.rttMin = t.rttMin
		}
		s.rtts += w * float64(t.rtts)
		s.rttSum += w * float64(t.rttSum)
	}
}

// join takes the sum of one of the cell's services in.
func (s *sum) join(o *sum) {
	s.Estimate.Add(o.Estimate, 1)
	s.packets += o.packets
	s.flows += o.flows
	if o.rtts > 0 {
		if s.rtts == 0 || o.rttMin < s.rttMin {
			s.rttMin = o.rttMin
		}
		s.rtts += o.rtts
		s.rttSum += o.rttSum
	}
	if o.Bytes > s.largest {
		s.largest, s.largestBurst = o.Bytes, o.burst()
	}
}

// burst is the peak rate as a multiple of the mean rate while there was any.
func (s *sum) burst() float64 {
	if s.Bytes <= 0 {
		return 0
	}
	return s.peak * s.active / s.Bytes
}

func (s *sum) cell(src, dst End) Cell {
	c := Cell{Src: src, Dst: dst, Bytes: s.Bytes, Packets: s.packets, Flows: s.flows, Burst: s.largestBurst}
	c.Low, c.High = s.Interval()
	if s.rtts > 0 {
		c.RTT = time.Duration(s.rttSum / s.rtts)
		c.RTTMin = time.Duration(s.rttMin) * time.Microsecond
	}
	return c
}
