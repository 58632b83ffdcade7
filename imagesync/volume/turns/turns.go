// Package turns is how the goroutines that use a volume wait for each other: who changes which
// part of it (Ranges), and who needs something done that is done for all at once (Rounds).
package turns

import (
	"context"
	"slices"
	"sync"
)

// Ranges are parts of a disk that somebody is changing.
type Ranges struct {
	mu   sync.Mutex
	held []*heldRange
}

type heldRange struct {
	from, to int64
	done     chan struct{}
}

// Lock waits until nobody holds a number from from on and before to, and holds them.
func (r *Ranges) Lock(ctx context.Context, from, to int64) (unlock func(), err error) {
	me := &heldRange{from, to, make(chan struct{})}
	for {
		r.mu.Lock()
		i := slices.IndexFunc(r.held, func(h *heldRange) bool { return h.from < to && from < h.to })
		if i < 0 {
			r.held = append(r.held, me)
			r.mu.Unlock()
			return func() { r.unlock(me) }, nil
		}
		other := r.held[i].done
		r.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (r *Ranges) unlock(me *heldRange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.held, me)
	r.held = slices.Delete(r.held, i, i+1)
	close(me.done)
}

// Rounds lets those who come while a round is under way wait for one and the same next one.
// Its user holds a lock of its own during a round.
type Rounds struct {
	mu            sync.Mutex
	begun, worked int64 // the last round that began, and the last that was done without an error
}

// Next is the round that a caller who comes now needs.
func (r *Rounds) Next() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.begun + 1
}

// Begin begins a round, unless the one that is needed, or a later one, has been done.
func (r *Rounds) Begin(needed int64) (round int64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.worked >= needed {
		return 0, false
	}
	r.begun++
	return r.begun, true
}

// Done says that a round was done without an error.
func (r *Rounds) Done(round int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.worked = round
}
