package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"heliotrope"
	"heliotrope/migration/relay/near"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// site is hosts of two sites, with a way between these.
type site struct {
	t     *testing.T
	p     *pki
	hosts map[heliotrope.HostID]*siteHost
	way   *narrow // nil: as wide as it is
}

// siteHost is a host with a relay port.
type siteHost struct {
	*Server
	name   heliotrope.HostID
	addr   netip.AddrPort // for hosts of its own site
	far    netip.AddrPort // for others
	config *tls.Config
	// dialled is called before another host is asked, or told.
	dialled func(host heliotrope.HostID) error

	mu    sync.Mutex
	conns []net.Conn // that it has dialled
	shut  bool
}

// cut ends what the host has to do with its neighbours.
func (h *siteHost) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shut = true
	for _, c := range h.conns {
		c.Close()
	}
}

// dial connects to a neighbour.
func (h *siteHost) dial(ctx context.Context, host heliotrope.HostID, addr netip.AddrPort) (net.Conn, error) {
	if h.dialled != nil {
		if err := h.dialled(host); err != nil {
			return nil, err
		}
	}
	c := h.config.Clone()
	c.ServerName, c.NextProtos = string(host), []string{near.ALPN}
	conn, err := Dial(ctx, addr, c)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.shut {
		conn.Close()
		return nil, errors.New("cut, for the test")
	}
	h.conns = append(h.conns, conn)
	return conn, nil
}

func newSites(t *testing.T, way *narrow, hosts map[heliotrope.HostID]*Encoding) *site {
	t.Helper()
	s := &site{t: t, p: newPKI(t), hosts: map[heliotrope.HostID]*siteHost{}, way: way}
	for name, e := range hosts {
		s.add(name, e)
	}
	return s
}

func (s *site) add(name heliotrope.HostID, e *Encoding) {
	log := slog.New(slog.NewTextHandler(s.t.Output(), nil))
	h := &siteHost{name: name, config: s.p.config(s.t, string(name))}
	server := h.config.Clone()
	server.NextProtos = append(server.NextProtos, near.ALPN)
	h.Server = NewServer(server, peer, log)
	h.Encoding = e
	if e != nil && e.Near != nil {
		e.Near.Name, e.Near.Share, e.Near.Log = name, e.Share, log
		e.Near.Dial = func(ctx context.Context, host heliotrope.HostID, _ netip.AddrPort) (net.Conn, error) {
			return h.dial(ctx, host, s.hosts[host].addr)
		}
		h.Others = map[string]Other{near.ALPN: e.Near.Serve}
	}
	l, err := Listen(s.t.Context(), "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	h.addr = l.Addr().(*net.TCPAddr).AddrPort()
	h.far = h.addr
	if s.way != nil {
		h.far = s.way.to(s.t, h.addr)
	}
	run(s.t, func(ctx context.Context) error { return h.Serve(ctx, l) })
	s.hosts[name] = h
}

// leaving is a VM that moves.
type leaving struct {
	from, to heliotrope.HostID
	stream   []byte
}

// moves moves VMs at the same time, each with the others' sources as its neighbours, and returns their sources'
// counts. What comes out is held against what went in.
func (s *site) moves(all []leaving, during ...func(i int, sent int)) (clients []*Client) {
	s.t.Helper()
	// A VM that has come in waits for the others, as a hypervisor keeps its end open.
	sock := hypervisor(s.t, mirrorBack)
	var g sync.WaitGroup
	for i, l := range all {
		h := Header{Move: heliotrope.MoveID(fmt.Sprintf("m%d", i)), VM: heliotrope.VMID(fmt.Sprintf("vm%d", i)), Kind: Memory}
		from, to := s.hosts[l.from], s.hosts[l.to]
		to.Expect(h.Move, Expectation{VM: h.VM, From: l.from, Sockets: map[Kind]string{Memory: sock}})
		c := from.config.Clone()
		c.ServerName = string(l.to)
		client := &Client{Addr: to.far, TLS: c, Encoding: from.Encoding, Way: share.Way{Host: l.to, Site: "there", Seed: 77}}
		for name := range maps.All(s.hosts) {
			if name != l.from && s.isSource(all, name) {
				client.Sources = append(client.Sources, near.Peer{Host: name, Relay: s.hosts[name].addr})
			}
		}
		clients = append(clients, client)
		_, connect := source(s.t, client, h)
		conn := connect()
		g.Go(func() {
			g.Go(func() {
				for sent := 0; sent < len(l.stream); {
					n, err := conn.Write(l.stream[sent:min(sent+256<<10, len(l.stream))])
					if sent += n; err != nil {
						s.t.Error(err)
						return
					}
					for _, f := range during {
						f(i, sent)
					}
				}
				conn.CloseWrite()
			})
			if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, l.stream) {
				s.t.Errorf("%s: %d bytes came out of %d: %v", h.VM, len(got), len(l.stream), err)
			}
		})
	}
	g.Wait()
	return clients
}

