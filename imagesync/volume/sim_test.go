package volume

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"heliotrope/imagesync/volume/disk"
	"heliotrope/imagesync/volume/frame"
)

// simDirectory is a disk whose power can be cut. It has what was written, and knows what of it
// was synced. Files and names are as POSIX and disks leave them: what was not synced is there or
// not, in any combination, but a unit (a sector of a journal, a block of the overlay) is whole.
type simDirectory struct {
	mu      sync.Mutex
	names   map[string]*simFile
	durable map[string]*simFile // as of the last sync
	locks   map[string]bool
}

type simFile struct {
	d       *simDirectory
	data    []byte
	synced  []byte
	history []simWrite // since the last sync
}

type simWrite struct {
	off int64
	p   []byte // nil: truncated to off
}

func newSim() *simDirectory {
	return &simDirectory{names: make(map[string]*simFile), durable: make(map[string]*simFile), locks: make(map[string]bool)}
}

func (d *simDirectory) Create(name string) (disk.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := &simFile{d: d}
	d.names[name] = f
	return f, nil
}

func (d *simDirectory) Open(name string) (disk.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.names[name]; f != nil {
		return f, nil
	}
	return nil, os.ErrNotExist
}

func (d *simDirectory) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names[to] = d.names[from]
	delete(d.names, from)
	return nil
}

func (d *simDirectory) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.names, name)
	return nil
}

func (d *simDirectory) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.durable = maps.Clone(d.names)
	return nil
}

type simLock struct {
	d    *simDirectory
	name string
}

func (l simLock) Close() error {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	delete(l.d.locks, l.name)
	return nil
}

func (d *simDirectory) Lock(name string, _ bool) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locks[name] {
		return nil, ErrInUse
	}
	d.locks[name] = true
	return simLock{d, name}, nil
}

func (d *simDirectory) Used() (int64, error) { return 0, nil }

func (f *simFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *simFile) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.apply(simWrite{off: off, p: slices.Clone(p)}, &f.data)
	f.history = append(f.history, simWrite{off: off, p: slices.Clone(p)})
	return len(p), nil
}

func (f *simFile) apply(w simWrite, to *[]byte) {
	end := w.off + int64(len(w.p))
	if w.p == nil && end < int64(len(*to)) {
		*to = (*to)[:end:end]
	}
	if end > int64(len(*to)) {
		*to = append(*to, make([]byte, end-int64(len(*to)))...)
	}
	copy((*to)[w.off:], w.p)
}

func (f *simFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.data)), nil
}

func (f *simFile) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.apply(simWrite{off: size}, &f.data)
	f.history = append(f.history, simWrite{off: size})
	return nil
}

func (f *simFile) Datasync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.synced = slices.Clone(f.data)
	f.history = nil
	return nil
}

func (f *simFile) Reserve(int64, int64) {}

func (f *simFile) Punch(off, n int64) error {
	_, err := f.WriteAt(make([]byte, n), off)
	return err
}

func (f *simFile) Close() error { return nil }

// cut is the disk after its power was cut.
func (d *simDirectory) cut(rng *rand.Rand) *simDirectory {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := newSim()
	names := d.durable
	if rng.IntN(2) == 0 {
		names = d.names
	}
	for name, f := range names {
		unit := int64(frame.Size)
		if name == blocksFile || name == ChunksFile {
			unit = BlockSize
		}
		g := &simFile{d: after}
		g.data = f.survives(rng, unit)
		g.synced = slices.Clone(g.data)
		after.names[name] = g
	}
	after.durable = maps.Clone(after.names)
	return after
}

// survives is a file's content: each unit is as some moment since the last sync has left it.
func (f *simFile) survives(rng *rand.Rand, unit int64) []byte {
	data := slices.Clone(f.synced)
	upTo := make(map[int64]int) // of each unit: how much of the history
	style := rng.IntN(3)        // nothing, everything, anything
	for i, w := range f.history {
		if w.p == nil { // sizes change in order
			if style == 1 || style == 2 && rng.IntN(2) == 0 {
				f.apply(w, &data)
			}
			continue
		}
		for at := w.off; at < w.off+int64(len(w.p)); {
			u := at / unit
			end := min((u+1)*unit, w.off+int64(len(w.p)))
			if _, ok := upTo[u]; !ok {
				switch style {
				case 0:
					upTo[u] = 0
				case 1:
					upTo[u] = len(f.history)
				default:
					upTo[u] = rng.IntN(len(f.history) + 1)
				}
			}
			if i < upTo[u] {
				f.apply(simWrite{off: at, p: w.p[at-w.off : end-w.off]}, &data)
			}
			at = end
		}
	}
	return data
}

// memoryBase is a base of which each block says where it is from.
type memoryBase struct {
	data []byte
	zero []bool // of each chunk

	mu      sync.Mutex
	fetched map[int]int
	log     []int
	delay   func(ctx context.Context, i int) error
}

func newMemoryBase(size int64, seed uint64) *memoryBase {
	b := &memoryBase{data: make([]byte, (size+ChunkSize-1)/ChunkSize*ChunkSize), fetched: make(map[int]int)}
	rng := rand.New(rand.NewPCG(seed, seed))
	for off := 0; off < int(size); off += 512 {
		if off%ChunkSize == 0 && rng.IntN(4) == 0 {
			off += ChunkSize - 512 // a chunk of zeros
			continue
		}
		copy(b.data[off:min(off+512, int(size))], fmt.Sprintf("base %d %d ", seed, off))
	}
	for c := range slices.Chunk(b.data, ChunkSize) {
		b.zero = append(b.zero, len(bytes.Trim(c, "\x00")) == 0)
	}
	return b
}

type sizedBase struct {
	*memoryBase
	size int64
}

func (b sizedBase) Size() int64 { return b.size }

func (b *memoryBase) Size() int64 { return int64(len(b.data)) }

func (b *memoryBase) Zero(i int) bool { return i < len(b.zero) && b.zero[i] }

func (b *memoryBase) Fetch(ctx context.Context, i int, dst []byte) error {
	b.mu.Lock()
	b.fetched[i]++
	b.log = append(b.log, i)
	delay := b.delay
	b.mu.Unlock()
	if delay != nil {
		if err := delay(ctx, i); err != nil {
			return err
		}
	}
	copy(dst, b.data[i*ChunkSize:])
	return ctx.Err()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
