package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope/imagesync/volume/disk"
	"heliotrope/imagesync/volume/present"
)

func newCache(t *testing.T, base Base, o CacheOptions) *Cache {
	t.Helper()
	c, err := OpenCache(filepath.Join(t.TempDir(), "base"), base, o)
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	return c
}

// filled are the chunks of a base that are not zeros.
func filled(b Base) (all []int) {
	for i := range int((b.Size() + ChunkSize - 1) / ChunkSize) {
		if !b.Zero(i) {
			all = append(all, i)
		}
	}
	return all
}

// gated makes a base's fetches wait.
func gated(b *memoryBase) (open func()) {
	gate := make(chan struct{})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.delay = func(ctx context.Context, _ int) error {
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return sync.OnceFunc(func() { close(gate) })
}

func (b *memoryBase) count(i int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fetched[i]
}

func (b *memoryBase) seen() []int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.log)
}

func TestFetchedOnce(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		base := newMemoryBase(2<<20, 4)
		c, err := OpenCache(dir, base, CacheOptions{})
		check(t, err)
		i := filled(base)[2]
		open := gated(base)
		var wg sync.WaitGroup
		for k := range 30 {
			wg.Go(func() {
				p := make([]byte, 500)
				check(t, c.ReadAt(context.Background(), p, int64(i)*ChunkSize+int64(k)))
				if !bytes.Equal(p, base.data[i*ChunkSize+k:][:500]) {
					t.Error("it reads as something else")
				}
			})
		}
		synctest.Wait()
		if c.ReadNow(make([]byte, 1), int64(i)*ChunkSize) {
			t.Error("it could be read at once")
		}
		open()
		wg.Wait()
		if n := base.count(i); n != 1 {
			t.Errorf("fetched %d times", n)
		}
		if !c.ReadNow(make([]byte, 1), int64(i)*ChunkSize) {
			t.Error("it could not be read at once")
		}
		check(t, c.Close())
	})
}

// A fetch goes on as long as somebody waits for it, and no longer.
func TestWaiterGivesUp(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		base := newMemoryBase(2<<20, 4)
		c, err := OpenCache(dir, base, CacheOptions{})
		check(t, err)
		i := filled(base)[1]
		open := gated(base)
		read := func(ctx context.Context) <-chan error {
			done := make(chan error, 1)
			go func() { done <- c.ReadAt(ctx, make([]byte, 10), int64(i)*ChunkSize) }()
			return done
		}
		ctx, cancel := context.WithCancel(context.Background())
		first, second := read(ctx), read(context.Background())
		synctest.Wait()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up: %v", err)
		}
		synctest.Wait()
		open()
		if err := <-second; err != nil || base.count(i) != 1 {
			t.Errorf("who did not: %v, after %d fetches", err, base.count(i))
		}
		j := filled(base)[3]
		open = gated(base)
		ctx, cancel = context.WithCancel(context.Background())
		i = j
		first = read(ctx)
		synctest.Wait()
		cancel()
		<-first
		synctest.Wait()
		c.mu.Lock()
		if len(c.flights) != 0 || c.demand != 0 {
			t.Errorf("%d flights go on, %d of demand", len(c.flights), c.demand)
		}
		c.mu.Unlock()
		open()
		check(t, <-read(context.Background()))
		check(t, c.Close())
	})
}

func TestFetchFails(t *testing.T) {
	t.Parallel()
	base := newMemoryBase(2<<20, 4)
	c := newCache(t, base, CacheOptions{})
	i := filled(base)[0]
	failure := errors.New("the line is down")
	base.delay = func(context.Context, int) error { return failure }
	p := make([]byte, 10)
	if err := c.ReadAt(context.Background(), p, int64(i)*ChunkSize); !errors.Is(err, failure) {
		t.Errorf("got %v", err)
	}
	if err := c.Fill(context.Background(), nil, nil); !errors.Is(err, failure) {
		t.Errorf("fill: %v", err)
	}
	base.delay = nil
	check(t, c.ReadAt(context.Background(), p, int64(i)*ChunkSize))
}

