package spread

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/zeebo/blake3"

	"heliotrope"
)

// Feeder is a host to get pieces from.
type Feeder struct {
	Host   heliotrope.HostID `json:"host"`
	Remote bool              `json:"remote,omitempty"` // across a WAN: it is not asked only because another one is slow
}

// ErrWrongPiece says that no feeder has a piece as the Outline describes it.
var ErrWrongPiece = errors.New("no feeder has the right piece")

// Why a session with a feeder ends, other than that its connection does.
var (
	errSilent   = errors.New("the feeder is silent")
	errOrphaned = errors.New("the feeder has had no feeder for long")
	errSlow     = errors.New("the feeder is slow")
	errStalled  = errors.New("the feeder has more and sends nothing")
	errWrong    = errors.New("the feeder does not have the right pieces")
	errRefused  = errors.New("the feeder refused")
	errReturn   = errors.New("a feeder that is better placed lives again")
)

const (
	strikes   = 2 // wrong pieces in one session, and the feeder is passed over
	wrongMost = 8 // wrong copies of a piece, from whomever, and there is no right one
)

// receiver is one Receive.
type receiver struct {
	share    *Share
	node     *Node
	from     []Feeder
	priority Priority
	hash     *blake3.Hasher

	slowed int         // how often a feeder was passed over because it is slow
	passed []verdict   // by feeder
	wrong  map[int]int // by piece: wrong copies of it
}

// verdict is what became of a feeder.
type verdict int

const (
	sound verdict = iota
	slow          // to be gone back to if it has kept up, for a stall makes everybody slow
	unfit         // not to be gone back to
)

// link is an open connection to a feeder.
type link struct {
	feeder int // in receiver.from
	conn   net.Conn
	in     *bufio.Reader
	limit  time.Duration // for a write
}

// Receive gets the pieces that the host does not have from the first of these feeders that
// lives, and returns nil once it has all. When none lives it tries again and again, until ctx ends.
// It fails when a piece cannot be stored, and when there is no right one. Receive may be called
// again.
func (s *Share) Receive(ctx context.Context, from []Feeder, p Priority) error {
	if err := s.start(); err != nil {
		return err
	}
	defer s.update(func() { s.receiving = false })
	r := &receiver{share: s, node: s.node, from: from, priority: p, hash: blake3.New(), passed: make([]verdict, len(from)), wrong: map[int]int{}}
	if err := r.run(ctx); err != nil {
		return fmt.Errorf("receive %v: %w", s.outline.ID(), err)
	}
	return nil
}

func (s *Share) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.receiving {
		return fmt.Errorf("receive %v: it is being received already", s.outline.ID())
	}
	s.receiving = true
	s.heard, s.fed = time.Now(), time.Now()
	s.pace.start(time.Now(), s.bytes)
	return nil
}

// run goes from feeder to feeder until all is there.
func (r *receiver) run(ctx context.Context) error {
	at, rounds := 0, 0
	for !r.share.complete() {
		if len(r.from) == 0 {
			return errors.New("there is no host to get it from")
		}
		l := r.reach(ctx, at)
		if ctx.Err() != nil {
			if l != nil {
				l.conn.Close()
			}
			return context.Cause(ctx)
		}
		if l == nil {
			clear(r.passed) // better from a slow one than from none
			pause(ctx, r.node.beat()<<min(rounds, 4))
			at, rounds = 0, rounds+1
			continue
		}
		before := r.pieces()
		var err error
		if at, err = r.stay(ctx, l); err != nil {
			return err
		}
		if r.pieces() > before {
			rounds = 0
		}
	}
	return nil
}

