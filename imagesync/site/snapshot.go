package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	"heliotrope/imagesync"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/volume"
)

// Snapshot is what a volume was at one moment, on its way to becoming a version of an image. The volume goes on
// as it was: it stands on its own base, and what it has committed or moved is not touched.
type Snapshot struct {
	*volume.Snapshot
	Base manifest.Version // that the volume stands on
	Size int64
	Took time.Duration // for which the guest's writes waited, at most
}

// Snapshot takes one.
func (d *Disk) Snapshot() (*Snapshot, error) {
	began := time.Now()
	s, err := d.Volume.Snapshot()
	if err != nil {
		return nil, err
	}
	return &Snapshot{Snapshot: s, Base: d.Origin.Base, Size: d.Size(), Took: time.Since(began)}, nil
}

// Bytes is how much of it is the volume's own: so much is read, and of that what the store has not is sent.
func (s *Snapshot) Bytes() int64 { return s.Chunks() * volume.ChunkSize }

// Send sends it to a store as a version that has to be published (manifest.Sealed); from is what it is, for people.
// progress is told what was done so far. The caller aborts w, if there is one, once the version is published or given up.
func (s *Snapshot) Send(ctx context.Context, store *imagesync.Store, image, from string, progress func(imagesync.WriteStats)) (
	w *imagesync.Writer, v manifest.Sealed, err error) {
	w, err = store.Begin(ctx, image, imagesync.BeginOptions{Size: s.Size, Base: &s.Base, From: from, Unsigned: true})
	if err != nil {
		return nil, v, err
	}
	err = s.Read(ctx, func(ctx context.Context, i int, chunk []byte) error {
		err := w.Put(ctx, i, chunk)
		progress(w.Stats())
		return err
	})
	if err == nil {
		v, err = w.Seal(ctx)
	}
	if err != nil {
		w.Abort(ctx)
		return nil, v, fmt.Errorf("send snapshot: %w", errors.Join(context.Cause(ctx), err))
	}
	return w, v, nil
}
