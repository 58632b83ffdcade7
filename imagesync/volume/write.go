package volume

import (
	"context"
	"fmt"
	"maps"

	"heliotrope/imagesync/volume/recent"
)

// WriteAt writes all of p. With fua it returns once p would survive a crash.
func (v *Volume) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := v.within(off, int64(len(p))); err != nil {
		return fmt.Errorf("write volume: %w", err)
	}
	if len(p) > 0 {
		if err := v.write(ctx, p, off); err != nil {
			return fmt.Errorf("write volume at %d: %w", off, err)
		}
	}
	if fua {
		return v.Flush(ctx)
	}
	return nil
}

// write writes, once what it needs of the base is here: the rest of blocks that it changes
// in part. No lock is held while that comes.
func (v *Volume) write(ctx context.Context, p []byte, off int64) error {
	for {
		absent, err := v.tryWrite(ctx, p, off)
		if err != nil || absent == nil {
			return err
		}
		if err := v.base.Prefetch(ctx, absent.off, absent.n); err != nil {
			return err
		}
	}
}

// change lets f change blocks from to before to, which no one else changes meanwhile; zeros says that it makes
// them zeros. f is called again where there is room only now.
func (v *Volume) change(ctx context.Context, from, to int64, zeros bool, f func() error) error {
	v.gate.RLock()
	defer v.gate.RUnlock()
	if err := v.usable(); err != nil {
		return err
	}
	unlock, err := v.ranges.Lock(ctx, from/chunkBlocks, (to-1)/chunkBlocks+1)
	if err != nil {
		return err
	}
	defer unlock()
	if w := v.looking(); w != nil {
		w.Preserve(from/chunkBlocks, (to-1)/chunkBlocks+1, zeros)
	}
	if err = f(); err != nil && v.yield(err) {
		err = f()
	}
	return err
}

// tryWrite writes, or returns a part of the base that has to come first.
func (v *Volume) tryWrite(ctx context.Context, p []byte, off int64) (absent *part, err error) {
	end := off + int64(len(p))
	from, to := off/BlockSize, (end+BlockSize-1)/BlockSize
	err = v.change(ctx, from, to, false, func() error {
		var whole []writing
		if whole, absent = v.wholeBlocks(p, off); absent != nil {
			return nil
		}
		if err := v.thaw(from, to); err != nil {
			return err
		}
		v.touchDirty(from, to)
		var err error
		for _, w := range whole {
			if _, err = v.blocks.WriteAt(w.p, w.off); err != nil {
				break
			}
		}
		v.wrote.Store(true) // before the blocks are pending, or a flush might not sync them
		if err == nil {
			err = v.becomeData(from, to)
		}
		return err
	})
	return absent, err
}

// writing is what is written to the overlay, and where.
type writing struct {
	p   []byte
	off int64
}

// wholeBlocks makes of a write one that leaves every block whole: a first or last block
// that is changed in part is copied up, unless the overlay has it.
func (v *Volume) wholeBlocks(p []byte, off int64) (all []writing, absent *part) {
	end := off + int64(len(p))
	if head := off % BlockSize; head != 0 || end-off < BlockSize && end != v.size {
		n := min(BlockSize-head, int64(len(p)))
		w, absent := v.copyUp(p[:n], off)
		if absent != nil {
			return nil, absent
		}
		all, p, off = append(all, w), p[n:], off+n
	}
	tail := end % BlockSize
	if int64(len(p)) < tail {
		tail = int64(len(p)) // it was in the first block as well
	}
	if end == v.size {
		tail = 0 // what is behind the end of the disk does not matter
	}
	if n := int64(len(p)) - tail; n > 0 {
		all = append(all, writing{p[:n], off})
	}
	if tail > 0 {
		w, absent := v.copyUp(p[int64(len(p))-tail:], end-tail)
		if absent != nil {
			return nil, absent
		}
		all = append(all, w)
	}
	return all, nil
}

// copyUp makes of a write within a block one of the whole block, if the overlay does not
// have it already.
func (v *Volume) copyUp(p []byte, off int64) (writing, *part) {
	block := off / BlockSize
	s := v.parts(block*BlockSize, BlockSize)[0]
	if s.source == fromOverlay {
		return writing{p, off}, nil
	}
	content := make([]byte, BlockSize)
	if s.source == fromBase && v.base != nil {
		v.touch(s)
		if !v.base.ReadNow(content, s.off) {
			return writing{}, &s
		}
	}
	copy(content[off%BlockSize:], p)
	return writing{content, block * BlockSize}, nil
}

// touchDirty marks data that is about to be written over dirty: it may change even if the
// write fails.
func (v *Volume) touchDirty(from, to int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for from, to := range v.state.data.Runs(from, to) {
		v.state.dirty.Add(from, to)
	}
}

