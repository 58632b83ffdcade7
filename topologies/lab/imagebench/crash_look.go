package imagebench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
)

// buffer is what an image is exported to.
type buffer []byte

func (b buffer) WriteAt(p []byte, off int64) (int, error) { return copy(b[off:], p), nil }

func (w *world) open(ctx context.Context, store string) (*imagesync.Store, error) {
	d, at, err := depot.Open(ctx, filepath.Join(w.dir, store))
	if err != nil {
		return nil, err
	}
	return imagesync.Open(ctx, at, d, imagesync.Options{Keys: keyring.Dir(filepath.Join(w.dir, "keys"))})
}

// look checks the store after an operation, and learns whether an import that was killed had
// made its version: then that is whole.
func (w *world) look(ctx context.Context, op string, done bool, next []byte) error {
	s, err := w.open(ctx, "here")
	if err != nil {
		w.fails("after %s: %v", op, err)
		return nil
	}
	defer s.Close()
	v, err := s.Version(ctx, w.image)
	if errors.Is(err, imagesync.ErrNotFound) && w.highest == 0 && !done {
		return nil
	}
	if err != nil {
		w.fails("after %s: %v", op, err)
		return nil
	}
	if op == "import" {
		switch {
		case v.Number > w.highest:
			w.highest = v.Number
			w.versions[v.Number] = next
		case done:
			w.loses("version %d was acknowledged and is not there", w.highest+1)
		}
	}
	if v.Number != w.highest {
		w.loses("after %s version %d is the newest, not %d", op, v.Number, w.highest)
		return nil
	}
	w.compare(ctx, s, v.Ref(), w.versions[w.highest])
	return nil
}

func (w *world) compare(ctx context.Context, s *imagesync.Store, ref string, want []byte) {
	r, err := s.Open(ctx, ref)
	if err != nil {
		w.fails("%s: %v", ref, err)
		return
	}
	defer r.Close()
	got := make(buffer, r.Size())
	if err := r.Export(ctx, got, nil); err != nil {
		w.fails("%s: %v", ref, err)
	} else if !bytes.Equal(got, want) {
		w.spoils("%s", ref)
	}
}

// lookAtAll checks all versions of both stores, and every byte of their packs.
func (w *world) lookAtAll(ctx context.Context) error {
	for _, store := range []string{"here", "there"} {
		s, err := w.open(ctx, store)
		if err != nil {
			return err
		}
		report, err := s.Verify(ctx, true, nil)
		if err != nil {
			return errors.Join(err, s.Close())
		}
		for _, f := range report.Findings {
			w.spoils("%s: %s: %v", store, f.What, f.Err)
		}
		if store == "here" {
			for number, content := range w.versions {
				w.compare(ctx, s, fmt.Sprintf("%s@%d", w.image, number), content)
			}
		}
		if err := s.Close(); err != nil {
			return err
		}
	}
	return nil
}
