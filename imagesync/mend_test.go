package imagesync

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/pack"
)

// flip turns a bit of a file.
func flip(t *testing.T, file string, at int) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func filesOf(t *testing.T, s *stand, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, dir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	return files
}

func mustVerify(t *testing.T, s *Store) Report {
	t.Helper()
	r, err := s.Verify(t.Context(), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustMend(t *testing.T, s *Store, o MendOptions) MendReport {
	t.Helper()
	m, err := s.Mend(t.Context(), mustVerify(t, s), o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// copyOf is another store with the same versions.
func copyOf(t *testing.T, s *Store) *stand {
	t.Helper()
	other := newStand(t)
	versions, err := s.Versions(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range versions {
		mustImport(t, other.Store, v.Image, export(t, s, v.Ref()))
	}
	return other
}

// A chunk that is lost comes from another store; what is left of its pack stays.
func TestMendFromAnotherStore(t *testing.T) {
	s := newStand(t)
	content := random(1, 2<<20)
	mustImport(t, s.Store, "debian", content)
	other := copyOf(t, s.Store)
	flip(t, filesOf(t, s, pack.Dir)[0], 100_000) // in the second chunk
	if dry := mustMend(t, s.Store, MendOptions{From: other.Store, DryRun: true}); dry != (MendReport{Packs: 1, Saved: 31, Restored: 1}) {
		t.Errorf("it would be %+v", dry)
	}
	if r := mustVerify(t, s.Store); len(r.Findings) != 2 {
		t.Errorf("a dry run left %v", r.Findings)
	}
	if m := mustMend(t, s.Store, MendOptions{From: other.Store}); m != (MendReport{Packs: 1, Saved: 31, Restored: 1}) {
		t.Errorf("it was %+v", m)
	}
	fresh := s.open(t)
	wantSound(t, fresh)
	wantContent(t, fresh, "debian", content)
}

// Without another store what is lost is missing; who imports it again brings it back, in the old
// versions too.
func TestMendByImport(t *testing.T) {
	s := newStand(t)
	content := random(1, 2<<20)
	mustImport(t, s.Store, "debian", content)
	flip(t, filesOf(t, s, pack.Dir)[0], 100_000)
	mustImport(t, s.Store, "again", content) // nothing is new: it does not know
	if r := mustVerify(t, s.Store); len(r.Findings) != 2 {
		t.Fatalf("%v", r.Findings)
	}
	if m := mustMend(t, s.Store, MendOptions{}); m != (MendReport{Packs: 1, Saved: 31, Lost: 1}) {
		t.Errorf("it was %+v", m)
	}
	if r := mustVerify(t, s.Store); len(r.Findings) != 1 || r.Findings[0].Err != ErrMissing || len(r.Findings[0].Images) != 2 {
		t.Errorf("%v", r.Findings)
	}
	mustImport(t, s.Store, "again", content)
	fresh := s.open(t)
	wantSound(t, fresh)
	wantContent(t, fresh, "debian@1", content)
}

// Whatever bit flips in chunks, indexes and manifests, everything comes back.
func TestMendAnything(t *testing.T) {
	s := newStand(t)
	one := random(1, 1<<20)
	copy(one[1<<19:], bytes.Repeat([]byte("heliotrope "), 20000))
	two := bytes.Clone(one)
	copy(two[3*manifest.ChunkSize:], random(2, 70_000))
	mustImport(t, s.Store, "debian", one)
	mustImport(t, s.Store, "debian", two)
	other := copyOf(t, s.Store)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 60 {
		files := append(filesOf(t, s, pack.Dir), filesOf(t, s, manifestDir+"/*")...)
		for range 1 + r.IntN(3) {
			file := files[r.IntN(len(files))]
			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			flip(t, file, r.IntN(int(info.Size())))
		}
		m := mustMend(t, s.open(t), MendOptions{From: other.Store})
		if m.Lost != 0 {
			t.Fatalf("round %d: %+v", i, m)
		}
		fresh := s.open(t)
		wantSound(t, fresh)
		wantContent(t, fresh, "debian@1", one)
		wantContent(t, fresh, "debian@2", two)
	}
}
