package agentapi

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/internal/accept"
)

const (
	maxHandshakes    = 128 // at once
	maxHandshakesIP  = 16  // at once, from one address
	maxJoins         = 16  // at once
	allowedIsChecked = time.Second
)

// Acceptor is what the controller does with its agents' connections. Each On function has
// its connection until it returns, and must return soon after its ctx ends, which it does
// when the connection is to end: the host made a newer one, or is not allowed any more.
// A host has at most one connection of a kind at a time.
type Acceptor struct {
	// Join answers a new host, or one that renews (JoinRequest.Renew). Errors that are
	// not ErrRefused are for a log: the host learns them too.
	Join func(ctx context.Context, req JoinRequest) (JoinAnswer, error)
	// Allowed says whether host is (still) part of Heliotrope. It is asked each second.
	Allowed    func(host heliotrope.HostID) bool
	OnRPC      func(ctx context.Context, agent *Agent)
	OnOVSDB    func(ctx context.Context, host heliotrope.HostID, conn net.Conn)
	OnOpenFlow func(ctx context.Context, host heliotrope.HostID, conn net.Conn)
}

// Listener is the controller's port for agents.
type Listener struct {
	tcp      net.Listener
	tls      *tls.Config
	acceptor Acceptor
	log      *slog.Logger
	joins    chan struct{}

	mu       sync.Mutex
	perIP    map[netip.Addr]int
	sessions map[sessionKey]*session
}

type sessionKey struct {
	host heliotrope.HostID
	alpn string
}

type session struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// Listen opens the port, as a controller with identity id. Connections are accepted once
// Serve runs.
func Listen(ctx context.Context, addr string, id *Identity, acceptor Acceptor, log *slog.Logger) (*Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive, Control: userTimeout}
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for agents: %w", err)
	}
	return &Listener{
		tcp: l, tls: id.controllerServer(), acceptor: acceptor, log: log,
		joins: make(chan struct{}, maxJoins),
		perIP: map[netip.Addr]int{}, sessions: map[sessionKey]*session{},
	}, nil
}

// Addr is where the listener listens.
func (l *Listener) Addr() net.Addr { return l.tcp.Addr() }

// Close ends the port without Serve having run.
func (l *Listener) Close() error { return l.tcp.Close() }

// Serve accepts agents until ctx ends, closes all connections and waits for all functions
// of the Acceptor.
func (l *Listener) Serve(ctx context.Context) error {
	return accept.Loop{Who: "agent", Most: maxHandshakes, Log: l.log, Serve: l.serve}.Run(ctx, l.tcp)
}

// admit counts a connection that has yet to prove who it is, by where it comes from.
func (l *Listener) admit(conn net.Conn) (release func(), ok bool) {
	var ip netip.Addr
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		ip = a.AddrPort().Addr()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.perIP[ip] >= maxHandshakesIP {
		return nil, false
	}
	l.perIP[ip]++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.perIP[ip]--; l.perIP[ip] == 0 {
			delete(l.perIP, ip)
		}
	}), true
}

// serve serves a connection. It tells by itself what went wrong.
func (l *Listener) serve(ctx context.Context, raw net.Conn, begun func()) error {
	release, ok := l.admit(raw)
	if !ok {
		return nil
	}
	defer release()
	conn := tls.Server(raw, l.tls)
	hctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(hctx); err != nil {
		l.log.Debug("refused an agent", "from", raw.RemoteAddr(), "error", err)
		return nil
	}
	state := conn.ConnectionState()
	var host heliotrope.HostID
	if len(state.PeerCertificates) > 0 {
		// The handshake has verified it.
		host, _ = PeerHost(state)
	}
	if host != "" && !l.acceptor.Allowed(host) {
		l.log.Warn("refused a host that is not allowed", "host", host, "from", raw.RemoteAddr())
		return nil
	}
	if state.NegotiatedProtocol == alpnJoin {
		l.serveJoin(ctx, conn, host)
		return nil
	}
	release()
	begun()
	l.serveHost(ctx, sessionKey{host, state.NegotiatedProtocol}, conn)
	return nil
}

func (l *Listener) serveJoin(ctx context.Context, conn net.Conn, host heliotrope.HostID) {
	select {
	case l.joins <- struct{}{}:
		defer func() { <-l.joins }()
	default:
		return
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	serveHTTP2(ctx, conn, joinHandler(host, l.acceptor.Join), l.log)
}

func (l *Listener) serveHost(ctx context.Context, key sessionKey, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	self := &session{cancel, make(chan struct{})}
	defer close(self.done)
	if !l.replace(ctx, key, self) {
		return
	}
	defer l.forget(key, self)

	ending := newEndingConn(conn)
	defer ending.Close()
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	watch.Go(func() {
		defer ending.Close()
		defer cancel()
		tick := time.NewTicker(allowedIsChecked)
		defer tick.Stop()
		for l.acceptor.Allowed(key.host) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			case <-ending.done:
				return
			}
		}
	})
	switch key.alpn {
	case alpnOVSDB:
		l.acceptor.OnOVSDB(ctx, key.host, ending)
	case alpnOpenFlow:
		l.acceptor.OnOpenFlow(ctx, key.host, ending)
	case alpnRPC:
		agent, err := newAgent(ctx, key.host, ending)
		if err != nil {
			l.log.Warn("cannot talk to an agent", "host", key.host, "error", err)
			return
		}
		defer agent.close()
		l.acceptor.OnRPC(ctx, agent)
	}
}

// replace ends the session that self takes the place of and waits for its end; false if
// ctx ended before.
func (l *Listener) replace(ctx context.Context, key sessionKey, self *session) bool {
	l.mu.Lock()
	old := l.sessions[key]
	l.sessions[key] = self
	l.mu.Unlock()
	if old == nil {
		return true
	}
	old.cancel()
	<-old.done
	if ctx.Err() != nil {
		l.forget(key, self)
	}
	return ctx.Err() == nil
}

func (l *Listener) forget(key sessionKey, self *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions[key] == self {
		delete(l.sessions, key)
	}
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
