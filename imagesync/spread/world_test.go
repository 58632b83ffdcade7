package spread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"heliotrope"
)

// content is pieces and what describes them.
type content struct {
	pieces  [][]byte
	outline *Outline
}

func newContent(t fataler, seed uint64, lengths ...int) content {
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 7})
	var c content
	var list []Piece
	for _, n := range lengths {
		b := make([]byte, n)
		random.Read(b)
		c.pieces = append(c.pieces, b)
		list = append(list, Piece{uint32(n), HashOf(b)})
	}
	var err error
	if c.outline, err = NewOutline(list); err != nil {
		t.Fatal(err)
	}
	return c
}

// even is a content of n pieces of one length.
func even(t fataler, seed uint64, n, length int) content {
	return newContent(t, seed, slices.Repeat([]int{length}, n)...)
}

type fataler interface{ Fatal(...any) }

// shelf is a Store that takes nothing but what is right, and so needs to keep nothing.
type shelf struct {
	content
	mu    sync.Mutex
	has   []bool
	fault func(piece int) error // of Get
	delay time.Duration         // of Put
}

func newShelf(c content, full bool) *shelf {
	return &shelf{content: c, has: slices.Repeat([]bool{full}, len(c.pieces))}
}

func (s *shelf) Has(i int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.has[i]
}

func (s *shelf) Put(i int, data []byte) error {
	if !bytes.Equal(data, s.pieces[i]) {
		return errors.New("this is not the piece")
	}
	time.Sleep(s.delay)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.has[i] {
		return errors.New("this piece is here already")
	}
	s.has[i] = true
	return nil
}

func (s *shelf) Get(i int) ([]byte, error) {
	if s.fault != nil {
		if err := s.fault(i); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.has[i] {
		return nil, errors.New("this piece is not here")
	}
	return s.pieces[i], nil
}

func (s *shelf) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.Contains(s.has, false)
}

// world is a network in memory whose lines have a rate, for virtual time.
type world struct {
	t       *testing.T
	parts   sync.WaitGroup
	members map[heliotrope.HostID]*member

	mu      sync.Mutex
	crossed map[[2]heliotrope.HostID]int64 // bytes, from and to
	dials   map[[2]heliotrope.HostID]int
	spoil   func(from, to heliotrope.HostID, b []byte) // may change what crosses
}

// member is a host of the world.
type member struct {
	world *world
	id    heliotrope.HostID
	site  heliotrope.SiteID
	node  *Node
	rate  float64 // bytes a second of what it sends, 0: without end
	limit *Limit
	disk  time.Duration // that it needs to store a piece

	ctx context.Context
	end context.CancelFunc

	mu    sync.Mutex
	free  time.Time     // when its line is
	mute  chan struct{} // not nil: nothing passes until it is closed
	conns sync.WaitGroup
}

// newWorld has hosts named a0, a1, b0 and so on: the letter is the site.
func newWorld(t *testing.T, rate float64, names ...heliotrope.HostID) *world {
	w := &world{t: t, members: map[heliotrope.HostID]*member{}, crossed: map[[2]heliotrope.HostID]int64{}, dials: map[[2]heliotrope.HostID]int{}}
	for _, id := range names {
		m := &member{world: w, id: id, site: heliotrope.SiteID(id[:1]), rate: rate}
		m.ctx, m.end = context.WithCancel(context.WithoutCancel(t.Context()))
		m.node = NewNode(Config{Dial: m.dial, Log: slog.New(slog.NewTextHandler(t.Output(), nil)).With("host", id)})
		w.members[id] = m
	}
	t.Cleanup(w.end)
	return w
}

// end ends the world and waits for all that it runs.
func (w *world) end() {
	for _, m := range w.members {
		m.end()
		m.unmute()
	}
	w.parts.Wait() // these dial
	for _, m := range w.members {
		m.conns.Wait()
	}
}

// hosts are those to be given to Plan.
func (w *world) hosts(names ...heliotrope.HostID) []Host {
	var list []Host
	for _, n := range names {
		list = append(list, Host{ID: n, Site: w.members[n].site})
	}
	return list
}

