package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope/internal/accept"
)

const (
	maxHandshakes    = 64 // at once; further connections wait
	handshakeTimeout = 30 * time.Second
	goodbye          = time.Second // for the last replies, once the server is to end
	sendBuffer       = 1 << 20     // bytes, of a unix socket
)

// Server serves exports.
type Server struct {
	// Cut makes the end of Serve's context end connections without a word, as the end of the
	// process would: what is under way gets no answer, so that a client that connects again, as
	// QEMU does with its reconnect-delay, asks for it again. Else it is answered with an error.
	Cut bool

	exports Exports
	tls     *tls.Config
	log     *slog.Logger
}

// NewServer returns a server of these exports. With a TLS configuration a client has to ask
// for TLS before anything else; who it may be is for the configuration to say.
func NewServer(exports Exports, config *tls.Config, log *slog.Logger) *Server {
	return &Server{exports: exports, tls: config, log: log}
}

// Listen opens a unix socket that only its owner may connect to, at any instant. A socket
// that a process left behind when it was killed is replaced.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	// A socket's file gets the mode that the socket has when it is bound (unix(7) does not
	// say so; the kernel's unix_bind does it since 2.6).
	private := func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
			return e
		}
		return err
	}
	lc := net.ListenConfig{Control: private}
	l, err := lc.Listen(ctx, "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && abandoned(ctx, path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("replace NBD socket: %w", err)
		}
		l, err = lc.Listen(ctx, "unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for NBD clients: %w", err)
	}
	return l, nil
}

// abandoned says whether a path is a socket that nobody listens on.
func abandoned(ctx context.Context, path string) bool {
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// Serve serves clients until ctx ends, and waits for their ends. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	return accept.Loop{Who: "NBD client", Most: maxHandshakes, Wait: true, Log: s.log, Serve: s.serve}.Run(ctx, l)
}

// serve serves one client.
func (s *Server) serve(ctx context.Context, raw net.Conn, begun func()) error {
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	raw.SetDeadline(time.Now().Add(handshakeTimeout))
	ctx = withPeer(ctx, raw)
	h := handshake{server: s, conn: raw}
	defer func() { h.conn.Close() }()
	defer h.release()
	agreed, err := h.run(ctx)
	if err != nil || !agreed {
		return err
	}
	if s.Cut {
		// The connection ends first, then what goes on for it.
		ctx = context.WithoutCancel(ctx)
	} else if !stop() { // ctx has ended
		return nil
	}
	raw.SetDeadline(time.Time{})
	begun()
	if u, ok := raw.(*net.UnixConn); ok {
		widen(u)
	}
	return newSession(&h, s.log).run(ctx)
}

// peerKey is under which a context has the number of the process that a client is.
type peerKey struct{}

// withPeer notes which process has connected, where a socket knows that.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	raw.Control(func(fd uintptr) {
		if c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			ctx = context.WithValue(ctx, peerKey{}, int(c.Pid))
		}
	})
	return ctx
}

// Peer is the number of the process that is the client for whom an export is opened (Exports); 0 where
// that is not known.
func Peer(ctx context.Context) int {
	pid, _ := ctx.Value(peerKey{}).(int)
	return pid
}

// widen lets a unix socket take what a client with many requests under way waits for. More
// than the machine's limit needs a privilege; without it the limit has to do.
func widen(u *net.UnixConn) {
	raw, err := u.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
		}
	})
}

// gone says whether a client went away without a word, which many do.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
