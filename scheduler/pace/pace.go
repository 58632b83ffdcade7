// Package pace says when VMs may move, given the moves of the past.
//
// Whether a move pays is the scheduler's to say; that it may begin now is a Pace's: a
// cool-down from one move of a VM to its next, the most moves of an hour and a day, and quiet
// times. What it allows is a function of the moves of the past alone, so that whoever asks
// again is told the same, and no count is kept.
package pace

import (
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
)

// Pace says how much may be on the move, and when.
type Pace heliotrope.Pace

// Moved is a move of the past: a VM, and when it began.
type Moved struct {
	VM heliotrope.VMID `json:"vm"`
	At time.Time       `json:"at"`
}

// AnyMoves is the number of moves of an Allowance that has no limit.
const AnyMoves = -1

// Allowance is what may move at one moment.
type Allowance struct {
	Moves int               `json:"moves"`          // that may begin; AnyMoves: any number
	Stay  []heliotrope.VMID `json:"stay,omitempty"` // that have moved too lately, sorted
	Quiet bool              `json:"quiet,omitempty"`
	Next  time.Time         `json:"next,omitzero"` // when it is no longer so, if nothing moves; zero: never
}

const (
	hour = time.Hour
	day  = 24 * time.Hour
)

// Allow tells what may move now, given all moves of the last day and the last cool-down,
// those that were undone included.
func (p Pace) Allow(moves []Moved, now time.Time) Allowance {
	a := p.allow(moves, now)
	for _, t := range p.changes(moves, now) {
		if b := p.allow(moves, t); a.Moves != b.Moves || a.Quiet != b.Quiet || !slices.Equal(a.Stay, b.Stay) {
			a.Next = t
			break
		}
	}
	return a
}

func (p Pace) allow(moves []Moved, now time.Time) Allowance {
	a := Allowance{Moves: AnyMoves}
	limit := func(most int, window time.Duration) {
		if most == 0 {
			return
		}
		left := most
		for _, m := range moves {
			if now.Sub(m.At) < window {
				left--
			}
		}
		if left = max(left, 0); a.Moves == AnyMoves || left < a.Moves {
			a.Moves = left
		}
	}
	limit(p.MaxMovesPerHour, hour)
	limit(p.MaxMovesPerDay, day)
	for _, q := range p.Quiet {
		a.Quiet = a.Quiet || q.Holds(now)
	}
	if a.Quiet {
		a.Moves = 0
	}
	for _, m := range moves {
		if now.Sub(m.At) < time.Duration(p.CoolDownPerVM) {
			a.Stay = append(a.Stay, m.VM)
		}
	}
	slices.Sort(a.Stay)
	a.Stay = slices.Compact(a.Stay)
	return a
}

// changes lists when what is allowed may be otherwise, from now on, sorted.
func (p Pace) changes(moves []Moved, now time.Time) []time.Time {
	var list []time.Time
	for _, m := range moves {
		list = append(list, m.At.Add(hour), m.At.Add(day), m.At.Add(time.Duration(p.CoolDownPerVM)))
	}
	for _, q := range p.Quiet {
		list = append(list, q.Changes(now)...)
	}
	list = slices.DeleteFunc(list, func(t time.Time) bool { return !t.After(now) })
	slices.SortFunc(list, time.Time.Compare)
	return list
}

// Hold pins the VMs that must stay and bounds the moves of a plan. A VM on a drained host
// is not pinned by its cool-down: that it goes is no change of mind.
func (a Allowance) Hold(s scheduler.Snapshot, p scheduler.Policy) (scheduler.Snapshot, scheduler.Policy) {
	drained := map[heliotrope.HostID]bool{}
	for _, h := range s.Hosts {
		drained[h.ID] = h.Drained
	}
	s.VMs = slices.Clone(s.VMs)
	for i := range s.VMs {
		v := &s.VMs[i]
		_, stays := slices.BinarySearch(a.Stay, v.ID)
		v.Pinned = v.Pinned || a.Moves == 0 || stays && !drained[v.Host]
	}
	if a.Moves > 0 && (p.MaxMoves == 0 || a.Moves < p.MaxMoves) {
		p.MaxMoves = a.Moves
	}
	return s, p
}
