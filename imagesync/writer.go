package imagesync

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"heliotrope/imagesync/delta"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/pack"
)

// ErrFenced is that of a writer whose epoch is older than the newest version's, or whose
// lease has ended: what it has is not the image any more.
var ErrFenced = errors.New("fenced: a newer writer has the image")

// ErrConflict is that of a writer whose version is not the newest any more.
var ErrConflict = errors.New("somebody else has made a newer version")

// ErrQuota is that of a store which is full.
var ErrQuota = errors.New("the store's quota is used up: remove versions and run gc, or raise it")

// BeginOptions say what a Writer makes.
type BeginOptions struct {
	Size   int64             // bytes of the image
	Base   *manifest.Version // what chunks that are not put are taken of; nil: they are zeros
	Epoch  uint64            // the writer's; 0: that of the newest version
	Only   bool              // the version is refused unless Base is the newest one when it is committed
	From   string            // for people
	copied bool              // from another store
	Permit func() error      // asked right before the version is made: is the writer still the one? nil: it is
	// Unsigned is for who has not the store's key: his version ends with Seal, and another one's Publish.
	Unsigned bool
}

// Writer makes a version of an image. Put may be called by several goroutines.
type Writer struct {
	store  *Store
	image  string
	o      BeginOptions
	lease  *lease
	target delta.Image

	mu     sync.Mutex
	packer pack.Packer
	mine   map[manifest.ID]pack.Place // in the open pack
	stats  WriteStats
}

// WriteStats is what a Writer did, in bytes of content but for Stored.
type WriteStats struct {
	Put    int64 // that came
	New    int64 // that the store did not have
	Stored int64 // what they take there
}

// Begin begins a version. Commit or Abort must follow.
func (s *Store) Begin(ctx context.Context, image string, o BeginOptions) (*Writer, error) {
	if err := manifest.CheckName(image); err != nil {
		return nil, err
	}
	if o.Size < 0 || o.Size > manifest.MaxSize {
		return nil, fmt.Errorf("an image of %d bytes cannot be: the largest has %d", o.Size, int64(manifest.MaxSize))
	}
	if s.key == nil && !o.Unsigned {
		return nil, fmt.Errorf("write %s: %w", image, ErrReadOnly)
	}
	newest, err := s.newest(ctx, image)
	if err != nil {
		return nil, err
	}
	if o.Epoch == 0 {
		o.Epoch = newest.Epoch
	}
	if err := fenced(newest, o); err != nil {
		return nil, err
	}
	w := &Writer{store: s, image: image, o: o, mine: map[manifest.ID]pack.Place{}}
	// First the lease, then what may be built upon: GC goes the other way round.
	if w.lease, err = s.takeLease(ctx, "writer of "+image, nil); err != nil {
		return nil, err
	}
	if err := w.prepare(ctx); err != nil {
		w.Abort(ctx)
		return nil, err
	}
	return w, nil
}

func (w *Writer) prepare(ctx context.Context) error {
	if err := w.store.Refresh(ctx); err != nil {
		return err
	}
	w.target = delta.Image{Manifest: manifest.New(w.o.Size), Sketch: delta.NewSketch(w.o.Size)}
	if w.o.Base == nil {
		return nil
	}
	base, err := w.store.Manifest(ctx, w.o.Base.Root)
	if err != nil {
		return err
	}
	sketch, err := w.store.Sketch(ctx, base, w.o.Base.Root)
	if err != nil {
		return err
	}
	w.target.Manifest = base.Clone(w.o.Size)
	for i := range w.target.Manifest.Content() {
		w.target.Sketch.Copy(i, sketch)
	}
	return nil
}

func fenced(newest manifest.Version, o BeginOptions) error {
	switch {
	case newest.Epoch > o.Epoch:
		return fmt.Errorf("%w: %s is of epoch %d, this writer of %d", ErrFenced, newest.Ref(), newest.Epoch, o.Epoch)
	case o.Only && (o.Base == nil && newest.Number > 0 || o.Base != nil && newest.Number != o.Base.Number):
		return fmt.Errorf("%w: %s", ErrConflict, newest.Ref())
	}
	return nil
}

// Put takes chunk i, of ChunkSize bytes, and keeps it if the store does not have it yet.
func (w *Writer) Put(ctx context.Context, i int, chunk []byte) error {
	return w.put(ctx, i, manifest.Name(chunk), chunk)
}

func (w *Writer) put(ctx context.Context, i int, id manifest.ID, chunk []byte) error {
	if i < 0 || i >= w.target.Manifest.Chunks() || len(chunk) != manifest.ChunkSize {
		return fmt.Errorf("put chunk %d of %d bytes: the image has %d chunks of %d", i, len(chunk), w.target.Manifest.Chunks(), manifest.ChunkSize)
	}
	known := id.IsZero() || w.has(id)
	var stored []byte
	var by uint32
	if !known {
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		stored, by = pack.Compress(chunk, *buf, w.o.copied)
	}
	digests := delta.DigestsOf(chunk)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.target.Manifest.Set(i, id)
	w.target.Sketch.Set(i, digests)
	w.stats.Put += manifest.ChunkSize
	if known {
		return nil
	}
	if _, ok := w.mine[id]; ok {
		return nil
	}
	w.stats.New += manifest.ChunkSize
	w.stats.Stored += int64(len(stored))
	w.mine[id] = w.packer.Add(id, stored, by)
	if w.packer.Len() < pack.Full {
		return nil
	}
	return w.flush(ctx)
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, pack.BufferSize); return &b }}

