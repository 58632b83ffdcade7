package volume

import (
	"context"
	"errors"
	"fmt"
)

// Flush returns once everything that was written, trimmed and zeroed before would survive a
// crash. Flushes that come while one is under way share the next one.
func (v *Volume) Flush(ctx context.Context) error {
	err := v.flush(ctx)
	if errors.Is(err, ErrFenced) {
		err = errors.Join(err, v.stop(err)) // the newer writer waits for the lock
	}
	return err
}

func (v *Volume) flush(ctx context.Context) error {
	needed := v.rounds.Next()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("flush volume: %w", context.Cause(ctx))
	}
	v.flushing.Lock()
	defer v.flushing.Unlock()
	round, ok := v.rounds.Begin(needed)
	if !ok {
		return nil
	}
	err := v.writeBack(nil)
	if err != nil && v.yield(err) {
		err = v.writeBack(nil)
	}
	if err != nil {
		return fmt.Errorf("flush volume: %w", err)
	}
	v.rounds.Done(round)
	return v.reclaim(ctx)
}

// writeBack brings what is pending to the disk: the blocks, then the journal. then goes to
// the journal behind it. The caller holds flushing.
func (v *Volume) writeBack(then *batch) error {
	if err := v.usable(); err != nil {
		return err
	}
	if err := v.checkEpoch(); err != nil {
		return err
	}
	v.journaling.Lock()
	if then == nil && v.journal.large() {
		defer v.journaling.Unlock()
		return v.writeAnew()
	}
	v.journaling.Unlock()

	runs, _ := v.takePending(false)
	err := v.syncBlocks()
	if err == nil {
		err = v.tell(runs, then)
	}
	return v.settle(runs, err)
}

// writeAnew is writeBack with a journal that is written anew. The caller holds journaling as
// well: nobody may append to the old one meanwhile.
func (v *Volume) writeAnew() error {
	runs, whole := v.takePending(true)
	if err := v.syncBlocks(); err != nil {
		return v.settle(runs, err)
	}
	j, err := writeJournal(v.dir, v.journal.Generation+1, v.geometry, whole)
	if err == nil {
		j.slack = v.journal.slack
		_ = v.journal.f.Close() // of which nothing is needed any more
		v.journal = j
		return v.settle(runs, nil)
	}
	if v.fail(err); v.usable() == nil {
		// There is no room for another one; the old one may have some.
		err = v.append(runs, nil)
	}
	return v.settle(runs, err)
}

// takePending returns what the journal is to be told, and if it is to be written anew all
// that it has to say. Blocks of that were written before, and are synced after.
func (v *Volume) takePending(anew bool) (runs []run, whole *batch) {
	v.mu.Lock()
	defer v.mu.Unlock()
	runs = v.state.takePending(v.geometry.blocks())
	if anew {
		whole = v.state.whole(v.geometry.blocks())
	}
	return runs, whole
}

func (v *Volume) syncBlocks() error {
	if !v.wrote.Swap(false) {
		return nil
	}
	err := v.blocks.Datasync()
	v.fail(err)
	return err
}

func (v *Volume) tell(runs []run, then *batch) error {
	v.journaling.Lock()
	defer v.journaling.Unlock()
	return v.append(runs, then)
}

// append writes runs to the journal, and then. The caller holds journaling.
func (v *Volume) append(runs []run, then *batch) error {
	b := new(batch)
	for _, r := range runs {
		b.run(r)
	}
	if then != nil {
		b.kinds, b.payloads = append(b.kinds, then.kinds...), append(b.payloads, then.payloads...)
	}
	err := v.journal.append(b)
	v.fail(err)
	return err
}

// settle ends a writeBack: what was pending is told, or pending again.
func (v *Volume) settle(runs []run, err error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err == nil {
		v.state.told(runs)
		return nil
	}
	for _, r := range runs {
		v.state.pending.Add(r.from, r.to)
	}
	return err
}

// reclaim gives back the space of blocks that the journal has for zeros.
func (v *Volume) reclaim(ctx context.Context) error {
	for _, r := range v.reclaimable(0, v.geometry.blocks()) {
		if err := v.punch(ctx, r.from, r.to); err != nil {
			return fmt.Errorf("give space back: %w", err)
		}
	}
	return nil
}

// reclaimable are runs of stale blocks that the journal knows for zeros.
func (v *Volume) reclaimable(from, to int64) (all []run) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for from, to := range v.state.stale.Runs(from, to) {
		for from, to := range v.state.pending.Gaps(from, to) {
			all = append(all, run{from: from, to: to})
		}
	}
	return all
}

func (v *Volume) punch(ctx context.Context, from, to int64) error {
	unlock, err := v.ranges.Lock(ctx, from/chunkBlocks, (to-1)/chunkBlocks+1)
	if err != nil {
		return err
	}
	defer unlock()
	w := v.looking()
	for _, r := range v.reclaimable(from, to) { // of what was, some may have been written since
		if w != nil && w.Keeps(r.from/chunkBlocks, (r.to-1)/chunkBlocks+1) {
			continue // until that was read
		}
		if err := v.blocks.Punch(r.from*BlockSize, (r.to-r.from)*BlockSize); err != nil {
			return err
		}
		v.mu.Lock()
		v.state.stale.Remove(r.from, r.to)
		v.mu.Unlock()
	}
	return nil
}
