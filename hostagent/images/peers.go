package images

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/imagesync/site"
	"heliotrope/imagesync/spread"
	"heliotrope/internal/accept"
)

// How hosts of a site pass a version on. The server of disks has what came, and the agent the one
// port that other hosts dial, with certificates on both sides. So the agent lets a host in, and
// joins it to the server by a socket that only root may use; the first line there is the host's name.
// The server itself dials others, with the host's certificate. It serves those only that an order has named.

// ALPN is in TLS the name of the protocol by which hosts pass images on.
const ALPN = "heliotrope-images/1"

const (
	dialPeer  = 5 * time.Second
	nameLimit = 256 // bytes of a first line
	peersMost = 64  // connections of other hosts at once
)

func (c Config) peerSocket() string { return filepath.Join(c.Dir, "peers.sock") }

// Pass joins a host that the agent has let in to the server of disks, until one of them ends.
func (d *Disks) Pass(ctx context.Context, from heliotrope.HostID, conn net.Conn) error {
	var dialer net.Dialer
	local, err := dialer.DialContext(ctx, "unix", d.c.peerSocket())
	if err != nil {
		return fmt.Errorf("pass image on to %s: %w", from, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close(); local.Close() })
	defer stop()
	if _, err := fmt.Fprintln(local, from); err != nil {
		local.Close()
		return fmt.Errorf("pass image on to %s: %w", from, err)
	}
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{conn, local}, {local, conn}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1]) // either end may just go
			conn.Close()
			local.Close()
		})
	}
	both.Wait()
	return nil
}

// peers are the other hosts, to the server of disks.
type peers struct {
	node *spread.Node
	c    Config

	mu    sync.Mutex
	addrs map[heliotrope.HostID]netip.AddrPort // of all that orders have named
}

func newPeers(c Config) *peers {
	p := &peers{c: c, addrs: map[heliotrope.HostID]netip.AddrPort{}}
	p.node = spread.NewNode(spread.Config{Dial: p.dial, Silence: c.silence, Log: c.Log})
	return p
}

// know takes in whom an order has named.
func (p *peers) know(chain []site.Peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range chain {
		p.addrs[h.Host] = h.Relay
	}
}

func (p *peers) find(host heliotrope.HostID) (netip.AddrPort, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	addr, ok := p.addrs[host]
	return addr, ok
}

// dial reaches the server of disks of another host, by its agent.
func (p *peers) dial(ctx context.Context, host heliotrope.HostID) (net.Conn, error) {
	addr, ok := p.find(host)
	if !ok || p.c.Identity == nil {
		return nil, fmt.Errorf("no order says where %s is", host)
	}
	id, err := p.c.Identity() // each time: the agent renews it
	if err != nil {
		return nil, err
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialPeer}, Config: id.HostClient(host, ALPN)}
	conn, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", host, err)
	}
	return conn, nil
}

// serve passes images on to hosts that the agent lets in, until ctx ends.
func (p *peers) serve(ctx context.Context, l net.Listener) error {
	return accept.Loop{Who: "another host", Most: peersMost, Log: p.c.Log, Serve: p.one}.Run(ctx, l)
}

// one serves a connection.
func (p *peers) one(ctx context.Context, conn net.Conn, _ func()) error {
	if err := conn.SetReadDeadline(time.Now().Add(dialPeer)); err != nil {
		return err
	}
	in := bufio.NewReaderSize(conn, nameLimit)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("read whom the agent let in: %w", err)
	}
	host := heliotrope.HostID(strings.TrimSuffix(string(line), "\n"))
	if _, named := p.find(host); !named {
		return fmt.Errorf("%s asks for an image, and no order has named it", host)
	}
	if err := p.node.Serve(ctx, begun{conn, in}, nil); err != nil {
		return fmt.Errorf("%s: %w", host, err)
	}
	return nil
}

// begun is a connection of which something was read.
type begun struct {
	net.Conn
	in *bufio.Reader
}

func (b begun) Read(p []byte) (int, error) { return b.in.Read(p) }

// before are the hosts of a chain that stand before one, the nearest first, and whether it is in
// the chain.
func before(chain []site.Peer, host heliotrope.HostID) (feeders []spread.Feeder, there bool) {
	at := slices.IndexFunc(chain, func(p site.Peer) bool { return p.Host == host })
	for k := at - 1; k >= 0; k-- {
		feeders = append(feeders, spread.Feeder{Host: chain[k].Host})
	}
	return feeders, at >= 0
}
