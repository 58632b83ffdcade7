package volume

import (
	"context"
	"fmt"
)

// Extent is a part of a disk, as NBD's base:allocation tells it.
type Extent struct {
	Length int64 // bytes, more than 0
	Hole   bool  // neither the overlay nor the base has content for it
	Zero   bool  // it reads as zeros
}

// Copy is what somewhere else has of a volume: which blocks are there as they are here.
type Copy byte

// What can be elsewhere.
const (
	NoCopy   Copy = iota // nothing
	BaseCopy             // the base: what was never written
	MarkCopy             // the volume as it was at the last Mark: what is clean
)

// window is how much is looked at under one lock, in bytes: who asks for a large range often wants
// to know its beginning only.
const window = 64 << 20

// Extents yields what stands in a range: in order, without gaps, until yield returns false.
func (v *Volume) Extents(ctx context.Context, off, n int64, yield func(Extent) bool) error {
	return v.ExtentsBut(ctx, NoCopy, off, n, yield)
}

// ExtentsBut is Extents for who has a copy already: what the copy has as it is here is a hole that
// does not read as zeros. A block that is written is none from then on.
func (v *Volume) ExtentsBut(_ context.Context, there Copy, off, n int64, yield func(Extent) bool) error {
	if err := v.readable(off, n); err != nil {
		return fmt.Errorf("list extents: %w", err)
	}
	var last Extent
	add := func(e Extent) bool {
		if last.Length > 0 && (last.Hole != e.Hole || last.Zero != e.Zero) {
			if !yield(last) {
				return false
			}
			last.Length = 0
		}
		e.Length += last.Length
		last = e
		return true
	}
	for end := off + n; off < end; off += min(window, end-off) {
		at, to := off, off+min(window, end-off)
		for _, p := range v.changed(there, off, to-off) {
			if p.off > at && !add(Extent{Length: p.off - at, Hole: true}) || !v.list(p, add) {
				return nil
			}
			at = p.off + p.n
		}
		if at < to && !add(Extent{Length: to - at, Hole: true}) {
			return nil
		}
	}
	if last.Length > 0 {
		yield(last)
	}
	return nil
}

// list adds what stands in a part.
func (v *Volume) list(p part, add func(Extent) bool) bool {
	for _, s := range v.parts(p.off, p.n) {
		if s.source != fromBase {
			if empty := s.source == fromNowhere; !add(Extent{Length: s.n, Hole: empty, Zero: empty}) {
				return false
			}
			continue
		}
		for s.n > 0 {
			k, empty := min(ChunkSize-s.off%ChunkSize, s.n), v.base == nil || v.base.zero(s.off/ChunkSize)
			if !add(Extent{Length: k, Hole: empty, Zero: empty}) {
				return false
			}
			s.off, s.n = s.off+k, s.n-k
		}
	}
	return true
}

// changed are the parts of a range that a copy does not have as they are here.
func (v *Volume) changed(there Copy, off, n int64) (all []part) {
	if there == NoCopy {
		return []part{{off: off, n: n}}
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	one, other := &v.state.data, &v.state.zero
	if there == MarkCopy {
		one, other = &v.state.dirty, &v.state.committing
	}
	end := off + n
	to := (end + BlockSize - 1) / BlockSize
	for b := off / BlockSize; ; {
		b = one.Find(b, other.Find(b, to, true), true)
		if b >= to {
			return all
		}
		from := b
		for b < to && (one.Has(b) || other.Has(b)) {
			b = other.Find(one.Find(b, to, false), to, false)
		}
		start := max(from*BlockSize, off)
		all = append(all, part{off: start, n: min(b*BlockSize, end) - start})
	}
}

// Spared is how many bytes of the volume a copy has as they are here.
func (v *Volume) Spared(there Copy) int64 {
	spared := v.size
	for _, p := range v.changed(there, 0, v.size) {
		spared -= p.n
	}
	return spared
}

// Dirty yields the parts of a range that changed since the last commit that was done, or Mark, in
// order, until yield returns false. They begin and end with blocks, or with the range.
func (v *Volume) Dirty(_ context.Context, off, n int64, yield func(off, n int64) bool) error {
	if err := v.readable(off, n); err != nil {
		return fmt.Errorf("list dirty blocks: %w", err)
	}
	for _, p := range v.changed(MarkCopy, off, n) {
		if !yield(p.off, p.n) {
			break
		}
	}
	return nil
}