// has says whether a writer may build upon a chunk that is there.
func (w *Writer) has(id manifest.ID) bool {
	w.store.mu.RLock()
	defer w.store.mu.RUnlock()
	at, ok := w.store.chunks[id]
	return ok && !w.lease.avoid[w.store.packs[at.Pack].Name]
}

// flush ends the open pack. The lock is held.
func (w *Writer) flush(ctx context.Context) error {
	if w.packer.Empty() {
		return nil
	}
	name, content, ids, where := w.packer.Seal()
	if err := w.lease.renew(ctx); err != nil {
		return err
	}
	if err := w.store.room(int64(len(content))); err != nil {
		return err
	}
	if err := w.store.depot.Put(ctx, name, bytes.NewReader(content)); err != nil {
		return fmt.Errorf("write pack: %w", err)
	}
	w.store.mu.Lock()
	w.store.admit(depot.Info{Name: name, Size: int64(len(content))}, ids, where)
	w.store.mu.Unlock()
	clear(w.mine)
	return nil
}

// room says whether so many bytes more are within the quota.
func (s *Store) room(more int64) error {
	if s.config.Quota == 0 {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, p := range s.packs {
		more += p.Size
	}
	if more > s.config.Quota {
		return fmt.Errorf("%w (%d bytes of packs, %d allowed)", ErrQuota, more, s.config.Quota)
	}
	return nil
}

// Stats is what was done so far.
func (w *Writer) Stats() WriteStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

// Commit makes the version: it is the image's newest when Commit returns, and on the disk.
func (w *Writer) Commit(ctx context.Context) (manifest.Version, error) {
	defer w.Abort(ctx)
	root, content, err := w.finish(ctx)
	if err != nil {
		return manifest.Version{}, err
	}
	return w.commit(ctx, root, content)
}

// finish writes what the version needs and is not in the store yet.
func (w *Writer) finish(ctx context.Context) (root manifest.ID, content int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.flush(ctx); err != nil {
		return root, 0, err
	}
	root = w.target.Manifest.Root()
	for range w.target.Manifest.Content() {
		content += manifest.ChunkSize
	}
	if err := w.writeManifest(ctx, root); err != nil {
		return root, 0, err
	}
	if err := w.store.putCompressed(ctx, sketchDir+"/"+root.String(), w.target.Sketch.Encode()); err != nil {
		return root, 0, fmt.Errorf("write sketch: %w", err)
	}
	return root, content, nil
}

// writeManifest writes the manifest under a name of this writer's own: GC may be about to take
// away one with the same root that nobody needed.
func (w *Writer) writeManifest(ctx context.Context, root manifest.ID) error {
	dir := manifestDir + "/" + root.String()
	for info, err := range w.store.depot.List(ctx, dir) {
		if err != nil {
			return fmt.Errorf("write manifest: %w", err)
		}
		if !w.lease.avoid[info.Name] {
			return nil
		}
	}
	if err := w.store.putCompressed(ctx, dir+"/"+w.lease.id, w.target.Manifest.Encode()); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}

// commit publishes the version; what it needs is in the store.
func (w *Writer) commit(ctx context.Context, root manifest.ID, content int64) (manifest.Version, error) {
	v := manifest.Version{Image: w.image, Root: root, Size: w.o.Size, Content: content, Epoch: w.o.Epoch,
		Created: w.store.now().UTC(), From: w.o.From}
	if w.o.Base != nil {
		v.Parent = w.o.Base.Root
	}
	for {
		newest, err := w.store.newest(ctx, w.image)
		if err != nil {
			return v, err
		}
		if err := fenced(newest, w.o); err != nil {
			return v, err
		}
		if v.Number, err = w.store.nextNumber(ctx, newest, w.image); err != nil {
			return v, err
		}
		if w.o.Permit != nil {
			if err := w.o.Permit(); err != nil {
				return v, fmt.Errorf("%w: %w", ErrFenced, err)
			}
		}
		if err := w.lease.renew(ctx); err != nil {
			return v, err
		}
		if err := w.store.publish(ctx, v); !errors.Is(err, fs.ErrExist) {
			return v, err
		}
	}
}

// Abort gives up what was not committed, and the lease. It may be called after Commit.
func (w *Writer) Abort(ctx context.Context) { w.lease.end(ctx) }

// sink is the Writer as a delta's sink.
type sink struct {
	*Writer
	ctx   context.Context
	chunk [manifest.ChunkSize]byte
	has   int // the chunk in it, + 1
}

func (s *sink) Put(i int, id manifest.ID, chunk []byte) error { return s.put(s.ctx, i, id, chunk) }

// ReadAt reads of the chunks that were put.
func (s *sink) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		i, at := int(off/manifest.ChunkSize), int(off%manifest.ChunkSize)
		if i >= s.target.Manifest.Chunks() {
			return n, io.EOF
		}
		if s.has != i+1 {
			if err := s.readChunk(s.ctx, s.target.Manifest.At(i), s.chunk[:]); err != nil {
				return n, err
			}
			s.has = i + 1
		}
		c := copy(p[n:], s.chunk[at:])
		n, off = n+c, off+int64(c)
	}
	return n, nil
}

// readChunk reads a chunk of the store or of the open pack.
func (w *Writer) readChunk(ctx context.Context, id manifest.ID, dst []byte) error {
	w.mu.Lock()
	at, ok := w.mine[id]
	if !ok {
		w.mu.Unlock()
		return w.store.ReadChunk(ctx, id, dst)
	}
	defer w.mu.Unlock()
	return w.packer.Chunk(id, at, dst)
}
