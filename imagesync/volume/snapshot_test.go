package volume

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope/imagesync/volume/disk"
)

// takeSnapshot takes one, or is told that there is one.
func (m *model) takeSnapshot() {
	s, err := m.v.Snapshot()
	if m.snapshot != nil {
		if !errors.Is(err, ErrLooked) {
			m.t.Fatalf("a second snapshot: %v", err)
		}
		return
	}
	m.check(err)
	m.snapshot, m.then = s, bytes.Clone(m.want)
}

// readSnapshot reads it, writes while it does, and holds it against what was there.
func (m *model) readSnapshot(writes int) {
	if m.snapshot == nil {
		return
	}
	ctx := context.Background()
	got := make([]byte, m.size)
	copy(got, m.base.data)
	last, given := -1, int64(0)
	m.check(m.snapshot.Read(ctx, func(_ context.Context, i int, chunk []byte) error {
		n := min(ChunkSize, m.size-int64(i)*ChunkSize)
		if i <= last || len(bytes.Trim(chunk[n:], "\x00")) > 0 {
			m.t.Fatalf("chunk %d follows %d, or is not zeros behind the end", i, last)
		}
		last = i
		given++
		copy(got[i*ChunkSize:], chunk[:n])
		if writes > 0 {
			writes--
			off, n := m.span()
			switch rapid.IntRange(0, 2).Draw(m.t, "how") {
			case 0:
				p := m.content(n)
				m.check(m.v.WriteAt(ctx, p, off, false))
				copy(m.want[off:], p)
			case 1:
				m.check(m.v.Zero(ctx, off, n, true))
				clear(m.want[off : off+n])
			case 2:
				m.check(m.v.Flush(ctx))
			}
		}
		return nil
	}))
	if given != m.snapshot.Chunks() || !bytes.Equal(got, m.then) {
		m.t.Fatalf("the snapshot is not what was there at its moment (%d chunks of %d)", given, m.snapshot.Chunks())
	}
	m.dropSnapshot()
}

func (m *model) dropSnapshot() {
	if m.snapshot == nil {
		return
	}
	m.check(m.snapshot.Close())
	m.snapshot = nil
	if f, err := m.dir.Open(beforeFile); !errors.Is(err, os.ErrNotExist) {
		f.Close()
		m.t.Fatalf("what was saved for a snapshot remains: %v", err)
	}
}

// lostSnapshot is one whose volume was closed: it says so, and nothing remains of it.
func (m *model) lostSnapshot() {
	if m.snapshot == nil {
		return
	}
	err := m.snapshot.Read(context.Background(), func(context.Context, int, []byte) error { return nil })
	if !errors.Is(err, ErrClosed) {
		m.t.Fatalf("a snapshot of a volume that was closed: %v", err)
	}
	m.dropSnapshot()
}

// recent opens the volume as the next process would after a kill -9, where the directory is the host's:
// nothing was flushed, and the snapshot's file is there.
func (m *model) recent() {
	if _, real := m.dir.(disk.OSDirectory); !real {
		return
	}
	was := m.v
	check := func(err error) { m.check(err) }
	at := filepath.Join(filepath.Dir(string(m.dir.(disk.OSDirectory))), fmt.Sprintf("killed-%d", m.epoch))
	m.epoch++
	check(os.CopyFS(at, os.DirFS(string(m.dir.(disk.OSDirectory)))))
	v, err := openIn(disk.OSDirectory(at), Options{Base: m.cache, Epoch: was.epoch}, func() {})
	check(err)
	got := make([]byte, m.size)
	check(v.ReadAt(context.Background(), got, 0))
	if !bytes.Equal(got, m.want) {
		m.t.Fatal("a write that was answered is gone after a kill")
	}
	if _, err := os.Stat(filepath.Join(at, beforeFile)); !errors.Is(err, os.ErrNotExist) {
		m.t.Fatalf("after a kill, what was saved for a snapshot remains: %v", err)
	}
	s, err := v.Snapshot()
	check(err)
	check(errors.Join(s.Close(), v.Close(), os.RemoveAll(at)))
}

