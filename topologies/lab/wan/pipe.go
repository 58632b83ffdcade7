package wan

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"heliotrope"
)

// DefaultQueue is how long a frame may wait for a link's rate where the Shape says nothing.
const DefaultQueue = 50 * time.Millisecond

// maxDelay bounds how long a frame can stay in memory.
const maxDelay = 10 * time.Second

// Shape is what one direction between two sites does to its frames.
// The zero Shape forwards at once and drops nothing.
type Shape struct {
	Delay   time.Duration      `json:"delay"`             // one way, at most 10 s
	Jitter  time.Duration      `json:"jitter,omitempty"`  // half width of a uniform spread around Delay
	Normal  bool               `json:"normal,omitempty"`  // Jitter is the standard deviation of a normal spread instead
	Reorder bool               `json:"reorder,omitempty"` // jitter may let a frame overtake another
	Loss    float64            `json:"loss,omitempty"`    // share of frames lost on the wire, 0 to 1
	Rate    heliotrope.BitRate `json:"rate,omitempty"`    // of whole Ethernet frames; 0 is unlimited
	Queue   time.Duration      `json:"queue,omitempty"`   // longest wait for Rate before the tail is dropped; 0 is DefaultQueue
	Down    bool               `json:"down,omitempty"`    // nothing that arrives gets through; what is in flight does
}

// LinkShape is the Shape of either direction of a topology's link.
func LinkShape(l heliotrope.Link) Shape {
	return Shape{
		Delay:  time.Duration(l.Delay),
		Jitter: time.Duration(l.Jitter),
		Loss:   l.Loss,
		Rate:   l.Rate,
		Queue:  time.Duration(l.Queue),
	}
}

// Validate says what in s makes no sense.
func (s Shape) Validate() error {
	var errs []error
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"delay", s.Delay}, {"jitter", s.Jitter}, {"queue", s.Queue}} {
		if d.value < 0 || d.value > maxDelay {
			errs = append(errs, fmt.Errorf("%s %v is not between 0 and %v", d.name, d.value, maxDelay))
		}
	}
	if !(s.Loss >= 0 && s.Loss <= 1) {
		errs = append(errs, fmt.Errorf("loss %v is not between 0 and 1", s.Loss))
	}
	if s.Rate > 1e15 {
		errs = append(errs, fmt.Errorf("rate %v is over 1000000Gbit", s.Rate))
	}
	return errors.Join(errs...)
}

// verdict is a frame's fate.
type verdict uint8

const (
	pass verdict = iota
	lost
	queueFull
	linkDown
)

// line is the state of one direction: when its transmitter is free again, and when the
// last frame leaves it. Times are nanoseconds of any clock that never goes back.
type line struct {
	free      int64  // the transmitter has sent everything at this time
	remainder uint64 // of the last division by the rate, so that no bandwidth is gained by rounding
	last      int64  // departure of the latest frame
}

// arrive decides over a frame of size bytes that arrives at now: when it departs, or why
// it never does. A frame first waits for the transmitter (the queue), takes size/Rate to
// send, and is then on the wire for Delay ± Jitter, where it may be lost. Frames depart in
// the order they arrived unless s.Reorder; where jitter would change the order, the later
// frame is held back to the earlier one's departure.
func (l *line) arrive(now int64, size int, s *Shape, rng *rand.Rand) (depart int64, v verdict) {
	if s.Down {
		return 0, linkDown
	}
	depart = now
	if s.Rate > 0 {
		if l.backlog(now) > s.queue() {
			return 0, queueFull
		}
		depart = l.transmit(now, size, uint64(s.Rate))
	}
	if s.Loss > 0 && rng.Float64() < s.Loss {
		return 0, lost
	}
	depart += wireTime(s, rng)
	if !s.Reorder {
		depart = max(depart, l.last)
	}
	l.last = max(depart, l.last)
	return depart, pass
}

// backlog is how long a frame that arrives at now waits before it is sent.
func (l *line) backlog(now int64) time.Duration { return time.Duration(max(l.free-now, 0)) }

// transmit occupies the transmitter with one frame and says when it is done.
func (l *line) transmit(now int64, size int, rate uint64) int64 {
	if l.free < now {
		l.free, l.remainder = now, 0
	}
	cost := uint64(size)*8*1e9 + min(l.remainder, rate)
	l.free += int64(cost / rate)
	l.remainder = cost % rate
	return l.free
}

func (s *Shape) queue() time.Duration {
	if s.Queue == 0 {
		return DefaultQueue
	}
	return s.Queue
}

// wireTime draws how long a frame is on the wire: never less than nothing.
func wireTime(s *Shape, rng *rand.Rand) int64 {
	if s.Jitter == 0 {
		return int64(s.Delay)
	}
	spread := 2*rng.Float64() - 1
	if s.Normal {
		spread = rng.NormFloat64()
	}
	return max(int64(s.Delay)+int64(spread*float64(s.Jitter)), 0)
}
