package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	"heliotrope/imagesync"
	"heliotrope/imagesync/manifest"
)

// Commit makes a version of a volume's dirty chunks. A crash after the version was made and before
// the volume knew leaves a mark in the origin, by which the next commit finds it.
func (s *Site) Commit(ctx context.Context, store *imagesync.Store, name, image string) (v manifest.Version, stats imagesync.WriteStats, err error) {
	d, err := s.Open(name)
	if err != nil {
		return v, stats, err
	}
	o := d.Origin
	if o.Pending != "" {
		made, err := store.Version(ctx, o.PendingImage)
		if err == nil && made.From == o.Pending {
			o.Version = made
		} else if err != nil && !errors.Is(err, imagesync.ErrNotFound) {
			return v, stats, err
		}
	}
	if image == "" {
		image = o.Version.Image
	}
	own := image == o.Version.Image
	if err := d.forgetMoves(ctx); err != nil {
		return v, stats, err
	}
	o.Moves = Moves{}
	used, err := d.Stats()
	if err != nil {
		return v, stats, err
	}
	if own && used.Dirty == 0 {
		return v, stats, fmt.Errorf("nothing was written since %s", o.Version.Ref())
	}
	free := func() error { return nil }
	if !own {
		free = func() error { return nameIsFree(ctx, store, image, o.Version) }
	}
	if err := free(); err != nil {
		return v, stats, err
	}
	o.Pending, o.PendingImage = fmt.Sprintf("volume %s, %s", name, time.Now().UTC().Format(time.RFC3339Nano)), image
	if err := d.remember(o); err != nil {
		return v, stats, err
	}
	w, err := store.Begin(ctx, image, imagesync.BeginOptions{Size: d.Size(), Base: &o.Version, Only: own, From: o.Pending, Permit: free})
	if err != nil {
		return v, stats, orElse(err)
	}
	defer w.Abort(ctx)
	err = d.Commit(ctx, w.Put, func(ctx context.Context) error {
		if v, err = w.Commit(ctx); err != nil {
			return err
		}
		o.Version, o.Pending, o.PendingImage = v, "", ""
		return d.remember(o)
	})
	return v, w.Stats(), orElse(err)
}

// nameIsFree says whether a volume that grew from another image may make the first version of this
// one.
func nameIsFree(ctx context.Context, store *imagesync.Store, image string, from manifest.Version) error {
	there, err := store.Version(ctx, image)
	switch {
	case err == nil:
		return fmt.Errorf("%s is there, and the volume grew from %s: choose another name", there.Ref(), from.Ref())
	case errors.Is(err, imagesync.ErrNotFound):
		return nil
	}
	return err
}

// orElse says what a user can do about a commit that was refused.
func orElse(err error) error {
	if errors.Is(err, imagesync.ErrConflict) {
		return fmt.Errorf("%w: --as gives what was written another name", err)
	}
	return err
}
