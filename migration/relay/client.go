package relay

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"heliotrope/migration/relay/near"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Client opens streams to one destination and counts what they cost. It must not be copied.
// Whoever has called Ahead must Close it.
type Client struct {
	Addr netip.AddrPort // the destination's relay port
	TLS  *tls.Config    // accepts the destination and nobody else
	// Encoding is how memory is encoded, if the destination can decode it; nil: not at all.
	Encoding *Encoding
	// Way says to which site it goes, of a move between sites; Addr is not looked at.
	Way share.Way
	// Sources are other hosts of the source's site that moves to that site begin at.
	Sources []near.Peer
	// GuestPages is how many pages of 4 KiB the VM has; 0: nobody knows.
	GuestPages int
	// Image is the one that the VM's disk stands on, by the name of its content; empty: none.
	Image string

	sent, received atomic.Uint64
	codec          atomic.Int64 // nanoseconds of a processor
	opening        sync.WaitGroup
	end            func() // of what was opened ahead; nil: nothing was

	mu    sync.Mutex
	stats map[Kind]*wan.Stats // of encoded streams; guarded by mu
	ahead []*ahead            // guarded by mu; nobody has needed them
}

func (c *Client) way() share.Way {
	w := c.Way
	w.Addr = c.Addr
	return w
}

// Sent is how many bytes were given to the network so far, TLS records included.
func (c *Client) Sent() uint64 { return c.sent.Load() }

// Memory says what the encoded memory streams consisted of so far.
func (c *Client) Memory() wan.Stats { return c.consisted(Memory) }

// Disks says what the encoded streams of disks consisted of so far.
func (c *Client) Disks() wan.Stats { return c.consisted(Disk) }

func (c *Client) consisted(kind Kind) wan.Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.stats[kind]; s != nil {
		return *s
	}
	return wan.Stats{}
}

func (c *Client) count(kind Kind, s wan.Stats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stats == nil {
		c.stats = map[Kind]*wan.Stats{}
	}
	if c.stats[kind] == nil {
		c.stats[kind] = new(wan.Stats)
	}
	c.stats[kind].Add(&s)
}

// dial opens a stream and returns once the destination has let it in.
func (c *Client) dial(ctx context.Context, h Header) (*tls.Conn, error) {
	conn, _, err := c.offer(ctx, h)
	return conn, err
}

// offer opens a stream, with its header's offer to those who understand it, and returns
// what was taken of that.
func (c *Client) offer(ctx context.Context, h Header) (*tls.Conn, Offer, error) {
	if conn := c.opened(ctx, h.Kind); conn != nil {
		taken, err := c.begin(ctx, conn, h)
		if err == nil || errors.Is(err, ErrRefused) || ctx.Err() != nil {
			return conn, taken, err
		}
		// It died while nobody looked, perhaps.
	}
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, Offer{}, err
	}
	taken, err := c.begin(ctx, conn, h)
	return conn, taken, err
}

// connect opens a connection and shakes hands.
func (c *Client) connect(ctx context.Context) (*tls.Conn, error) {
	d := net.Dialer{Timeout: handshakeTimeout, KeepAliveConfig: keepAlive, Control: tune}
	raw, err := d.DialContext(ctx, "tcp", c.Addr.String())
	if err != nil {
		return nil, fmt.Errorf("dial relay: %w", err)
	}
	conn := tls.Client(wireConn{raw, &c.sent, &c.received}, withVersions(c.TLS))
	raw.SetDeadline(time.Now().Add(2 * handshakeTimeout))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("dial relay %s: %w", c.Addr, err)
	}
	raw.SetDeadline(time.Time{})
	return conn, nil
}

// Dial connects to the relay port of another host for one of the protocols that Server.Others take.
func Dial(ctx context.Context, addr netip.AddrPort, config *tls.Config) (net.Conn, error) {
	d := net.Dialer{Timeout: handshakeTimeout, KeepAliveConfig: keepAlive, Control: tune}
	raw, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("dial relay: %w", err)
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("dial relay %s: %w", addr, err)
	}
	return conn, nil
}

// begin makes a connection a stream: it returns once the destination has let that in, and closes it otherwise.
func (c *Client) begin(ctx context.Context, conn *tls.Conn, h Header) (taken Offer, err error) {
	raw := conn.NetConn()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	raw.SetDeadline(time.Now().Add(2 * handshakeTimeout))
	switch conn.ConnectionState().NegotiatedProtocol {
	case alpnV4:
	case alpnV3:
		h.Codec.Image = ""
	case alpnV2:
		h.Disk, h.Codec.Image = 0, ""
	default:
		h.Disk, h.Codec = 0, Offer{}
	}
	if err = writeHeader(conn, h); err == nil {
		taken, err = readAnswer(conn)
	}
	if err == nil {
		err = taken.fits(h)
	}
	if err != nil {
		raw.Close()
		return Offer{}, fmt.Errorf("dial relay %s: %w", c.Addr, err)
	}
	raw.SetDeadline(time.Time{})
	return taken, nil
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
