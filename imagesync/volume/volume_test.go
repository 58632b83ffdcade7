package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"heliotrope/imagesync/volume/disk"
	"heliotrope/imagesync/volume/trace"
)

// newVolume makes a volume of 4 MiB on a base of 3 MiB.
func newVolume(t testing.TB) (*Volume, *memoryBase) {
	t.Helper()
	dir, base := t.TempDir(), newMemoryBase(3<<20, 3)
	cache, err := OpenCache(filepath.Join(dir, "base"), base, CacheOptions{Identity: "b"})
	check(t, err)
	t.Cleanup(func() { check(t, cache.Close()) })
	v, err := Create(filepath.Join(dir, "v"), Options{Base: cache, Size: 4 << 20, Epoch: 1})
	check(t, err)
	t.Cleanup(func() { check(t, v.Close()) })
	return v, base
}

// Fifty volumes of an image take no space, and no time for copying.
func TestCreateMany(t *testing.T) {
	t.Parallel()
	dir, base := t.TempDir(), newMemoryBase(3<<20, 3)
	cache, err := OpenCache(filepath.Join(dir, "base"), base, CacheOptions{})
	check(t, err)
	defer cache.Close()
	used := int64(0)
	for i := range 50 {
		v, err := Create(filepath.Join(dir, fmt.Sprint(i)), Options{Base: cache, Size: 1 << 40})
		check(t, err)
		defer v.Close()
		s, err := v.Stats()
		check(t, err)
		used += s.Disk
	}
	t.Logf("%d bytes for 50 volumes of 1 TiB", used)
	if used > 50*32<<10 {
		t.Error("that is more than they have to say")
	}
	if len(base.log) != 0 {
		t.Errorf("%d chunks were fetched", len(base.log))
	}
	if _, err := Create(filepath.Join(dir, "7"), Options{Base: cache}); !errors.Is(err, ErrInUse) {
		t.Errorf("created twice: %v", err)
	}
	if _, err := Create(filepath.Join(dir, "small"), Options{Base: cache, Size: 1 << 20}); err == nil {
		t.Error("a volume was made that is smaller than its base")
	}
}

func TestCreateAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "v")
	check(t, os.MkdirAll(dir, 0o700))
	check(t, os.WriteFile(filepath.Join(dir, blocksFile), []byte("of a Create that crashed"), 0o600))
	v, err := Create(dir, Options{Size: 1 << 20})
	check(t, err)
	p := make([]byte, 30)
	check(t, v.ReadAt(context.Background(), p, 0))
	if !bytes.Equal(p, make([]byte, 30)) {
		t.Errorf("begins with %q", p)
	}
	check(t, v.Close())
	if _, err := Create(dir, Options{Size: 1 << 20}); !errors.Is(err, os.ErrExist) {
		t.Errorf("created twice: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "nothing"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opened: %v", err)
	}
}

func TestRangesAreChecked(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	v, _ := newVolume(t)
	p := make([]byte, 10)
	for _, off := range []int64{-1, 4<<20 - 9, 4 << 20, 1<<63 - 5} {
		for name, err := range map[string]error{"read": v.ReadAt(ctx, p, off), "write": v.WriteAt(ctx, p, off, false),
			"zero": v.Zero(ctx, off, 10, true), "trim": v.Trim(ctx, off, 10), "prefetch": v.Prefetch(ctx, off, 10),
			"extents": v.Extents(ctx, off, 10, nil), "dirty": v.Dirty(ctx, off, 10, nil)} {
			if err == nil {
				t.Errorf("%s at %d: no error", name, off)
			}
		}
		if v.ReadNow(p, off) {
			t.Errorf("read at once at %d", off)
		}
	}
}

