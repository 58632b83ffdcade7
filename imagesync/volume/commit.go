package volume

import (
	"context"
	"errors"
	"fmt"

	"heliotrope/imagesync/volume/bitmap"
	"heliotrope/imagesync/volume/disk"
)

// commit is one that is under way. Everything but before's content is guarded by mu of the
// volume; who reads or saves a chunk holds its range.
type commit struct {
	chunks bitmap.Set      // that have a dirty block
	next   int64           // chunks before this one were read
	saved  map[int64]saved // chunks that were changed before they were read
	before disk.File       // their blocks, in their places; nil for none yet
	failed error
}

// saved says what the blocks of a chunk were when the commit began: a bit each.
type saved struct{ data, zero uint16 }

// Commit gives put every chunk that has a block which changed since the last commit: ChunkSize
// bytes, as they were when Commit was called, in order; chunk is put's until it returns. Then
// it calls done, and if that succeeds too, these blocks are clean. Nothing but these chunks is
// read. What is written meanwhile is the next commit's. If anything fails, or crashes, the blocks
// stay dirty, and the next commit has them.
func (v *Volume) Commit(ctx context.Context, put func(ctx context.Context, i int, chunk []byte) error, done func(ctx context.Context) error) error {
	v.commits.Lock()
	defer v.commits.Unlock()
	c, err := v.begin(ctx)
	if err != nil {
		return fmt.Errorf("begin commit: %w", err)
	}
	if err = v.give(ctx, c, put); err == nil && done != nil {
		err = done(ctx)
	}
	if err = v.end(c, err); err != nil {
		return fmt.Errorf("commit volume: %w", err)
	}
	return nil
}

// begin makes what is dirty the commit's.
func (v *Volume) begin(ctx context.Context) (*commit, error) {
	// Most of the work is done while writes go on.
	if err := v.Flush(ctx); err != nil {
		return nil, err
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
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state.begin(id)
	// All data is clean to the journal once the commit is done.
	v.state.frozen = v.state.data.Clone()
	c := &commit{saved: make(map[int64]saved)}
	for from, to := range v.state.committing.Runs(0, v.geometry.blocks()) {
		c.chunks.Add(from/chunkBlocks, (to-1)/chunkBlocks+1)
	}
	v.commit = c
	return c, nil
}

// give reads the chunks of a commit.
func (v *Volume) give(ctx context.Context, c *commit, put func(context.Context, int, []byte) error) error {
	chunk := make([]byte, ChunkSize)
	last := (v.size + ChunkSize - 1) / ChunkSize
	for i := c.chunks.Find(0, last, true); i < last; i = c.chunks.Find(i+1, last, true) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		s, err := v.take(ctx, c, i, chunk)
		if err != nil {
			return fmt.Errorf("read chunk %d: %w", i, err)
		}
		if err := v.fillUp(ctx, i, s, chunk); err != nil {
			return fmt.Errorf("read chunk %d: %w", i, err)
		}
		if err := put(ctx, int(i), chunk); err != nil {
			return fmt.Errorf("put chunk %d: %w", i, err)
		}
	}
	return nil
}

