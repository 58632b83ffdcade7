package imagesync

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/pack"
)

// keyless is another opening of a store, by who may not sign.
func (s *stand) keyless(t *testing.T) *Store {
	t.Helper()
	d, err := depot.OpenDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := Open(t.Context(), s.dir, d, Options{Keys: keyring.Dir(t.TempDir()), Now: s.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	return other
}

// sealed is a version over base whose chunk 1 is another, from a writer without the key.
func sealed(t *testing.T, s *Store, image string, base manifest.Version, chunk memory, from string) (*Writer, manifest.Sealed) {
	t.Helper()
	w, err := s.Begin(t.Context(), image, BeginOptions{Size: base.Size, Base: &base, From: from, Unsigned: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Put(t.Context(), 1, chunk); err != nil {
		t.Fatal(err)
	}
	v, err := w.Seal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return w, v
}

// A version that one without the key has sealed is published by one who has it, whatever gc does meanwhile.
func TestSealAndPublish(t *testing.T) {
	s, ctx := newStand(t), context.Background()
	content := random(1, 4*manifest.ChunkSize)
	base := mustImport(t, s.Store, "debian", content)
	host := s.keyless(t)
	if _, err := host.Begin(ctx, "web", BeginOptions{Size: base.Size}); !errors.Is(err, ErrReadOnly) {
		t.Fatalf("who has not the key begins a version: %v", err)
	}
	chunk := random(2, manifest.ChunkSize)
	w, v := sealed(t, host, "web", base, chunk, "snapshot 1")
	if _, err := s.Version(ctx, "web"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("there is a version before it was published: %v", err)
	}
	if _, err := s.GC(ctx, GCOptions{}); err != nil {
		t.Fatal(err)
	}
	made, err := s.Publish(ctx, v, false)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Publish(ctx, v, false) // the first answer was lost
	if err != nil || again != made {
		t.Fatalf("published twice: %v, %v", again, err)
	}
	w.Abort(ctx)
	for range 2 {
		if _, err := s.GC(ctx, GCOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	want := bytes.Clone(content)
	copy(want[manifest.ChunkSize:], chunk)
	r, err := s.Open(ctx, made.Ref())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, len(want))
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("what was published is not what was put: %v", err)
	}
	if made.Number != 1 || made.Parent != base.Root || made.Content != base.Content {
		t.Errorf("published %+v", made)
	}
	w, v = sealed(t, host, "web", base, random(3, manifest.ChunkSize), "snapshot 2")
	if _, err := s.Publish(ctx, v, false); !errors.Is(err, ErrTaken) {
		t.Errorf("a second web: %v", err)
	}
	if made, err = s.Publish(ctx, v, true); err != nil || made.Ref() != "web@2" {
		t.Errorf("the next of web: %v, %v", made, err)
	}
	w.Abort(ctx)
}

// Nothing is signed whose writer has given up, or is taken for dead; of which something is missing, or that is
// said to be what it is not.
func TestPublishRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(t *testing.T, s *stand, w *Writer, v *manifest.Sealed)
		want error
	}{
		"aborted": {func(_ *testing.T, _ *stand, w *Writer, _ *manifest.Sealed) { w.Abort(context.Background()) }, ErrFenced},
		"taken for dead": {func(_ *testing.T, s *stand, _ *Writer, _ *manifest.Sealed) {
			s.clock.now = s.clock.now.Add(2 * time.Hour)
		}, ErrFenced},
		"another size": {func(_ *testing.T, _ *stand, _ *Writer, v *manifest.Sealed) { v.Size-- }, ErrDamaged},
		"more content": {func(_ *testing.T, _ *stand, _ *Writer, v *manifest.Sealed) { v.Content++ }, ErrDamaged},
		"no manifest":  {func(_ *testing.T, _ *stand, _ *Writer, v *manifest.Sealed) { v.Root[0]++ }, ErrMissing},
		"no chunk": {func(t *testing.T, s *stand, _ *Writer, _ *manifest.Sealed) {
			packs, err := os.ReadDir(filepath.Join(s.dir, pack.Dir))
			for _, p := range packs {
				err = errors.Join(err, os.Remove(filepath.Join(s.dir, pack.Dir, p.Name())))
			}
			if err != nil {
				t.Fatal(err)
			}
		}, ErrMissing},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStand(t)
			base := mustImport(t, s.Store, "debian", random(1, 4*manifest.ChunkSize))
			w, v := sealed(t, s.keyless(t), "web", base, random(2, manifest.ChunkSize), "snapshot")
			c.do(t, s, w, &v)
			if made, err := s.Publish(t.Context(), v, false); !errors.Is(err, c.want) {
				t.Errorf("published %v: %v", made, err)
			}
			if _, err := s.Version(t.Context(), "web"); !errors.Is(err, ErrNotFound) {
				t.Errorf("and there is a version: %v", err)
			}
			w.Abort(t.Context())
		})
	}
	s := newStand(t)
	if _, err := s.Publish(t.Context(), manifest.Sealed{Version: manifest.Version{Image: "web"}, Lease: "../images"}, false); err == nil {
		t.Error("a lease that is no name")
	}
}