// Fill begins with the working set, goes on from the beginning, waits while a reader waits,
// and asks Limit.
func TestFill(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		base := newMemoryBase(6<<20, 4)
		bytesAsked := 0
		c, err := OpenCache(dir, base, CacheOptions{Workers: 1, Limit: func(_ context.Context, n int) error { bytesAsked += n; return nil }})
		check(t, err)
		all := filled(base)
		ctx := context.Background()
		open := gated(base)
		reader := make(chan error, 1)
		go func() { reader <- c.ReadAt(ctx, make([]byte, 10), int64(all[40])*ChunkSize) }()
		synctest.Wait()
		var progress []int
		done := make(chan error, 1)
		order := []int{all[30], all[31], -5, 1 << 40, all[30], all[7], all[20]}
		go func() {
			done <- c.Fill(ctx, order, func(n, of int) {
				progress = append(progress, n)
				if of != len(all) {
					t.Errorf("%d of %d; there are %d", n, of, len(all))
				}
			})
		}()
		synctest.Wait()
		if seen := base.seen(); !slices.Equal(seen, []int{all[40]}) {
			t.Errorf("while a reader waits, %v are fetched", seen)
		}
		open()
		check(t, <-reader)
		check(t, <-done)
		seen := base.seen()
		if !slices.Equal(seen[:5], []int{all[40], all[30], all[31], all[7], all[20]}) {
			t.Errorf("fetched in the order %v", seen[:5])
		}
		if rest := seen[5:]; !slices.IsSorted(rest) || len(seen) != len(all) {
			t.Errorf("then %v", rest)
		}
		if want := (len(all) - 1) * ChunkSize; bytesAsked != want || !slices.IsSorted(progress) || progress[len(progress)-1] != len(all) {
			t.Errorf("asked for %d bytes of %d, progress %v", bytesAsked, want, progress)
		}
		p := make([]byte, len(base.data))
		if !c.ReadNow(p, 0) || !bytes.Equal(p, base.data) {
			t.Error("it is not all here")
		}
		check(t, c.Close())
	})
}

// While Limit holds Fill back nothing is under way for it, and who reads does not wait for that.
func TestFillHeldBack(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		base := newMemoryBase(6<<20, 4)
		paused, asked := make(chan struct{}), 0
		c, err := OpenCache(dir, base, CacheOptions{Workers: 1, Limit: func(ctx context.Context, n int) error {
			asked += n
			select {
			case <-paused:
			case <-ctx.Done():
			}
			return context.Cause(ctx)
		}})
		check(t, err)
		done := make(chan error, 1)
		go func() { done <- c.Fill(context.Background(), nil, nil) }()
		synctest.Wait()
		all := filled(base)
		if seen := base.seen(); len(seen) != 0 {
			t.Errorf("%v were fetched", seen)
		}
		p := make([]byte, 10)
		check(t, c.ReadAt(context.Background(), p, int64(all[0])*ChunkSize)) // the first that Fill waits for
		if seen := base.seen(); seen[0] != all[0] {
			t.Errorf("the reader had %v fetched", seen)
		}
		close(paused)
		check(t, <-done)
		whole := make([]byte, len(base.data))
		if !c.ReadNow(whole, 0) || !bytes.Equal(whole, base.data) || asked > len(all)*ChunkSize {
			t.Errorf("it is not all here, or %d bytes were asked for and not %d", asked, len(all)*ChunkSize)
		}
		if seen := base.seen(); len(seen) != len(all) {
			t.Errorf("%d chunks were fetched, of %d", len(seen), len(all))
		}
		check(t, c.Close())
	})
}

// A reader that waits for what Fill fetches is not told that Fill was ended.
func TestFillEnds(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		base := newMemoryBase(2<<20, 4)
		c, err := OpenCache(dir, base, CacheOptions{Workers: 2})
		check(t, err)
		open := gated(base)
		ctx, cancel := context.WithCancelCause(context.Background())
		done, reader := make(chan error, 1), make(chan error, 1)
		go func() { done <- c.Fill(ctx, nil, nil) }()
		synctest.Wait()
		i := base.seen()[0]
		go func() { reader <- c.ReadAt(context.Background(), make([]byte, 10), int64(i)*ChunkSize) }()
		synctest.Wait()
		why := errors.New("enough")
		cancel(why)
		synctest.Wait()
		open()
		check(t, <-reader)
		if err := <-done; err == nil {
			t.Error("it came to its end")
		}
		go func() { done <- c.Fill(context.Background(), nil, nil) }()
		check(t, c.Close())
		<-done // with or without an error
	})
}

type manyBase struct {
	*memoryBase
	runs *[]string
}

func (b manyBase) FetchMany(ctx context.Context, first int, dst []byte) error {
	b.mu.Lock()
	*b.runs = append(*b.runs, fmt.Sprint(first, "+", len(dst)/ChunkSize))
	delay := b.delay
	b.mu.Unlock()
	copy(dst, b.data[first*ChunkSize:])
	if delay != nil {
		return delay(ctx, first)
	}
	return nil
}

func TestNeighboursComeTogether(t *testing.T) {
	t.Parallel()
	base := &memoryBase{data: bytes.Repeat([]byte("full"), 40*ChunkSize/4), fetched: make(map[int]int)}
	var runs []string
	c := newCache(t, manyBase{base, &runs}, CacheOptions{})
	p := make([]byte, 20*ChunkSize)
	check(t, c.ReadAt(context.Background(), make([]byte, 1), 9*ChunkSize))
	check(t, c.ReadAt(context.Background(), p, 5*ChunkSize+100))
	if !bytes.Equal(p, base.data[:len(p)]) {
		t.Error("it reads as something else")
	}
	slices.Sort(runs)
	if !slices.Equal(runs, []string{"10+16", "5+4"}) {
		t.Errorf("fetched in %v", runs)
	}
}

