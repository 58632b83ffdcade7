// Package paths measures the underlay from this host to the others by ICMP echo: round
// trip, loss, and the largest packet that passes whole. The kernel of the other host
// answers; nothing of ours has to listen there.
package paths

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	pathEvery   = time.Second     // between two measurements of a path
	pathsAtOnce = 10              // that are measured then, in turn: many hosts must not be busy with this
	pathWait    = 2 * time.Second // for an answer
	pathLarge   = 10              // of so many measurements, one is with a packet as large as can be
	pathSamples = 20              // that its loss is said of
	pathSmall   = 84              // bytes of a probe that only measures time
	ipHeader    = 20
	icmpHeader  = 8
	probeMax    = 9216
)

// Paths are those to the peers of the last order. Make it with New.
type Paths struct {
	log *slog.Logger

	mu    sync.Mutex
	peers map[heliotrope.HostID]*path
	last  heliotrope.HostID // that was measured
	turns int               // that all have had
}

type path struct {
	addr netip.Addr
	rtt  time.Duration // smoothed
	lost []bool        // the newest samples
	mtu  int           // the largest that passed
}

// New returns paths to nobody yet.
func New(log *slog.Logger) *Paths {
	return &Paths{log: log, peers: map[heliotrope.HostID]*path{}}
}

// Measured is what is known of the paths by now.
func (p *Paths) Measured() []agentapi.Path {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []agentapi.Path
	for _, host := range slices.Sorted(maps.Keys(p.peers)) {
		w := p.peers[host]
		r := agentapi.Path{Peer: host, RTT: w.rtt, MTU: w.mtu}
		for _, lost := range w.lost {
			if lost {
				r.Loss += 1 / float64(len(w.lost))
			}
		}
		all = append(all, r)
	}
	return all
}

// Run measures the paths to the peers of the last order until ctx ends. mtu is the size
// of packet that the paths ought to carry, 0 while that is not known.
func (p *Paths) Run(ctx context.Context, mtu func() int) error {
	tick := time.NewTicker(pathEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			peers, turn := p.next()
			p.each(ctx, peers, pathSmall)
			if size := mtu(); turn%pathLarge == 0 && size > pathSmall {
				p.each(ctx, peers, min(size, probeMax))
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Probe sends one packet of the order's size to each peer, and makes them those whose
// paths are measured from now on.
func (p *Paths) Probe(ctx context.Context, o agentapi.ProbeOrder) ([]agentapi.Path, error) {
	if o.Size != 0 && (o.Size < ipHeader+icmpHeader+echoSize || o.Size > probeMax) {
		return nil, fmt.Errorf("%w: a probe of %d bytes", agentapi.ErrInvalid, o.Size)
	}
	p.set(o.Peers)
	if o.Size == 0 {
		return p.Measured(), nil
	}
	results := p.each(ctx, p.all(), o.Size)
	all := p.Measured()
	for i := range all {
		r, ok := results[all[i].Peer]
		switch {
		case !ok:
		case r.err != nil:
			all[i].Error = r.err.Error()
		default:
			all[i].RTT = r.rtt
		}
	}
	return all, nil
}

func (p *Paths) set(peers map[heliotrope.HostID]netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.peers, func(h heliotrope.HostID, w *path) bool { return peers[h] != w.addr })
	for h, addr := range peers {
		if p.peers[h] == nil && addr.Is4() {
			p.peers[h] = &path{addr: addr}
		}
	}
}

func (p *Paths) all() map[heliotrope.HostID]*path {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.peers)
}

// next are the peers whose turn it is, and how many turns all have had.
func (p *Paths) next() (map[heliotrope.HostID]*path, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	hosts := slices.Sorted(maps.Keys(p.peers))
	i, measured := slices.BinarySearch(hosts, p.last)
	if measured {
		i++
	}
	if i == len(hosts) {
		i = 0
		p.turns++
	}
	peers := map[heliotrope.HostID]*path{}
	for _, h := range hosts[i:min(i+pathsAtOnce, len(hosts))] {
		peers[h], p.last = p.peers[h], h
	}
	return peers, p.turns
}

type echo struct {
	rtt time.Duration
	err error
}

// each probes peers at once and takes what comes of it in.
func (p *Paths) each(ctx context.Context, peers map[heliotrope.HostID]*path, size int) map[heliotrope.HostID]echo {
	results := map[heliotrope.HostID]echo{}
	var g errgroup.Group
	g.SetLimit(32)
	for host, w := range peers {
		g.Go(func() error {
			rtt, err := ping(ctx, w.addr, size)
			p.mu.Lock()
			defer p.mu.Unlock()
			results[host] = echo{rtt, err}
			w.take(rtt, err, size)
			return nil
		})
	}
	_ = g.Wait() // each has its own error
	return results
}

func (w *path) take(rtt time.Duration, err error, size int) {
	if err == nil {
		w.rtt = cmp.Or(w.rtt, rtt)
		w.rtt += (rtt - w.rtt) / 8
	}
	if err == nil && size != pathSmall {
		w.mtu = max(w.mtu, size)
	}
	if size == pathSmall {
		w.lost = append(w.lost, err != nil)
		w.lost = w.lost[max(0, len(w.lost)-pathSamples):]
	} else if err != nil && w.mtu >= size {
		w.mtu = 0 // it was larger once
	}
}

const echoSize = 8 // bytes by which an answer is known

// ping sends one packet of size bytes, IP header included, that must not be fragmented,
// and waits for its answer.
func ping(ctx context.Context, addr netip.Addr, size int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, pathWait)
	defer cancel()
	lc := net.ListenConfig{Control: neverFragment}
	conn, err := lc.ListenPacket(ctx, "ip4:icmp", "0.0.0.0")
	if err != nil {
		return 0, fmt.Errorf("open ICMP: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	body := make([]byte, size-ipHeader-icmpHeader)
	token := rand.Uint64()
	binary.BigEndian.PutUint64(body, token)
	msg, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(uint16(token)), Seq: 1, Data: body}}).Marshal(nil)
	if err != nil {
		return 0, fmt.Errorf("make probe: %w", err)
	}
	start := time.Now()
	if _, err := conn.WriteTo(msg, &net.IPAddr{IP: addr.AsSlice()}); err != nil {
		if errors.Is(err, unix.EMSGSIZE) {
			return 0, fmt.Errorf("%d bytes do not fit the MTU of this host", size)
		}
		return 0, fmt.Errorf("send probe: %w", err)
	}
	buf := make([]byte, probeMax)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return 0, fmt.Errorf("no answer from %s to %d bytes within %s", addr, size, pathWait)
		}
		if ip, ok := from.(*net.IPAddr); ok && ip.IP.Equal(addr.AsSlice()) && isAnswer(buf[:n], token, len(body)) {
			return time.Since(start), nil
		}
	}
}

func isAnswer(data []byte, token uint64, size int) bool {
	const icmpProtocol = 1
	msg, err := icmp.ParseMessage(icmpProtocol, data)
	if err != nil || msg.Type != ipv4.ICMPTypeEchoReply {
		return false
	}
	e, ok := msg.Body.(*icmp.Echo)
	return ok && len(e.Data) == size && binary.BigEndian.Uint64(e.Data) == token
}

// neverFragment also keeps the kernel's own idea of the path's MTU out of it: the probe is
// to find out what is true.
func neverFragment(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	}); e != nil {
		return e
	}
	return err
}
