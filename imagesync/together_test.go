package imagesync

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"heliotrope/imagesync/manifest"
)

// Writers whose images have much in common, each with a store of its own on the same files,
// and collections in between: whoever was told that a version is there finds all of it.
func TestWritersAndCollections(t *testing.T) {
	s := newStand(t)
	var pool []memory
	for i := range 40 {
		pool = append(pool, random(uint64(i+100), manifest.ChunkSize))
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writers, collector sync.WaitGroup
	collector.Go(func() {
		store := s.open(t)
		for ctx.Err() == nil {
			if _, err := store.GC(t.Context(), GCOptions{Dense: 0.9}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for w := range 3 {
		writers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 7))
			store := s.open(t)
			for range 25 {
				var content memory
				for range 1 + r.IntN(20) {
					content = append(content, pool[r.IntN(len(pool))]...)
				}
				image := fmt.Sprintf("image-%d", w)
				v, _, err := store.Import(t.Context(), image, content, ImportOptions{})
				if err != nil {
					t.Errorf("import: %v", err)
					return
				}
				got, err := contentOf(t.Context(), store, v)
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s is not there any more: %v", v.Ref(), err)
					return
				}
				if r.IntN(3) > 0 {
					if _, err := store.Remove(t.Context(), v.Ref()); err != nil {
						t.Errorf("remove: %v", err)
						return
					}
				}
			}
		})
	}
	writers.Wait()
	stop()
	collector.Wait()
	wantSound(t, s.open(t))
}

func contentOf(ctx context.Context, s *Store, v manifest.Version) ([]byte, error) {
	r, err := s.Open(ctx, v.Ref())
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out := make(buffer, r.Size())
	return out, r.Export(ctx, out, nil)
}
