package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"heliotrope/imagesync/volume/disk"
)

// model is what a volume has to be.
type model struct {
	t         *rapid.T
	dir       disk.Directory
	base      *memoryBase
	cache     *Cache
	v         *Volume
	size      int64
	want      []byte // what reads give
	committed []byte // what the last commit gave, chunks that it did not give included
	epoch     uint64
	stamp     int
	snapshot  *Snapshot // that was taken and not read yet
	then      []byte    // what was there at that moment
}

const modelSize = 8*ChunkSize + 1234

func (m *model) open() {
	var err error
	m.v, err = openIn(m.dir, Options{Base: m.cache, Epoch: m.epoch}, func() {})
	m.check(err)
}

func (m *model) span() (off, n int64) {
	off = rapid.Int64Range(0, m.size-1).Draw(m.t, "off")
	n = min(rapid.SampledFrom([]int64{1, 100, 512, BlockSize, 10_000, ChunkSize, 200_000}).Draw(m.t, "n"), m.size-off)
	if rapid.Bool().Draw(m.t, "aligned") {
		off = off / BlockSize * BlockSize
		n = min((n+BlockSize-1)/BlockSize*BlockSize, m.size-off)
	}
	return off, n
}

func (m *model) content(n int64) []byte {
	m.stamp++
	return bytes.Repeat(fmt.Appendf(nil, "write %d ", m.stamp), int(n/8+1))[:n]
}

func (m *model) check(err error) {
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) actions() map[string]func(*rapid.T) {
	ctx := context.Background()
	return map[string]func(*rapid.T){
		"write": func(t *rapid.T) {
			m.t = t
			off, n := m.span()
			p := m.content(n)
			m.check(m.v.WriteAt(ctx, p, off, rapid.Bool().Draw(t, "fua")))
			copy(m.want[off:], p)
		},
		"zero": func(t *rapid.T) {
			m.t = t
			off, n := m.span()
			m.check(m.v.Zero(ctx, off, n, true))
			clear(m.want[off : off+n])
		},
		"trim": func(t *rapid.T) {
			m.t = t
			off, n := m.span()
			m.check(m.v.Trim(ctx, off, n))
			from, to := (off+BlockSize-1)/BlockSize*BlockSize, (off+n)/BlockSize*BlockSize
			if off+n == m.size {
				to = m.size
			}
			if from < to {
				clear(m.want[from:to])
			}
		},
		"flush": func(t *rapid.T) { m.t = t; m.check(m.v.Flush(ctx)) },
		"read": func(t *rapid.T) {
			m.t = t
			off, n := m.span()
			p := bytes.Repeat([]byte{0xee}, int(n))
			m.check(m.v.ReadAt(ctx, p, off))
			if !bytes.Equal(p, m.want[off:off+n]) {
				t.Fatalf("%d bytes at %d differ", n, off)
			}
			if m.v.ReadNow(p, off) && !bytes.Equal(p, m.want[off:off+n]) {
				t.Fatalf("%d bytes at %d differ when read at once", n, off)
			}
		},
		"extents": func(t *rapid.T) {
			m.t = t
			off, n := m.span()
			at := off
			m.check(m.v.Extents(ctx, off, n, func(e Extent) bool {
				if e.Length <= 0 || e.Zero && len(bytes.Trim(m.want[at:at+e.Length], "\x00")) > 0 {
					t.Fatalf("extent %+v at %d", e, at)
				}
				at += e.Length
				return true
			}))
			if at != off+n {
				t.Fatalf("extents end at %d, not %d", at, off+n)
			}
		},
		"copies": func(t *rapid.T) {
			m.t = t
			m.copies()
		},
		"mark": func(t *rapid.T) {
			m.t = t
			before := m.v.Marks()
			m.check(m.v.Mark(ctx)) // also while there is a snapshot
			if m.v.Marks() <= before {
				t.Fatal("a mark that counts for nothing")
			}
			m.committed = bytes.Clone(m.want)
			if n := m.v.Spared(MarkCopy); n != m.size {
				t.Fatalf("marked just now, and %d bytes of %d are clean", n, m.size)
			}
		},
		"unmark": func(t *rapid.T) {
			m.t = t
			m.check(m.v.Unmark(ctx))
			if mark, base := m.v.Spared(MarkCopy), m.v.Spared(BaseCopy); mark != base {
				t.Fatalf("%d bytes are clean, %d the base's", mark, base)
			}
		},
		"commit": func(t *rapid.T) {
			m.t = t
			if m.snapshot != nil {
				if err := m.v.Commit(ctx, nil, nil); !errors.Is(err, ErrLooked) {
					t.Fatalf("a commit while there is a snapshot: %v", err)
				}
				return
			}
			m.commit(rapid.SampledFrom([]string{"", "", "put", "done"}).Draw(t, "fails"), rapid.IntRange(0, 3).Draw(t, "writes"))
		},
		"drop":          func(t *rapid.T) { m.t = t; m.check(m.cache.Drop()) },
		"snapshot":      func(t *rapid.T) { m.t = t; m.takeSnapshot() },
		"read snapshot": func(t *rapid.T) { m.t = t; m.readSnapshot(rapid.IntRange(0, 6).Draw(t, "writes")) },
		"drop snapshot": func(t *rapid.T) { m.t = t; m.dropSnapshot() },
		"kill": func(t *rapid.T) { // and what was answered is there, flushed or not
			m.t = t
			m.recent()
		},
		"reopen": func(t *rapid.T) {
			m.t = t
			m.check(m.v.Close())
			m.epoch += uint64(rapid.IntRange(0, 1).Draw(t, "newer"))
			m.open()
			m.lostSnapshot()
		},
		"": func(t *rapid.T) { m.t = t; m.dirty() },
	}
}

