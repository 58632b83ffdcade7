//go:build lab

package libvirt

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// pair is two hosts and what lies between them.
type pair struct {
	t        *testing.T
	src, dst *node
	moves    int
}

// wires are the sockets of one move, and the relays between them.
type wires struct {
	memory, disk string
	cut          func()       // ends the relays
	rate         func(int)    // changes it from now on
	carried      func() int64 // bytes of disks that were sent so far
}

// wire relays memory and disk from src to dst, as the agents' relays do over the WAN, at
// a rate in bytes a second; 0 is unlimited.
func (p *pair) wire(rate int) wires {
	p.t.Helper()
	p.moves++
	var memory, disk, now atomic.Int64
	now.Store(int64(rate))
	w := wires{fmt.Sprintf("/run/heliotrope/%d-memory", p.moves), fmt.Sprintf("/run/heliotrope/%d-disk", p.moves), nil, func(rate int) { now.Store(int64(rate)) }, disk.Load}
	var open []func()
	for socket, sent := range map[string]*atomic.Int64{w.memory: &memory, w.disk: &disk} {
		cut, err := relay(p.src.path(socket), p.dst.path(socket), &now, sent)
		if err != nil {
			p.t.Fatal(err)
		}
		open = append(open, cut)
	}
	w.cut = sync.OnceFunc(func() {
		for _, cut := range open {
			cut()
		}
	})
	p.t.Cleanup(w.cut)
	return w
}

// relay carries bytes between a socket that it makes at from and one that exists at to.
// sent counts those to there. What it returns ends it, and waits.
func relay(from, to string, rate *atomic.Int64, sent *atomic.Int64) (cut func(), err error) {
	listener, err := net.Listen("unix", from)
	if err != nil {
		return nil, err
	}
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		conns = []interface{ Close() error }{listener}
	)
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			peer, err := net.Dial("unix", to)
			if err != nil {
				conn.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, conn, peer)
			mu.Unlock()
			all.Go(func() { pump(peer, conn, rate, sent) })
			all.Go(func() { pump(conn, peer, new(atomic.Int64), new(atomic.Int64)) })
		}
	})
	return func() {
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	}, nil
}

func pump(dst, src net.Conn, rate *atomic.Int64, sent *atomic.Int64) {
	buf := make([]byte, 65536)
	for {
		n, err := src.Read(buf)
		sent.Add(int64(n))
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				src.Close()
				return
			}
			if rate := rate.Load(); rate > 0 {
				<-time.After(time.Duration(n) * time.Second / time.Duration(rate))
			}
		}
		if err != nil {
			dst.(*net.UnixConn).CloseWrite()
			return
		}
	}
}
