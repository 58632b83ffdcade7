package imagesync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"

	"heliotrope/imagesync/delta"
	"heliotrope/imagesync/manifest"
)

// Knows says which of the versions that the receiver has a delta may be based on: newest of
// the same image first, then those of others.
type Knows []manifest.ID

// bases are what a sender makes a delta of a version from: those of the roots which the
// receiver has that are here too, the version's own ancestors and siblings first.
func (s *Store) bases(ctx context.Context, v manifest.Version, knows Knows) ([]delta.Image, error) {
	all, err := s.roots(ctx)
	if err != nil {
		return nil, err
	}
	var near, far []manifest.ID
	for _, root := range knows {
		switch known, ok := all[root]; {
		case !ok:
		case known.Image == v.Image || root == v.Parent:
			near = append(near, root)
		default:
			far = append(far, root)
		}
	}
	var bases []delta.Image
	for _, root := range append(near, far...)[:min(len(near)+len(far), maxDeltaBases)] {
		b, err := s.deltaImage(ctx, root)
		if err != nil {
			return nil, err
		}
		bases = append(bases, b)
	}
	return bases, nil
}

// maxDeltaBases bounds what both ends have in memory.
const maxDeltaBases = 4

func (s *Store) deltaImage(ctx context.Context, root manifest.ID) (delta.Image, error) {
	m, err := s.Manifest(ctx, root)
	if err != nil {
		return delta.Image{}, err
	}
	sketch, err := s.Sketch(ctx, m, root)
	if err != nil {
		return delta.Image{}, err
	}
	return delta.Image{Root: root, Manifest: m, Sketch: sketch}, nil
}

// Send writes what a receiver that knows these roots needs of a version.
func (s *Store) Send(ctx context.Context, w io.Writer, v manifest.Version, knows Knows) (delta.Stats, error) {
	r, err := s.open(ctx, v)
	if err != nil {
		return delta.Stats{}, err
	}
	defer r.Close()
	bases, err := s.bases(ctx, v, knows)
	if err != nil {
		return delta.Stats{}, fmt.Errorf("send %s: %w", v.Ref(), err)
	}
	target, err := s.deltaImage(ctx, v.Root)
	if err != nil {
		return delta.Stats{}, fmt.Errorf("send %s: %w", v.Ref(), err)
	}
	stats, err := delta.Encode(w, target, r, bases, zstd.SpeedDefault)
	if err != nil {
		return stats, fmt.Errorf("send %s: %w", v.Ref(), err)
	}
	return stats, nil
}

// Receive makes a version of what Send wrote. It is published under its own name, by this
// store's key; one that is there already with this content is left as it is.
func (s *Store) Receive(ctx context.Context, r io.Reader, v manifest.Version) (manifest.Version, WriteStats, error) {
	w, err := s.Begin(ctx, v.Image, BeginOptions{Size: v.Size, From: "copy of " + v.Ref(), copied: true})
	if err != nil {
		return v, WriteStats{}, err
	}
	defer w.Abort(ctx)
	var readers []*Reader
	defer func() {
		for _, r := range readers {
			r.Close()
		}
	}()
	have := func(root manifest.ID) (delta.Base, error) {
		all, err := s.roots(ctx)
		if err != nil {
			return delta.Base{}, err
		}
		known, ok := all[root]
		if !ok {
			return delta.Base{}, ErrNotFound
		}
		r, err := s.open(ctx, known)
		if err != nil {
			return delta.Base{}, err
		}
		readers = append(readers, r)
		im, err := s.deltaImage(ctx, root)
		return delta.Base{Image: im, Content: r}, err
	}
	target, err := delta.Apply(r, v.Root, v.Size, have, &sink{Writer: w, ctx: ctx})
	if err != nil {
		return v, w.Stats(), fmt.Errorf("receive %s: %w", v.Ref(), err)
	}
	w.target = target
	got, err := w.Commit(ctx)
	return got, w.Stats(), err
}

// want is the version of another store that ref means, and what this store knows, newest
// first.
func (s *Store) want(ctx context.Context, from *Store, ref string) (v manifest.Version, mine []manifest.Version, err error) {
	if v, err = from.Version(ctx, ref); err != nil {
		return v, nil, err
	}
	mine, err = s.Versions(ctx, "")
	slices.Reverse(mine)
	return v, mine, err
}

// rootsOf are those of versions, in their order.
func rootsOf(versions []manifest.Version) (knows Knows) {
	for _, v := range versions {
		knows = append(knows, v.Root)
	}
	return knows
}

// same is a version with the same content, the image's own newest one first; nil: there is none.
func same(v manifest.Version, mine []manifest.Version) (found *manifest.Version, newest bool) {
	seen := false
	for i, m := range mine {
		if m.Root == v.Root && (found == nil || m.Image == v.Image && !seen) {
			found, newest = &mine[i], m.Image == v.Image && !seen
		}
		seen = seen || m.Image == v.Image
	}
	return found, newest
}

// Foresee says what Pull would send. It takes as long as sending does, and changes nothing.
func (s *Store) Foresee(ctx context.Context, from *Store, ref string) (manifest.Version, delta.Stats, error) {
	v, mine, err := s.want(ctx, from, ref)
	if err != nil {
		return v, delta.Stats{}, err
	}
	if found, _ := same(v, mine); found != nil {
		return *found, delta.Stats{}, nil
	}
	stats, err := from.Send(ctx, io.Discard, v, rootsOf(mine))
	return v, stats, err
}

// Pull makes this store have a version of another, and says what crossed between them. It is
// for stores that one machine reaches; agents use Send and Receive.
func (s *Store) Pull(ctx context.Context, from *Store, ref string) (manifest.Version, delta.Stats, error) {
	v, mine, err := s.want(ctx, from, ref)
	if err != nil {
		return v, delta.Stats{}, err
	}
	if found, newest := same(v, mine); newest {
		return *found, delta.Stats{}, nil
	} else if found != nil {
		v, err = s.adopt(ctx, *found, v.Image, "copy of "+v.Ref())
		return v, delta.Stats{}, err
	}
	in, out := io.Pipe()
	var stats delta.Stats
	sent := make(chan error, 1)
	go func() {
		var err error
		stats, err = from.Send(ctx, out, v, rootsOf(mine))
		out.CloseWithError(err)
		sent <- err
	}()
	got, _, err := s.Receive(ctx, in, v)
	in.CloseWithError(errors.New("the receiver gave up"))
	// What broke the sender is what the receiver says as well, and the other way round.
	if failed := <-sent; err == nil {
		err = failed
	}
	return got, stats, err
}
