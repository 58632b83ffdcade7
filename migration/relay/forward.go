package relay

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"heliotrope/migration/relay/disk"
	"heliotrope/migration/relay/share"
	"math"
	"net"
	"os"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Forwarder is the source's end of a kind of stream: a unix socket that stands for the one of
// the destination's hypervisor.
type Forwarder struct {
	client *Client
	header Header
	l      *net.UnixListener
	disk   disk.Count

	mu    sync.Mutex
	open  []*stream // guarded by mu; the hypervisor has not come for them yet
	ended bool      // guarded by mu
}

// stream is one that the destination has let in.
type stream struct {
	conn    *tls.Conn
	taken   Offer
	way     halfConn       // of a disk: the connection as it is written to
	export  disk.Export    // of a disk
	sending *share.Sending // of what is encoded
	done    func()         // gives back what was set aside for it
}

// encoded says whether package wan is between the stream and the wire.
func (s *stream) encoded() bool { return s.taken.Version != 0 && !s.taken.Packed }

func (s *stream) close() {
	s.conn.NetConn().Close()
	s.done()
}

// Owed is the number of writes to a disk that the hypervisor believes done and that the
// destination has not confirmed. Once the hypervisor has ended its streams it is zero, or
// the destination's disk is not whole.
func (f *Forwarder) Owed() int { return f.disk.Owed() }

// Written is how many bytes of disks were sent so far, those that were sent again counted again.
func (f *Forwarder) Written() uint64 { return f.disk.Written() }

// Forward makes the unix socket path, for root alone (or whom it is then given to), and
// sends whatever connects to it on to the destination, once Serve runs.
func (c *Client) Forward(path string, h Header) (*Forwarder, error) {
	// A socket of an agent that died is in the way.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old relay socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return nil, fmt.Errorf("listen for hypervisor: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("protect relay socket: %w", err)
	}
	return &Forwarder{client: c, header: h, l: l}, nil
}

// Close removes the socket of a Forwarder whose Serve has not run.
func (f *Forwarder) Close() error { return f.l.Close() }

