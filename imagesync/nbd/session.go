package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxWorkers is how many requests of a connection may wait at once, for disks and
	// networks. Clients have some 16 (QEMU) to 64 (nbdcopy) under way.
	maxWorkers = 128

	inputSize = 256 << 10 // bytes, that one system call may bring
	batchSize = 256 << 10 // of replies that the loop made
	batchFull = 64 << 10  // when they go out, though more could be made: the client is to have work, too
	batchRead = 64 << 10  // of a read that is answered among others
	nowLimit  = 1 << 20   // of any that the loop answers: it copies one after the other through memory that the processor has at hand

	pieceSize  = 1 << 20  // bytes of a write that a device gets at once; pieces begin at multiples of it
	drainLimit = 64 << 20 // of a write that is refused and yet read
	statusCost = 64 << 10 // memory for one reply to a block status
)

// request is one of a client, or a piece of a write.
type request struct {
	flags, kind uint16
	cookie      uint64
	off         uint64
	n           uint32  // bytes
	data        *buffer // of a write
	whole       *pieces // of a write, if it came in several
	held        int     // bytes of the budget, given back when it is answered
}

func (r *request) changes() bool {
	return r.kind == cmdWrite || r.kind == cmdTrim || r.kind == cmdWriteZeroes
}

// pieces are those of one write.
type pieces struct {
	left atomic.Int32
	code atomic.Uint32 // why one could not be written; 0: all were
}

// session is a connection after the handshake.
type session struct {
	name       string
	export     Export
	device     Device
	immediate  Immediate // the device; nil: it is not one
	now        uint32    // bytes of the largest read that the loop answers
	size       uint64
	structured bool
	contexts   []uint32
	log        *slog.Logger

	conn   net.Conn
	input  []byte
	rd, wr int // of input: what has come and was not used yet
	budget *budget
	out    *replies
	pipes  *pipes  // nil: reads are copied
	batch  *buffer // replies that the loop made; nil: none
	begin  int     // where they begin in it
	filled int     // and end

	jobs    chan request
	workers int
	working sync.WaitGroup
}

func newSession(h *handshake, log *slog.Logger) *session {
	s := &session{name: h.name, export: h.export, device: h.export.Device, size: uint64(h.export.Device.Size()), structured: h.structured,
		contexts: h.contexts, log: log, conn: h.conn, input: make([]byte, inputSize), budget: newBudget(memoryLimit), jobs: make(chan request)}
	s.immediate, _ = s.device.(Immediate)
	if _, ok := s.device.(Backed); ok {
		s.pipes = newPipes(s.conn)
	}
	if s.now = nowLimit; s.pipes != nil {
		s.now = spliceLeast - 1
	}
	s.out = newReplies(s.conn, s.budget, s.pipes)
	return s
}

// run serves requests until the client has enough, is gone, or ctx ends.
func (s *session) run(ctx context.Context) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(inner, func() {
		s.conn.SetReadDeadline(time.Unix(1, 0))
		s.conn.SetWriteDeadline(time.Now().Add(goodbye))
	})
	defer stop()
	err := s.loop(inner)
	if err != nil {
		cancel() // nobody waits for what is under way
	}
	s.flush()
	close(s.jobs)
	s.working.Wait()
	if s.pipes != nil {
		s.pipes.close()
	}
	if failure := s.out.failure(); failure != nil {
		err = failure
	}
	if err == nil || ctx.Err() != nil || gone(err) {
		return nil
	}
	return fmt.Errorf("export %q: %w", s.name, err)
}

// loop reads requests. It returns nil when the client says that it was the last one.
func (s *session) loop(ctx context.Context) error {
	for {
		h, err := s.next(requestSize)
		if err != nil {
			return err
		}
		if magic := binary.BigEndian.Uint32(h); magic != magicRequest {
			return fmt.Errorf("read NBD request: magic %#x", magic)
		}
		r := request{flags: binary.BigEndian.Uint16(h[4:]), kind: binary.BigEndian.Uint16(h[6:]), cookie: binary.BigEndian.Uint64(h[8:]),
			off: binary.BigEndian.Uint64(h[16:]), n: binary.BigEndian.Uint32(h[24:])}
		switch code := s.check(&r); {
		case r.kind == cmdDisconnect:
			return nil
		case code != 0:
			if r.kind == cmdWrite {
				err = s.drain(r.n)
			}
			s.refuse(&r, code)
		case r.kind == cmdWrite:
			err = s.takeWrite(ctx, r)
		case r.kind == cmdRead && s.immediate != nil && r.n <= s.now && s.readNow(&r):
		default:
			if r.held = memory(&r); r.held > 0 {
				s.reserve(r.held)
			}
			s.hand(ctx, r)
		}
		if err != nil {
			return err
		}
	}
}

// memory is what the reply to a request may take.
func memory(r *request) int {
	switch r.kind {
	case cmdRead:
		return cost(int(r.n))
	case cmdBlockStatus:
		return statusCost
	}
	return 0
}

// check says why a request cannot be carried out; 0: it can.
func (s *session) check(r *request) uint32 {
	flags := uint16(cmdFlagFUA) // means something only to some, and is taken of all
	switch r.kind {
	case cmdRead:
		if s.structured {
			flags |= cmdFlagDF
		}
	case cmdWriteZeroes:
		flags |= cmdFlagNoHole
		if _, ok := s.device.(FastZeroer); ok {
			flags |= cmdFlagFastZero
		}
	case cmdBlockStatus:
		flags |= cmdFlagReqOne
		if len(s.contexts) == 0 {
			return codeInvalid
		}
	case cmdCache:
		if _, ok := s.device.(Prefetcher); !ok {
			return codeInvalid
		}
	case cmdFlush:
		if r.off != 0 || r.n != 0 || r.flags&^flags != 0 {
			return codeInvalid
		}
		return 0
	case cmdWrite, cmdTrim:
	default:
		return codeInvalid
	}
	switch {
	case r.changes() && s.export.ReadOnly:
		return codePermission
	case r.flags&^flags != 0, r.n == 0, r.n > MaxRequest && (r.kind == cmdRead || r.kind == cmdWrite):
		return codeInvalid
	case r.off > s.size || uint64(r.n) > s.size-r.off:
		if r.kind == cmdWrite || r.kind == cmdWriteZeroes {
			return codeSpace
		}
		return codeInvalid
	}
	return 0
}

