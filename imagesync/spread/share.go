package spread

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"heliotrope"
)

// Share is a content at a host: what of it is there is served to others, and Receive gets
// the rest.
type Share struct {
	node    *Node
	outline *Outline
	store   Store
	serving sync.WaitGroup

	mu        sync.Mutex
	changed   chan struct{} // closed and renewed with each change of what follows
	have      set
	pieces    int
	bytes     int64
	coming    *attempt // the piece that comes in, nil between two
	receiving bool
	feeder    heliotrope.HostID // empty: none at the moment
	upstream  status            // what the feeder said last
	session   uint32            // counts feeders
	clients   map[*client]context.CancelCauseFunc
	closed    bool
	sent      int64
	wrong     int
	lastError error
	pace      pace
	storing   storing
	lame      bool      // other feeders did not help
	source    bool      // it comes otherwise than from a feeder
	heard     time.Time // when a feeder last said that it is live, or the host began to ask
	fed       time.Time // when one last sent something, or the same
}

// attempt is a piece that comes in.
type attempt struct {
	piece int
	buf   []byte
	// Guarded by Share.mu. Bytes before ready do not change any more.
	ready int
	void  bool
	twice bool // it has come otherwise since it was asked for
}

func newShare(n *Node, o *Outline, st Store) *Share {
	s := &Share{node: n, outline: o, store: st, changed: make(chan struct{}), have: newSet(o.Len()), clients: map[*client]context.CancelCauseFunc{},
		heard: time.Now(), fed: time.Now()}
	for i := range o.Len() {
		if st.Has(i) {
			s.have.add(i)
			s.pieces++
			s.bytes += int64(o.Piece(i).Length)
		}
	}
	return s
}

// Close ends the offer: who is fed from here looks for another feeder at once. It waits until
// the store is not used any more. Receive must have returned.
func (s *Share) Close() {
	s.node.withdraw(s.outline.ID())
	s.mu.Lock()
	s.closed = true
	for _, cancel := range s.clients {
		cancel(ErrWithdrawn)
	}
	s.mu.Unlock()
	s.serving.Wait()
}

// update changes the share's state and wakes who waits for that.
func (s *Share) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Share) complete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.whole()
}

// whole is complete with the lock held.
func (s *Share) whole() bool { return s.pieces == s.outline.Len() }

func (s *Share) missing() []run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.have.missing(s.outline.Len())
}

// begin makes the attempt at a piece that is missing.
func (s *Share) begin(piece int) (*attempt, error) {
	if piece >= s.outline.Len() {
		return nil, fmt.Errorf("take piece %d: there are %d", piece, s.outline.Len())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.coming != nil {
		return nil, fmt.Errorf("take piece %d: another is coming", piece)
	}
	if s.have.has(piece) {
		return &attempt{piece: piece, buf: make([]byte, s.outline.Piece(piece).Length), twice: true}, nil
	}
	s.coming = &attempt{piece: piece, buf: make([]byte, s.outline.Piece(piece).Length)}
	return s.coming, nil
}

// pass lets successors have the attempt up to ready.
func (s *Share) pass(a *attempt, ready int) { s.update(func() { a.ready = ready }) }

// drop forgets the attempt.
func (s *Share) drop(a *attempt) {
	s.update(func() {
		a.void = true
		if !a.twice {
			s.coming = nil
		}
	})
}

// keep stores an attempt that has been checked. It is passed on before it is stored, so that
// disks do not add up along the chain.
func (s *Share) keep(a *attempt) error {
	if a.twice {
		return nil
	}
	s.pass(a, len(a.buf))
	began := time.Now()
	err := s.store.Put(a.piece, a.buf)
	s.update(func() {
		s.storing.took(began, time.Now())
		s.coming = nil
		if err != nil {
			return
		}
		s.add(a.piece)
		s.pace.add(time.Now(), s.bytes)
	})
	if err != nil {
		return fmt.Errorf("store piece %d: %w", a.piece, err)
	}
	return nil
}

// status is how this host stands, for its successors.
func (s *Share) status() status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := status{
		live: s.whole() || s.feeder != "" || s.source, lame: s.lame || s.storing.share > 0.5,
		have: uint64(s.bytes), feeds: uint16(min(len(s.clients), math.MaxUint16)), session: s.session,
	}
	if s.feeder != "" {
		st.upHave, st.upFeeds = s.upstream.have, s.upstream.feeds
	}
	return st
}

// storing is which share of its time a host waits for its disk.
type storing struct {
	share float64 // of the time between pieces, the last ones counting most
	last  time.Time
}

func (st *storing) took(began, ended time.Time) {
	if all := ended.Sub(st.last); !st.last.IsZero() && all > 0 {
		st.share += 0.3 * (float64(ended.Sub(began))/float64(all) - st.share)
	}
	st.last = ended
}
