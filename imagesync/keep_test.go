package imagesync

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"

	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/manifest"
)

// What a disk stands on stays, though its version is gone, until the disk is.
func TestWhatADiskNeedsStays(t *testing.T) {
	s := newStand(t)
	ctx := t.Context()
	content := random(1, 300_000)
	v := mustImport(t, s.Store, "debian", content)
	if err := s.Need(ctx, v, "left-1.x/web"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(ctx, "debian"); !errors.Is(err, ErrNeeded) || !strings.Contains(err.Error(), "left-1.x/web") {
		t.Errorf("it is removed: %v", err)
	}
	// A removal that looked before the need was there.
	if err := s.depot.Delete(ctx, versionFile(imageDir, v.Image, v.Number)); err != nil {
		t.Fatal(err)
	}
	collect := func() {
		t.Helper()
		for range 2 {
			if _, err := s.GC(ctx, GCOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	collect()
	m, err := s.Manifest(ctx, v.Root)
	if err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, manifest.ChunkSize)
	for i, id := range m.Content() {
		if err := s.ReadChunk(ctx, id, chunk); err != nil || !bytes.HasPrefix(chunk, content[i*manifest.ChunkSize:][:100]) {
			t.Fatalf("chunk %d: %v", i, err)
		}
	}
	if err := s.SweepNeeds(ctx, "left-2.x", func(string) manifest.ID { return manifest.ID{} }); err != nil {
		t.Fatal(err)
	}
	if err := s.SweepNeeds(ctx, "left-1.x", func(volume string) manifest.ID { return map[string]manifest.ID{"web": v.Root}[volume] }); err != nil {
		t.Fatal(err)
	}
	collect()
	if _, err := s.Manifest(ctx, v.Root); err != nil {
		t.Errorf("a sweep of others' needs took it away: %v", err)
	}
	if err := s.SweepNeeds(ctx, "left-1.x", func(string) manifest.ID { return manifest.ID{} }); err != nil {
		t.Fatal(err)
	}
	collect()
	if _, err := s.Manifest(ctx, v.Root); !errors.Is(err, ErrMissing) {
		t.Errorf("nobody needs it, and it is there: %v", err)
	}
	if err := s.Need(ctx, v, "left-1.x/web"); !errors.Is(err, ErrMissing) {
		t.Errorf("what is gone is needed: %v", err)
	}
	if roots, err := s.neededRoots(ctx); err != nil || len(roots) > 0 {
		t.Errorf("left of needs: %v, %v", roots, err)
	}
}

func TestWhoCannotNeed(t *testing.T) {
	s := newStand(t)
	v := mustImport(t, s.Store, "debian", random(1, 1000))
	for _, owner := range []string{"", "web", "/web", "left/", "../x/y", "left/a/b", ".left/web"} {
		if err := s.Need(t.Context(), v, owner); err == nil {
			t.Errorf("%q needs something", owner)
		}
	}
	if err := s.NoNeed(t.Context(), v, "left/never"); err != nil {
		t.Error(err)
	}
}

// noisy is a depot beyond a wire that flips a bit of what is read, once.
type noisy struct {
	depot.Depot
	rng    *rand.Rand
	after  int // reads
	broken string
}

func (n *noisy) spoil(name string, p []byte) {
	if n.after--; n.after == 0 && len(p) > 0 {
		i := n.rng.IntN(len(p) * 8)
		p[i/8] ^= 1 << (i % 8)
		n.broken = name
	}
}

func (n *noisy) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	b, err := n.Depot.Get(ctx, name, limit)
	n.spoil(name, b)
	return b, err
}

func (n *noisy) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	err := n.Depot.ReadAt(ctx, name, p, off)
	n.spoil(name, p)
	return err
}

// Whatever bit flips on the way from another store: what arrives is right, or nothing does and the
// error says what is wrong.
func TestABitFlipsOnTheWay(t *testing.T) {
	far, content := newStand(t), random(3, 700_000)
	mustImport(t, far.Store, "debian", random(2, 500_000))
	v := mustImport(t, far.Store, "debian", content)
	failed, survived := 0, 0
	for seed := range uint64(120) {
		d, err := depot.OpenDir(far.dir)
		if err != nil {
			t.Fatal(err)
		}
		wire := &noisy{Depot: d, rng: rand.New(rand.NewPCG(seed, 5))}
		wire.after = 1 + wire.rng.IntN(30)
		near := newStand(t)
		got, err := pullOver(t, near.Store, wire, far)
		if err != nil {
			failed++
			if all, err := near.Versions(t.Context(), ""); err != nil || len(all) > 0 {
				t.Fatalf("seed %d: of a pull that failed there is %v, %v", seed, all, err)
			}
			if errors.Is(err, fs.ErrNotExist) && wire.broken == "" {
				t.Fatalf("seed %d: %v", seed, err)
			}
			continue
		}
		survived++
		if got.Root != v.Root {
			t.Fatalf("seed %d: a bit of %s was flipped, and %s arrived", seed, wire.broken, got.Root)
		}
		wantContent(t, near.Store, "debian", content)
		if r, err := near.Verify(t.Context(), true, nil); err != nil || len(r.Findings) > 0 {
			t.Fatalf("seed %d: %v, %v", seed, r.Findings, err)
		}
	}
	if failed == 0 || survived == 0 {
		t.Errorf("%d pulls failed, and %d did not", failed, survived)
	}
}

func pullOver(t *testing.T, near *Store, wire depot.Depot, far *stand) (manifest.Version, error) {
	from, err := Open(t.Context(), far.dir, wire, Options{Keys: far.keys, There: true})
	if err != nil {
		return manifest.Version{}, err
	}
	v, _, err := near.Pull(t.Context(), from, "debian")
	return v, err
}

// A store that has to be there is not made, nor is one among other things.
func TestNoStoreIsMade(t *testing.T) {
	s := newStand(t)
	for name, c := range map[string]struct {
		file  string
		there bool
		wrong string
	}{
		"empty, has to be there": {there: true, wrong: "there is no image store"},
		"other things":           {file: "holiday.jpg", wrong: "holiday.jpg"},
		"of an earlier store":    {file: "images/debian/00000001", wrong: "this was an image store"},
		"left behind":            {file: ".part-123"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := depot.OpenDir(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if c.file == ".part-123" {
				dir, _ := d.Strangers()
				if len(dir) > 0 {
					t.Fatal(dir)
				}
			} else if c.file != "" {
				if err := d.Put(t.Context(), c.file, io.LimitReader(strings.NewReader(c.file), 8)); err != nil {
					t.Fatal(err)
				}
			}
			_, err = Open(t.Context(), fmt.Sprint(name), d, Options{Keys: s.keys, There: c.there})
			if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
				t.Errorf("it says %v", err)
			}
		})
	}
}
