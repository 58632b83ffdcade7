package volume

import (
	"context"
	"errors"
	"fmt"
	"os"

	"heliotrope/imagesync/volume/disk"
)

// source is where the content of a part of the disk is.
type source byte

const (
	fromBase source = iota
	fromOverlay
	fromNowhere // zeros
)

// part is a run of bytes with one source.
type part struct {
	source source
	off, n int64
}

// parts are what n bytes at off consist of, at this moment.
func (v *Volume) parts(off, n int64) []part {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var all []part
	for end := off + n; off < end; {
		from, last := off/BlockSize, (end+BlockSize-1)/BlockSize
		p := part{source: fromBase, off: off}
		var to int64
		switch {
		case v.state.data.Has(from):
			p.source, to = fromOverlay, v.state.data.Find(from, last, false)
		case v.state.zero.Has(from):
			p.source, to = fromNowhere, v.state.zero.Find(from, last, false)
		default:
			to = v.state.zero.Find(from, v.state.data.Find(from, last, true), true)
		}
		p.n = min(to*BlockSize, end) - off
		all = append(all, p)
		off += p.n
	}
	return all
}

// ReadAt fills p. What it needs of the base comes at once, and not one after the other.
func (v *Volume) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := v.readable(off, int64(len(p))); err != nil {
		return fmt.Errorf("read volume: %w", err)
	}
	parts := v.parts(off, int64(len(p)))
	release, err := v.request(parts)
	if err != nil {
		return fmt.Errorf("read volume: %w", err)
	}
	defer release()
	for _, s := range parts {
		if err := v.readPart(ctx, p[s.off-off:][:s.n], s); err != nil {
			return fmt.Errorf("read volume at %d: %w", s.off, err)
		}
	}
	return nil
}

// readable checks a read. A volume whose disk has failed can still be read.
func (v *Volume) readable(off, n int64) error {
	if err := v.usable(); errors.Is(err, ErrClosed) || errors.Is(err, ErrFenced) {
		return err
	}
	return v.within(off, n)
}

// request lets everything of the base come that some parts need. Until release is called
// it is wanted.
func (v *Volume) request(parts []part) (release func(), err error) {
	if v.base == nil {
		return func() {}, nil
	}
	var chunks []int64
	for _, s := range parts {
		if s.source != fromBase {
			continue
		}
		for c := s.off / ChunkSize; c*ChunkSize < s.off+s.n; c++ {
			if !v.base.zero(c) && (len(chunks) == 0 || chunks[len(chunks)-1] != c) {
				chunks = append(chunks, c)
			}
		}
	}
	if len(chunks) == 0 {
		return func() {}, nil
	}
	v.trace.Touch(chunks...)
	flights, err := v.base.join(chunks, true)
	return func() { v.base.leave(flights) }, err
}

func (v *Volume) readPart(ctx context.Context, p []byte, s part) error {
	switch {
	case s.source == fromOverlay:
		return v.readBlocks(p, s.off)
	case s.source == fromBase && v.base != nil:
		return v.base.ReadAt(ctx, p, s.off)
	}
	clear(p)
	return nil
}

func (v *Volume) readBlocks(p []byte, off int64) error {
	_, err := v.blocks.ReadAt(p, off)
	if errors.Is(err, os.ErrClosed) {
		if why := v.usable(); why != nil {
			return why
		}
	}
	return err
}

// ReadNow fills p if nothing has to be waited for, and else returns false; p may then have
// been written to.
func (v *Volume) ReadNow(p []byte, off int64) bool {
	if v.readable(off, int64(len(p))) != nil {
		return false
	}
	for _, s := range v.parts(off, int64(len(p))) {
		q := p[s.off-off:][:s.n]
		if s.source == fromBase && v.base != nil {
			v.touch(s)
			if !v.base.ReadNow(q, s.off) {
				return false
			}
		} else if v.readPart(context.Background(), q, s) != nil {
			return false
		}
	}
	return true
}

// Backing returns the overlay's file and where a range stands in it, if all of it is the
// overlay's; else nil. A block has one place there for good, which changes only as the block does:
// its space is given back only once it is zeros.
func (v *Volume) Backing(off, n int64) (f *os.File, at int64) {
	blocks, ok := v.blocks.(disk.OSFile)
	if !ok || v.readable(off, n) != nil {
		return nil, 0
	}
	if parts := v.parts(off, n); len(parts) != 1 || parts[0].source != fromOverlay {
		return nil, 0
	}
	return blocks.File, off
}

// touch records that a part of the base was asked for.
func (v *Volume) touch(s part) {
	for c := s.off / ChunkSize; c*ChunkSize < s.off+s.n; c++ {
		if !v.base.zero(c) {
			v.trace.Touch(c)
		}
	}
}

// Prefetch returns once a range is here.
func (v *Volume) Prefetch(ctx context.Context, off, n int64) error {
	if err := v.readable(off, n); err != nil || v.base == nil {
		return err
	}
	for _, s := range v.parts(off, n) {
		if s.source == fromBase {
			if err := v.base.Prefetch(ctx, s.off, s.n); err != nil {
				return fmt.Errorf("prefetch of volume: %w", err)
			}
		}
	}
	return nil
}

// Trace are the chunks of the base in the order in which they were first read since the
// volume was opened, up to TraceLimit: what Cache.Fill is to begin with, next time.
func (v *Volume) Trace() []int { return v.trace.Chunks() }
