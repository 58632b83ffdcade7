package volume

import (
	"context"
	"slices"
	"sync"
)

// ranges are parts of a disk that somebody is changing.
type ranges struct {
	mu   sync.Mutex
	held []*heldRange
}

type heldRange struct {
	from, to int64
	done     chan struct{}
}

// lock waits until nobody holds a number from from on and before to, and holds them.
func (r *ranges) lock(ctx context.Context, from, to int64) (unlock func(), err error) {
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

func (r *ranges) unlock(me *heldRange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.held, me)
	r.held = slices.Delete(r.held, i, i+1)
	close(me.done)
}

// rounds lets those who come while a round is under way wait for one and the same next one.
// Its user holds a lock of its own during a round.
type rounds struct {
	mu            sync.Mutex
	begun, worked int64 // the last round that began, and the last that was done without an error
}

// next is the round that a caller who comes now needs.
func (r *rounds) next() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.begun + 1
}

// begin begins a round, unless the one that is needed, or a later one, has been done.
func (r *rounds) begin(needed int64) (round int64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.worked >= needed {
		return 0, false
	}
	r.begun++
	return r.begun, true
}

func (r *rounds) done(round int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.worked = round
}