// What is dirty is what a commit gives, and nothing is read but that.
func TestCommitGivesWhatIsDirty(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	v, base := newVolume(t)
	full := 0
	for base.Zero(full) {
		full++
	}
	check(t, v.WriteAt(ctx, make([]byte, ChunkSize), 20*ChunkSize, false)) // a whole chunk: nothing of the base
	check(t, v.WriteAt(ctx, []byte("x"), int64(full)*ChunkSize+5*BlockSize+7, false))
	check(t, v.Trim(ctx, 30*ChunkSize, ChunkSize))
	var dirty []int64
	check(t, v.Dirty(ctx, 0, v.Size(), func(off, n int64) bool { dirty = append(dirty, off/BlockSize, n/BlockSize); return true }))
	want := []int64{int64(full)*16 + 5, 1, 320, 16}
	if !base.Zero(30) {
		want = append(want, 480, 16)
	}
	if !slices.Equal(dirty, want) {
		t.Errorf("dirty are %v, not %v", dirty, want)
	}
	var given []int
	commit := func(fail error) error {
		given = nil
		return v.Commit(ctx, func(_ context.Context, i int, chunk []byte) error {
			given = append(given, i)
			if i == full {
				want := bytes.Clone(base.data[i*ChunkSize:][:ChunkSize])
				want[5*BlockSize+7] = 'x'
				if !bytes.Equal(chunk, want) {
					t.Error("the chunk is not the base with what was written")
				}
			}
			return nil
		}, func(context.Context) error { return fail })
	}
	wantGiven := []int{full, 20}
	if !base.Zero(30) {
		wantGiven = append(wantGiven, 30)
	}
	failure := errors.New("no")
	if err := commit(failure); !errors.Is(err, failure) || !slices.Equal(given, wantGiven) {
		t.Errorf("%v, %v", err, given)
	}
	if err := commit(nil); err != nil || !slices.Equal(given, wantGiven) {
		t.Errorf("again: %v, %v", err, given)
	}
	if err := commit(nil); err != nil || len(given) != 0 {
		t.Errorf("once more: %v, %v", err, given)
	}
	if len(base.fetched) != 1 || base.fetched[full] != 1 {
		t.Errorf("fetched were %v; only chunk %d was needed", base.fetched, full)
	}
}

func TestTrace(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	v, base := newVolume(t)
	v.trace = trace.New(5)
	var full []int64
	for i := range int64(48) {
		if !base.Zero(int(i)) {
			full = append(full, i)
		}
	}
	p := make([]byte, 10)
	for _, k := range []int{7, 3, 7, 3, 9} {
		check(t, v.ReadAt(ctx, p, full[k]*ChunkSize+100))
	}
	v.ReadNow(p, full[1]*ChunkSize)
	check(t, v.WriteAt(ctx, p, full[5]*ChunkSize+1, false)) // copies up
	check(t, v.ReadAt(ctx, p, full[6]*ChunkSize))           // too many
	want := []int{int(full[7]), int(full[3]), int(full[9]), int(full[1]), int(full[5])}
	if got := v.Trace(); !slices.Equal(got, want) {
		t.Errorf("%v, not %v", got, want)
	}
}

// A newer writer ends the older one; an older one does not come in.
func TestFenced(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	old, _ := newVolume(t)
	check(t, old.WriteAt(ctx, []byte("old, acknowledged"), 0, true))
	if _, err := Open(old.name, Options{Base: old.base, Epoch: 1}); !errors.Is(err, ErrInUse) {
		t.Errorf("opened twice with one epoch: %v", err)
	}
	if _, err := Open(old.name, Options{Base: old.base, Epoch: 0}); !errors.Is(err, ErrFenced) {
		t.Errorf("opened with an older epoch: %v", err)
	}
	check(t, old.WriteAt(ctx, []byte("old, unacknowledged"), BlockSize, false))
	v, err := Open(old.name, Options{Base: old.base, Epoch: 2})
	check(t, err)
	defer func() { check(t, v.Close()) }()
	p := make([]byte, 17)
	for name, err := range map[string]error{"write": old.WriteAt(ctx, p, 0, false), "flush": old.Flush(ctx), "zero": old.Zero(ctx, 0, BlockSize, true),
		"read": old.ReadAt(ctx, p, 0), "commit": old.Commit(ctx, nil, nil)} {
		if !errors.Is(err, ErrFenced) {
			t.Errorf("%s by the old writer: %v", name, err)
		}
	}
	check(t, v.ReadAt(ctx, p, 0))
	if string(p) != "old, acknowledged" {
		t.Errorf("the new writer reads %q", p)
	}
	check(t, v.WriteAt(ctx, []byte("new"), 0, true))
}

