package volume

import (
	"context"
	"fmt"
	"slices"
)

// maxFlight is how many neighbouring chunks are fetched together: 1 MiB, a second of a line
// of 10 Mbit/s.
const maxFlight = 16

// flight is a fetch that is under way, of neighbouring chunks.
type flight struct {
	first, n int64
	done     chan struct{}
	buf      []byte // once done without an error
	err      error  // once done
	gaveUp   bool   // once done: nobody wanted it any more, so err means nothing to others
	waiters  int    // guarded by mu of the cache
	cancel   context.CancelFunc
	demand   bool
}

func (f *flight) chunk(i int64) []byte { return f.buf[(i-f.first)*ChunkSize:][:ChunkSize] }

// join returns the flights of chunks, given in order, that are not here, and begins those
// that nobody has begun, and with ahead what a reader is likely to need next. The caller is a
// waiter of each until it calls leave.
func (c *Cache) join(chunks []int64, ahead bool) ([]*flight, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("read cache: %w", ErrClosed)
	}
	var all []*flight
	var last *flight
	for k := 0; k < len(chunks); k++ {
		i := chunks[k]
		if c.here.Has(i) {
			continue
		}
		f := c.flights[i]
		if f == nil {
			n := int64(1)
			for n < maxFlight && k+int(n) < len(chunks) && chunks[k+int(n)] == i+n && !c.here.Has(i+n) && c.flights[i+n] == nil {
				n++
			}
			f = c.launch(i, n)
			if ahead {
				c.ahead(i, i+n)
			}
		}
		if f != last {
			f.waiters++
			all = append(all, f)
			last = f
		}
	}
	return all, nil
}

// launch begins a demand fetch. The caller holds mu.
func (c *Cache) launch(first, n int64) *flight {
	f := &flight{first: first, n: n, done: make(chan struct{}), demand: true}
	ctx, cancel := context.WithCancel(c.ctx)
	f.cancel = cancel
	c.register(f)
	if c.demand++; c.demand == 1 {
		c.quiet = make(chan struct{})
	}
	c.stats.Demand += n
	c.wg.Go(func() {
		defer cancel()
		_ = c.fly(ctx, f) // if the cache is full, those who wait have the chunk all the same
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.demand--; c.demand == 0 {
			close(c.quiet)
			c.quiet = nil
		}
	})
	return f
}

func (c *Cache) register(f *flight) {
	for i := f.first; i < f.first+f.n; i++ {
		c.flights[i] = f
	}
}

// unregister makes the next who needs the chunks begin anew. The caller holds mu.
func (c *Cache) unregister(f *flight) {
	for i := f.first; i < f.first+f.n; i++ {
		if c.flights[i] == f {
			delete(c.flights, i)
		}
	}
}

// leave gives flights up. One that nobody waits for any more ends.
func (c *Cache) leave(flights []*flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range flights {
		if f.waiters--; f.waiters == 0 && f.demand {
			f.cancel()
			c.unregister(f)
		}
	}
}

