package relay

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// window bounds how much of an encoded stream is on its way and not rebuilt yet. TCP bounds the
// bytes of frames, and where pages are told by a few bytes each, all of a VM fits in its buffers:
// the hypervisor would think that it is sent, stop the VM, and wait for a destination that has
// yet to rebuild most of it.
//
// What it steers by is how long a batch lay at the destination until it was rebuilt, by the
// destination's own clock. The way, and what else is on it, is not in that: where the wire is
// the slower, batches do not lie there, and the window opens until it bounds nothing. On a busy
// host some batch always lies there for longer; the window is too large only where all do, for
// lagWhile (as queues of routers are judged by CoDel, RFC 8289).
type window struct {
	mu      sync.Mutex
	limit   int           // bytes of the stream
	flying  int           // bytes of the stream
	batches []flying      // under way, in their order
	spare   [][]byte      // buffers of those that were
	sent    uint64        // batches
	rebuilt uint64        // batches
	wanting bool          // more than limit, since a batch was last rebuilt
	shrunk  uint64        // how many batches had been sent when limit last shrank; 0: it never has
	late    time.Time     // since when all that were sent after that lay too long; zero: the last did not
	least   time.Duration // that one of those lay
	freed   chan struct{} // one token, when there is more room
}

// batch is a wan.Batch.
type batch interface {
	Size() int
	SwapReferred(empty []byte) []byte
}

// flying is a batch under way: how many bytes of the stream, and the pages that it refers to,
// which the destination may ask for until it has rebuilt it.
type flying struct {
	size     int
	at       time.Time
	referred []byte
}

const (
	windowLeast = 2 * batchBytes // one on the wire while another is rebuilt
	windowFirst = 4 << 20
	windowMost  = 64 << 20 // 350 MB/s over 180 ms
	// lagAim is how long batches should lie at the destination: as little as bridges what one that
	// is hard to unpack takes.
	lagAim   = 15 * time.Millisecond
	lagWhile = 100 * time.Millisecond
)

func newWindow() *window { return &window{limit: windowFirst, freed: make(chan struct{}, 1)} }

// enter waits until a batch may be sent. One at a time may wait.
func (w *window) enter(ctx context.Context, b batch) error {
	for {
		if w.tryEnter(b, time.Now()) {
			return nil
		}
		if _, _, err := receive(ctx, w.freed); err != nil {
			return err
		}
	}
}

func (w *window) tryEnter(b batch, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	size := b.Size()
	if w.flying > 0 && w.flying+size > w.limit {
		w.wanting = true
		return false
	}
	var empty []byte
	if n := len(w.spare); n > 0 {
		empty, w.spare = w.spare[n-1], w.spare[:n-1]
	}
	w.flying += size
	w.batches = append(w.batches, flying{size, now, b.SwapReferred(empty)})
	w.sent++
	return true
}

// referred returns what a batch under way refers to, counted from 1.
func (w *window) referred(batch uint64) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if batch <= w.rebuilt || batch > w.sent {
		return nil, fmt.Errorf("read what the destination asks for: batch %d, after %d of %d", batch, w.rebuilt, w.sent)
	}
	return w.batches[batch-w.rebuilt-1].referred, nil
}

// leave takes note that so many batches have been rebuilt by now, and how long the last of them
// lay at the destination. Where they lie too long, all that is under way should take as much less
// time as they do.
func (w *window) leave(rebuilt uint64, lag time.Duration, now time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if rebuilt < w.rebuilt || rebuilt > w.sent {
		return fmt.Errorf("read what the destination rebuilt: %d batches of %d, and %d before", rebuilt, w.sent, w.rebuilt)
	}
	size, n, took := 0, int(rebuilt-w.rebuilt), lag
	for _, b := range w.batches[:n] {
		size, took = size+b.size, max(lag, now.Sub(b.at))
		if cap(b.referred) > 0 {
			w.spare = append(w.spare, b.referred)
		}
	}
	w.batches = append(w.batches[:0], w.batches[n:]...)
	// Batches come back one by one, and each lets one go: at first there need not be one more that waits.
	wanting := w.wanting || w.shrunk == 0 && 2*w.flying > w.limit
	w.flying, w.rebuilt = w.flying-size, rebuilt
	switch {
	case lag > lagAim && rebuilt > w.shrunk:
		if w.late.IsZero() {
			w.late, w.least = now, lag
		}
		if w.least = min(w.least, lag); now.Sub(w.late) >= lagWhile {
			w.limit = max(w.limit/2, int(float64(w.limit)*(1-float64(w.least-lagAim)/float64(took))), windowLeast)
			w.shrunk, w.late = w.sent, time.Time{}
		}
	case lag <= lagAim && wanting && w.shrunk == 0:
		w.limit = min(w.limit+size, windowMost)
	case lag <= lagAim && wanting:
		w.limit = min(w.limit+size/4, windowMost)
	}
	if w.wanting = false; lag <= lagAim {
		w.late = time.Time{}
	}
	select {
	case w.freed <- struct{}{}:
	default:
	}
	return nil
}