// copies checks what the volume has as other places have it.
func (m *model) copies() {
	off, n := m.span()
	base := make([]byte, m.size)
	copy(base, m.base.data)
	for there, has := range map[Copy][]byte{BaseCopy: base, MarkCopy: m.committed} {
		at, spared := off, int64(0)
		m.check(m.v.ExtentsBut(context.Background(), there, off, n, func(e Extent) bool {
			content := m.want[at : at+e.Length]
			switch {
			case e.Length <= 0 || e.Zero && len(bytes.Trim(content, "\x00")) > 0:
				m.t.Fatalf("extent %+v at %d", e, at)
			case e.Hole && !e.Zero:
				spared += e.Length
				if !bytes.Equal(content, has[at:at+e.Length]) {
					m.t.Fatalf("extent %+v at %d is not what copy %d has", e, at, there)
				}
			}
			at += e.Length
			return true
		}))
		if at != off+n {
			m.t.Fatalf("extents end at %d, not %d", at, off+n)
		}
		if all := m.v.Spared(there); spared > all || n == m.size && spared != all {
			m.t.Fatalf("%d bytes of %d are as copy %d has them, %d of all", spared, n, there, all)
		}
	}
}

// commit commits, writes while it does, and checks that it gives what was there before.
func (m *model) commit(fails string, writes int) {
	ctx := context.Background()
	then := bytes.Clone(m.want)
	committed := bytes.Clone(m.committed)
	failure := errors.New("no")
	err := m.v.Commit(ctx, func(ctx context.Context, i int, chunk []byte) error {
		if fails == "put" && rapid.Bool().Draw(m.t, "now") {
			return failure
		}
		n := min(ChunkSize, m.size-int64(i)*ChunkSize)
		if !bytes.Equal(chunk[:n], then[int64(i)*ChunkSize:][:n]) || len(bytes.Trim(chunk[n:], "\x00")) > 0 {
			m.t.Fatalf("chunk %d is not what it was when the commit began", i)
		}
		copy(committed[i*ChunkSize:], chunk[:n])
		if writes > 0 {
			writes--
			off, n := m.span()
			if writes%2 == 0 {
				p := m.content(n)
				m.check(m.v.WriteAt(ctx, p, off, false))
				copy(m.want[off:], p)
			} else {
				m.check(m.v.Zero(ctx, off, n, true))
				clear(m.want[off : off+n])
				m.check(m.v.Flush(ctx))
			}
		}
		return nil
	}, func(context.Context) error {
		if fails == "done" {
			return failure
		}
		return nil
	})
	switch {
	case err == nil:
		m.committed = committed
		if !bytes.Equal(committed, then) {
			m.t.Fatal("the commit does not make the disk that it was")
		}
	case !errors.Is(err, failure):
		m.t.Fatal(err)
	}
}