// fly fetches, and puts what came into the file. The error is that of the file; that of the
// fetch is the flight's.
func (c *Cache) fly(ctx context.Context, f *flight) error {
	buf := make([]byte, f.n*ChunkSize)
	err := c.fetch(ctx, f.first, buf)
	var stored error
	if err == nil {
		stored = c.store(f, buf)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f.buf, f.err, f.gaveUp = buf, err, err != nil && ctx.Err() != nil
	c.unregister(f)
	close(f.done)
	return stored
}

func (c *Cache) fetch(ctx context.Context, first int64, buf []byte) error {
	if len(buf) > ChunkSize {
		if many, ok := c.base.(ManyFetcher); ok {
			if err := many.FetchMany(ctx, int(first), buf); err != nil {
				return fmt.Errorf("fetch %d chunks from %d on: %w", len(buf)/ChunkSize, first, err)
			}
			return nil
		}
	}
	for i := first; len(buf) > 0; i++ {
		if err := c.base.Fetch(ctx, int(i), buf[:ChunkSize]); err != nil {
			return fmt.Errorf("fetch chunk %d: %w", i, err)
		}
		buf = buf[ChunkSize:]
	}
	return nil
}

// store puts chunks into the file; from then on they are here.
func (c *Cache) store(f *flight, buf []byte) error {
	c.content.RLock()
	defer c.content.RUnlock()
	if _, err := c.chunks.WriteAt(buf, f.first*ChunkSize); err != nil {
		return fmt.Errorf("fill cache: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.here.Add(f.first, f.first+f.n)
	c.unsynced.Add(f.first, f.first+f.n)
	return nil
}

// Give stores a chunk that came by another way and was checked; the caller syncs.
func (c *Cache) Give(i int, chunk []byte) error {
	return c.store(&flight{first: int64(i), n: 1}, chunk)
}

// ReadAt fills p, and waits for what is not here. What is behind the base are zeros.
func (c *Cache) ReadAt(ctx context.Context, p []byte, off int64) error {
	flights, err := c.join(c.absent(off, int64(len(p))), false)
	if err != nil {
		return err
	}
	defer c.leave(flights)
	for len(p) > 0 {
		n := min(int64(len(p)), ChunkSize-off%ChunkSize)
		if err := c.readChunk(ctx, p[:n], off, flights); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// absent are the chunks of a range that are not here and not zeros.
func (c *Cache) absent(off, n int64) []int64 {
	if n == 0 {
		return nil
	}
	var all []int64
	last := (off + n - 1) / ChunkSize
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := off / ChunkSize; i <= last; i++ {
		if !c.here.Has(i) && !c.zero(i) {
			all = append(all, i)
		}
	}
	return all
}

// readChunk reads within one chunk, by one of the flights that the caller has joined if it
// is of those.
func (c *Cache) readChunk(ctx context.Context, p []byte, off int64, joined []*flight) error {
	i := off / ChunkSize
	k := slices.IndexFunc(joined, func(f *flight) bool { return i >= f.first && i < f.first+f.n })
	if k >= 0 {
		if again, err := c.land(ctx, joined[k], p, off); !again {
			return err
		}
	}
	for {
		if c.readHere(p, off) {
			return nil
		}
		flights, err := c.join([]int64{i}, false)
		if err != nil {
			return err
		}
		if len(flights) == 0 {
			continue // it has just come
		}
		again, err := c.land(ctx, flights[0], p, off)
		c.leave(flights)
		if !again {
			return err
		}
	}
}

// land waits for a flight and takes p from it, or says that it has to be tried again.
func (c *Cache) land(ctx context.Context, f *flight, p []byte, off int64) (again bool, err error) {
	select {
	case <-f.done:
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	switch {
	case f.err == nil:
		copy(p, f.chunk(off / ChunkSize)[off%ChunkSize:])
		return false, nil
	case c.ctx.Err() != nil:
		return false, fmt.Errorf("read cache: %w", ErrClosed)
	}
	return f.gaveUp, f.err
}

// readHere reads within one chunk if it is here, or zeros.
func (c *Cache) readHere(p []byte, off int64) bool {
	i := off / ChunkSize
	if c.zero(i) {
		clear(p)
		return true
	}
	c.content.RLock()
	defer c.content.RUnlock()
	c.mu.Lock()
	here := c.here.Has(i)
	if here {
		c.stats.Hits++
	}
	c.mu.Unlock()
	if !here {
		return false
	}
	_, err := c.chunks.ReadAt(p, off)
	if err != nil {
		c.mu.Lock() // a sector that cannot be read: the chunk comes again
		c.here.Remove(i, i+1)
		c.unsynced.Remove(i, i+1)
		c.mu.Unlock()
	}
	return err == nil
}

// ReadNow fills p if all of it is here, and else returns false.
func (c *Cache) ReadNow(p []byte, off int64) bool {
	for len(p) > 0 {
		n := min(int64(len(p)), ChunkSize-off%ChunkSize)
		if !c.readHere(p[:n], off) {
			return false
		}
		p, off = p[n:], off+n
	}
	return true
}

// Prefetch returns once a range is here, or was.
func (c *Cache) Prefetch(ctx context.Context, off, n int64) error {
	chunks := c.absent(off, n)
	flights, err := c.join(chunks, false)
	if err != nil {
		return err
	}
	defer c.leave(flights)
	var p [1]byte
	for _, i := range chunks {
		if err := c.readChunk(ctx, p[:], i*ChunkSize, flights); err != nil {
			return err
		}
	}
	return nil
}

// streams is how many readers that read on and on are told from one another.
const streams = 16

// stream is a reader that may be reading on: what it has not asked for yet begins at next.
type stream struct{ next, window int64 }

// ahead begins to fetch what follows chunks from first on and before end, if they follow what
// was fetched before: a reader a long way from the base would else wait a round trip for each
// chunk. Twice as much each time, up to a flight. The caller holds mu.
func (c *Cache) ahead(first, end int64) {
	s := stream{next: end, window: 1}
	k := slices.IndexFunc(c.streams, func(s stream) bool { return first >= s.next && first-s.next <= s.window })
	if k >= 0 {
		s.window = min(2*c.streams[k].window, maxFlight)
		c.streams = slices.Delete(c.streams, k, k+1)
		for s.next < min(end+s.window, c.count()) {
			if c.here.Has(s.next) || c.flights[s.next] != nil || c.zero(s.next) {
				s.next++
				continue
			}
			n := int64(1)
			for s.next+n < min(end+s.window, c.count()) && !c.here.Has(s.next+n) && c.flights[s.next+n] == nil && !c.zero(s.next+n) {
				n++
			}
			f := c.begin(s.next, n)
			c.wg.Go(func() { _ = c.fly(withBackground(c.ctx), f) })
			s.next += n
		}
	} else if len(c.streams) == streams {
		c.streams = c.streams[1:] // the one that was quiet longest
	}
	c.streams = append(c.streams, s)
}
