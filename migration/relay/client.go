package relay

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"heliotrope/migration/wan"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Client opens streams to one destination and counts what they cost. It must not be copied.
type Client struct {
	Addr netip.AddrPort // the destination's relay port
	TLS  *tls.Config    // accepts the destination and nobody else
	// Encoding is how memory is encoded, if the destination can decode it; nil: not at all.
	Encoding *Encoding
	// GuestPages is how many pages of 4 KiB the VM has; 0: nobody knows.
	GuestPages int

	sent, received atomic.Uint64
	mu             sync.Mutex
	memory         wan.Stats // guarded by mu
}

// Sent is how many bytes were given to the network so far, TLS records included.
func (c *Client) Sent() uint64 { return c.sent.Load() }

// Memory says what the encoded memory streams consisted of so far.
func (c *Client) Memory() wan.Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.memory
}

func (c *Client) count(s wan.Stats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.memory.Add(&s)
}

// dial opens a stream and returns once the destination has let it in.
func (c *Client) dial(ctx context.Context, h Header) (*tls.Conn, error) {
	conn, _, err := c.offer(ctx, h)
	return conn, err
}

// offer opens a stream, with its header's offer to those who understand it, and returns
// what was taken of that.
func (c *Client) offer(ctx context.Context, h Header) (*tls.Conn, Offer, error) {
	d := net.Dialer{Timeout: handshakeTimeout, KeepAliveConfig: keepAlive, Control: tune}
	raw, err := d.DialContext(ctx, "tcp", c.Addr.String())
	if err != nil {
		return nil, Offer{}, fmt.Errorf("dial relay: %w", err)
	}
	conn := tls.Client(wireConn{raw, &c.sent, &c.received}, withV2(c.TLS))
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	raw.SetDeadline(time.Now().Add(2 * handshakeTimeout))
	err = conn.HandshakeContext(ctx)
	if conn.ConnectionState().NegotiatedProtocol != alpnV2 {
		h.Codec = Offer{}
	}
	if err == nil {
		err = writeHeader(conn, h)
	}
	var taken Offer
	if err == nil {
		taken, err = readAnswer(conn)
	}
	if err == nil {
		err = taken.fits(h.Codec)
	}
	if err != nil {
		raw.Close()
		return nil, Offer{}, fmt.Errorf("dial relay %s: %w", c.Addr, err)
	}
	raw.SetDeadline(time.Time{})
	return conn, taken, nil
}

// SendPackets sends one batch of a NIC's frames and returns how many the destination
// took. Sending the same batch again is safe.
func (c *Client) SendPackets(ctx context.Context, h Header, frames [][]byte) (int, error) {
	h.Kind = Packets
	conn, err := c.dial(ctx, h)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.NetConn().Close() })
	defer stop()
	if err := writeFrames(conn, frames); err != nil {
		return 0, err
	}
	if err := conn.CloseWrite(); err != nil {
		return 0, fmt.Errorf("end packets: %w", err)
	}
	var taken [4]byte
	if _, err := io.ReadFull(conn, taken[:]); err != nil {
		return 0, fmt.Errorf("read answer to packets: %w", noEOF(err))
	}
	return int(binary.BigEndian.Uint32(taken[:])), nil
}

// Forwarder is the source's end of a stream: a unix socket that stands for the one of the
// destination's hypervisor.
type Forwarder struct {
	client *Client
	header Header
	l      *net.UnixListener
	disk   diskCount
}

// Owed is the number of writes to a disk that the hypervisor believes done and that the
// destination has not confirmed. Once the hypervisor has ended its streams it is zero, or
// the destination's disk is not whole.
func (f *Forwarder) Owed() int { return int(f.disk.owed.Load()) }

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
	return errors.Join(broken...)
}

func (f *Forwarder) carry(ctx context.Context, local *net.UnixConn) error {
	h := f.header
	if h.Kind == Memory {
		var done func()
		h.Codec, done = f.client.Encoding.offer(h.VM, cmp.Or(f.client.GuestPages, math.MaxInt32))
		defer done()
	}
	if h.Kind == Disk {
		h.Codec = f.client.Encoding.offerDisk()
	}
	conn, taken, err := f.client.offer(ctx, h)
	if err != nil {
		return err
	}
	defer conn.Close()
	switch {
	case h.Kind == Disk:
		return joinDisk(ctx, conn, local, taken.Packed, &f.disk)
	case taken.Version != 0:
		sending := f.client.Encoding.Share.Send(f.client.Addr, taken.Seed, taken.Share)
		defer f.client.Encoding.Share.SentAll(f.client.Addr, sending)
		return encodeMemory(ctx, conn, local, h.VM, f.client.Encoding, taken, f.client.count, sending)
	}
	return join(ctx, conn, conn, local)
}
