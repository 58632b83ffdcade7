package spread

import (
	"context"
	"slices"
	"sync"
	"time"
)

// search looks for a feeder that is better placed than the one in use.
type search struct {
	found  chan struct{} // closed when one is found
	cancel context.CancelFunc
	wait   sync.WaitGroup
	link   *link
}

// stop ends the search and returns what was found, open, or nil.
func (s *search) stop() *link {
	s.cancel()
	s.wait.Wait()
	return s.link
}

// lookBack begins a search for a feeder better placed than the one at a place in the list. It asks
// beside the transfer, for a dead one takes its time to be known as dead.
func (r *receiver) lookBack(ctx context.Context, at int) *search {
	ctx, cancel := context.WithCancel(ctx)
	s := &search{found: make(chan struct{}), cancel: cancel}
	passed := slices.Clone(r.passed)
	if at == 0 {
		return s
	}
	s.wait.Go(func() {
		t := time.NewTicker(r.node.lookBack())
		defer t.Stop()
		for {
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
			for i := range at {
				if passed[i] == unfit {
					continue
				}
				if s.link = r.knock(ctx, i, passed[i] == slow); s.link != nil {
					close(s.found)
					return
				}
			}
		}
	})
	return s
}

// knock opens a link to a feeder if that is live, and has kept up if it was slow; nil if not.
func (r *receiver) knock(ctx context.Context, at int, wasSlow bool) *link {
	l, err := r.open(ctx, at)
	if err != nil {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { l.conn.Close() })
	f, err := readFrame(l.in)
	ok := err == nil && f.kind == kindStatus && f.status.live
	ok = ok && !(wasSlow && (f.status.lame || f.status.have+slowLag < uint64(r.share.Progress().Bytes)))
	if !stop() || !ok {
		l.conn.Close()
		return nil
	}
	return l
}
