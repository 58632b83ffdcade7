package spread

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// client is a successor at its feeder.
type client struct {
	conn     net.Conn
	limit    *Limit
	priority Priority
	beat     time.Duration
	patience time.Duration
	held     atomic.Bool // it waits for its limit

	writing chan struct{} // has one while a frame is written
	buf     []byte
	broken  bool // a frame was cut

	mu     sync.Mutex
	ending bool
	share  *Share // nil while it is not known
	wanted set
	more   chan struct{} // has one when something was added to wanted
}

// errServed says that a successor has hung up, as it does when it has all.
var errServed = errors.New("the successor has hung up")

// Serve feeds the host at the other end of conn until that hangs up, the content is withdrawn,
// or ctx ends. What is sent counts against limit, which all connections to one destination share.
// It closes conn.
func (n *Node) Serve(ctx context.Context, conn net.Conn, limit *Limit) error {
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	in := bufio.NewReaderSize(impatient{conn, n.patience()}, 512)
	h, err := readHello(in)
	if err != nil {
		return fmt.Errorf("feed host: %w", err)
	}
	c := &client{conn: conn, limit: limit, priority: h.priority, beat: n.beat(), patience: n.patience(),
		writing: make(chan struct{}, 1), wanted: newSet(h.pieces), more: make(chan struct{}, 1)}
	n.mu.Lock()
	c.share = n.shares[h.id] // lest the first word be that it is not known
	n.mu.Unlock()
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel(nil)
	parts.Go(func() { cancel(c.listen(in, h.pieces)) })
	parts.Go(func() { cancel(c.tell(ctx)) })
	err = n.feed(ctx, c, h)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, errServed) {
		return nil
	}
	return fmt.Errorf("feed host: %w", err)
}

// listen takes what the successor wants. It always ends with an error.
func (c *client) listen(in io.Reader, pieces int) error {
	for {
		w, err := readWant(in, pieces)
		if err == io.EOF || errors.Is(err, syscall.ECONNRESET) { // the latter when it left a status unread
			return errServed
		}
		if err != nil {
			return err
		}
		if w.n == 0 {
			continue
		}
		c.mu.Lock()
		c.wanted.addRun(w.from, w.n)
		c.mu.Unlock()
		select {
		case c.more <- struct{}{}:
		default: // it has one
		}
	}
}

// tell says how this host stands, again and again. A sender that waits for pieces, for its
// limit or for its disk needs not do so.
func (c *client) tell(ctx context.Context) error {
	t := time.NewTicker(c.beat)
	defer t.Stop()
	for {
		c.mu.Lock()
		s := c.share
		c.mu.Unlock()
		var st status
		if s != nil {
			st = s.status()
			st.held = c.held.Load()
		}
		if err := c.send(frame{kind: kindStatus, status: st}, nil); err != nil {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// send writes a frame, in one piece.
func (c *client) send(f frame, data []byte) error {
	c.writing <- struct{}{}
	defer func() { <-c.writing }()
	c.buf = append(f.append(c.buf[:0]), data...)
	if err := c.allow(c.patience); err != nil {
		return fmt.Errorf("send frame: %w", err)
	}
	if _, err := c.conn.Write(c.buf); err != nil {
		c.broken = true
		return fmt.Errorf("send frame: %w", err)
	}
	return nil
}

// allow gives a write its time.
func (c *client) allow(d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return ErrWithdrawn
	}
	return c.conn.SetWriteDeadline(time.Now().Add(d))
}

// end interrupts what is written, and lets no more but a last word.
func (c *client) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ending = true
	_ = c.conn.SetWriteDeadline(time.Now()) // a connection that is closed needs none
}

// refuse tells why this is the end, if that can still be told.
func (c *client) refuse(why reason, err error) error {
	c.end()
	c.writing <- struct{}{}
	defer func() { <-c.writing }()
	if c.broken {
		return err // in the middle of a frame a word is none
	}
	e := c.conn.SetWriteDeadline(time.Now().Add(c.beat))
	if e == nil {
		_, e = c.conn.Write(frame{kind: kindRefuse, reason: why}.append(nil))
	}
	return errors.Join(err, e)
}

// feed finds what h asks for and feeds c. It always ends with an error.
func (n *Node) feed(ctx context.Context, c *client, h hello) error {
	s, err := n.await(ctx, h.id)
	if ctx.Err() != nil {
		return err
	}
	if err != nil {
		return c.refuse(reasonUnknown, err)
	}
	if h.pieces != s.outline.Len() {
		return c.refuse(reasonDifferent, fmt.Errorf("%v has %d pieces, not %d", h.id, s.outline.Len(), h.pieces))
	}
	// The share's end is not the connection's: the last word comes between.
	own, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(own, c.end)
	defer stop()
	if !s.enter(c, cancel) {
		return c.refuse(reasonUnknown, ErrWithdrawn)
	}
	err = s.feed(own, c)
	s.leave(c)
	if ctx.Err() == nil && errors.Is(context.Cause(own), ErrWithdrawn) {
		return c.refuse(reasonUnknown, ErrWithdrawn)
	}
	return err
}

func (s *Share) enter(c *client, end context.CancelCauseFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.clients[c] = end
	s.serving.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.share = s
	return true
}

func (s *Share) leave(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, c)
	s.serving.Done()
}

