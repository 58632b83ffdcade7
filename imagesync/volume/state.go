package volume

import (
	"encoding/binary"
	"fmt"

	"heliotrope/imagesync/volume/bitmap"
	"heliotrope/imagesync/volume/frame"
	"heliotrope/imagesync/volume/recent"
)

// state is what the blocks of a volume are. A block that is neither data nor zero is the
// base's.
type state struct {
	data  bitmap.Set // in the overlay
	zero  bitmap.Set // zeros, whatever stands in the overlay's file
	dirty bitmap.Set // changed since the last commit, or since the one that is under way began
	// committing are the blocks of the commit that is under way.
	committing bitmap.Set

	// frozen are blocks that are data and clean to the journal; with a commit under way, clean
	// once it is done. Before such a block is written over, the journal has to say that it is dirty.
	frozen bitmap.Set
	// pending are blocks that are data or zero and something else to the journal.
	pending bitmap.Set
	// stale are zero blocks whose space in the overlay's file was not given back yet.
	stale bitmap.Set

	id uint64 // of the last commit
}

// become is what a run of blocks is from now on; without pending, as the journal says it.
func (s *state) become(r run) {
	switch r.what {
	case dataDirty, dataClean:
		s.data.Add(r.from, r.to)
		s.zero.Remove(r.from, r.to)
		s.stale.Remove(r.from, r.to)
	case zeroDirty, zeroClean:
		for from, to := range s.data.Runs(r.from, r.to) {
			s.stale.Add(from, to)
		}
		s.zero.Add(r.from, r.to)
		s.data.Remove(r.from, r.to)
	}
	if r.what <= markDirty {
		s.dirty.Add(r.from, r.to)
	}
}

// replay applies a frame of the journal.
func (s *state) replay(g geometry, kind frame.Kind, payload []byte) error {
	if kind == frameRuns {
		return decodeRuns(payload, g.blocks(), s.become)
	}
	if len(payload) != 8 {
		return fmt.Errorf("%w: a frame of kind %d with %d bytes", ErrDamaged, kind, len(payload))
	}
	id := binary.LittleEndian.Uint64(payload)
	switch kind {
	case frameBegin:
		s.begin(id)
	case frameDone:
		if id != s.id {
			return fmt.Errorf("%w: commit %d is done, and %d was the last to begin", ErrDamaged, id, s.id)
		}
		s.committing = bitmap.Set{}
	default:
		return fmt.Errorf("%w: a frame of kind %d", ErrDamaged, kind)
	}
	return nil
}

// recovered ends the reading of a journal. A commit that was under way is not any more.
func (s *state) recovered() {
	s.abandon()
	s.frozen = s.data.Clone()
	s.frozen.Subtract(&s.dirty)
}

// redo makes of blocks what they became without the journal's knowing it.
func (s *state) redo(from, to int64, what recent.State) {
	set, as := &s.data, dataDirty
	if what == recent.Zero {
		set, as = &s.zero, zeroDirty
	}
	for from, to := range set.Gaps(from, to) {
		s.pending.Add(from, to)
		s.become(run{from, to, as})
	}
}

// begin begins a commit of all that is dirty. If the one before was abandoned, its blocks
// are dirty again; in a journal, which does not know that, they are still committing.
func (s *state) begin(id uint64) {
	s.id = id
	s.committing.Union(&s.dirty)
	s.dirty = bitmap.Set{}
}

// abandon ends a commit that failed.
func (s *state) abandon() {
	s.dirty.Union(&s.committing)
	s.frozen.Subtract(&s.committing)
	s.committing = bitmap.Set{}
}

// takePending returns what the journal has to be told, and takes it for told.
func (s *state) takePending(blocks int64) []run {
	var all []run
	for from, to := range s.pending.Runs(0, blocks) {
		for from < to {
			r := run{from, to, dataDirty}
			if s.zero.Has(from) {
				r.what = zeroDirty
			}
			r.to = s.data.Find(from, to, r.what == zeroDirty)
			all = append(all, r)
			from = r.to
		}
	}
	s.pending = bitmap.Set{}
	return all
}

// told is called once the journal knows that runs of pending are what they are.
func (s *state) told(runs []run) {
	for _, r := range runs {
		s.frozen.Remove(r.from, r.to)
	}
}

// whole is the state as a journal that is written anew has it. Everything pending is told.
func (s *state) whole(blocks int64) *batch {
	b := new(batch)
	add := func(set *bitmap.Set, dirty, clean what) {
		for from, to := range set.Runs(0, blocks) {
			for from < to {
				r := run{from, to, clean}
				committing := s.committing.Has(from)
				if committing {
					r.what = dirty
				}
				r.to = s.committing.Find(from, to, !committing)
				b.run(r)
				from = r.to
			}
		}
	}
	add(&s.data, dataDirty, dataClean)
	add(&s.zero, zeroDirty, zeroClean)
	if s.id > 0 {
		b.addID(frameBegin, s.id) // it may be done later
	}
	marks := s.data.Clone()
	marks.Subtract(&s.frozen)
	marks.Union(&s.dirty)
	for from, to := range marks.Runs(0, blocks) {
		b.run(run{from, to, markDirty})
	}
	return b
}