// snapshot reads one, with writes between, and may have the power cut.
func (o *powerOps) snapshot(op int) {
	then := bytes.Clone(o.now)
	s, err := o.v.Snapshot()
	check(o.t, err)
	got := bytes.Clone(o.cache.base.(*memoryBase).data)
	stop, crash := o.rng.IntN(12), errors.New("crash")
	err = s.Read(context.Background(), func(_ context.Context, i int, chunk []byte) error {
		if stop--; stop == 0 {
			if o.rng.IntN(2) == 0 {
				o.after = o.dir.cut(o.rng)
			}
			return crash
		}
		copy(got[i*ChunkSize:], chunk)
		switch o.rng.IntN(5) {
		case 0:
			off := o.rng.Int64N(o.size/ChunkSize) * ChunkSize
			check(o.t, o.v.Trim(context.Background(), off, ChunkSize))
			clear(o.now[off : off+ChunkSize])
			o.changed(off, ChunkSize)
		case 1, 2:
			o.write(o.rng.Int64N(o.size/BlockSize)*BlockSize, BlockSize, fmt.Sprintf("beside %d %d ", op, i), o.rng.IntN(3) == 0)
		}
		return nil
	})
	if err != nil && !errors.Is(err, crash) {
		o.t.Fatal(err)
	}
	if err == nil && !bytes.Equal(got, then) {
		o.t.Fatal("a snapshot is not what was there at its moment")
	}
	check(o.t, s.Close())
}

// What a guest makes zeros is not copied; what it writes over is, once.
func TestSnapshotCopies(t *testing.T) {
	base := newMemoryBase(8*ChunkSize, 2)
	cache, err := openCache(newSim(), base, CacheOptions{Identity: "b"})
	check(t, err)
	dir := newSim()
	check(t, create(dir, geometry{base.Size(), "b"}, 0))
	v, err := openIn(dir, Options{Base: cache}, func() {})
	check(t, err)
	ctx, content := context.Background(), bytes.Repeat([]byte("was here"), 4*ChunkSize/8)
	check(t, v.WriteAt(ctx, content, 0, false))
	s, err := v.Snapshot()
	check(t, err)
	saved := func() int64 {
		f, err := dir.Open(beforeFile)
		if err != nil {
			return 0
		}
		n, err := f.Size()
		check(t, err)
		return n
	}
	check(t, v.Trim(ctx, 0, 8*ChunkSize))
	check(t, v.Flush(ctx))
	if n := saved(); n != 0 {
		t.Errorf("a trim has copied %d bytes", n)
	}
	check(t, v.WriteAt(ctx, content[:BlockSize], ChunkSize, false))
	if n := saved(); n != 2*ChunkSize {
		t.Errorf("after a write to the second chunk, the saved ones end at %d", n)
	}
	check(t, v.WriteAt(ctx, content[:BlockSize], 6*ChunkSize, false)) // the base had it
	if n := saved(); n != 2*ChunkSize {
		t.Errorf("after a write to what was the base's, the saved ones end at %d", n)
	}
	i := 0
	check(t, s.Read(ctx, func(_ context.Context, _ int, chunk []byte) error {
		if !bytes.Equal(chunk, content[i*ChunkSize:(i+1)*ChunkSize]) {
			t.Errorf("chunk %d differs", i)
		}
		i++
		return nil
	}))
	if i != 4 {
		t.Errorf("%d chunks were given", i)
	}
	check(t, errors.Join(s.Close(), v.Close(), cache.Close()))
}

// A guest that numbers its writes, each of them after the one before was answered: a snapshot has the first of them, up to one
// that is not before what was answered when it was asked for, and nothing else.
func TestSnapshotIsAPrefix(t *testing.T) {
	const blocks, last = 4 * chunkBlocks, 20_000
	v, err := Create(filepath.Join(t.TempDir(), "v"), Options{Size: blocks * BlockSize})
	check(t, err)
	ctx := context.Background()
	var answered atomic.Int64
	var longest time.Duration
	ended := make(chan error, 1)
	go func() {
		for n := int64(1); n <= last; n++ {
			began := time.Now()
			if err := v.WriteAt(ctx, stamped(n, n), n*7%blocks*BlockSize, false); err != nil {
				ended <- err
				return
			}
			longest = max(longest, time.Since(began))
			answered.Store(n)
		}
		ended <- nil
	}()
	for n := 0; ; n++ {
		from := answered.Load()
		s, err := v.Snapshot()
		check(t, err)
		to := answered.Load() + 1
		image := make([]byte, blocks*BlockSize)
		check(t, s.Read(ctx, func(_ context.Context, i int, chunk []byte) error { copy(image[i*ChunkSize:], chunk); return nil }))
		check(t, s.Close())
		newest := int64(0)
		for b := range blocks {
			newest = max(newest, int64(binary.LittleEndian.Uint64(image[b*BlockSize+8:])))
		}
		want := make([]byte, len(image))
		for n := max(1, newest-blocks+1); n <= newest; n++ {
			copy(want[n*7%blocks*BlockSize:], stamped(n, n))
		}
		if newest < from || newest > to || !bytes.Equal(image, want) {
			t.Fatalf("snapshot %d, between writes %d and %d, has writes up to %d, and is not all of them", n, from, to, newest)
		}
		if from == last {
			check(t, errors.Join(<-ended, v.Close()))
			t.Logf("%d snapshots; the longest of %d writes took %v", n, last, longest)
			return
		}
	}
}