// next returns the next n bytes, fewer than the input holds. io.EOF means that there is no
// other request.
func (s *session) next(n int) ([]byte, error) {
	for s.wr-s.rd < n {
		if s.rd > 0 {
			s.wr = copy(s.input, s.input[s.rd:s.wr])
			s.rd = 0
		}
		s.flush() // all that came is answered: the client may wait for it
		got, err := s.conn.Read(s.input[s.wr:])
		s.wr += got
		if err != nil && s.wr < n {
			if err == io.EOF && s.wr > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("read NBD request: %w", err)
		}
	}
	s.rd += n
	return s.input[s.rd-n : s.rd], nil
}

// fill fills p with what comes next.
func (s *session) fill(p []byte) error {
	n := copy(p, s.input[s.rd:s.wr])
	s.rd += n
	if n == len(p) {
		return nil
	}
	s.flush()
	if _, err := io.ReadFull(s.conn, p[n:]); err != nil {
		return fmt.Errorf("read NBD write: %w", noEOF(err))
	}
	return nil
}

// drain reads the data of a write that is refused.
func (s *session) drain(n uint32) error {
	if n > drainLimit {
		return fmt.Errorf("read NBD request: a write of %d bytes", n)
	}
	has := min(int(n), s.wr-s.rd)
	s.rd += has
	if has == int(n) {
		return nil
	}
	s.flush()
	if _, err := io.CopyN(io.Discard, s.conn, int64(int(n)-has)); err != nil {
		return fmt.Errorf("read NBD write: %w", noEOF(err))
	}
	return nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// takeWrite takes a write's data and hands it on, piece by piece as it comes.
func (s *session) takeWrite(ctx context.Context, r request) error {
	end := r.off + uint64(r.n)
	if first := (r.off/pieceSize + 1) * pieceSize; end > first {
		r.whole = &pieces{}
		r.whole.left.Store(int32(1 + (end-first+pieceSize-1)/pieceSize))
	}
	for p := r; p.off < end; p.off += uint64(p.n) {
		p.n = uint32(min(end, (p.off/pieceSize+1)*pieceSize) - p.off)
		p.held = cost(int(p.n))
		s.reserve(p.held)
		p.data = newBuffer(int(p.n))
		if err := s.fill(p.data.data(int(p.n))); err != nil {
			return err
		}
		s.hand(ctx, p)
	}
	return nil
}

// reserve takes memory. Where it has to wait for it, replies go out first.
func (s *session) reserve(n int) {
	if !s.budget.try(n) {
		s.flush()
		s.budget.take(n)
	}
}

// hand gives a request to a worker.
func (s *session) hand(ctx context.Context, r request) {
	select {
	case s.jobs <- r:
		return
	default:
	}
	if s.workers < maxWorkers {
		s.workers++
		s.working.Go(func() {
			s.carryOut(ctx, r)
			for r := range s.jobs {
				s.carryOut(ctx, r)
			}
		})
		return
	}
	s.flush()
	s.jobs <- r
}

// readNow answers a read if the device can do so at once.
func (s *session) readNow(r *request) bool {
	if r.n > batchRead {
		return s.readLarge(r)
	}
	head := simpleSize
	if s.structured {
		head = dataHead
	}
	n := head + int(r.n)
	if s.batch != nil && s.filled+n > len(s.batch.all) {
		s.flush()
	}
	if s.batch == nil {
		s.reserve(batchSize)
		s.batch = newBuffer(batchSize)
		s.begin = headroom - head
		s.filled = s.begin
	}
	to := s.batch.all[s.filled:]
	data := to[head:n]
	if !s.immediate.ReadNow(data, int64(r.off)) {
		return false
	}
	switch {
	case !s.structured:
		putSimple(to, r.cookie, 0)
	case isZero(data):
		putHole(to, r.cookie, int64(r.off), len(data), true)
		n = chunkSize + holeSize
	default:
		putData(to, r.cookie, int64(r.off), len(data), true)
	}
	if s.filled += n; s.filled-s.begin >= batchFull {
		s.flush()
	}
	return true
}

// readLarge is readNow for a read that goes out by itself.
func (s *session) readLarge(r *request) bool {
	n := int(r.n)
	s.reserve(cost(n))
	b := newBuffer(n)
	if !s.immediate.ReadNow(b.data(n), int64(r.off)) {
		b.free()
		s.budget.give(cost(n))
		return false
	}
	r.held = cost(n)
	s.putBatch()
	s.answer(r, b)
	s.flush()
	return true
}

// flush writes what the loop has made, and all else that is ready.
func (s *session) flush() {
	s.putBatch()
	s.out.send(false)
}

func (s *session) putBatch() {
	if s.batch != nil {
		s.out.put(reply{body: s.batch.all[s.begin:s.filled], buffer: s.batch, cost: batchSize})
		s.batch = nil
	}
}

// refuse answers a request with an error.
func (s *session) refuse(r *request, code uint32) {
	if s.structured && (r.kind == cmdRead || r.kind == cmdBlockStatus) {
		s.out.put(failed(r.cookie, code))
		return
	}
	s.out.put(simple(r.cookie, code))
}
