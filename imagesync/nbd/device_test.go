package nbd

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

const memBlock = 4096

// memory is a device that knows everything and can be made to fail and to wait.
type memoryDevice struct {
	mu    sync.RWMutex
	data  []byte
	held  []bool // by block: it has space
	dirty []bool
	fail  func(command string, off int64) error // nil: nothing fails
	wait  func(ctx context.Context, command string, off int64) error
	never bool // answers no read at once
	slow  bool // zeroes no faster than it writes
	calls map[string]int
}

func newMemory(size int) *memoryDevice {
	n := (size + memBlock - 1) / memBlock
	return &memoryDevice{data: make([]byte, size), held: make([]bool, n), dirty: make([]bool, n), calls: map[string]int{}}
}

func (d *memoryDevice) begin(ctx context.Context, command string, off int64) error {
	if d.wait != nil {
		if err := d.wait(ctx, command, off); err != nil {
			return err
		}
	}
	d.mu.Lock()
	d.calls[command]++
	d.mu.Unlock()
	if d.fail != nil {
		return d.fail(command, off)
	}
	return nil
}

func (d *memoryDevice) called(command string) int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.calls[command]
}

func (d *memoryDevice) Size() int64 { return int64(len(d.data)) }

func (d *memoryDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.begin(ctx, "read", off); err != nil {
		return err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	copy(p, d.data[off:])
	return nil
}

func (d *memoryDevice) ReadNow(p []byte, off int64) bool {
	if d.never || d.fail != nil || !d.mu.TryRLock() {
		return false
	}
	defer d.mu.RUnlock()
	copy(p, d.data[off:])
	return true
}

func (d *memoryDevice) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	command := "write"
	if fua {
		command = "write fua"
	}
	if err := d.begin(ctx, command, off); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data[off:], p)
	d.mark(off, int64(len(p)), func(i int, _ bool) { d.held[i], d.dirty[i] = true, true })
	return nil
}

// mark calls f for each block of a range, and whether all of the block is in it.
func (d *memoryDevice) mark(off, n int64, f func(i int, all bool)) {
	for i := off / memBlock; i*memBlock < off+n; i++ {
		f(int(i), i*memBlock >= off && min((i+1)*memBlock, d.Size()) <= off+n)
	}
}

func (d *memoryDevice) Flush(ctx context.Context) error { return d.begin(ctx, "flush", 0) }

func (d *memoryDevice) Trim(ctx context.Context, off, n int64) error {
	return d.zero(ctx, "trim", off, n, true)
}

func (d *memoryDevice) Zero(ctx context.Context, off, n int64, mayTrim bool) error {
	return d.zero(ctx, "zero", off, n, mayTrim)
}

func (d *memoryDevice) ZeroFast(ctx context.Context, off, n int64, mayTrim bool) error {
	if d.slow {
		return ErrNotFast
	}
	return d.zero(ctx, "zero fast", off, n, mayTrim)
}

func (d *memoryDevice) zero(ctx context.Context, command string, off, n int64, mayTrim bool) error {
	if err := d.begin(ctx, command, off); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+n])
	d.mark(off, n, func(i int, all bool) { d.held[i], d.dirty[i] = !(mayTrim && all), true })
	return nil
}

func (d *memoryDevice) Extents(ctx context.Context, off, n int64, yield func(Extent) bool) error {
	if err := d.begin(ctx, "block status", off); err != nil {
		return err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	for end := off + n; off < end; {
		to := min(end, (off/memBlock+1)*memBlock)
		hole := !d.held[off/memBlock]
		if !yield(Extent{Length: to - off, Hole: hole, Zero: hole}) {
			return nil
		}
		off = to
	}
	return nil
}

func (d *memoryDevice) Dirty(ctx context.Context, off, n int64, yield func(off, n int64) bool) error {
	if err := d.begin(ctx, "dirty", off); err != nil {
		return err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	for end := off + n; off < end; {
		to := min(end, (off/memBlock+1)*memBlock)
		if d.dirty[off/memBlock] && !yield(off, to-off) {
			return nil
		}
		off = to
	}
	return nil
}

func (d *memoryDevice) Prefetch(ctx context.Context, off, n int64) error {
	return d.begin(ctx, "cache", off)
}

// plainDevice is a device that can do only what each must.
type plainDevice struct{ Device }

func logTo(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// serve runs a server until the test ends and returns its socket.
func serve(t *testing.T, s *Server) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // short: a socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) { s.Serve(ctx, l) })
	return path
}

// run runs f until the test ends and waits for it.
func run(t *testing.T, f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(t.Context())
	var g sync.WaitGroup
	g.Go(func() { f(ctx) })
	t.Cleanup(func() { cancel(); g.Wait() })
}

// piped connects to a server without a socket.
func piped(ctx context.Context, t *testing.T, s *Server) net.Conn {
	client, server := net.Pipe()
	run(t, func(context.Context) {
		if err := s.serve(ctx, server, func() {}); err != nil {
			t.Log(err)
		}
	})
	return client
}

func dial(t *testing.T, path, export string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), "unix", path, export)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