func (v *Volume) becomeData(from, to int64) error {
	var gaps map[int64]int64 // what was data already, the journal knows of or will
	v.mu.RLock()
	if v.state.data.Find(from, to, false) < to {
		gaps = maps.Collect(v.state.data.Gaps(from, to))
	}
	v.mu.RUnlock()
	if err := v.note(gaps, recent.Data); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for from, to := range gaps {
		v.state.pending.Add(from, to)
	}
	v.state.become(run{from, to, dataDirty})
	return nil
}

// note writes down what runs of blocks become, for who opens the volume after this process.
func (v *Volume) note(runs map[int64]int64, what recent.State) error {
	for from, to := range runs {
		if v.recent == nil {
			break
		}
		if err := v.recent.Set(from, to, what); err != nil {
			return err
		}
	}
	return nil
}

// thawBlocks is how many blocks are thawed together: 1 MiB.
const thawBlocks = 256

// thaw sees to it that the journal has blocks that are about to be written over for dirty.
func (v *Volume) thaw(from, to int64) error {
	frozen := func() bool {
		v.mu.RLock()
		defer v.mu.RUnlock()
		return v.state.frozen.Any(from, to)
	}
	if !frozen() {
		return nil
	}
	v.journaling.Lock()
	defer v.journaling.Unlock()
	if !frozen() { // who came before has thawed more than his own
		return nil
	}
	from, to = from/thawBlocks*thawBlocks, (to+thawBlocks-1)/thawBlocks*thawBlocks
	b := new(batch)
	v.mu.RLock()
	for from, to := range v.state.frozen.Runs(from, min(to, v.geometry.blocks())) {
		b.run(run{from, to, markDirty})
	}
	v.mu.RUnlock()
	if err := v.journal.append(b); err != nil {
		v.fail(err)
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state.frozen.Remove(from, to)
	return nil
}

// zeros is what the ends of a range that is zeroed are written with.
var zeros [BlockSize]byte

// Zero makes a range zeros, in the journal: nothing is written but parts of blocks at its
// ends. Space is given back after the next flush, whatever mayTrim says: the overlay is a
// sparse file of a host that has more volumes than space, and promises none.
func (v *Volume) Zero(ctx context.Context, off, n int64, _ bool) error {
	if err := v.within(off, n); err != nil {
		return fmt.Errorf("zero volume: %w", err)
	}
	from, to, end := (off+BlockSize-1)/BlockSize, (off+n)/BlockSize, off+n
	if end == v.size {
		to = v.geometry.blocks()
	}
	if from >= to {
		if n == 0 {
			return nil
		}
		// Within a block, or two.
		head := min(end, from*BlockSize) - off
		if err := v.WriteAt(ctx, zeros[:head], off, false); err != nil {
			return err
		}
		return v.WriteAt(ctx, zeros[:n-head], off+head, false)
	}
	if err := v.WriteAt(ctx, zeros[:from*BlockSize-off], off, false); err != nil {
		return err
	}
	if err := v.zeroBlocks(ctx, from, to); err != nil {
		return fmt.Errorf("zero volume at %d: %w", off, err)
	}
	if tail := end - to*BlockSize; tail > 0 {
		return v.WriteAt(ctx, zeros[:tail], to*BlockSize, false)
	}
	return nil
}

// Trim makes the blocks within a range zeros; what is less than a block at its ends stays.
func (v *Volume) Trim(ctx context.Context, off, n int64) error {
	if err := v.within(off, n); err != nil {
		return fmt.Errorf("trim volume: %w", err)
	}
	from, to := (off+BlockSize-1)/BlockSize, (off+n)/BlockSize
	if off+n == v.size {
		to = v.geometry.blocks()
	}
	if from >= to {
		return nil
	}
	if err := v.zeroBlocks(ctx, from, to); err != nil {
		return fmt.Errorf("trim volume at %d: %w", off, err)
	}
	return nil
}

// zeroBlocks makes blocks zeros. Those that are so already, of the base or of the overlay,
// do not become dirty: a guest that trims its whole disk changes little.
func (v *Volume) zeroBlocks(ctx context.Context, from, to int64) error {
	return v.change(ctx, from, to, true, func() error {
		runs := v.notZero(from, to)
		if err := v.note(runs, recent.Zero); err != nil {
			return err
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		for from, to := range runs {
			v.state.pending.Add(from, to)
			v.state.become(run{from, to, zeroDirty})
		}
		return nil
	})
}

// notZero are the runs of blocks that are not zeros yet.
func (v *Volume) notZero(from, to int64) map[int64]int64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	all := map[int64]int64{}
	for at := from; at < to; {
		next := min((at/chunkBlocks+1)*chunkBlocks, to)
		runs := v.state.zero.Gaps(at, next)
		if v.base == nil || v.base.zero(at/chunkBlocks) {
			runs = v.state.data.Runs(at, next)
		}
		maps.Insert(all, runs)
		at = next
	}
	return all
}
