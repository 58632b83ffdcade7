package agentapi

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	alpnRPC      = "heliotrope-rpc/1"
	alpnOVSDB    = "heliotrope-ovsdb/1"
	alpnOpenFlow = "heliotrope-openflow/1"
	alpnJoin     = "heliotrope-join/1"

	dialTimeout      = 3 * time.Second
	handshakeTimeout = 5 * time.Second
	deadPeer         = 10 * time.Second // without an acknowledgement from it
)

// keepAlive and userTimeout find a peer that died without a word.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 4 * time.Second, Interval: 2 * time.Second, Count: 3}

func userTimeout(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadPeer.Milliseconds()))
	}); e != nil {
		return e
	}
	return err
}

// dialTLS connects and completes the handshake.
func dialTLS(ctx context.Context, addr string, config *tls.Config) (*tls.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive, Control: userTimeout}
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	hctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(hctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("shake hands: %w", err)
	}
	return conn, nil
}

// endingConn tells when it is closed. It also hides that it is a *tls.Conn, whose ALPN
// names net/http does not know.
type endingConn struct {
	net.Conn
	once sync.Once
	done chan struct{}
}

func newEndingConn(c net.Conn) *endingConn { return &endingConn{Conn: c, done: make(chan struct{})} }

func (c *endingConn) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.Conn.Close()
}

// oneConn is a listener whose only connection is there already.
type oneConn struct {
	conn  *endingConn
	given chan struct{}
	once  sync.Once
}

func (l *oneConn) Accept() (net.Conn, error) {
	first := false
	l.once.Do(func() { first = true; close(l.given) })
	if first {
		return l.conn, nil
	}
	<-l.conn.done
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

func http2Only() *http.Protocols {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true) // what carries it is encrypted
	return &p
}

func http2Health() *http.HTTP2Config {
	return &http.HTTP2Config{SendPingTimeout: 3 * time.Second, PingTimeout: 5 * time.Second}
}

// serveHTTP2 answers requests on conn until it ends or ctx does, and waits for its handlers.
func serveHTTP2(ctx context.Context, conn net.Conn, h http.Handler, log *slog.Logger) {
	var mu sync.Mutex // handlers are added under it, and not any more once ended
	var handlers sync.WaitGroup
	ended := false
	l := &oneConn{conn: newEndingConn(conn), given: make(chan struct{})}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			if ended {
				mu.Unlock()
				return
			}
			handlers.Add(1)
			mu.Unlock()
			defer handlers.Done()
			h.ServeHTTP(w, r)
		}),
		Protocols:         http2Only(),
		HTTP2:             http2Health(),
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() {
		l.conn.Close()
		server.Close()
	})
	defer stop()
	// It returns net.ErrClosed once the only connection has ended, and nothing else.
	_ = server.Serve(l)
	server.Close()
	mu.Lock()
	ended = true
	mu.Unlock()
	handlers.Wait()
}

// clientHTTP2 makes conn a client's connection. Closing the result closes conn.
func clientHTTP2(ctx context.Context, conn net.Conn) (*http.ClientConn, error) {
	t := &http.Transport{
		Protocols:              http2Only(),
		HTTP2:                  http2Health(),
		MaxResponseHeaderBytes: 16 << 10,
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	return t.NewClientConn(ctx, "http", "peer:80")
}

// splice joins a and b until either ends or ctx does, and closes both.
func splice(ctx context.Context, a, b net.Conn) {
	var g errgroup.Group
	closeBoth := func() { a.Close(); b.Close() }
	stop := context.AfterFunc(ctx, closeBoth)
	defer stop()
	pump := func(dst, src net.Conn) func() error {
		return func() error {
			defer closeBoth()
			// The plain interfaces keep io.CopyBuffer from choosing smaller buffers.
			_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 64<<10))
			return err
		}
	}
	g.Go(pump(a, b))
	g.Go(pump(b, a))
	// Either end closing is how a splice ends: no error says more than that.
	_ = g.Wait()
}
