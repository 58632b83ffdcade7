package imagesync

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"heliotrope/imagesync/manifest"
)

// A hold keeps a version that was removed.
func TestHold(t *testing.T) {
	s := newStand(t)
	ctx := t.Context()
	content := random(1, 1<<20)
	v := mustImport(t, s.Store, "debian", content)
	r, err := s.Open(ctx, "debian")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(ctx, "debian"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := s.open(t).GC(ctx, GCOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	out := make(buffer, v.Size)
	if err := r.Export(ctx, out, nil); err != nil || !bytes.Equal(out, content) {
		t.Errorf("what is held is gone: %v", err)
	}
	r.Close()
	if _, err := s.GC(ctx, GCOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := s.bytes(t); got != 0 {
		t.Errorf("%d bytes are left", got)
	}
	if _, err := s.Hold(ctx, "late", v); !errors.Is(err, ErrMissing) {
		t.Errorf("hold of what is gone: %v", err)
	}
}

// Chunks that are read into neighbouring places at the same time do not touch each other's.
func TestNeighbours(t *testing.T) {
	s := newStand(t)
	content := make(memory, 16*manifest.ChunkSize)
	words := random(1, 1<<10)
	order := rand.New(rand.NewPCG(1, 1))
	for at := 0; at < len(content); { // matches of all lengths and distances
		w := order.IntN(len(words) - 40)
		at += copy(content[at:], words[w:w+1+order.IntN(40)])
	}
	mustImport(t, s.Store, "debian", content)
	r, err := s.Open(t.Context(), "debian")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := bytes.Repeat([]byte{0xff}, len(content))
	for i := 15; i >= 0; i-- { // a chunk's successors are there when it is read
		if err := r.Fetch(t.Context(), i, got[i*manifest.ChunkSize:(i+1)*manifest.ChunkSize]); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[i*manifest.ChunkSize:], content[i*manifest.ChunkSize:]) {
			t.Fatalf("chunk %d has written over those behind it", i)
		}
	}
}

// A reader that nothing was read from for longer than a lease lasts goes on, if nobody has
// taken away meanwhile what it reads.
func TestAReaderThatSlept(t *testing.T) {
	s := newStand(t)
	content := random(1, 1<<20)
	mustImport(t, s.Store, "debian", content)
	chunk := make([]byte, manifest.ChunkSize)
	for _, gone := range []bool{false, true} {
		r, err := s.Open(t.Context(), "debian")
		if err != nil {
			t.Fatal(err)
		}
		s.clock.now = s.clock.now.Add(2 * leaseTime)
		if gone {
			if _, err := s.Remove(t.Context(), "debian"); err != nil {
				t.Fatal(err)
			}
			if _, err := s.open(t).GC(t.Context(), GCOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Fetch(t.Context(), 3, chunk); (err != nil) != gone || gone && !errors.Is(err, ErrFenced) {
			t.Errorf("gone: %v, %v", gone, err)
		}
		r.Close()
	}
}