// A writer of another process finds at its next flush that it is fenced, and gives the
// volume up. Locks of a directory do not know processes, so one will do.
func TestFencedFromOutside(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	old, _ := newVolume(t)
	open := func(epoch uint64) (*Volume, error) {
		return openIn(disk.OSDirectory(old.name), Options{Base: old.base, Epoch: epoch}, func() {})
	}
	if _, err := open(5); !errors.Is(err, ErrInUse) {
		t.Errorf("overtaken: %v", err)
	}
	check(t, old.WriteAt(ctx, []byte("x"), 0, false))
	if err := old.Flush(ctx); !errors.Is(err, ErrFenced) {
		t.Errorf("flush: %v", err)
	}
	if err := old.WriteAt(ctx, []byte("x"), 0, false); !errors.Is(err, ErrFenced) {
		t.Errorf("write: %v", err)
	}
	if _, err := open(4); !errors.Is(err, ErrFenced) {
		t.Errorf("older than the one that was turned away: %v", err)
	}
	v, err := open(5)
	check(t, err)
	check(t, v.WriteAt(ctx, []byte("y"), 0, true))
	check(t, v.Close())
}

// A commit whose writer was fenced does not become one.
func TestFencedDuringCommit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	old, _ := newVolume(t)
	check(t, old.WriteAt(ctx, []byte("x"), 0, false))
	var v *Volume
	err := old.Commit(ctx, func(context.Context, int, []byte) error {
		var err error
		v, err = Open(old.name, Options{Base: old.base, Epoch: 2})
		return err
	}, nil)
	if !errors.Is(err, ErrFenced) {
		t.Errorf("commit: %v", err)
	}
	n := int64(0)
	check(t, v.Dirty(ctx, 0, v.Size(), func(_, k int64) bool { n += k; return true }))
	if n != BlockSize {
		t.Errorf("%d bytes are dirty", n)
	}
	check(t, v.Close())
}

// small mounts a file system of n bytes.
func small(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, fmt.Sprint("size=", n)); err != nil {
		t.Fatalf("mount tmpfs: %v; the tests run as root", err)
	}
	t.Cleanup(func() { check(t, unix.Unmount(dir, 0)) })
	return dir
}

// A disk that is full answers so, keeps what was acknowledged, and takes writes again once
// the guest has given space back.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := filepath.Join(small(t, 2<<20), "v")
	v, err := Create(dir, Options{Size: 64 << 20})
	check(t, err)
	content := func(i int64) []byte { return bytes.Repeat(fmt.Appendf(nil, "%07d ", i), 3*BlockSize/8) }
	var kept []int64
	full := false
	for i := int64(0); i < 500 && !full; i++ { // every other one in between, so that the journal grows
		err := v.WriteAt(ctx, content(i), i*7*BlockSize, true)
		full = errors.Is(err, unix.ENOSPC)
		if err == nil {
			kept = append(kept, i)
		} else if !full {
			t.Fatal(err)
		}
	}
	if !full || len(kept) < 50 {
		t.Fatalf("%d writes went to 2 MiB", len(kept))
	}
	look := func() {
		t.Helper()
		p := make([]byte, 3*BlockSize)
		for _, i := range kept {
			check(t, v.ReadAt(ctx, p, i*7*BlockSize))
			if !bytes.Equal(p, content(i)) {
				t.Fatalf("write %d is %q", i, p[:20])
			}
		}
	}
	look()
	// As if the process had ended here.
	v.stop(ErrFenced)
	if v, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	look()
	check(t, v.WriteAt(ctx, content(1000), kept[3]*7*BlockSize, true)) // over what is there
	for _, i := range kept[:20] {
		check(t, v.Trim(ctx, i*7*BlockSize, 3*BlockSize))
	}
	check(t, v.Flush(ctx))
	kept = kept[20:]
	look()
	for i := int64(2000); i < 2010; i++ {
		check(t, v.WriteAt(ctx, content(i), i*7*BlockSize, true))
		kept = append(kept, i)
	}
	check(t, v.Close())
	if v, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	look()
	check(t, v.Close())
}

// Zeros that the guest has trimmed take no space after a flush.
func TestSpaceComesBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	v, _ := newVolume(t)
	check(t, v.WriteAt(ctx, bytes.Repeat([]byte{1}, 2<<20), 0, true))
	before, err := v.Stats()
	check(t, err)
	check(t, v.Zero(ctx, 100, 1<<20, true))
	check(t, v.Flush(ctx))
	after, err := v.Stats()
	check(t, err)
	if before.Disk-after.Disk < 1<<20-2*BlockSize || after.Zero != 1<<20-BlockSize || after.Dirty != 2<<20 {
		t.Errorf("%+v, then %+v", before, after)
	}
}

