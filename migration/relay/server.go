package relay

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"heliotrope"
	"heliotrope/internal/accept"
	"heliotrope/migration/relay/disk"
)

const (
	maxHandshakes = 64   // at once, of peers that have yet to prove who they are
	maxAhead      = 1024 // connections of hosts that wait for their headers
)

// Expectation is a move that a host is the destination of.
type Expectation struct {
	VM      heliotrope.VMID
	Tenant  heliotrope.TenantID // whose the VM is
	From    heliotrope.HostID   // the only host that may send it
	Sockets map[Kind]string     // Memory, Disk: the unix socket that a stream is joined to
	// BlankDisks is that the disks were made for the move. Of others their server is not asked what they hold:
	// QEMU remembers the answer, and takes it for true when it sends the disk on, whatever a volume says then.
	BlankDisks bool
	// Packets takes the frames of one NIC and returns how many it took. A batch is
	// given to it once, even if it was sent twice.
	Packets func(ctx context.Context, nic int, frames [][]byte) (int, error)
}

// Server is a host's relay port.
type Server struct {
	// Encoding is how memory may be encoded; nil: not at all. It is set before Serve.
	Encoding *Encoding
	// Others take connections of other protocols than the relay's, by their ALPN. It is set before Serve.
	Others map[string]Other

	tls      *tls.Config
	peer     func(tls.ConnectionState) (heliotrope.HostID, error)
	log      *slog.Logger
	sent     atomic.Uint64
	received atomic.Uint64
	ahead    chan struct{}

	mu    sync.Mutex
	moves map[heliotrope.MoveID]*expected
}

// Other takes a connection of another protocol, of a host that has proved who it is, until that ends. It closes it.
type Other func(ctx context.Context, from heliotrope.HostID, conn net.Conn) error

type expected struct {
	Expectation
	streams map[*tls.Conn]context.CancelFunc // guarded by Server.mu

	mu      sync.Mutex     // held while a batch is taken
	batches map[int]uint64 // last taken, by NIC
	taken   map[int]int    // how many frames that was
}

// NewServer returns a server with this TLS configuration, which must verify hosts'
// certificates; peer says whose certificate a connection has.
func NewServer(config *tls.Config, peer func(tls.ConnectionState) (heliotrope.HostID, error), log *slog.Logger) *Server {
	return &Server{
		tls: withVersions(config), peer: peer, log: log, ahead: make(chan struct{}, maxAhead),
		moves: map[heliotrope.MoveID]*expected{},
	}
}

// Listen opens a relay port for Serve.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive, Control: tune}
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for relays: %w", err)
	}
	return l, nil
}

// Expect lets the streams of a move in, until Forget. Expecting a move anew replaces what
// was expected and ends its streams.
func (s *Server) Expect(move heliotrope.MoveID, e Expectation) {
	s.Forget(move)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moves[move] = &expected{
		Expectation: e, streams: map[*tls.Conn]context.CancelFunc{},
		batches: map[int]uint64{}, taken: map[int]int{},
	}
}

// Forget ends the streams of a move and lets no more in.
func (s *Server) Forget(move heliotrope.MoveID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.moves[move]; e != nil {
		for _, end := range e.streams {
			end()
		}
		delete(s.moves, move)
	}
}

// Serve lets streams in until ctx ends, and waits for their ends. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	return accept.Loop{Who: "relay", Most: maxHandshakes, Log: s.log, Serve: s.serve}.Run(ctx, l)
}

func (s *Server) serve(ctx context.Context, raw net.Conn, begun func()) error {
	conn := tls.Server(wireConn{raw, &s.sent, &s.received}, s.tls)
	raw.SetDeadline(time.Now().Add(handshakeTimeout))
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("shake hands: %w", err)
	}
	from, err := s.peer(conn.ConnectionState())
	if err != nil {
		return err
	}
	if other := s.Others[conn.ConnectionState().NegotiatedProtocol]; other != nil {
		begun()
		raw.SetDeadline(time.Time{})
		return other(ctx, from, conn)
	}
	h, err := s.header(ctx, conn, begun)
	if errors.Is(err, io.EOF) {
		return nil // there was no need for it
	}
	if err != nil {
		return err
	}
	begun()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e, err := s.enter(from, h, conn, cancel)
	if err != nil {
		return errors.Join(err, writeAnswer(conn, Offer{}, err))
	}
	defer s.leave(e, conn)
	if h.Kind == Packets {
		return e.takePackets(ctx, conn, h)
	}
	return e.carry(ctx, conn, h, s.Encoding)
}