// take reads what the overlay had of a chunk when the commit began. Writers need not save
// it any more.
func (v *Volume) take(ctx context.Context, c *commit, i int64, chunk []byte) (saved, error) {
	unlock, err := v.ranges.Lock(ctx, i, i+1)
	if err != nil {
		return saved{}, err
	}
	defer unlock()
	v.mu.RLock()
	s, wasSaved := c.saved[i]
	failed, from := c.failed, c.before
	if !wasSaved {
		s, from = v.state.masks(i), v.blocks
	}
	v.mu.RUnlock()
	if failed != nil {
		return s, failed
	}
	if err := s.read(from, i, chunk); err != nil {
		return s, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	c.next = i + 1
	delete(c.saved, i)
	return s, nil
}

// masks say what the blocks of a chunk are now.
func (s *state) masks(chunk int64) (m saved) {
	for b := range int64(chunkBlocks) {
		if s.data.Has(chunk*chunkBlocks + b) {
			m.data |= 1 << b
		} else if s.zero.Has(chunk*chunkBlocks + b) {
			m.zero |= 1 << b
		}
	}
	return m
}

// runs calls f for each run of set bits of a mask.
func maskRuns(mask uint16, f func(from, to int64) error) error {
	for b := int64(0); b < chunkBlocks; b++ {
		if mask>>b&1 == 0 {
			continue
		}
		from := b
		for b < chunkBlocks && mask>>b&1 != 0 {
			b++
		}
		if err := f(from, b); err != nil {
			return err
		}
	}
	return nil
}

// read reads a chunk's data blocks from where they are, in their places.
func (s saved) read(f disk.File, chunk int64, p []byte) error {
	return maskRuns(s.data, func(from, to int64) error {
		_, err := f.ReadAt(p[from*BlockSize:to*BlockSize], chunk*ChunkSize+from*BlockSize)
		return err
	})
}

// fillUp completes a chunk by what is not the overlay's.
func (v *Volume) fillUp(ctx context.Context, i int64, s saved, chunk []byte) error {
	err := maskRuns(^s.data, func(from, to int64) error {
		p := chunk[from*BlockSize : to*BlockSize]
		if v.base == nil || s.zero == ^s.data || v.base.zero(i) {
			clear(p)
			return nil
		}
		return v.base.ReadAt(ctx, p, i*ChunkSize+from*BlockSize)
	})
	if err != nil {
		return err
	}
	err = maskRuns(s.zero, func(from, to int64) error {
		clear(chunk[from*BlockSize : to*BlockSize])
		return nil
	})
	if behind := (i+1)*ChunkSize - v.size; behind > 0 {
		clear(chunk[ChunkSize-behind:])
	}
	return err
}

// preserve saves the chunks from from on and before to that a commit has not read yet; they
// are about to be changed, and the caller holds their range. If they cannot be saved, it is the
// commit that fails.
func (v *Volume) preserve(from, to int64) {
	v.mu.RLock()
	c := v.commit
	v.mu.RUnlock()
	if c == nil {
		return
	}
	var buf []byte
	for first, end := range c.chunks.Runs(from, to) { // which do not change
		for i := first; i < end; i++ {
			v.mu.RLock()
			_, was := c.saved[i]
			skip := was || i < c.next || c.failed != nil
			s := v.state.masks(i)
			v.mu.RUnlock()
			if skip {
				continue
			}
			if buf == nil {
				buf = make([]byte, ChunkSize)
			}
			if err := v.save(c, i, s, buf); err != nil {
				v.mu.Lock()
				c.failed = errors.Join(c.failed, fmt.Errorf("save chunk %d, which is written to: %w", i, err))
				v.mu.Unlock()
				return
			}
		}
	}
}

func (v *Volume) save(c *commit, i int64, s saved, buf []byte) error {
	if s.data != 0 {
		if err := s.read(v.blocks, i, buf); err != nil {
			return err
		}
		before, err := v.beforeFile(c)
		if err != nil {
			return err
		}
		err = maskRuns(s.data, func(from, to int64) error {
			_, err := before.WriteAt(buf[from*BlockSize:to*BlockSize], i*ChunkSize+from*BlockSize)
			return err
		})
		if err != nil {
			return err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	c.saved[i] = s
	return nil
}

// beforeFile is made by the first who needs it.
func (v *Volume) beforeFile(c *commit) (disk.File, error) {
	v.journaling.Lock() // whose holder may do I/O
	defer v.journaling.Unlock()
	v.mu.RLock()
	f := c.before
	v.mu.RUnlock()
	if f != nil {
		return f, nil
	}
	f, err := v.dir.Create(beforeFile)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	c.before = f
	return f, nil
}

// end ends a commit: its blocks are clean, or dirty again.
func (v *Volume) end(c *commit, err error) error {
	v.gate.Lock() // who is saving a chunk ends that before
	defer v.gate.Unlock()
	v.flushing.Lock()
	defer v.flushing.Unlock()
	v.mu.RLock()
	if err == nil {
		err = c.failed
	}
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
	v.commit = nil
	v.mu.Unlock()
	if c.before != nil {
		err = errors.Join(err, c.before.Close(), v.dir.Remove(beforeFile))
	}
	return err
}
