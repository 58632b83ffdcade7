package site

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/volume"
)

// ones is a base whose every byte is 1.
type ones int64

func (o ones) Size() int64   { return int64(o) }
func (o ones) Zero(int) bool { return false }
func (o ones) Fetch(_ context.Context, _ int, dst []byte) error {
	for i := range dst {
		dst[i] = 1
	}
	return nil
}

var some = manifest.Version{Image: "debian", Number: 1, Root: manifest.ID{1}, Size: 4 * volume.ChunkSize}

func TestVolumesOfASite(t *testing.T) {
	dir := t.TempDir()
	open := func() *Site {
		t.Helper()
		s, err := Open(dir, some, ones(some.Size), Options{NoPrefetch: true})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	if _, err := Open(dir, some, ones(some.Size), Options{}); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("a second process: %v", err)
	}
	web, err := s.Open("web")
	if err != nil || !web.Fresh || web.Origin.Copied {
		t.Fatalf("%+v, %v", web, err)
	}
	if _, err := s.OpenCopy("db"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open("../x"); err == nil {
		t.Error("a volume of any name is made")
	}
	if left, err := s.Release("web"); left != 1 || err != nil {
		t.Error(left, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	for name, copied := range map[string]bool{"web": false, "db": true} {
		if d, err := s.Open(name); err != nil || d.Fresh || d.Origin.Copied != copied || d.Origin.Base.Root != some.Root {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := RemoveVolume(dir, "web"); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveVolume(dir, ".."); err == nil {
		t.Error("everything is removed")
	}
	if names, err := Volumes(dir); err != nil || !slices.Equal(names, []string{"db"}) {
		t.Errorf("left are %v, %v", names, err)
	}
	if _, err := ReadOrigin(dir, "web"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the origin of a volume that was removed: %v", err)
	}
	if names, err := Volumes(filepath.Join(dir, "nowhere")); err != nil || len(names) > 0 {
		t.Error(names, err)
	}
}

// A directory has one name for good, and no other has it.
func TestOwner(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	first, err := Owner(one, "left-1")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Owner(one, "left-1"); again != first || err != nil {
		t.Errorf("%s is %s now, %v", first, again, err)
	}
	if other, err := Owner(two, "left-1"); other == first || err != nil {
		t.Errorf("two directories are %s, %v", other, err)
	}
	if _, err := Owner(two, "no such/name"); err == nil {
		t.Error("a host of any name")
	}
}

// A manifest that is damaged here comes again; of a store that cannot be opened the error is told,
// and it is not asked again at once.
func TestSource(t *testing.T) {
	ctx, dir, keys := t.Context(), t.TempDir(), keyring.Dir(t.TempDir())
	where, down := t.TempDir(), errors.New("no route to host")
	dials := 0
	s := &Source{Dial: func(ctx context.Context) (*imagesync.Store, error) {
		if dials++; down != nil {
			return nil, down
		}
		d, err := depot.OpenDir(where)
		if err != nil {
			return nil, err
		}
		return imagesync.Open(ctx, where, d, imagesync.Options{Keys: keys})
	}}
	for range 3 {
		if _, err := s.Base(ctx, dir, some); !errors.Is(err, down) {
			t.Fatalf("it says %v", err)
		}
	}
	if dials > 1 {
		t.Errorf("asked %d times within a second", dials)
	}
	down, s.when = nil, time.Time{}
	store, err := s.Store(ctx)
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := imagesync.OpenRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	v, _, err := store.Import(ctx, "debian", src, imagesync.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		b, err := s.Base(ctx, dir, v)
		if err != nil || b.Size() != 100_000 || !b.Zero(0) {
			t.Fatal(b, err)
		}
		if err := os.WriteFile(filepath.Join(cacheDir(dir, v.Root), manifestName), []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "7": 7, "20G": 20 << 30, "5m": 5 << 20, "1KiB": 1 << 10, "2TB": 2 << 40, "": -1, "x": -1, "-1": -1, "1Q": -1, "99999999999T": -1} {
		if n, err := ParseBytes(text); n != max(want, 0) || (err != nil) != (want < 0) {
			t.Errorf("%q is %d, %v", text, n, err)
		}
	}
}
