package memory

import (
	"fmt"
	"time"

	"heliotrope/hostagent/libvirt"
	"heliotrope/migration"
	"heliotrope/migration/wan"
)

const (
	firstPause = libvirt.FirstDowntime
	// maxPasses is how many are remembered of a move. The rule has given up by then.
	maxPasses = 64
)

// Passes watches the passes over a VM's memory while it moves, and says how long it may pause:
// hardly at all, until the rule for when to stop says that no other pass leaves less (wan.StopRule).
// The hypervisor, which alone knows what is dirty, then stops as soon as the rest takes no longer than
// that. A VM of which no pass ever leaves little enough is to be slowed down, from then on.
type Passes struct {
	rule   wan.StopRule
	rounds []wan.Round
	passes []migration.Pass

	pass         uint64 // that goes on, from 1
	stream, wire uint64 // when it began
	at           time.Time
	course       libvirt.Course
}

// NewPasses watches a VM that must not pause for longer than most.
func NewPasses(most time.Duration) *Passes {
	return &Passes{rule: wan.StopRule{MaxPause: most, Enough: min(firstPause, most)}, course: libvirt.Course{Pause: min(firstPause, most)}}
}

// Saw takes note of how far the copy is at a time, and returns the passes that have ended, and how
// to go on.
func (w *Passes) Saw(p migration.Progress, now time.Time) ([]migration.Pass, libvirt.Course) {
	if p.Rounds <= w.pass {
		return w.passes, w.course
	}
	stream, wire := p.DoneBytes, p.RelayBytes
	if len(p.Memory) > 0 {
		stream, wire = 0, 0
		for _, m := range p.Memory {
			stream, wire = stream+m.Stream, wire+m.Wire
		}
	}
	if w.pass > 0 && len(w.passes) < maxPasses {
		r := wan.Round{Sent: stream - w.stream, Wire: wire - w.wire, Dirty: p.RemainingBytes, Took: now.Sub(w.at)}
		w.rounds = append(w.rounds, r)
		v := w.rule.After(w.rounds)
		if p.Slowed > 0 {
			v.Why = fmt.Sprintf("%s; the guest lost %d %% of its processors' time", v.Why, p.Slowed)
		}
		w.passes = append(w.passes, migration.Pass{Sent: r.Sent, Wire: r.Wire, Dirty: r.Dirty,
			TookMs: milliseconds(r.Took), PauseMs: milliseconds(v.Pause), Slowed: p.Slowed, Stop: v.Stop, Why: v.Why})
		w.course.Pause, w.course.Slow = w.rule.Enough, w.course.Slow || v.Stalled
		if v.Stop || w.course.Slow { // a guest that is slowed down need not wait for the shortest pause
			w.course.Pause = w.rule.MaxPause
		}
	}
	w.pass, w.stream, w.wire, w.at = p.Rounds, stream, wire, now
	return w.passes, w.course
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