// Open opens n streams, of disks one each, before the hypervisor comes for them: a hypervisor may stand still
// until its stream is open. The destination's must listen.
func (f *Forwarder) Open(ctx context.Context, n int) error {
	var g errgroup.Group
	for i := range n {
		g.Go(func() error {
			s, err := f.start(ctx, i+1)
			if err != nil {
				return err
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.ended {
				s.close()
				return errors.New("open relay: it has ended")
			}
			f.open = append(f.open, s)
			return nil
		})
	}
	return g.Wait()
}

// start opens a stream; of a disk, that of the server's n-th.
func (f *Forwarder) start(ctx context.Context, n int) (*stream, error) {
	h, e, s := f.header, f.client.Encoding, &stream{done: func() {}}
	switch h.Kind {
	case Memory:
		h.Codec, s.done = e.offer(h.VM, cmp.Or(f.client.GuestPages, math.MaxInt32), f.client.way())
		h.Codec.Image, s.done = e.offerImage(f.client.Image, s.done)
	case Disk:
		h.Codec, h.Disk = e.offerDisk(f.client.way()), n
	}
	var err error
	if s.conn, s.taken, err = f.client.offer(ctx, h); err != nil {
		s.done()
		return nil, err
	}
	if h.Kind == Disk {
		err = s.toDisk(ctx, n)
	}
	if s.encoded() {
		s.sending = e.Share.Send(f.client.way(), s.taken.Seed, s.taken.Share, s.taken.Near)
		gives, parts := s.done, func() {}
		if h.Kind == Memory { // other hosts are not told of disks' blocks
			parts = e.Near.Meet(e.Share, s.sending, f.client.Sources)
		}
		s.done = func() { e.Share.SentAll(s.sending); parts(); gives() }
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// toDisk makes the stream one of requests to the n-th disk.
func (s *stream) toDisk(ctx context.Context, n int) error {
	s.way, s.export = s.conn, s.taken.Export
	var err error
	if s.taken.Packed {
		if s.way, err = disk.Pack(s.conn); err != nil {
			return err
		}
	}
	if s.export != (disk.Export{}) {
		return nil
	}
	// An older destination leaves the handshake to us.
	stop := context.AfterFunc(ctx, func() { s.conn.NetConn().Close() })
	defer stop()
	s.export, err = disk.Open(s.way, n, false)
	return err
}

// Serve forwards connections until ctx ends, then ends them and removes the socket. It
// returns the errors of streams that were not whole; a hypervisor that meets one sees its
// connection end.
func (f *Forwarder) Serve(ctx context.Context) error {
	var conns sync.WaitGroup
	var mu sync.Mutex
	var broken []error
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { f.l.Close() })
	for {
		conn, err := f.l.AcceptUnix()
		if err != nil {
			break
		}
		conns.Go(func() {
			defer conn.Close()
			err := f.carry(ctx, conn)
			if err != nil && ctx.Err() == nil {
				mu.Lock()
				defer mu.Unlock()
				broken = append(broken, err)
			}
		})
	}
	cancel()
	stop()
	conns.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	for _, s := range f.open {
		s.close()
	}
	return errors.Join(broken...)
}

func (f *Forwarder) carry(ctx context.Context, local *net.UnixConn) error {
	s, err := f.streamFor(ctx, local)
	if err != nil {
		return err
	}
	defer s.done()
	defer s.conn.Close()
	switch {
	case f.header.Kind == Disk:
		return f.joinDisk(ctx, s, local)
	case s.encoded():
		return encodeMemory(ctx, s.conn, local, f.header.VM, f.client, s.taken, s.sending)
	}
	return join(ctx, s.conn, s.conn, local)
}

// streamFor is the stream that a hypervisor has come for.
func (f *Forwarder) streamFor(ctx context.Context, local *net.UnixConn) (*stream, error) {
	stop := context.AfterFunc(ctx, func() { local.Close() })
	defer stop()
	f.mu.Lock()
	open := slices.Clone(f.open)
	f.mu.Unlock()
	if len(open) == 0 {
		s, err := f.start(ctx, 1)
		if err != nil {
			return nil, err
		}
		if f.header.Kind == Disk {
			_, err = disk.Answer(local, []disk.Export{s.export})
		}
		if err != nil {
			s.close()
		}
		return s, err
	}
	n := 0
	if f.header.Kind == Disk {
		var exports []disk.Export
		for _, s := range open {
			exports = append(exports, s.export)
		}
		var err error
		if n, err = disk.Answer(local, exports); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.Index(f.open, open[n])
	if i < 0 {
		return nil, fmt.Errorf("find relay of %s: another has taken it", f.header.Kind)
	}
	f.open = slices.Delete(f.open, i, i+1)
	return open[n], nil
}

// Streams are the source's ends of a move's streams.
type Streams struct {
	forwarders []*Forwarder
	serving    errgroup.Group
	end        context.CancelFunc
}

// Forwarders makes a Forwarder for each kind and path, gives the paths to the hypervisor, and serves them until
// ctx ends or the Streams are closed.
func (c *Client) Forwarders(ctx context.Context, h Header, paths map[Kind]string, give func(path string) error) (*Streams, error) {
	s := new(Streams)
	ctx, s.end = context.WithCancel(ctx)
	for kind, path := range paths {
		h.Kind = kind
		f, err := c.Forward(path, h)
		if err == nil {
			s.forwarders = append(s.forwarders, f)
			s.serving.Go(func() error { return f.Serve(ctx) })
			err = give(path)
		}
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// Open opens the stream of memory, and one for each of so many disks, before the hypervisor comes for them.
func (s *Streams) Open(ctx context.Context, disks int) error {
	var g errgroup.Group
	for _, f := range s.forwarders {
		n := 1
		if f.header.Kind == Disk {
			n = disks
		}
		g.Go(func() error { return f.Open(ctx, n) })
	}
	return g.Wait()
}

// Written is how many bytes of disks were sent so far, those that were sent again counted again.
func (s *Streams) Written() (n uint64) {
	for _, f := range s.forwarders {
		n += f.Written()
	}
	return n
}

// Owed is the number of writes to disks that the destination has not confirmed (see Forwarder).
func (s *Streams) Owed() (n int) {
	for _, f := range s.forwarders {
		n += f.Owed()
	}
	return n
}

// Close ends them, and returns what was wrong with those that were not whole.
func (s *Streams) Close() error {
	s.end()
	return s.serving.Wait()
}
