package imagesync

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"

	"heliotrope/imagesync/manifest"
)

// Source is what an image is made of: a disk's content, whatever form it has.
type Source interface {
	io.ReaderAt
	Size() int64 // bytes
	// Extents tells of the whole image in order: where there are zeros for sure, nothing is
	// read.
	Extents(yield func(off, length int64, zero bool) bool) error
}

// ImportOptions say what is made.
type ImportOptions struct {
	From     string // for people
	Progress func(done, all int64)
}

// Import makes a new version of an image. What the store has already takes no room.
func (s *Store) Import(ctx context.Context, image string, src Source, o ImportOptions) (manifest.Version, WriteStats, error) {
	w, err := s.Begin(ctx, image, BeginOptions{Size: src.Size(), From: o.From})
	if err != nil {
		return manifest.Version{}, WriteStats{}, fmt.Errorf("import %s: %w", image, err)
	}
	defer w.Abort(ctx)
	if err := w.fill(ctx, src, o.Progress); err != nil {
		return manifest.Version{}, w.stats, fmt.Errorf("import %s: %w", image, err)
	}
	v, err := w.Commit(ctx)
	if err != nil {
		return v, w.stats, fmt.Errorf("import %s: %w", image, err)
	}
	return v, w.stats, nil
}

// importRun is how many chunks a worker reads at a time.
const importRun = 16

// fill puts all of the source.
func (w *Writer) fill(ctx context.Context, src Source, progress func(done, all int64)) error {
	all := src.Size()
	outer := ctx
	g, ctx := errgroup.WithContext(outer)
	g.SetLimit(runtime.GOMAXPROCS(0))
	free := make(chan []byte, runtime.GOMAXPROCS(0)+1)
	for range cap(free) {
		free <- make([]byte, importRun*manifest.ChunkSize)
	}
	put := func(first, n int) bool {
		if ctx.Err() != nil {
			return false
		}
		buf := <-free
		g.Go(func() error {
			defer func() { free <- buf }()
			return w.putRun(ctx, src, first, buf[:n*manifest.ChunkSize])
		})
		if progress != nil {
			progress(min(all, int64(first+n)*manifest.ChunkSize), all)
		}
		return ctx.Err() == nil
	}
	next := 0 // the first chunk that was not looked at
	err := src.Extents(func(off, length int64, zero bool) bool {
		if zero {
			return ctx.Err() == nil
		}
		first := max(next, int(off/manifest.ChunkSize))
		next = int((off + length + manifest.ChunkSize - 1) / manifest.ChunkSize)
		for ; first < next; first += importRun {
			if !put(first, min(importRun, next-first)) {
				return false
			}
		}
		return true
	})
	if waited := g.Wait(); waited != nil {
		return waited
	}
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	return context.Cause(outer)
}

func (w *Writer) putRun(ctx context.Context, src Source, first int, buf []byte) error {
	n, err := src.ReadAt(buf, int64(first)*manifest.ChunkSize)
	if err != nil && (err != io.EOF || int64(first)*manifest.ChunkSize+int64(n) < src.Size()) {
		return fmt.Errorf("read image: %w", err)
	}
	clear(buf[n:])
	for i := 0; len(buf) > 0; i, buf = i+1, buf[manifest.ChunkSize:] {
		if err := w.Put(ctx, first+i, buf[:manifest.ChunkSize]); err != nil {
			return err
		}
	}
	return nil
}