// feed sends what c wants as it is there. What is stored goes before what comes in, in order.
func (s *Share) feed(ctx context.Context, c *client) error {
	for {
		piece, coming, changed := s.pick(c)
		var err error
		switch {
		case coming != nil:
			err = s.stream(ctx, c, coming)
		case piece >= 0:
			err = s.sendStored(ctx, c, piece)
		default:
			select {
			case <-changed:
			case <-c.more:
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		if err != nil {
			return err
		}
	}
}

// pick takes what is to be sent next off what c wants: a stored piece, or the one that comes in.
func (s *Share) pick(c *client) (piece int, coming *attempt, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if piece = firstCommon(s.have, c.wanted); piece >= 0 {
		c.wanted.remove(piece)
		return piece, nil, nil
	}
	if s.coming != nil && s.coming.ready > 0 && c.wanted.has(s.coming.piece) {
		c.wanted.remove(s.coming.piece)
		return -1, s.coming, nil
	}
	return -1, nil, s.changed
}

func (s *Share) sendStored(ctx context.Context, c *client, piece int) error {
	data, err := s.store.Get(piece)
	if want := s.outline.Piece(piece).Length; err == nil && len(data) != int(want) {
		err = fmt.Errorf("%d bytes, not %d", len(data), want)
	}
	if err != nil {
		return c.refuse(reasonFault, fmt.Errorf("read piece %d: %w", piece, err))
	}
	for at := 0; at < len(data); {
		if at, err = s.sendFragment(ctx, c, piece, data, at); err != nil {
			return err
		}
	}
	return nil
}

// stream sends a piece while it comes in.
func (s *Share) stream(ctx context.Context, c *client, a *attempt) error {
	for at := 0; at < len(a.buf); {
		s.mu.Lock()
		ready, void, changed := a.ready, a.void, s.changed
		s.mu.Unlock()
		var err error
		switch {
		case void:
			c.mu.Lock()
			c.wanted.add(a.piece)
			c.mu.Unlock()
			if at == 0 {
				return nil // nothing to be forgotten
			}
			return c.send(frame{kind: kindVoid, piece: a.piece}, nil)
		case at < ready:
			at, err = s.sendFragment(ctx, c, a.piece, a.buf[:ready], at)
		default:
			select {
			case <-changed:
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sendFragment sends the next bytes of a piece and returns where the rest begins.
func (s *Share) sendFragment(ctx context.Context, c *client, piece int, data []byte, at int) (int, error) {
	n := min(fragment, len(data)-at)
	c.held.Store(true)
	err := c.limit.Wait(ctx, n, c.priority)
	c.held.Store(false)
	if err != nil {
		return at, err
	}
	if err := c.send(frame{kind: kindData, piece: piece, offset: at, length: n}, data[at:at+n]); err != nil {
		return at, err
	}
	s.mu.Lock()
	s.sent += int64(n)
	s.mu.Unlock()
	return at + n, nil
}