// header waits for the header of a host's connection, which has begun when that need not come at once.
func (s *Server) header(ctx context.Context, conn *tls.Conn, begun func()) (Header, error) {
	raw := conn.NetConn()
	if waitsForHeader(conn) {
		select {
		case s.ahead <- struct{}{}:
			defer func() { <-s.ahead }()
		default:
			return Header{}, errors.New("too many connections wait for their headers")
		}
		begun()
		raw.SetDeadline(time.Now().Add(aheadMost))
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	h, err := readHeader(conn)
	raw.SetDeadline(time.Time{})
	return h, err
}

// enter adds a stream to the expectation that it meets; end is how to end it. The peer
// does not learn which part of the expectation was not met.
func (s *Server) enter(from heliotrope.HostID, h Header, conn *tls.Conn, end context.CancelFunc) (*expected, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.moves[h.Move]
	if e == nil || e.From != from || e.VM != h.VM {
		return nil, fmt.Errorf("%s of %s in move %s is not expected from %s", h.Kind, h.VM, h.Move, from)
	}
	if h.Kind == Packets && e.Packets == nil || h.Kind != Packets && e.Sockets[h.Kind] == "" {
		return nil, fmt.Errorf("%s is no part of move %s", h.Kind, h.Move)
	}
	e.streams[conn] = end
	return e, nil
}

func (s *Server) leave(e *expected, conn *tls.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(e.streams, conn)
}

func (e *expected) carry(ctx context.Context, conn *tls.Conn, h Header, encoding *Encoding) error {
	d := net.Dialer{Timeout: handshakeTimeout}
	local, err := d.DialContext(ctx, "unix", e.Sockets[h.Kind])
	if err != nil {
		return errors.Join(err, writeAnswer(conn, Offer{}, fmt.Errorf("the hypervisor does not listen for %s", h.Kind)))
	}
	defer local.Close()
	var export disk.Export
	if h.Disk > 0 {
		local.SetDeadline(time.Now().Add(handshakeTimeout))
		if export, err = disk.Open(local, h.Disk, e.BlankDisks); err != nil {
			return errors.Join(err, writeAnswer(conn, Offer{}, err))
		}
		local.SetDeadline(time.Time{})
	}
	encoding = encoding.For(e.Tenant)
	taken, has, done := encoding.take(h, e.From)
	defer done()
	taken.Export = export
	if err := writeAnswer(conn, taken, nil); err != nil {
		return fmt.Errorf("answer relay: %w", err)
	}
	if taken.Packed {
		in, err := disk.Unpack(conn)
		if err != nil {
			return err
		}
		return join(ctx, conn, in, local.(*net.UnixConn))
	}
	if taken.Version != 0 {
		return decodeMemory(ctx, conn, local.(*net.UnixConn), h, encoding, taken, has)
	}
	return join(ctx, conn, conn, local.(*net.UnixConn))
}

func (e *expected) takePackets(ctx context.Context, conn *tls.Conn, h Header) error {
	stop := context.AfterFunc(ctx, func() { conn.NetConn().Close() })
	defer stop()
	if err := writeAnswer(conn, Offer{}, nil); err != nil {
		return fmt.Errorf("answer relay: %w", err)
	}
	frames, err := readFrames(conn)
	if err != nil {
		return err
	}
	n, err := e.take(ctx, h, frames)
	if err != nil {
		return err
	}
	if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, uint32(n))); err != nil {
		return fmt.Errorf("answer packets: %w", err)
	}
	return conn.CloseWrite()
}

func (e *expected) take(ctx context.Context, h Header, frames [][]byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if h.Batch <= e.batches[h.NIC] {
		return e.taken[h.NIC], nil
	}
	n, err := e.Packets(ctx, h.NIC, frames)
	if err != nil {
		return 0, fmt.Errorf("take packets: %w", err)
	}
	e.batches[h.NIC], e.taken[h.NIC] = h.Batch, n
	return n, nil
}