// dirty checks that what is not dirty is as it was committed.
func (m *model) dirty() {
	clean := bytes.Clone(m.want)
	m.check(m.v.Dirty(context.Background(), 0, m.size, func(off, n int64) bool {
		copy(clean[off:off+n], m.committed[off:off+n])
		return true
	}))
	if !bytes.Equal(clean, m.committed) {
		m.t.Fatal("a block is clean and has changed since the last commit")
	}
}

func TestModel(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		m := &model{t: t, dir: newSim(), size: modelSize, base: newMemoryBase(6*ChunkSize-99, 1)}
		cacheDir := disk.Directory(newSim())
		if n%8 == 0 { // a disk takes its time
			cacheDir, m.dir = disk.OSDirectory(filepath.Join(dir, fmt.Sprint(n), "base")), disk.OSDirectory(filepath.Join(dir, fmt.Sprint(n), "v"))
			m.check(os.MkdirAll(string(m.dir.(disk.OSDirectory)), 0o700))
			m.check(os.MkdirAll(string(cacheDir.(disk.OSDirectory)), 0o700))
		}
		var err error
		m.cache, err = openCache(cacheDir, sizedBase{m.base, 6*ChunkSize - 99}, CacheOptions{Identity: "b"})
		m.check(err)
		defer func() { m.check(m.cache.Close()) }()
		m.check(create(m.dir, geometry{m.size, "b"}, 0))
		m.open()
		defer func() { m.check(m.v.Close()) }()
		m.want = make([]byte, m.size)
		copy(m.want, m.base.data)
		m.committed = bytes.Clone(m.want)
		defer m.dropSnapshot()
		t.Repeat(m.actions())
	})
}

// The same on a disk whose power is cut, again and again: every block is then what it was
// at the last flush or what a later write made it, and what changed since the last commit is
// dirty.
func TestPowerLoss(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			powerLoss(t, rand.New(rand.NewPCG(seed, 99)), 12)
		})
	}
}

// possible is what a block may be after a crash.
type possible struct {
	size     int64
	now      []byte
	versions [][][]byte // of each block: at the last flush, and after each write since
}

func (p *possible) changed(off, n int64) {
	for b := off / BlockSize; b*BlockSize < off+n; b++ {
		p.versions[b] = append(p.versions[b], bytes.Clone(p.now[b*BlockSize:(b+1)*BlockSize]))
	}
}

func (p *possible) flushed() {
	for b := range p.versions {
		p.versions[b] = [][]byte{bytes.Clone(p.now[b*BlockSize : (b+1)*BlockSize])}
	}
}

func powerLoss(t *testing.T, rng *rand.Rand, cuts int) {
	ctx := context.Background()
	const size = 9 * ChunkSize
	base := newMemoryBase(size, 5)
	cacheDir, dir := newSim(), newSim()
	check(t, create(dir, geometry{size, "b"}, 0))
	p := &possible{size: size, now: bytes.Clone(base.data), versions: make([][][]byte, size/BlockSize)}
	p.flushed()
	committed := bytes.Clone(base.data)
	for cut := range cuts {
		cache, err := openCache(cacheDir, base, CacheOptions{Identity: "b"})
		check(t, err)
		v, err := openIn(dir, Options{Base: cache}, func() {})
		if err != nil {
			t.Fatalf("after cut %d: %v", cut, err)
		}
		got := make([]byte, size)
		check(t, v.ReadAt(ctx, got, 0))
		clean := bytes.Clone(got)
		check(t, v.Dirty(ctx, 0, size, func(off, n int64) bool { copy(clean[off:off+n], committed[off:off+n]); return true }))
		for b := range p.versions {
			block := got[b*BlockSize:][:BlockSize]
			found := false
			for _, w := range p.versions[b] {
				found = found || bytes.Equal(block, w)
			}
			if !found {
				last := p.versions[b][len(p.versions[b])-1]
				t.Fatalf("after cut %d block %d is %q, not one of %d versions, the last %q", cut, b, block[:24], len(p.versions[b]), last[:24])
			}
		}
		if !bytes.Equal(clean, committed) {
			t.Fatalf("after cut %d a block is clean and is not what was committed", cut)
		}
		p.now = got
		p.flushed()                                // it was read back: whoever looked at it will find it so
		v.journal.slack = uint32(1 + rng.IntN(30)) // it is written anew often
		o := &powerOps{t: t, rng: rng, v: v, cache: cache, possible: p, committed: committed, dir: dir}
		o.run()
		if o.after == nil {
			o.after = dir.cut(rng)
		}
		committed, dir, cacheDir = o.committed, o.after, cacheDir.cut(rng)
	}
}

