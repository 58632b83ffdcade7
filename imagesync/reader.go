package imagesync

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"heliotrope/imagesync/manifest"
)

// Reader reads a version. It is held (Hold) from Open to Close, and may be used by several
// goroutines.
type Reader struct {
	Version  manifest.Version
	Manifest *manifest.Manifest
	store    *Store
	ctx      context.Context
	hold     *Hold

	mu    sync.Mutex
	cache [readerChunks]cachedChunk
	next  int
}

// readerChunks is how many chunks a Reader keeps, for who reads by blocks.
const readerChunks = 64

type cachedChunk struct {
	i       int // -1: none
	content []byte
}

// Open opens a version: IMAGE for the newest, IMAGE@NUMBER for another. ctx is that of all
// reads.
func (s *Store) Open(ctx context.Context, ref string) (*Reader, error) {
	v, err := s.Version(ctx, ref)
	if err != nil {
		return nil, err
	}
	return s.open(ctx, v)
}

func (s *Store) open(ctx context.Context, v manifest.Version) (*Reader, error) {
	hold, err := s.Hold(ctx, "reader of "+v.Ref(), v)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", v.Ref(), err)
	}
	m, err := s.Manifest(ctx, v.Root)
	if err != nil {
		hold.Release(ctx)
		return nil, fmt.Errorf("open %s: %w", v.Ref(), err)
	}
	r := &Reader{Version: v, Manifest: m, store: s, ctx: ctx, hold: hold}
	for i := range r.cache {
		r.cache[i].i = -1
	}
	return r, nil
}

// Close ends the hold.
func (r *Reader) Close() { r.hold.Release(r.ctx) }

// Size is that of the image, in bytes.
func (r *Reader) Size() int64 { return r.Manifest.Size() }

// Zero says whether chunk i is zeros.
func (r *Reader) Zero(i int) bool { return r.Manifest.At(i).IsZero() }

// Fetch reads chunk i into dst, of ChunkSize bytes, and checks it.
func (r *Reader) Fetch(ctx context.Context, i int, dst []byte) error {
	if err := r.hold.Renew(ctx); err != nil {
		return err
	}
	if err := r.store.ReadChunk(ctx, r.Manifest.At(i), dst); err != nil {
		return fmt.Errorf("%s: %w", r.Version.Ref(), err)
	}
	return nil
}

// ReadAt is io.ReaderAt's.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		if off >= r.Size() {
			return n, io.EOF
		}
		chunk, err := r.chunk(int(off / manifest.ChunkSize))
		if err != nil {
			return n, err
		}
		part := chunk[off%manifest.ChunkSize:]
		part = part[:min(int64(len(part)), r.Size()-off)]
		c := copy(p[n:], part)
		n, off = n+c, off+int64(c)
	}
	return n, nil
}

var zeroChunk [manifest.ChunkSize]byte

// chunk is a chunk that is not to be written to.
func (r *Reader) chunk(i int) ([]byte, error) {
	if r.Zero(i) {
		return zeroChunk[:], nil
	}
	r.mu.Lock()
	for _, c := range r.cache {
		if c.i == i {
			r.mu.Unlock()
			return c.content, nil
		}
	}
	r.mu.Unlock()
	content := make([]byte, manifest.ChunkSize)
	if err := r.Fetch(r.ctx, i, content); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cache[r.next] = cachedChunk{i, content}
	r.next = (r.next + 1) % len(r.cache)
	return content, nil
}

// Export writes a version's content to a file that is as long as the image and all holes: what
// is zero is not written. Progress is
// told of bytes of content, done and in all; nil: nobody is.
func (r *Reader) Export(ctx context.Context, to io.WriterAt, progress func(done, all int64)) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	var mu sync.Mutex
	done := int64(0)
	for i := range r.Manifest.Content() {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			chunk := make([]byte, manifest.ChunkSize)
			if err := r.Fetch(ctx, i, chunk); err != nil {
				return err
			}
			off := int64(i) * manifest.ChunkSize
			if _, err := to.WriteAt(chunk[:min(manifest.ChunkSize, r.Size()-off)], off); err != nil {
				return fmt.Errorf("export %s: %w", r.Version.Ref(), err)
			}
			mu.Lock()
			defer mu.Unlock()
			if done += manifest.ChunkSize; progress != nil {
				progress(done, r.Version.Content)
			}
			return nil
		})
	}
	return g.Wait()
}
