package scheduler

import (
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // a time zone is the same on a machine that has no data of them

	"heliotrope"
)

// Pace says how much may be on the move, and when. It is for moves that are made because
// they gain something. The zero value allows everything.
type Pace struct {
	CoolDownPerVM   heliotrope.Duration `json:"cool_down_per_vm,omitempty" yaml:"cool_down_per_vm,omitempty"`     // from one move of a VM to its next
	MaxMovesPerHour int                 `json:"max_moves_per_hour,omitempty" yaml:"max_moves_per_hour,omitempty"` // in any 60 minutes; 0: any number
	MaxMovesPerDay  int                 `json:"max_moves_per_day,omitempty" yaml:"max_moves_per_day,omitempty"`   // in any 24 hours; 0: any number
	Quiet           []Quiet             `json:"quiet,omitempty" yaml:"quiet,omitempty"`
}

// Quiet is a time of the week in which no move begins. One whose end is not after its
// beginning ends on the next day.
type Quiet struct {
	Days []Weekday `json:"days,omitempty" yaml:"days,omitempty"` // on which it begins; none: each
	From DayTime   `json:"from" yaml:"from"`
	To   DayTime   `json:"to" yaml:"to"` // no longer in it
	Zone Zone      `json:"zone,omitzero" yaml:"zone,omitempty"`
}

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
	week = 7 * day
)

// Validate says what is wrong with a pace.
func (p Pace) Validate() error {
	if p.CoolDownPerVM < 0 || p.MaxMovesPerHour < 0 || p.MaxMovesPerDay < 0 {
		return fmt.Errorf("check pace: a limit is negative")
	}
	return nil
}

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
		a.Quiet = a.Quiet || q.holds(now)
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
		for d := -day; d <= week+day; d += day {
			if from, to, ok := q.window(now.Add(d)); ok {
				list = append(list, from, to)
			}
		}
	}
	list = slices.DeleteFunc(list, func(t time.Time) bool { return !t.After(now) })
	slices.SortFunc(list, time.Time.Compare)
	return list
}

func (q Quiet) holds(now time.Time) bool {
	for _, d := range []time.Duration{-day, 0} {
		if from, to, ok := q.window(now.Add(d)); ok && !now.Before(from) && now.Before(to) {
			return true
		}
	}
	return false
}

// window is the quiet time that begins on the day of t, if one does.
func (q Quiet) window(t time.Time) (from, to time.Time, ok bool) {
	t = t.In(q.Zone.location())
	if len(q.Days) > 0 && !slices.Contains(q.Days, Weekday(t.Weekday())) {
		return from, to, false
	}
	at := func(d DayTime, days int) time.Time {
		return time.Date(t.Year(), t.Month(), t.Day()+days, 0, int(d), 0, 0, t.Location())
	}
	from, to = at(q.From, 0), at(q.To, 0)
	if q.To <= q.From {
		to = at(q.To, 1)
	}
	return from, to, true
}

// Hold pins the VMs that must stay and bounds the moves of a plan. A VM on a drained host
// is not pinned by its cool-down: that it goes is no change of mind.
func (a Allowance) Hold(s Snapshot, p Policy) (Snapshot, Policy) {
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

// Weekday is a time.Weekday written as mon, tue, wed, thu, fri, sat or sun.
type Weekday time.Weekday

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func (d Weekday) String() string               { return weekdays[d] }
func (d Weekday) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d *Weekday) UnmarshalText(text []byte) error {
	i := slices.Index(weekdays, strings.ToLower(string(text)))
	if i < 0 {
		return fmt.Errorf("%q is no day: write mon, tue, wed, thu, fri, sat or sun", text)
	}
	*d = Weekday(i)
	return nil
}

// DayTime is minutes since midnight, written as 22:30; 24:00 is the day's end.
type DayTime int

func (t DayTime) String() string               { return fmt.Sprintf("%02d:%02d", t/60, t%60) }
func (t DayTime) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

func (t *DayTime) UnmarshalText(text []byte) error {
	if string(text) == "24:00" {
		*t = 24 * 60
		return nil
	}
	v, err := time.Parse("15:04", string(text))
	if err != nil {
		return fmt.Errorf("%q is no time of day: write it as 22:30", text)
	}
	*t = DayTime(v.Hour()*60 + v.Minute())
	return nil
}

// Zone is a time zone by its name, as Europe/Vienna; the zero value is UTC.
type Zone struct{ at *time.Location }

func (z Zone) location() *time.Location {
	if z.at == nil {
		return time.UTC
	}
	return z.at
}

func (z Zone) String() string               { return z.location().String() }
func (z Zone) IsZero() bool                 { return z.at == nil }
func (z Zone) MarshalText() ([]byte, error) { return []byte(z.String()), nil }

func (z *Zone) UnmarshalText(text []byte) error {
	at, err := time.LoadLocation(string(text))
	if err != nil || at == time.Local {
		return fmt.Errorf("%q is no time zone: write a name as Europe/Vienna, or UTC", text)
	}
	z.at = at
	return nil
}
