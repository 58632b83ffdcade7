package volume

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"heliotrope/imagesync/volume/bitmap"
	"heliotrope/imagesync/volume/view"
)

// Errors of what looks at one moment of a volume.
var (
	// ErrLooked is that of a second one: there is one snapshot or commit at a time.
	ErrLooked = errors.New("a snapshot or a commit of the volume is under way")
	// ErrNoRoom is that of one which took room that the guest needed.
	ErrNoRoom = fmt.Errorf("what the guest writes meanwhile left no room to keep what was there before: %w", syscall.ENOSPC)
)

// look begins a view of all chunks that have one of some blocks. The caller holds mu, and gate for writing.
func (v *Volume) look(blocks bitmap.Set) (*view.View, error) {
	if v.view != nil {
		return nil, ErrLooked
	}
	v.view = view.New(view.Volume{Dir: v.dir, Blocks: v.blocks, Masks: v.masks}, beforeFile, blocks, (v.size+ChunkSize-1)/ChunkSize)
	return v.view, nil
}

// unlook ends a view. The caller holds gate for writing: nobody is saving anything.
func (v *Volume) unlook(w *view.View) error {
	v.mu.Lock()
	if v.view == w {
		v.view = nil
	}
	v.mu.Unlock()
	return w.Close()
}

// looking is the view that there is, or nil.
func (v *Volume) looking() *view.View {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.view
}

// masks say what the blocks of a chunk are now.
func (v *Volume) masks(chunk int64) (m view.Masks) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for b := range int64(chunkBlocks) {
		if v.state.data.Has(chunk*chunkBlocks + b) {
			m.Data |= 1 << b
		} else if v.state.zero.Has(chunk*chunkBlocks + b) {
			m.Zero |= 1 << b
		}
	}
	return m
}

// yield gives up a view for the room that it takes, where an error says that there is none.
func (v *Volume) yield(err error) bool {
	if !errors.Is(err, syscall.ENOSPC) {
		return false
	}
	w := v.looking()
	return w != nil && w.Yield(ErrNoRoom)
}

// Snapshot is a volume at one moment: all that it has of its own, whenever it was written. What is dirty
// stays so. It is gone when the volume is closed, or its process ends.
type Snapshot struct {
	v *Volume
	w *view.View
}

// Snapshot takes one: everything that was answered before is in it, nothing that is written after it returns, and of
// what was under way each write whole or not at all. The guest waits for the writes that are under way, and a copy of the tables;
// nothing is flushed. There is one at a time: ErrLooked.
func (v *Volume) Snapshot() (*Snapshot, error) {
	v.gate.Lock()
	defer v.gate.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	err := v.failed
	var w *view.View
	if err == nil {
		own := v.state.data.Clone()
		own.Union(&v.state.zero)
		w, err = v.look(own)
	}
	if err != nil {
		return nil, fmt.Errorf("take snapshot of volume: %w", err)
	}
	return &Snapshot{v, w}, nil
}

// Chunks is how many chunks Read gives.
func (s *Snapshot) Chunks() int64 { return s.w.Chunks() }

// Read gives put every chunk of which something was the volume's own, in order, as Commit does. The others are the base's. It
// may be called once.
func (s *Snapshot) Read(ctx context.Context, put func(ctx context.Context, i int, chunk []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	defer func() { cancel(nil); <-done }()
	go func() { // put may wait for a network while the view fails
		defer close(done)
		select {
		case <-s.w.Failed():
			cancel(s.w.Err())
		case <-ctx.Done():
		}
	}()
	err := s.v.give(ctx, s.w, put)
	if why := s.w.Err(); why != nil {
		err = why
	}
	if err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}
	return nil
}

// Close gives it up, and frees what was saved for it.
func (s *Snapshot) Close() error {
	s.v.gate.Lock()
	defer s.v.gate.Unlock()
	return s.v.unlook(s.w)
}