func (s *site) isSource(all []leaving, name heliotrope.HostID) bool {
	for _, l := range all {
		if l.from == name {
			return true
		}
	}
	return false
}

// sum is what all moves consisted of together.
func sum(clients []*Client) (s wan.Stats, sent uint64) {
	for _, c := range clients {
		m := c.Memory()
		s.Add(&m)
		sent += c.Sent()
	}
	return s, sent
}

// narrow is a way that carries so many bytes a second, of all streams together.
type narrow struct {
	rate float64
	mu   sync.Mutex
	free time.Time // when the next byte may go
}

func (w *narrow) wait(bytes int) {
	w.mu.Lock()
	now := time.Now()
	if w.free.Before(now) {
		w.free = now
	}
	w.free = w.free.Add(time.Duration(float64(bytes) / w.rate * 1e9))
	until := w.free
	w.mu.Unlock()
	time.Sleep(time.Until(until)) // it is what is tested that takes the time
}

// to is an address from which the way leads to addr.
func (w *narrow) to(t *testing.T, addr netip.AddrPort) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	g.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", addr.String())
			if err != nil {
				in.Close()
				continue
			}
			in.(*net.TCPConn).SetReadBuffer(64 << 10)
			g.Go(func() {
				defer out.Close()
				buf := make([]byte, 16<<10)
				for {
					n, err := in.Read(buf)
					w.wait(n)
					if _, werr := out.Write(buf[:n]); err != nil || werr != nil {
						return
					}
				}
			})
			g.Go(func() { defer in.Close(); io.Copy(in, out) })
		}
	})
	t.Cleanup(func() { l.Close(); g.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// neighbourly is an encoding that shares with neighbours.
func neighbourly() *Encoding {
	e := sharing()
	e.Near = &near.Host{}
	return e
}

// TestVMsThatLeaveForSeveralHosts: four VMs of one image, each page of which crosses once.
func TestVMsThatLeaveForSeveralHosts(t *testing.T) {
	const pages = 2048
	s := newSites(t, nil, map[heliotrope.HostID]*Encoding{"a": neighbourly(), "c": neighbourly(), "d": neighbourly()})
	var all []leaving
	for i := range 4 {
		all = append(all, leaving{"a", []heliotrope.HostID{"c", "d"}[i%2], guestStream(pages, uint64(i))})
	}
	stats, sent := sum(s.moves(all))
	t.Logf("pages %v, %d bytes sent", stats.Pages, sent)
	const (
		own   = 4*pages/8 + pages*7/8       // pages that are different ones
		alone = 2 * (2*pages/8 + pages*7/8) // that are carried if streams to each host go by themselves
	)
	if bodies := stats.Pages[wan.Literal] + stats.Pages[wan.Noise]; bodies >= alone {
		t.Errorf("%d pages carried, of %d different ones", bodies, own)
	}
}

// lockstep are four of one image from two hosts to two others.
func lockstep(pages int) (all []leaving) {
	for i := range 4 {
		all = append(all, leaving{[]heliotrope.HostID{"a", "b"}[i%2], []heliotrope.HostID{"c", "d"}[i/2], guestStream(pages, uint64(i))})
	}
	return all
}

func fourHosts() map[heliotrope.HostID]*Encoding {
	return map[heliotrope.HostID]*Encoding{"a": neighbourly(), "b": neighbourly(), "c": neighbourly(), "d": neighbourly()}
}

// TestVMsThatLeaveSeveralHosts: the same, from two hosts. They are abreast, over a way that all of them share.
// What both have in hand before either knows of the other crosses twice.
func TestVMsThatLeaveSeveralHosts(t *testing.T) {
	const pages = 4096
	const (
		own   = 4*pages/8 + pages*7/8       // pages that are different ones
		alone = 2 * (2*pages/8 + pages*7/8) // that are carried if each host goes by itself
	)
	for name, way := range map[string]*narrow{"a narrow way": {rate: 3e6}, "a wide way": nil} {
		t.Run(name, func(t *testing.T) {
			begun := time.Now()
			stats, sent := sum(newSites(t, way, fourHosts()).moves(lockstep(pages)))
			bodies := stats.Pages[wan.Literal] + stats.Pages[wan.Noise]
			t.Logf("pages %v, %d bytes sent in %v; %d pages carried, of %d different ones, %d by each for itself", stats.Pages, sent, time.Since(begun), bodies, own, alone)
			if bodies >= alone {
				t.Errorf("%d pages carried, of %d different ones", bodies, own)
			}
		})
	}
}

// TestTwoHostsForOne: what another host's stream carries to the same destination needs no host to be asked.
func TestTwoHostsForOne(t *testing.T) {
	hosts := map[heliotrope.HostID]*Encoding{"a": neighbourly(), "b": neighbourly(), "c": neighbourly()}
	s := newSites(t, nil, hosts)
	s.hosts["c"].dialled = func(host heliotrope.HostID) error { t.Errorf("%s was asked", host); return nil }
	stats, _ := sum(s.moves([]leaving{{"a", "c", guestStream(2048, 1)}, {"b", "c", guestStream(2048, 2)}}))
	t.Logf("pages %v", stats.Pages)
	if stats.Pages[wan.Peer] == 0 {
		t.Errorf("%d pages are another stream's", stats.Pages[wan.Peer])
	}
}

// TestNeighboursThatFail: whatever a neighbour does, all that moves comes out as it went in.
func TestNeighboursThatFail(t *testing.T) {
	const pages = 1024
	refused := errors.New("refused, for the test")
	once := func(at int, f func()) func(int, int) {
		var o sync.Once
		return func(_, sent int) {
			if sent > at {
				o.Do(f)
			}
		}
	}
	half := pages * 4096 / 2
	for name, prepare := range map[string]func(s *site) func(i, sent int){
		"a holder refuses": func(s *site) func(int, int) {
			s.hosts["d"].dialled = func(heliotrope.HostID) error { return refused }
			s.hosts["c"].dialled = func(heliotrope.HostID) error { return refused }
			return nil
		},
		"a holder knows of no stream": func(s *site) func(int, int) {
			for _, h := range s.hosts {
				h.Encoding.Near.Share = share.New()
			}
			return nil
		},
		"a holder goes in the middle": func(s *site) func(int, int) {
			return once(half, func() { s.hosts["c"].cut(); s.hosts["d"].cut() })
		},
		"sources do not meet": func(s *site) func(int, int) {
			s.hosts["a"].dialled = func(heliotrope.HostID) error { return refused }
			s.hosts["b"].dialled = func(heliotrope.HostID) error { return refused }
			return nil
		},
		"sources part in the middle": func(s *site) func(int, int) {
			return once(half, func() { s.hosts["a"].cut(); s.hosts["b"].cut() })
		},
		"a destination has little room": func(s *site) func(int, int) {
			s.hosts["c"].Encoding.Room = NewRoom(1<<14 + 3*300)
			return nil
		},
		"a destination is older": func(s *site) func(int, int) {
			s.hosts["c"].Encoding.Near = nil
			return nil
		},
		"a source is older": func(s *site) func(int, int) {
			s.hosts["a"].Encoding.Near = nil
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSites(t, nil, fourHosts())
			var during []func(int, int)
			if f := prepare(s); f != nil {
				during = append(during, f)
			}
			stats, sent := sum(s.moves(lockstep(pages), during...))
			t.Logf("pages %v, %d bytes sent", stats.Pages, sent)
		})
	}
}

// TestSlowHolder: a host that answers nothing is not waited for again and again.
func TestSlowHolder(t *testing.T) {
	const pages = 2048
	s := newSites(t, nil, map[heliotrope.HostID]*Encoding{"a": neighbourly(), "c": neighbourly(), "d": neighbourly()})
	for _, h := range s.hosts {
		h.Others[near.ALPN] = func(ctx context.Context, _ heliotrope.HostID, conn net.Conn) error {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			_, err := io.Copy(io.Discard, conn)
			return err
		}
	}
	begun := time.Now()
	stats, sent := sum(s.moves([]leaving{{"a", "c", guestStream(pages, 1)}, {"a", "d", guestStream(pages, 2)}}))
	t.Logf("pages %v, %d bytes sent in %v", stats.Pages, sent, time.Since(begun))
}
