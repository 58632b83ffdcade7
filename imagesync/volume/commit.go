package volume

import (
	"context"
	"errors"
	"fmt"

	"heliotrope/imagesync/volume/bitmap"
	"heliotrope/imagesync/volume/view"
)

// Commit gives put every chunk that has a block which changed since the last commit: ChunkSize
// bytes, as they were when Commit was called, in order; chunk is put's until it returns. Then
// it calls done, and if that succeeds too, these blocks are clean. Nothing but these chunks is
// read. What is written meanwhile is the next commit's. If anything fails, or crashes, the blocks
// stay dirty, and the next commit has them.
func (v *Volume) Commit(ctx context.Context, put func(ctx context.Context, i int, chunk []byte) error, done func(ctx context.Context) error) error {
	v.commits.Lock()
	defer v.commits.Unlock()
	var w *view.View
	err := v.begin(ctx, func() (err error) { // at the moment that is committed
		w, err = v.look(v.state.committing.Clone())
		return err
	})
	if err != nil {
		return fmt.Errorf("begin commit: %w", err)
	}
	if err = v.give(ctx, w, put); err == nil && done != nil {
		err = done(ctx)
	}
	if err = v.end(w, err); err != nil {
		return fmt.Errorf("commit volume: %w", err)
	}
	return nil
}

// begin makes what is dirty the commit's. look is called with mu, at that moment; if it fails, nothing has begun.
func (v *Volume) begin(ctx context.Context, look func() error) error {
	// Most of the work is done while writes go on.
	if err := v.Flush(ctx); err != nil {
		return err
	}
	v.gate.Lock()
	defer v.gate.Unlock()
	v.flushing.Lock()
	defer v.flushing.Unlock()
	v.mu.RLock()
	id := v.state.id + 1
	v.mu.RUnlock()
	then := new(batch)
	then.addID(frameBegin, id)
	if err := v.writeBack(then); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state.begin(id)
	// All data is clean to the journal once the commit is done.
	v.state.frozen = v.state.data.Clone()
	if err := look(); err != nil {
		v.state.abandon()
		return err
	}
	return nil
}

// give reads the chunks of a view.
func (v *Volume) give(ctx context.Context, w *view.View, put func(context.Context, int, []byte) error) error {
	chunk := make([]byte, ChunkSize)
	for i, ok := w.Next(0); ok; i, ok = w.Next(i + 1) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		m, err := v.take(ctx, w, i, chunk)
		if err != nil {
			return fmt.Errorf("read chunk %d: %w", i, err)
		}
		if err := v.fillUp(ctx, i, m, chunk); err != nil {
			return fmt.Errorf("read chunk %d: %w", i, err)
		}
		if err := put(ctx, int(i), chunk); err != nil {
			return fmt.Errorf("put chunk %d: %w", i, err)
		}
	}
	return nil
}

// take reads what the overlay had of a chunk when the view began.
func (v *Volume) take(ctx context.Context, w *view.View, i int64, chunk []byte) (view.Masks, error) {
	unlock, err := v.ranges.Lock(ctx, i, i+1)
	if err != nil {
		return view.Masks{}, err
	}
	defer unlock()
	return w.Take(i, chunk)
}

// fillUp completes a chunk by what is not the overlay's.
func (v *Volume) fillUp(ctx context.Context, i int64, m view.Masks, chunk []byte) error {
	err := view.Runs(^m.Data, func(from, to int64) error {
		p := chunk[from*BlockSize : to*BlockSize]
		if v.base == nil || m.Zero == ^m.Data || v.base.zero(i) {
			clear(p)
			return nil
		}
		return v.base.ReadAt(ctx, p, i*ChunkSize+from*BlockSize)
	})
	if err != nil {
		return err
	}
	err = view.Runs(m.Zero, func(from, to int64) error {
		clear(chunk[from*BlockSize : to*BlockSize])
		return nil
	})
	if behind := (i+1)*ChunkSize - v.size; behind > 0 {
		clear(chunk[ChunkSize-behind:])
	}
	return err
}

// end ends a commit: its blocks are clean, or dirty again.
func (v *Volume) end(w *view.View, err error) error {
	v.gate.Lock() // who is saving a chunk ends that before
	defer v.gate.Unlock()
	v.flushing.Lock()
	defer v.flushing.Unlock()
	if err == nil && w != nil {
		err = w.Err()
	}
	v.mu.RLock()
	if err == nil {
		err = v.failed
	}
	id := v.state.id
	v.mu.RUnlock()
	if err == nil {
		err = v.checkEpoch()
	}
	if err == nil {
		done := new(batch)
		done.addID(frameDone, id)
		err = v.tell(nil, done)
	}
	v.mu.Lock()
	if err == nil {
		v.state.committing = bitmap.Set{}
	} else {
		v.state.abandon()
	}
	v.mu.Unlock()
	if w != nil {
		err = errors.Join(err, v.unlook(w))
	}
	return err
}