// reach opens a link to the first feeder that answers, of those from a place in the list on; nil
// if none does. A dead host takes its time to be known as dead, and after the death of many hosts each has
// a list of them: so the next one is dialled when the one before has not answered soon.
func (r *receiver) reach(ctx context.Context, at int) *link {
	type answer struct {
		at   int
		link *link
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers, dialling := make(chan answer), 0
	dial := func() {
		for at < len(r.from) && r.passed[at] != sound {
			at++
		}
		if i := at; i < len(r.from) {
			at, dialling = at+1, dialling+1
			go func() {
				l, err := r.open(ctx, i)
				answers <- answer{i, l, err}
			}()
		}
	}
	soon := time.NewTicker(r.node.beat())
	defer soon.Stop()
	var best *link
	for dial(); dialling > 0; {
		select {
		case <-soon.C:
			if best == nil {
				dial()
			}
			continue
		case a := <-answers:
			dialling--
			switch {
			case a.err != nil && best == nil:
				r.failed(a.at, a.err)
				dial()
			case a.err != nil:
			case best == nil:
				best = a.link
				cancel()
			case best.feeder > a.at:
				best.conn.Close()
				best = a.link
			default:
				a.link.conn.Close()
			}
		}
	}
	return best
}

// stay is fed by l, and by what is found to be better, for as long as that goes well. It
// returns which feeder to try then; an error is the end of all.
func (r *receiver) stay(ctx context.Context, l *link) (next int, err error) {
	for {
		at, before := l.feeder, r.pieces()
		better := r.lookBack(ctx, at)
		err := r.session(ctx, l, better.found)
		l = better.stop()
		var fatal fatalError
		done := err == nil || ctx.Err() != nil || errors.As(err, &fatal)
		if done && l != nil {
			l.conn.Close()
		}
		switch {
		case err == nil:
			return at, nil
		case fatal.error != nil:
			return at, fatal.error
		case ctx.Err() != nil:
			return at, context.Cause(ctx)
		}
		if !errors.Is(err, errReturn) {
			r.failed(at, err)
		}
		switch {
		case errors.Is(err, errSlow) && r.passed[at] == sound:
			r.passed[at] = slow
		case errors.Is(err, errSlow), errors.Is(err, errWrong), errors.Is(err, errStalled):
			r.passed[at] = unfit
		}
		switch {
		case l != nil:
			r.node.log.Info("return to a feeder that is better placed", "content", r.share.outline.ID(), "feeder", r.from[l.feeder].Host)
		case passesOver(err) || r.pieces() == before:
			return at + 1, nil
		default:
			return at, nil // a connection that broke is no host that died
		}
	}
}

// pieces is how many are there.
func (r *receiver) pieces() int {
	r.share.mu.Lock()
	defer r.share.mu.Unlock()
	return r.share.pieces
}

// passesOver says whether err is about the feeder, and not about the connection to it alone.
func passesOver(err error) bool {
	about := []error{errSilent, errOrphaned, errSlow, errStalled, errWrong, errRefused}
	return slices.ContainsFunc(about, func(e error) bool { return errors.Is(err, e) })
}

// fatalError is one that another feeder does not mend.
type fatalError struct{ error }

func (r *receiver) failed(at int, err error) {
	r.node.log.Warn("lost a feeder", "content", r.share.outline.ID(), "feeder", r.from[at].Host, "error", err)
	r.share.update(func() { r.share.lastError = fmt.Errorf("get pieces from %s: %w", r.from[at].Host, err) })
}

// open dials a feeder and says hello.
func (r *receiver) open(ctx context.Context, at int) (*link, error) {
	dialing, cancel := context.WithTimeout(ctx, r.node.silence)
	defer cancel()
	conn, err := r.node.dial(dialing, r.from[at].Host)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	stop := context.AfterFunc(dialing, func() { conn.Close() })
	l := &link{feeder: at, conn: conn, in: bufio.NewReaderSize(impatient{conn, r.node.silence}, 64<<10), limit: r.node.patience()}
	o := r.share.outline
	err = l.write(hello{id: o.ID(), pieces: o.Len(), priority: r.priority}.append(nil))
	if !stop() {
		err = errors.Join(err, context.Cause(dialing))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("say hello: %w", err)
	}
	return l, nil
}

func (l *link) write(b []byte) error {
	if err := l.conn.SetWriteDeadline(time.Now().Add(l.limit)); err != nil {
		return fmt.Errorf("ask feeder: %w", err)
	}
	if _, err := l.conn.Write(b); err != nil {
		return fmt.Errorf("ask feeder: %w", err)
	}
	return nil
}
