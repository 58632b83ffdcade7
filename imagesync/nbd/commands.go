package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// statusExtents is the most that a reply to a block status tells of a context: it fits into
// statusCost, and a client that has more to know asks again.
const statusExtents = 4096

// carryOut does what a request says, and answers it. It is a worker's.
func (s *session) carryOut(ctx context.Context, r request) {
	// Large data goes out while the processor still has it.
	defer s.out.send(r.kind != cmdRead || r.n < spliceLeast)
	switch r.kind {
	case cmdRead:
		s.read(ctx, &r)
		return
	case cmdBlockStatus:
		s.blockStatus(ctx, &r)
		return
	}
	err := s.change(ctx, &r)
	if r.data != nil {
		r.data.free()
	}
	code := s.errno(ctx, &r, err)
	if r.whole != nil {
		if code != 0 {
			r.whole.code.Store(code)
		}
		if r.whole.left.Add(-1) > 0 {
			s.budget.give(r.held)
			return
		}
		code = r.whole.code.Load()
	}
	answer := simple(r.cookie, code)
	answer.cost = r.held
	s.out.put(answer)
}

// change carries out what has no data to answer with.
func (s *session) change(ctx context.Context, r *request) error {
	off, n := int64(r.off), int64(r.n)
	fua := r.flags&cmdFlagFUA != 0
	var err error
	switch r.kind {
	case cmdWrite:
		return s.device.WriteAt(ctx, r.data.data(int(r.n)), off, fua)
	case cmdFlush:
		return s.device.Flush(ctx)
	case cmdCache:
		return s.device.(Prefetcher).Prefetch(ctx, off, n)
	case cmdTrim:
		err = s.device.Trim(ctx, off, n)
	case cmdWriteZeroes:
		zero := s.device.Zero
		if r.flags&cmdFlagFastZero != 0 {
			zero = s.device.(FastZeroer).ZeroFast
		}
		err = zero(ctx, off, n, r.flags&cmdFlagNoHole == 0)
	}
	if err == nil && fua {
		err = s.device.Flush(ctx)
	}
	return err
}

// errno is what a device's error is to the client, 0 where there is none. The log gets a
// line, unless it is no fault of the device.
func (s *session) errno(ctx context.Context, r *request, err error) uint32 {
	if err == nil {
		return 0
	}
	ended := ctx.Err() != nil
	if !ended && !errors.Is(err, ErrNotFast) {
		s.log.Error("a device failed", "export", s.name, "command", commandNames[r.kind], "offset", r.off, "length", r.n, "error", err)
	}
	return code(err, ended)
}

// read answers a read. Its memory has been reserved.
func (s *session) read(ctx context.Context, r *request) {
	if s.splice(ctx, r) {
		return
	}
	n := int(r.n)
	b := newBuffer(n)
	if err := s.device.ReadAt(ctx, b.data(n), int64(r.off)); err != nil {
		b.free()
		s.budget.give(r.held)
		s.refuse(r, s.errno(ctx, r, err))
		return
	}
	s.answer(r, b)
}

// answer answers a read with what a buffer has, which is then freed.
func (s *session) answer(r *request, b *buffer) {
	if !s.structured {
		begin := headroom - simpleSize
		putSimple(b.all[begin:], r.cookie, 0)
		s.out.put(reply{body: b.all[begin : headroom+int(r.n)], buffer: b, cost: r.held})
		return
	}
	parts := chunks(b, r)
	last := &parts[len(parts)-1]
	last.buffer, last.cost = b, r.held
	s.out.put(parts...)
}

// chunks are a read's data, with long runs of zeros told as such. A chunk's header stands in
// the buffer before its data, where the headroom is or zeros that are not sent.
func chunks(b *buffer, r *request) (parts []reply) {
	n, data := int(r.n), b.data(int(r.n))
	at := 0 // where the next chunk begins
	tell := func(to int) {
		if to > at {
			begin := headroom + at - dataHead
			putData(b.all[begin:], r.cookie, int64(r.off)+int64(at), to-at, to == n)
			parts = append(parts, reply{body: b.all[begin : headroom+to]})
		}
		at = to
	}
	zeroRuns(data, int64(r.off), func(from, to int) bool {
		if r.flags&cmdFlagDF != 0 && to-from < n {
			return false // one chunk was asked for
		}
		tell(from)
		hole := reply{length: chunkSize + holeSize}
		putHole(hole.head[:], r.cookie, int64(r.off)+int64(from), to-from, to == n)
		parts = append(parts, hole)
		at = to
		return true
	})
	tell(n)
	return parts
}

// blockStatus answers with a chunk for each context. Its memory has been reserved.
func (s *session) blockStatus(ctx context.Context, r *request) {
	var parts []reply
	for i, id := range s.contexts {
		body, err := s.status(ctx, r, id)
		if err != nil {
			s.budget.give(r.held)
			s.refuse(r, s.errno(ctx, r, err))
			return
		}
		part := reply{length: chunkSize + 4, body: body}
		putChunk(part.head[:], chunkStatus, r.cookie, 4+len(body), i == len(s.contexts)-1)
		binary.BigEndian.PutUint32(part.head[chunkSize:], id)
		parts = append(parts, part)
	}
	parts[len(parts)-1].cost = r.held
	s.out.put(parts...)
}

// status is what a context has to say of a range: pairs of a length and a state.
func (s *session) status(ctx context.Context, r *request, id uint32) ([]byte, error) {
	d := descriptors{left: int64(r.n), most: statusExtents}
	if r.flags&cmdFlagReqOne != 0 {
		d.most = 1
	}
	var err error
	if id == idDirty {
		begin, at := int64(r.off), int64(r.off)
		err = s.device.(Tracker).Dirty(ctx, begin, int64(r.n), func(off, n int64) bool {
			more := off <= at || d.add(off-at, 0)
			at = off + n
			return more && d.add(n, stateDirty)
		})
		if err == nil {
			d.add(int64(r.n), 0) // the rest, if there is one
		}
	} else {
		err = s.device.Extents(ctx, int64(r.off), int64(r.n), func(e Extent) bool {
			state := uint32(0)
			if e.Hole {
				state |= stateHole
			}
			if e.Zero {
				state |= stateZero
			}
			return d.add(e.Length, state)
		})
	}
	if err == nil && len(d.all) == 0 {
		err = errors.New("it said nothing of the range")
	}
	if err != nil {
		return nil, fmt.Errorf("tell %s: %w", contextName(id), err)
	}
	return d.all, nil
}

// descriptors are pairs of a length and a state, as they go to the client.
type descriptors struct {
	all  []byte
	left int64 // bytes of the range that nothing was said of
	most int   // pairs
	full bool  // there would be more of them
	last uint32
}

// add says that the next n bytes are in a state, and returns whether more can be said.
func (d *descriptors) add(n int64, state uint32) bool {
	n = min(n, d.left)
	if d.full || n <= 0 {
		return !d.full && d.left > 0
	}
	if k := len(d.all); k > 0 && d.last == state {
		// The sum is not above the request's own 32 bits.
		binary.BigEndian.PutUint32(d.all[k-8:], binary.BigEndian.Uint32(d.all[k-8:])+uint32(min(n, math.MaxUint32)))
	} else {
		if d.full = k/8 == d.most; d.full {
			return false
		}
		d.all = binary.BigEndian.AppendUint32(d.all, uint32(n))
		d.all = binary.BigEndian.AppendUint32(d.all, state)
		d.last = state
	}
	d.left -= n
	return d.left > 0
}