// What was synced is there after the process has ended, and nothing is there that was not.
func TestCacheRemembers(t *testing.T) {
	t.Parallel()
	d := newSim()
	base := newMemoryBase(40*present.PageBits/16*ChunkSize/64, 4)
	c, err := openCache(d, base, CacheOptions{Identity: "a"})
	check(t, err)
	all := filled(base)
	ctx := context.Background()
	for _, i := range all[:10] {
		check(t, c.Prefetch(ctx, int64(i)*ChunkSize, 1))
	}
	check(t, c.Sync())
	check(t, c.Prefetch(ctx, int64(all[10])*ChunkSize, 1))
	d.locks = make(map[string]bool)
	again, err := openCache(d, base, CacheOptions{Identity: "a"})
	check(t, err)
	if again.Present() != 10 {
		t.Errorf("%d chunks are here", again.Present())
	}
	d.locks = make(map[string]bool)
	d.names[present.File].data[present.PageSize+100] ^= 1
	if again, err = openCache(d, base, CacheOptions{Identity: "a"}); err != nil || again.Present() != 0 {
		t.Errorf("with a bit flipped: %v, %d chunks are here", err, again.Present())
	}
	d.locks = make(map[string]bool)
	if _, err = openCache(d, base, CacheOptions{Identity: "b"}); err == nil {
		t.Error("opened as that of another base")
	}
	check(t, c.Close())
	if err := c.ReadAt(ctx, make([]byte, 1), int64(all[20])*ChunkSize); !errors.Is(err, ErrClosed) {
		t.Errorf("read after it was closed: %v", err)
	}
}

func TestDrop(t *testing.T) {
	t.Parallel()
	base := newMemoryBase(4<<20, 4)
	c := newCache(t, base, CacheOptions{})
	check(t, c.Fill(context.Background(), nil, nil))
	if used, err := c.Used(); err != nil || used < int64(len(filled(base)))*ChunkSize {
		t.Errorf("%d bytes used, %v", used, err)
	}
	check(t, c.Drop())
	if used, err := c.Used(); err != nil || used > 64<<10 || c.Present() != 0 {
		t.Errorf("%d bytes used, %v", used, err)
	}
	p := make([]byte, 4<<20)
	check(t, c.ReadAt(context.Background(), p, 0))
	if !bytes.Equal(p, base.data) {
		t.Error("it reads as something else")
	}
	if _, err := OpenCache(string(c.dir.(disk.OSDirectory)), base, CacheOptions{}); !errors.Is(err, ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
}

// A cache whose disk is full serves what it fetches all the same.
func TestFullCache(t *testing.T) {
	t.Parallel()
	base := newMemoryBase(6<<20, 4)
	c, err := OpenCache(small(t, 1<<20), base, CacheOptions{})
	check(t, err)
	p := make([]byte, 6<<20)
	check(t, c.ReadAt(context.Background(), p, 0))
	if !bytes.Equal(p, base.data) {
		t.Error("it reads as something else")
	}
	if err := c.Fill(context.Background(), nil, nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("fill: %v", err)
	}
	check(t, c.Drop())
	check(t, c.Close())
	if _, err := os.Stat(filepath.Join(string(c.dir.(disk.OSDirectory)), present.File)); err != nil {
		t.Error(err)
	}
}

// A reader that reads on, a long way from the base, does not wait a round trip for each chunk;
// one that jumps about fetches nothing beside what it reads.
func TestReadAhead(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		const trip, chunks = 100 * time.Millisecond, 200
		base := &memoryBase{data: bytes.Repeat([]byte("full"), chunks*ChunkSize/4), fetched: make(map[int]int)}
		base.delay = func(context.Context, int) error { time.Sleep(trip); return nil }
		var runs []string
		c, err := OpenCache(filepath.Join(dir, "base"), manyBase{base, &runs}, CacheOptions{})
		check(t, err)
		v, err := Create(filepath.Join(dir, "v"), Options{Base: c})
		check(t, err)
		start := time.Now()
		for off := int64(0); off < chunks*ChunkSize; off += 16 << 10 {
			check(t, v.ReadAt(context.Background(), make([]byte, 16<<10), off))
		}
		if waited := time.Since(start); waited > 20*trip {
			t.Errorf("%d chunks took %v", chunks, waited)
		}
		check(t, c.Drop())
		for i := range int64(20) {
			check(t, v.ReadAt(context.Background(), make([]byte, 10), (i*37%chunks)*ChunkSize))
		}
		if n := c.Present(); n != 20 {
			t.Errorf("20 jumps fetched %d chunks", n)
		}
		check(t, v.Close())
		check(t, c.Close())
	})
}
