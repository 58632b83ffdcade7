package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
)

// fillSync is after how many chunks of Fill the cache is synced: 64 MiB, which a crash may
// make it fetch again.
const fillSync = 1024

// fill is one call of Fill.
type fill struct {
	*Cache
	order    []int
	progress func(done, total int)

	total int

	mu     sync.Mutex // guards what follows; before that of the cache
	linear int64      // where the search for what is absent goes on, once order is through
	owed   int        // chunks that came since the last sync
}

// Fill fetches everything that is not here: first order, a Trace of an earlier time, then the
// rest from the beginning on. It fetches nothing while a reader waits for a fetch, and no faster
// than Limit lets it. progress, if not nil, is told from time to time how many chunks are here,
// of how many that are not zeros. After an error what came stays.
func (c *Cache) Fill(ctx context.Context, order []int, progress func(done, total int)) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return fmt.Errorf("fill cache: %w", ErrClosed)
	}
	c.wg.Add(1)
	c.mu.Unlock()
	defer c.wg.Done()
	f := &fill{Cache: c, order: order, progress: progress}
	for i := range c.count() {
		if !c.zero(i) {
			f.total++
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(c.ctx, func() { cancel(ErrClosed) })
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	for range cmp.Or(c.o.Workers, 4) {
		g.Go(func() error { return f.work(gctx) })
	}
	err := g.Wait()
	if err == nil {
		err = f.rest(ctx)
	}
	if err = errors.Join(err, c.Sync()); err != nil {
		return fmt.Errorf("fill cache: %w", err)
	}
	return nil
}

// work fetches until there is nothing left to begin.
func (f *fill) work(ctx context.Context) error {
	for {
		first, n := f.pick()
		if n == 0 {
			return nil
		}
		if f.o.Limit != nil {
			if err := f.o.Limit(ctx, int(n*ChunkSize)); err != nil {
				return err
			}
		}
		if err := f.calm(ctx); err != nil {
			return err
		}
		next := f.start(first, n)
		err := f.fly(withBackground(ctx), next)
		if next.err != nil {
			err = next.err
		}
		if err == nil {
			err = f.came(int(next.n))
		}
		if err != nil {
			return err
		}
	}
}

// calm waits until no reader waits for a fetch.
func (c *Cache) calm(ctx context.Context) error {
	for {
		c.mu.Lock()
		quiet := c.quiet
		c.mu.Unlock()
		if quiet == nil {
			return context.Cause(ctx)
		}
		select {
		case <-quiet:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// pick takes neighbours that are not here out of what is left; n is 0 if that is nothing. Nobody waits for them
// yet: who does while Limit holds them back begins a flight of his own.
func (f *fill) pick() (first, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Cache.mu.Lock()
	defer f.Cache.mu.Unlock()
	for n == 0 && len(f.order) > 0 {
		for first = int64(f.order[0]); n < maxFlight && len(f.order) > 0 && int64(f.order[0]) == first+n && f.wanted(first+n); n++ {
			f.order = f.order[1:]
		}
		if n == 0 {
			f.order = f.order[1:]
		}
	}
	for ; n == 0 && f.linear < f.count(); f.linear += max(n, 1) {
		for first = f.linear; n < maxFlight && f.wanted(first+n); n++ {
		}
	}
	return first, n
}

// start begins a flight of what was picked, but for what has come of it meanwhile.
func (f *fill) start(first, n int64) *flight {
	f.Cache.mu.Lock()
	defer f.Cache.mu.Unlock()
	for ; n > 0 && !f.wanted(first); n-- {
		first++
	}
	for n > 0 && !f.wanted(first+n-1) {
		n--
	}
	return f.begin(first, n)
}

// wanted says whether a chunk is to be fetched, and nobody does. The caller holds mu of the cache.
func (f *fill) wanted(i int64) bool {
	return i >= 0 && i < f.count() && !f.here.Has(i) && f.flights[i] == nil && !f.zero(i)
}

// begin registers a background flight. The caller holds mu of the cache.
func (c *Cache) begin(first, n int64) *flight {
	f := &flight{first: first, n: n, done: make(chan struct{})}
	c.register(f)
	c.stats.Background += n
	return f
}

// came counts, tells, and syncs now and then.
func (f *fill) came(n int) error {
	f.mu.Lock()
	if f.progress != nil {
		f.progress(f.Present(), f.total)
	}
	f.owed += n
	due := f.owed >= fillSync
	if due {
		f.owed = 0
	}
	f.mu.Unlock()
	if due {
		return f.Sync()
	}
	return nil
}

// rest waits for what readers were fetching when Fill came by, and fetches it if they failed.
func (f *fill) rest(ctx context.Context) error {
	for _, i := range f.Cache.absent(0, f.size) {
		if err := f.readChunk(ctx, make([]byte, 1), i*ChunkSize, nil); err != nil {
			return err
		}
	}
	if f.progress != nil {
		f.progress(f.Present(), f.total)
	}
	return nil
}