// Readers, writers, flushes, commits and drops at once: every block is one write's.
func TestAllAtOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	v, base := newVolume(t)
	v.journal.slack = 20
	stamp := func(b int64, n uint64) []byte {
		return bytes.Repeat(fmt.Appendf(nil, "%05d %9d\n", b, n), BlockSize/16)
	}
	of := func(b int64, p []byte) bool {
		start := bytes.Clone(p[:16])
		if bytes.Equal(p, bytes.Repeat(start, BlockSize/16)) && (start[0] == 0 || bytes.HasPrefix(start, fmt.Appendf(nil, "%05d ", b))) {
			return true
		}
		return b < 3<<20/BlockSize && bytes.Equal(p, base.data[b*BlockSize:][:BlockSize])
	}
	var wg sync.WaitGroup
	for g := range uint64(6) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, 1))
			for i := range uint64(150) {
				b, n := rng.Int64N(1000), 1+rng.Int64N(24)
				var p []byte
				switch rng.IntN(8) {
				case 0:
					check(t, v.Flush(ctx))
				case 1:
					check(t, v.Zero(ctx, b*BlockSize, n*BlockSize, true))
				case 2, 3:
					p = make([]byte, n*BlockSize)
					check(t, v.ReadAt(ctx, p, b*BlockSize))
				default:
					for k := range n {
						p = append(p, stamp(b+k, g*1e6+i)...)
					}
					check(t, v.WriteAt(ctx, p, b*BlockSize, rng.IntN(10) == 0))
				}
			}
		})
	}
	wg.Go(func() {
		for range 8 {
			check(t, v.Commit(ctx, func(_ context.Context, i int, chunk []byte) error {
				for k := range int64(chunkBlocks) {
					if b := int64(i)*chunkBlocks + k; !of(b, chunk[k*BlockSize:][:BlockSize]) {
						t.Errorf("a commit has block %d as %q", b, chunk[k*BlockSize:][:40])
					}
				}
				return nil
			}, nil))
			check(t, v.base.Drop())
		}
	})
	wg.Wait()
	p := make([]byte, BlockSize)
	for round := range 2 {
		for b := range int64(1024) {
			check(t, v.ReadAt(ctx, p, b*BlockSize))
			if !of(b, p) {
				t.Errorf("round %d: block %d is %q", round, b, p[:40])
			}
		}
		check(t, v.Close())
		again, err := Open(v.name, Options{Base: v.base, Epoch: 2})
		check(t, err)
		defer again.Close()
		v = again
	}
}

// A disk that fails a sync is not trusted any more, until the volume is opened anew.
func TestFailedSync(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := newSim()
	check(t, create(d, geometry{1 << 20, ""}, 0))
	v, err := openIn(d, Options{}, func() {})
	check(t, err)
	check(t, v.WriteAt(ctx, []byte("before"), 0, true))
	v.blocks = failingFile{v.blocks}
	check(t, v.WriteAt(ctx, []byte("behind"), 0, false))
	if err := v.Flush(ctx); !errors.Is(err, unix.EIO) {
		t.Errorf("flush: %v", err)
	}
	v.blocks = v.blocks.(failingFile).File
	for name, err := range map[string]error{"flush": v.Flush(ctx), "write": v.WriteAt(ctx, []byte("x"), 0, false), "commit": v.Commit(ctx, nil, nil)} {
		if !errors.Is(err, unix.EIO) {
			t.Errorf("%s afterwards: %v", name, err)
		}
	}
	check(t, v.ReadAt(ctx, make([]byte, 10), 0))
	if err := v.Close(); !errors.Is(err, unix.EIO) {
		t.Errorf("close: %v", err)
	}
}

type failingFile struct{ disk.File }

func (failingFile) Datasync() error { return fmt.Errorf("%w: %w", disk.ErrUnsafe, unix.EIO) }

func TestBacking(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	v, _ := newVolume(t)
	check(t, v.WriteAt(ctx, bytes.Repeat([]byte{7}, 4*BlockSize), 10*BlockSize, false))
	check(t, v.Trim(ctx, 12*BlockSize, BlockSize))
	p := make([]byte, 2*BlockSize-100)
	f, at := v.Backing(10*BlockSize+100, int64(len(p)))
	if f == nil {
		t.Fatal("the overlay has it, and is not said to")
	}
	_, err := f.ReadAt(p, at)
	check(t, err)
	if !bytes.Equal(p, bytes.Repeat([]byte{7}, len(p))) {
		t.Error("it stands elsewhere")
	}
	for _, off := range []int64{9, 11, 12, 13, 20, 1023} {
		if f, _ := v.Backing(off*BlockSize, 2*BlockSize); f != nil {
			t.Errorf("two blocks from %d on are the overlay's alone", off)
		}
	}
}
