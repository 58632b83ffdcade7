package relay

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Before its first byte a stream costs three round trips: for the connection, for TLS, and for the header; and
// then some ten more in which TCP finds out how much the way carries. A move has the time for that before there
// is anything to copy, while the destination starts its hypervisor. So its connections are opened then, and over
// a long way padding is sent for TCP to learn from, of which a little more than half of the ten is had.

// padding is how many bytes of it are sent at most for a stream to come.
var padding = map[Kind]int{Memory: 1 << 20, Disk: 256 << 10}

const (
	padPiece = 8 << 10               // sent at once; four may wait unsent, for a header is not to wait long behind them
	padBit   = 1 << 15               // marks the length of what comes instead of a header, to be thrown away
	padMost  = 8 << 20               // bytes that a destination takes of it
	padWay   = 10 * time.Millisecond // of round trip, from which on it is sent
	// aheadMost is how long a connection may wait for its header.
	aheadMost = time.Hour
)

// ahead is a connection that was opened before there is a stream for it.
type ahead struct {
	kind   Kind
	need   func()          // says that there is one
	needed <-chan struct{} // closed then
	ready  chan struct{}   // closed when nothing more is done to conn
	conn   *tls.Conn       // nil if it could not be opened, or the destination does not wait for a header
}

// Ahead opens a connection for a stream to come of each kind. It does not wait for them, and where it fails
// they are opened when they are needed. Close ends it.
func (c *Client) Ahead(kinds ...Kind) {
	ctx, cancel := context.WithCancel(context.Background())
	c.end = cancel
	for _, kind := range kinds {
		needed := make(chan struct{})
		a := &ahead{kind: kind, need: sync.OnceFunc(func() { close(needed) }), needed: needed, ready: make(chan struct{})}
		c.ahead = append(c.ahead, a)
		c.opening.Go(func() {
			defer close(a.ready)
			begun := time.Now()
			conn, err := c.connect(ctx)
			if err != nil {
				return
			}
			if time.Since(begun) > 2*padWay { // TCP's and TLS's
				err = a.pad(ctx, conn)
			}
			if err != nil || !waitsForHeader(conn) {
				conn.NetConn().Close()
				return
			}
			a.conn = conn
		})
	}
}

// pad sends padding until the connection is needed.
func (a *ahead) pad(ctx context.Context, conn *tls.Conn) error {
	if !waitsForHeader(conn) {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { conn.NetConn().Close() })
	defer stop()
	limitUnsent(conn, 4*padPiece)
	defer limitUnsent(conn, unsentBytes)
	piece := make([]byte, 2+padPiece)
	piece[0], piece[1] = (padBit|padPiece)>>8, padPiece&0xff
	for range padding[a.kind] / padPiece {
		select {
		case <-a.needed:
			return nil
		default:
		}
		if _, err := conn.Write(piece); err != nil {
			return fmt.Errorf("pad relay: %w", err)
		}
	}
	return nil
}

// limitUnsent bounds what may wait in a connection's buffer. Where that cannot be, a header waits longer.
func limitUnsent(conn *tls.Conn, bytes int) {
	w, ok := conn.NetConn().(wireConn)
	if !ok {
		return
	}
	if s, ok := w.Conn.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes) })
		}
	}
}

// opened is the connection that was opened ahead for a kind of stream, or nil.
func (c *Client) opened(ctx context.Context, kind Kind) *tls.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.ahead, func(a *ahead) bool { return a.kind == kind })
	if i < 0 {
		return nil
	}
	a := c.ahead[i]
	c.ahead = slices.Delete(c.ahead, i, i+1)
	a.need()
	c.mu.Unlock()
	select {
	case <-a.ready:
		c.mu.Lock()
		return a.conn
	case <-ctx.Done():
		c.mu.Lock()
		c.ahead = append(c.ahead, a) // for Close
		return nil
	}
}

// Close closes what was opened ahead and is not needed; what became a stream goes on.
func (c *Client) Close() {
	if c == nil || c.end == nil {
		return
	}
	c.end()
	c.opening.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.ahead {
		if a.conn != nil {
			a.conn.NetConn().SetDeadline(time.Now().Add(time.Second))
			a.conn.Close()
		}
	}
	c.ahead = nil
}
