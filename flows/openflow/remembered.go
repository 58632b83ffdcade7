package openflow

import (
	"context"
	"slices"
	"time"

	"heliotrope/flows"
	"heliotrope/internal/reconcile"
)

// resyncEach is what each flow adds to the time between two readings, so that large tables
// do not keep the controller reading.
const resyncEach = 10 * time.Millisecond

// Remembered is a switch's flow tables, read anew only now and then: in between, what was
// read and what was applied since is what is there, since nobody else may write to the
// switch. It spares a move the round trip of a dump, and the comparison of all flows.
type Remembered struct {
	target reconcile.Target[string, flows.Flow]
	have   map[string]flows.Flow // nil: to be read
	due    time.Time             // when it is to be read anew
	only   map[string]bool       // the keys that this round is about; nil: all
	every  time.Duration
	// Growing lets nothing be deleted: a controller that has just started does not know yet
	// what the host's flows are made of, and that is no reason to take them away.
	Growing bool
	grew    bool // in the round before: not all was done
}

// Remember returns target remembered, and read anew every now and then.
func Remember(target reconcile.Target[string, flows.Flow], every time.Duration) *Remembered {
	return &Remembered{target: target, every: every}
}

// Resync is the longest pause that a loop over r may make between two rounds: only a round
// that finds r due reads, so what others changed is found after that time and this pause at
// the latest, and a round in between compares nothing.
func (r *Remembered) Resync() time.Duration { return r.every / 8 }

// Narrow makes the round one about the touched flows only, where all others are known to
// be as wanted since the round before. It returns the part of want that this leaves.
func (r *Remembered) Narrow(want map[string]flows.Flow, touched map[string]bool) map[string]flows.Flow {
	if !time.Now().Before(r.due) {
		r.have = nil
	}
	r.only = touched
	if r.have == nil || r.Growing || r.grew {
		r.only = nil
	}
	r.grew = r.Growing
	return part(want, r.only)
}

// part is m's entries under keys, or m where keys is nil.
func part(m map[string]flows.Flow, keys map[string]bool) map[string]flows.Flow {
	if keys == nil {
		return m
	}
	out := make(map[string]flows.Flow, len(keys))
	for k := range keys {
		if f, ok := m[k]; ok {
			out[k] = f
		}
	}
	return out
}

// Observe returns what is known, unless that is to be read anew.
func (r *Remembered) Observe(ctx context.Context) (map[string]flows.Flow, error) {
	if r.have != nil {
		return part(r.have, r.only), nil
	}
	have, err := r.target.Observe(ctx)
	if err != nil {
		return nil, err
	}
	r.have, r.due = have, time.Now().Add(r.every+time.Duration(len(have))*resyncEach)
	return have, nil
}

// Apply forgets what is known if it fails.
func (r *Remembered) Apply(ctx context.Context, changes []reconcile.Change[string, flows.Flow]) error {
	have := r.have
	r.have = nil
	if r.Growing {
		changes = slices.DeleteFunc(slices.Clone(changes), func(ch reconcile.Change[string, flows.Flow]) bool { return ch.Op == reconcile.Delete })
	}
	if err := r.target.Apply(ctx, changes); err != nil {
		return err
	}
	for _, ch := range changes {
		if ch.Op == reconcile.Delete {
			delete(have, ch.Key)
		} else {
			have[ch.Key] = ch.Want
		}
	}
	r.have = have
	return nil
}
