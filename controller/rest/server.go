package rest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ServerConfig says where to listen.
type ServerConfig struct {
	Socket     string      // path of the unix socket; its directory is made where missing
	SocketMode fs.FileMode // default 0600
	TCP        []string    // host:port, TLS; by convention one on loopback
	TLS        *tls.Config // for TCP: a certificate from our CA; TLS 1.3 is enforced
	Handler    http.Handler
	Log        *slog.Logger
}

// Server is a listening server. Make it with Listen, then call Serve.
type Server struct {
	http      *http.Server
	listeners []net.Listener
	log       *slog.Logger
}

// Listen opens all listeners or none. A socket that a dead controller left is replaced;
// one that answers is not.
func Listen(ctx context.Context, cfg ServerConfig) (*Server, error) {
	s := &Server{log: cfg.Log, http: &http.Server{
		Handler:           cfg.Handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       20 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ConnContext:       withPeer,
	}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.http.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	if err := s.listen(ctx, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), s.close())
	}
	return s, nil
}

func (s *Server) listen(ctx context.Context, cfg ServerConfig) error {
	if cfg.Socket != "" {
		l, err := listenUnix(ctx, cfg)
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, l)
	}
	for _, addr := range cfg.TCP {
		if cfg.TLS == nil {
			return fmt.Errorf("%s: no certificate is given", addr)
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		conf := cfg.TLS.Clone()
		conf.MinVersion = tls.VersionTLS13
		conf.NextProtos = []string{"h2", "http/1.1"}
		s.listeners = append(s.listeners, tls.NewListener(l, conf))
	}
	return nil
}

func listenUnix(ctx context.Context, cfg ServerConfig) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(cfg.Socket), 0o755); err != nil {
		return nil, err
	}
	if conn, err := new(net.Dialer).DialContext(ctx, "unix", cfg.Socket); err == nil {
		return nil, errors.Join(fmt.Errorf("%s: another controller answers there", cfg.Socket), conn.Close())
	}
	if err := os.Remove(cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", cfg.Socket)
	if err != nil {
		return nil, err
	}
	mode := cfg.SocketMode
	if mode == 0 {
		mode = 0o600
	}
	// Until here others could connect; peer credentials keep them out in any case.
	if err := os.Chmod(cfg.Socket, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Addrs are the addresses that it listens on, in the order of the configuration.
func (s *Server) Addrs() []net.Addr {
	addrs := make([]net.Addr, len(s.listeners))
	for i, l := range s.listeners {
		addrs[i] = l.Addr()
	}
	return addrs
}

// Serve serves until ctx ends, lets running requests end for up to 5 s (event streams end
// at once), and returns ctx's cause.
func (s *Server) Serve(ctx context.Context) error {
	g, serveCtx := errgroup.WithContext(ctx)
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	for _, l := range s.listeners {
		g.Go(func() error {
			if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	g.Go(func() error {
		<-serveCtx.Done()
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := s.http.Shutdown(stopCtx); err != nil {
			return errors.Join(context.Cause(ctx), s.http.Close())
		}
		return context.Cause(ctx)
	})
	return g.Wait()
}

func (s *Server) close() error {
	var errs []error
	for _, l := range s.listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// withPeer notes who is at the other end of a unix socket. Where the kernel does not say,
// nobody is admin.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	p := peer{uid: ^uint32(0)}
	raw, err := conn.SyscallConn()
	if err != nil {
		return context.WithValue(ctx, peerKey, p)
	}
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			p = peer{uid: cred.Uid, admin: cred.Uid == 0 || int(cred.Uid) == os.Geteuid()}
		}
	})
	if err != nil {
		p.admin = false
	}
	return context.WithValue(ctx, peerKey, p)
}
