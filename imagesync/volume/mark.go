package volume

import (
	"context"
	"fmt"

	"heliotrope/imagesync/volume/bitmap"
)

// Mark makes all blocks clean and gives them to nobody: from now on dirty is what changes after
// this moment. That is for who has all of the volume as it is now. A crash before Mark returns may
// leave blocks dirty; it makes none clean that is not as it was.
func (v *Volume) Mark(ctx context.Context) error {
	v.commits.Lock()
	defer v.commits.Unlock()
	err := v.begin(ctx, func() error { return nil })
	if err == nil {
		err = v.end(nil, nil)
	}
	if err != nil {
		return fmt.Errorf("mark volume: %w", err)
	}
	return nil
}

// Unmark makes all blocks dirty that are not the base's, which undoes every Mark and commit.
func (v *Volume) Unmark(ctx context.Context) error {
	v.commits.Lock()
	defer v.commits.Unlock()
	if err := v.Flush(ctx); err != nil {
		return err
	}
	v.gate.Lock()
	defer v.gate.Unlock()
	v.flushing.Lock()
	defer v.flushing.Unlock()
	v.mu.RLock()
	all := v.state.data.Clone()
	all.Union(&v.state.zero)
	v.mu.RUnlock()
	b := new(batch)
	for from, to := range all.Runs(0, v.geometry.blocks()) {
		b.run(run{from, to, markDirty})
	}
	if err := v.writeBack(b); err != nil {
		return fmt.Errorf("unmark volume: %w", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state.dirty, v.state.frozen = all, bitmap.Set{}
	return nil
}

// Marks is how many commits and Marks have begun since the volume was made.
func (v *Volume) Marks() uint64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.state.id
}
