package imagesync

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"heliotrope/imagesync/manifest"
)

// Seal writes what is missing of the version, and leaves it to another to publish. The writer keeps its
// lease until Abort, for an hour at most.
func (w *Writer) Seal(ctx context.Context) (manifest.Sealed, error) {
	root, content, err := w.finish(ctx)
	if err == nil {
		err = w.lease.renew(ctx)
	}
	if err != nil {
		return manifest.Sealed{}, err
	}
	v := manifest.Version{Image: w.image, Root: root, Size: w.o.Size, Content: content, From: w.o.From}
	if w.o.Base != nil {
		v.Parent = w.o.Base.Root
	}
	return manifest.Sealed{Version: v, Lease: w.lease.id}, nil
}

// Publish signs a version that another writer has sealed, who need not be trusted to have done it well: nothing is
// signed of which not all is there. If next is false there must be no version of the image yet (ErrTaken). What was published
// before, of the same content and From, is not published again: From is to tell it from all others.
//
// What was condemned before this store's own lease waits for the writer's, which is looked for after that; so
// whenever it is reckoned again what is needed, this lease counts, or the version does.
func (s *Store) Publish(ctx context.Context, v manifest.Sealed, next bool) (manifest.Version, error) {
	if err := errors.Join(manifest.CheckName(v.Image), manifest.CheckName(v.Lease)); err != nil {
		return manifest.Version{}, err
	}
	there, err := s.Versions(ctx, v.Image)
	if err != nil {
		return manifest.Version{}, err
	}
	for _, t := range there {
		if t.Root == v.Root && t.From == v.From {
			return t, nil
		}
	}
	permit := s.mayBegin(ctx, v.Image, next)
	if err := permit(); err != nil {
		return manifest.Version{}, err
	}
	l, err := s.takeLease(ctx, "publisher of "+v.Image, []manifest.ID{v.Root})
	if err != nil {
		return manifest.Version{}, err
	}
	w := &Writer{store: s, image: v.Image, o: BeginOptions{Size: v.Size, From: v.From, Permit: permit}, lease: l}
	defer w.Abort(ctx)
	if !v.Parent.IsZero() {
		w.o.Base = &manifest.Version{Root: v.Parent}
	}
	if err := s.complete(ctx, v); err != nil {
		return manifest.Version{}, fmt.Errorf("publish %s: %w", v.Image, err)
	}
	newest, err := s.newest(ctx, v.Image)
	if err != nil {
		return manifest.Version{}, err
	}
	w.o.Epoch = newest.Epoch
	return w.commit(ctx, v.Root, v.Content)
}

// ErrTaken is that of a new image whose name another one has.
var ErrTaken = errors.New("there is an image of that name")

func (s *Store) mayBegin(ctx context.Context, image string, next bool) func() error {
	return func() error {
		if next {
			return nil
		}
		newest, err := s.newest(ctx, image)
		if err == nil && newest.Number > 0 {
			err = fmt.Errorf("%w: %s", ErrTaken, newest.Ref())
		}
		return err
	}
}

// complete says whether a sealed version's writer is alive, and all that it needs there.
func (s *Store) complete(ctx context.Context, v manifest.Sealed) error {
	var l leaseFile
	err := s.getJSON(ctx, leaseDir+"/"+v.Lease, &l)
	if errors.Is(err, fs.ErrNotExist) || err == nil && s.now().After(l.Expires) {
		return fmt.Errorf("%w: its lease is over", ErrFenced)
	}
	if err == nil {
		err = s.Refresh(ctx)
	}
	if err != nil {
		return err
	}
	m, err := s.Manifest(ctx, v.Root)
	if err != nil {
		return err
	}
	content := int64(0)
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i, id := range m.Content() {
		if _, ok := s.chunks[id]; !ok {
			return fmt.Errorf("chunk %d: %w", i, ErrMissing)
		}
		content += manifest.ChunkSize
	}
	if m.Size() != v.Size || content != v.Content {
		return fmt.Errorf("%w: it is said to have %d bytes, %d of content, and has %d, %d", ErrDamaged, v.Size, v.Content, m.Size(), content)
	}
	return nil
}
