package spread

import (
	"context"
	"fmt"
	"io"
	"time"
)

// session is fed over l until all is there, or until it returns why not.
func (r *receiver) session(ctx context.Context, l *link, better <-chan struct{}) error {
	defer l.conn.Close()
	stop := context.AfterFunc(ctx, func() { l.conn.Close() })
	defer stop()
	s := r.share
	s.update(func() { s.feeder, s.upstream = r.from[l.feeder].Host, status{}; s.session++ })
	in := &intake{receiver: r, link: l, asked: newSet(s.outline.Len()), lived: time.Now(), fed: time.Now()}
	defer s.update(func() { s.feeder, s.upstream = "", status{} })
	defer in.abandon()
	var wants []byte
	for _, w := range s.missing() {
		wants = appendWant(wants, w)
		in.asked.addRun(w.from, w.n)
	}
	if err := l.write(wants); err != nil {
		return err
	}
	for !s.complete() {
		if err := in.next(); err != nil {
			if isTimeout(err) {
				return fmt.Errorf("%w: %w", errSilent, err)
			}
			return err
		}
		select {
		case <-better:
			if in.coming == nil {
				return errReturn
			}
		default:
		}
	}
	return nil
}

// intake is what a session takes in.
type intake struct {
	*receiver
	link    *link
	asked   set // pieces that are to come
	coming  *attempt
	fill    int // bytes of coming
	strikes int
	lived   time.Time // when the feeder was last known to be live
	fed     time.Time // when it last sent something, or needed not
	trail   []trace   // of how the feeder stood
	traced  uint32    // the feeder's session in which the trail was made
}

// next takes a frame.
func (in *intake) next() error {
	f, err := readFrame(in.link.in)
	if err != nil {
		return err
	}
	switch f.kind {
	case kindData:
		return in.data(f)
	case kindVoid:
		if in.coming == nil || in.coming.piece != f.piece {
			return fmt.Errorf("forget piece %d: it is not coming", f.piece)
		}
		in.asked.add(f.piece)
		in.abandon()
		return nil
	case kindStatus:
		return in.status(f.status)
	}
	if f.reason == reasonFault {
		return fmt.Errorf("%w: %v", errWrong, f.reason)
	}
	return fmt.Errorf("%w: %v", errRefused, f.reason)
}

// abandon forgets what is not whole.
func (in *intake) abandon() {
	if in.coming != nil {
		in.share.drop(in.coming)
		in.coming = nil
	}
}

// data takes a fragment, and the piece when it is its last.
func (in *intake) data(f frame) error {
	if in.coming == nil {
		if f.piece >= in.share.outline.Len() || !in.asked.has(f.piece) {
			return fmt.Errorf("take piece %d: it was not asked for", f.piece)
		}
		in.asked.remove(f.piece)
		a, err := in.share.begin(f.piece)
		if err != nil {
			return err
		}
		in.coming, in.fill = a, 0
		in.hash.Reset()
	}
	a := in.coming
	if f.piece != a.piece || f.offset != in.fill || f.length > len(a.buf)-in.fill {
		return fmt.Errorf("take %d bytes at %d of piece %d: not what comes next", f.length, f.offset, f.piece)
	}
	part := a.buf[in.fill : in.fill+f.length]
	if _, err := io.ReadFull(in.link.in, part); err != nil {
		return fmt.Errorf("read piece %d: %w", f.piece, noEOF(err))
	}
	in.fed = time.Now()
	in.share.mu.Lock()
	in.share.fed = in.fed
	in.share.mu.Unlock()
	in.hash.Write(part) // it never fails
	in.fill += f.length
	if in.fill < len(a.buf) {
		in.share.pass(a, in.fill)
		return nil
	}
	var sum Hash
	in.hash.Sum(sum[:0])
	if sum != in.share.outline.Piece(a.piece).Hash {
		return in.wrongPiece(a)
	}
	in.coming = nil
	if err := in.share.keep(a); err != nil {
		return fatalError{err}
	}
	return nil
}

// wrongPiece drops a piece and asks for it again, here or, if that was not the first one, elsewhere.
func (in *intake) wrongPiece(a *attempt) error {
	in.abandon()
	in.share.update(func() { in.share.wrong++ })
	in.wrong[a.piece]++
	in.strikes++
	in.node.log.Warn("got a wrong piece", "content", in.share.outline.ID(), "piece", a.piece, "feeder", in.from[in.link.feeder].Host)
	if in.wrong[a.piece] >= wrongMost {
		return fatalError{fmt.Errorf("piece %d: %w", a.piece, ErrWrongPiece)}
	}
	if in.strikes >= strikes && len(in.from) > 1 {
		return errWrong
	}
	in.asked.add(a.piece)
	return in.link.write(appendWant(nil, run{a.piece, 1}))
}

// status hears how the feeder stands, and says that this host lives.
func (in *intake) status(st status) error {
	now := time.Now()
	in.share.update(func() {
		in.share.upstream = st
		if st.live {
			in.share.heard = now
		}
	})
	if st.live {
		in.lived = now
	} else if now.Sub(in.lived) >= in.node.orphaned() {
		return errOrphaned
	}
	mine := uint64(in.share.Progress().Bytes)
	if st.held || st.have <= mine {
		in.fed = now
	} else if now.Sub(in.fed) >= in.node.patience() {
		return errStalled
	}
	if in.slow(st, mine, now) {
		return errSlow
	}
	return in.link.write(appendWant(nil, run{}))
}

// trace is what this host and the feeder's feeder had at a time.
type trace struct {
	at           time.Time
	mine, upHave uint64
}

const (
	slowLag  = 2 * MaxPiece // bytes that this host must be behind before its feeder is called slow
	slowMost = 4            // times that a feeder is passed over for that: it may be this host that is slow
)

// slow says that the feeder holds this host up: for a while less than half has come of what the
// host before it could have given, and that one is the next fallback, at the same site. What it could
// give is what came in there, over its feeds: two feeds of one line share it, and nobody is to run from a
// feeder that is slow because many did so. A feeder that has little itself is at fault only when it
// says that it takes no more; else its own feeder is, and it is the one to act.
func (in *intake) slow(st status, mine uint64, now time.Time) bool {
	next := in.link.feeder + 1
	if st.upHave == 0 || next >= len(in.from) || in.from[next].Remote || in.traced != st.session || in.slowed == slowMost {
		in.trail, in.traced = nil, st.session
		return false
	}
	in.trail = append(in.trail, trace{now, mine, st.upHave})
	window := in.node.slowWindow()
	for len(in.trail) > 1 && now.Sub(in.trail[1].at) >= window {
		in.trail = in.trail[1:]
	}
	first := in.trail[0]
	switch {
	case now.Sub(first.at) < window || st.upHave < first.upHave:
		return false
	case st.upHave < mine+slowLag || st.have < mine+slowLag && !st.lame:
		return false
	case 2*(mine-first.mine)*uint64(max(1, st.upFeeds)) >= st.upHave-first.upHave:
		return false
	}
	if in.slowed++; in.slowed == slowMost {
		in.share.update(func() { in.share.lame = true })
	}
	return true
}