// powerOps does things to a volume until its power is cut.
type powerOps struct {
	t     *testing.T
	rng   *rand.Rand
	v     *Volume
	cache *Cache
	*possible
	committed []byte
	dir       *simDirectory
	after     *simDirectory // what the cut has left, if it came in the middle of something
}

func (o *powerOps) run() {
	ctx := context.Background()
	for op := range 5 + o.rng.IntN(60) {
		off := o.rng.Int64N(o.size/512) * 512
		n := min(1+o.rng.Int64N(1<<o.rng.IntN(18)), o.size-off)
		if o.rng.IntN(3) > 0 {
			off = off / BlockSize * BlockSize
			n = min((n+BlockSize-1)/BlockSize*BlockSize, o.size-off)
		}
		switch o.rng.IntN(12) {
		case 0:
			o.flush()
		case 1:
			check(o.t, o.v.Zero(ctx, off, n, true))
			clear(o.now[off : off+n])
			o.changed(off, n)
		case 2:
			from, to := (off+BlockSize-1)/BlockSize*BlockSize, (off+n)/BlockSize*BlockSize
			check(o.t, o.v.Trim(ctx, off, n))
			if from < to {
				clear(o.now[from:to])
				o.changed(from, to-from)
			}
		case 3:
			switch o.rng.IntN(8) {
			case 0:
				check(o.t, o.v.Unmark(ctx))
				o.flushed()
			case 3, 4:
				if o.snapshot(op); o.after != nil {
					return
				}
			case 1, 2:
				check(o.t, o.v.Mark(ctx))
				o.committed = bytes.Clone(o.now)
				o.flushed()
			default:
				if o.commit(op); o.after != nil {
					return
				}
			}
		case 4:
			check(o.t, o.cache.Sync())
		case 5:
			if o.rng.IntN(4) == 0 {
				check(o.t, o.cache.Drop())
			}
		default:
			o.write(off, n, fmt.Sprintf("%d %d ", op, o.rng.Uint32()), o.rng.IntN(6) == 0)
		}
	}
}

func (o *powerOps) flush() {
	check(o.t, o.v.Flush(context.Background()))
	o.flushed()
}

func (o *powerOps) write(off, n int64, what string, fua bool) {
	w := bytes.Repeat([]byte(what), int(n))[:n]
	copy(o.now[off:], w)
	o.changed(off, n)
	check(o.t, o.v.WriteAt(context.Background(), w, off, fua))
	if fua {
		o.flushed()
	}
}

func (o *powerOps) commit(op int) {
	then := bytes.Clone(o.now)
	stop, crash := o.rng.IntN(8), errors.New("crash")
	err := o.v.Commit(context.Background(), func(_ context.Context, i int, chunk []byte) error {
		if stop--; stop == 0 {
			if o.rng.IntN(2) == 0 {
				o.after = o.dir.cut(o.rng)
			}
			return crash
		}
		if !bytes.Equal(chunk, then[i*ChunkSize:(i+1)*ChunkSize]) {
			o.t.Fatalf("chunk %d is not what it was", i)
		}
		if o.rng.IntN(2) == 0 {
			o.write(o.rng.Int64N(o.size/BlockSize)*BlockSize, BlockSize, fmt.Sprintf("meanwhile %d %d ", op, i), o.rng.IntN(3) == 0)
		}
		return nil
	}, func(context.Context) error {
		o.committed = then // from here on the caller has it, whether or not the volume knows
		if o.rng.IntN(8) == 0 {
			o.after = o.dir.cut(o.rng)
			return crash
		}
		return nil
	})
	if err != nil && !errors.Is(err, crash) {
		o.t.Fatal(err)
	}
}
