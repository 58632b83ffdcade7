package imagesync

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/pack"
)

// memory is an image in memory.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }
func (m memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}
func (m memory) Extents(yield func(off, length int64, zero bool) bool) error {
	yield(0, int64(len(m)), false)
	return nil
}

func random(seed uint64, size int) memory {
	m := make(memory, size)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(m)
	return m
}

// clock is a time that a test sets.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

type stand struct {
	*Store
	dir   string
	keys  keyring.Dir
	clock *clock
}

func newStand(t testing.TB) *stand {
	t.Helper()
	s := &stand{dir: t.TempDir(), keys: keyring.Dir(t.TempDir()), clock: &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}}
	s.Store = s.open(t)
	return s
}

func (s *stand) open(t testing.TB) *Store {
	t.Helper()
	store, err := s.tryOpen(t)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func (s *stand) tryOpen(t testing.TB) (*Store, error) {
	t.Helper()
	d, err := depot.OpenDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	return Open(t.Context(), s.dir, d, Options{Keys: s.keys, Now: s.clock.Now})
}

func mustImport(t testing.TB, s *Store, image string, content memory) manifest.Version {
	t.Helper()
	v, _, err := s.Import(t.Context(), image, content, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// buffer is an export's target in memory.
type buffer []byte

func (b buffer) WriteAt(p []byte, off int64) (int, error) { return copy(b[off:], p), nil }

func export(t testing.TB, s *Store, ref string) memory {
	t.Helper()
	r, err := s.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := make(buffer, r.Size())
	if err := r.Export(t.Context(), out, nil); err != nil {
		t.Fatal(err)
	}
	read, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil || !bytes.Equal(read, out) {
		t.Errorf("ReadAt and Export differ: %v", err)
	}
	return memory(out)
}

func wantContent(t testing.TB, s *Store, ref string, want memory) {
	t.Helper()
	if got := export(t, s, ref); !bytes.Equal(got, want) {
		t.Errorf("%s is not what was imported", ref)
	}
}

func TestVersions(t *testing.T) {
	s := newStand(t)
	one := random(1, 3<<20+777)
	clear(one[1<<20 : 2<<20])
	two := bytes.Clone(one)
	copy(two[100<<10:], random(2, 5000))
	v1 := mustImport(t, s.Store, "debian", one)
	v2, stats, err := s.Import(t.Context(), "debian", memory(two), ImportOptions{From: "a file"})
	if err != nil {
		t.Fatal(err)
	}
	if v1.Number != 1 || v2.Number != 2 || stats.New != manifest.ChunkSize*2 && stats.New != manifest.ChunkSize {
		t.Errorf("%+v, %+v, %+v", v1, v2, stats)
	}
	if v1.Content != 2<<20+manifest.ChunkSize {
		t.Errorf("%d bytes of content", v1.Content)
	}
	other := s.open(t) // a store that was opened anew sees the same
	for _, s := range []*Store{s.Store, other} {
		wantContent(t, s, "debian@1", one)
		wantContent(t, s, "debian", memory(two))
	}
	clone, err := other.Clone(t.Context(), "debian@1", "web")
	if err != nil || clone.Root != v1.Root {
		t.Fatal(clone, err)
	}
	wantContent(t, s.Store, "web", one)
	if _, err := s.Clone(t.Context(), "debian", "web"); err == nil || !strings.Contains(err.Error(), "web is there already") {
		t.Error(err)
	}
	all, err := s.Versions(t.Context(), "")
	if err != nil || len(all) != 3 {
		t.Error(all, err)
	}
}

func TestWrongNames(t *testing.T) {
	s := newStand(t)
	mustImport(t, s.Store, "debian", random(1, 1<<16))
	for ref, want := range map[string]string{
		"../x": "is no name of an image", "a/b": "is no name", "": "is no name", ".x": "is no name",
		"nix": "nix: no such image", "debian@2": "debian@2: no such image", "debian@0": "is no version", "debian@x": "write debian@1",
	} {
		if _, err := s.Version(t.Context(), ref); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

func TestNumbersAreNotUsedTwice(t *testing.T) {
	s := newStand(t)
	for range 3 {
		mustImport(t, s.Store, "debian", random(1, 1<<16))
	}
	if err := s.Pin(t.Context(), "debian@3"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), "debian@3"); err == nil || !strings.Contains(err.Error(), "pinned") {
		t.Error(err)
	}
	if err := s.Unpin(t.Context(), "debian@3"); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"debian", "debian", "debian"} {
		if _, err := s.Remove(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	if v := mustImport(t, s.Store, "debian", random(1, 1<<16)); v.Number != 4 {
		t.Errorf("%+v", v)
	}
}

// Writers that race: each import becomes a version of its own; of writers that go on from a
// version one wins, and an older epoch never does.
func TestWritersThatRace(t *testing.T) {
	s := newStand(t)
	ctx := t.Context()
	v1 := mustImport(t, s.Store, "disk", random(1, 1<<20))
	begin := func(epoch uint64) *Writer {
		w, err := s.open(t).Begin(ctx, "disk", BeginOptions{Size: 1 << 20, Base: &v1, Epoch: epoch, Only: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Put(ctx, 3, random(epoch+10, manifest.ChunkSize)); err != nil {
			t.Fatal(err)
		}
		return w
	}
	old, a, b := begin(4), begin(5), begin(5)
	won := make(chan error, 2)
	for _, w := range []*Writer{a, b} {
		go func() {
			_, err := w.Commit(ctx)
			won <- err
		}()
	}
	first, second := <-won, <-won
	if first == nil {
		first, second = second, first
	}
	if second != nil || !errors.Is(first, ErrConflict) {
		t.Errorf("%v, %v", first, second)
	}
	if _, err := old.Commit(ctx); !errors.Is(err, ErrFenced) {
		t.Errorf("an older epoch: %v", err)
	}
	if _, err := s.Begin(ctx, "disk", BeginOptions{Size: 1 << 20, Epoch: 4}); !errors.Is(err, ErrFenced) {
		t.Errorf("an older epoch begins: %v", err)
	}
	want := random(1, 1<<20)
	copy(want[3*manifest.ChunkSize:], random(15, manifest.ChunkSize))
	wantContent(t, s.Store, "disk", want)
	if v, _ := s.Version(ctx, "disk"); v.Number != 2 || v.Parent != v1.Root || v.Epoch != 5 {
		t.Errorf("%+v", v)
	}
}

func TestGCFreesWhatNobodyNeeds(t *testing.T) {
	s := newStand(t)
	ctx := t.Context()
	keep, drop := random(1, 4<<20), random(2, 4<<20)
	mustImport(t, s.Store, "keep", keep)
	mustImport(t, s.Store, "drop", drop)
	// A third pack of which a quarter stays.
	shared := append(bytes.Clone(random(3, 1<<20)), random(4, 3<<20)...)
	mustImport(t, s.Store, "mixed", memory(shared))
	mustImport(t, s.Store, "quarter", memory(shared[:1<<20]))
	for _, ref := range []string{"drop", "mixed"} {
		if _, err := s.Remove(ctx, ref); err != nil {
			t.Fatal(err)
		}
	}
	before := s.bytes(t)
	if r, err := s.GC(ctx, GCOptions{DryRun: true}); err != nil || r.Packs != 2 || s.bytes(t) != before {
		t.Errorf("dry: %+v, %v", r, err)
	}
	// A writer that is at work keeps all.
	w, err := s.Begin(ctx, "late", BeginOptions{Size: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 64 {
		if err := w.Put(ctx, i, drop[i*manifest.ChunkSize:][:manifest.ChunkSize]); err != nil {
			t.Fatal(err)
		}
	}
	other := s.open(t)
	if r, err := other.GC(ctx, GCOptions{}); err != nil || r.Packs != 0 || r.Waiting == 0 {
		t.Errorf("a writer is at work: %+v, %v", r, err)
	}
	if _, err := w.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	r, err := other.GC(ctx, GCOptions{})
	if err != nil || r.Packs != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	wantContent(t, s.Store, "late", drop)
	wantContent(t, s.Store, "keep", keep)
	wantContent(t, s.Store, "quarter", memory(shared[:1<<20]))
	wantContent(t, other, "quarter", memory(shared[:1<<20]))
	if _, err := s.Remove(ctx, "late"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(ctx, GCOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := s.bytes(t); got > 5<<20+1<<18 {
		t.Errorf("%d bytes are left", got)
	}
	wantSound(t, s.open(t))
}

func wantSound(t testing.TB, s *Store) {
	t.Helper()
	r, err := s.Verify(t.Context(), true, nil)
	if err != nil || len(r.Findings) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func (s *stand) bytes(t *testing.T) (n int64) {
	t.Helper()
	for info, err := range s.depot.List(t.Context(), pack.Dir) {
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size
	}
	return n
}

// A writer of which nothing was heard for longer than its lease cannot commit.
func TestALeaseEnds(t *testing.T) {
	s := newStand(t)
	ctx := t.Context()
	w, err := s.Begin(ctx, "debian", BeginOptions{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Put(ctx, 0, random(1, manifest.ChunkSize)); err != nil {
		t.Fatal(err)
	}
	s.clock.now = s.clock.now.Add(2 * leaseTime)
	if _, err := w.Commit(ctx); !errors.Is(err, ErrFenced) {
		t.Error(err)
	}
}

func TestQuota(t *testing.T) {
	s := newStand(t)
	mustImport(t, s.Store, "a", random(1, 1<<20))
	if err := s.SetQuota(t.Context(), 1<<20+1<<19); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Import(t.Context(), "b", random(2, 1<<20), ImportOptions{}); !errors.Is(err, ErrQuota) {
		t.Error(err)
	}
	mustImport(t, s.Store, "c", random(1, 1<<20)) // takes no room
	wantContent(t, s.open(t), "c", random(1, 1<<20))
}

// Whatever bit flips on the disk: what is read is right or an error, and Verify finds it.
func TestFlippedBits(t *testing.T) {
	s := newStand(t)
	content := random(1, 1<<20)
	copy(content[1<<19:], bytes.Repeat([]byte("heliotrope "), 20000)) // some is compressed
	mustImport(t, s.Store, "debian", content)
	r := rand.New(rand.NewPCG(1, 2))
	var files []string
	filepath.WalkDir(s.dir, func(file string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && !strings.Contains(file, sketchDir) && e.Name() != ".reserve" { // of that only the room counts
			files = append(files, file)
		}
		return err
	})
	for range 300 {
		file := files[r.IntN(len(files))]
		was, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(was)
		flipped[r.IntN(len(was))] ^= 1 << r.IntN(8)
		if err := os.WriteFile(file, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		got, read := tryExport(t, s)
		if read == nil && !bytes.Equal(got, content) {
			t.Fatalf("wrong bytes were served after a flip in %s", file)
		}
		if store, err := s.tryOpen(t); err == nil {
			report, err := store.Verify(t.Context(), true, nil)
			if err == nil && len(report.Findings) == 0 && filepath.Base(file) != configFile {
				t.Fatalf("Verify finds nothing after a flip in %s (read: %v)", file, read)
			}
		}
		if err := os.WriteFile(file, was, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wantSound(t, s.open(t))
}

func tryExport(t *testing.T, s *stand) ([]byte, error) {
	store, err := s.tryOpen(t)
	if err != nil {
		return nil, err
	}
	r, err := store.Open(t.Context(), "debian")
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out := make(buffer, r.Size())
	return out, r.Export(t.Context(), out, nil)
}

// A store that was replaced by another one is told.
func TestAnotherKey(t *testing.T) {
	s := newStand(t)
	mustImport(t, s.Store, "debian", random(1, 1<<16))
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	d, err := depot.OpenDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), s.dir, d, Options{Keys: keyring.Dir(t.TempDir())}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.tryOpen(t); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Error(err)
	}
}

func TestReadOnlyWithoutTheKey(t *testing.T) {
	s := newStand(t)
	content := random(1, 1<<16)
	mustImport(t, s.Store, "debian", content)
	s.keys = keyring.Dir(t.TempDir())
	store := s.open(t)
	wantContent(t, store, "debian", content)
	if _, _, err := store.Import(context.Background(), "x", content, ImportOptions{}); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
}