func (w *world) plan(names ...heliotrope.HostID) []Hop {
	w.t.Helper()
	hops, err := Plan(w.hosts(names[0])[0], w.hosts(names[1:]...), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return hops
}

func (w *world) offer(id heliotrope.HostID, c content, full bool) (*Share, *shelf) {
	w.t.Helper()
	st := newShelf(c, full)
	s, err := w.members[id].node.Offer(c.outline, st)
	if err != nil {
		w.t.Fatal(err)
	}
	return s, st
}

// receiving is a host that gets a content.
type receiving struct {
	*Share
	shelf *shelf
	done  chan struct{}
	err   error         // once it is done
	took  time.Duration // once it is done
}

func (w *world) receive(hop Hop, c content) *receiving {
	w.t.Helper()
	s, st := w.offer(hop.Host, c, false)
	st.delay = w.members[hop.Host].disk
	return w.receiveInto(hop, s, st, Demand)
}

func (w *world) receiveInto(hop Hop, s *Share, st *shelf, p Priority) *receiving {
	r := &receiving{Share: s, shelf: st, done: make(chan struct{})}
	began := time.Now()
	w.parts.Go(func() {
		defer close(r.done)
		r.err = s.Receive(w.members[hop.Host].ctx, hop.From, p)
		r.took = time.Since(began)
	})
	return r
}

// spread offers at names[0] and has all others receive, by plan.
func (w *world) spread(c content, names ...heliotrope.HostID) map[heliotrope.HostID]*receiving {
	w.t.Helper()
	w.offer(names[0], c, true)
	all := map[heliotrope.HostID]*receiving{}
	for _, h := range w.plan(names...) {
		all[h.Host] = w.receive(h, c)
	}
	return all
}

func (r *receiving) mustSucceed(t interface{ Fatalf(string, ...any) }) {
	<-r.done
	if r.err != nil || !r.shelf.full() {
		t.Fatalf("not all was received: %v, %+v", r.err, r.Progress())
	}
}

// dial connects two members.
func (m *member) dial(ctx context.Context, to heliotrope.HostID) (net.Conn, error) {
	w := m.world
	other := w.members[to]
	w.mu.Lock()
	w.dials[[2]heliotrope.HostID{m.id, to}]++
	w.mu.Unlock()
	for _, end := range []*member{m, other} {
		if mute := end.muted(); mute != nil {
			select {
			case <-mute:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
	}
	if other.ctx.Err() != nil {
		return nil, fmt.Errorf("%s refuses the connection", to)
	}
	near, far := net.Pipe()
	there := &line{Conn: far, from: other, to: m, closed: make(chan struct{})}
	other.conns.Go(func() {
		if err := other.node.Serve(other.ctx, there, other.limit); err != nil {
			w.t.Logf("%s serving %s: %v", to, m.id, err)
		}
	})
	return &line{Conn: near, from: m, to: other, closed: make(chan struct{})}, nil
}

// crash ends a host as a process ends: its connections break.
func (m *member) crash() { m.end() }

// vanish ends a host as one whose cable is cut: nothing tells.
func (m *member) vanish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mute == nil {
		m.mute = make(chan struct{})
	}
}

func (m *member) setRate(rate float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rate = rate
}

func (m *member) unmute() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mute != nil {
		close(m.mute)
		m.mute = nil
	}
}

func (m *member) muted() chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mute
}

// line is an end of a connection.
type line struct {
	net.Conn
	from, to *member // of what is written
	once     sync.Once
	closed   chan struct{}
}

func (l *line) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Conn.Close()
}

// heard waits while this end is mute.
func (l *line) heard() error {
	for {
		mute := l.from.muted()
		if mute == nil {
			return nil
		}
		select {
		case <-mute:
		case <-l.closed:
			return net.ErrClosed
		}
	}
}

func (l *line) Read(p []byte) (int, error) {
	if err := l.heard(); err != nil {
		return 0, err
	}
	return l.Conn.Read(p)
}

func (l *line) Write(p []byte) (int, error) {
	l.from.transmit(len(p))
	if err := l.heard(); err != nil {
		return 0, err
	}
	w := l.from.world
	w.mu.Lock()
	w.crossed[[2]heliotrope.HostID{l.from.id, l.to.id}] += int64(len(p))
	spoil := w.spoil
	w.mu.Unlock()
	if spoil != nil {
		p = bytes.Clone(p)
		spoil(l.from.id, l.to.id, p)
	}
	return l.Conn.Write(p)
}

// transmit takes the time that n bytes need on the host's line.
func (m *member) transmit(n int) {
	m.mu.Lock()
	if m.rate == 0 {
		m.mu.Unlock()
		return
	}
	if now := time.Now(); m.free.Before(now) {
		m.free = now
	}
	m.free = m.free.Add(time.Duration(float64(n) / m.rate * float64(time.Second)))
	wait := time.Until(m.free)
	m.mu.Unlock()
	time.Sleep(wait)
}

// bytes is what went from one host to another.
func (w *world) bytes(from, to heliotrope.HostID) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.crossed[[2]heliotrope.HostID{from, to}]
}

// into is what went into a site from others.
func (w *world) into(site heliotrope.SiteID) (n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for link, b := range w.crossed {
		if w.members[link[0]].site != site && w.members[link[1]].site == site {
			n += b
		}
	}
	return n
}

// dialled is how often a host dialled others.
func (w *world) dialled(from heliotrope.HostID) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for link, c := range w.dials {
		if link[0] == from {
			n += c
		}
	}
	return n
}

// liar is a dial to a world in which one host says but one thing.
func (w *world) liar(dial dialFunc, liar heliotrope.HostID, say []byte) dialFunc {
	return func(ctx context.Context, id heliotrope.HostID) (net.Conn, error) {
		if id != liar {
			return dial(ctx, id)
		}
		near, far := net.Pipe()
		w.parts.Go(func() { far.Write(say) }) // whoever hangs up may
		w.parts.Go(func() { io.Copy(io.Discard, far) })
		return near, nil
	}
}

type dialFunc = func(context.Context, heliotrope.HostID) (net.Conn, error)
