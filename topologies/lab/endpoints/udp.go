package endpoints

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	datagramHeader = 8 // a mark, and how long the answer is to be
	datagramMark   = 0x68654450
	lingerUDP      = time.Second // for answers after the last datagram
	udpBuffer      = 8 << 20
)

// growBuffers makes room for what comes while the process waits for a core: a datagram that
// the kernel drops here would look lost on the way.
func growBuffers(_, _ string, c syscall.RawConn) error {
	var err error
	ctl := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer)
	})
	return errors.Join(ctl, err)
}

// sizes are the payloads of a talk's datagrams and of their answers: as the rates are to
// each other, and zero for none.
func (t talk) sizes() (there, back int) {
	there = defaultSize
	if t.Size != 0 {
		there = t.Size
	}
	there = max(there, datagramHeader)
	if t.Rate <= 0 || t.Back <= 0 {
		return there, 0
	}
	ratio := t.Back / t.Rate
	if ratio*float64(there) > maxSize {
		there = max(int(maxSize/ratio), datagramHeader)
	}
	return there, max(min(int(ratio*float64(there)), maxSize), 1)
}

// talkUDP sends datagrams until ctx ends, and takes their answers.
func (e *endpoint) talkUDP(ctx context.Context, t talk) error {
	there, back := t.sizes()
	dialer := net.Dialer{Control: growBuffers}
	c, err := dialer.DialContext(ctx, "udp", netip.AddrPortFrom(t.Address, t.Service.Port).String())
	if err != nil {
		return err
	}
	conn := c.(*net.UDPConn)
	defer conn.Close()
	until, _ := ctx.Deadline()
	conn.SetReadDeadline(until.Add(lingerUDP))
	header := headerOf(t.Address)
	datagram := make([]byte, there)
	copy(datagram, payload)
	binary.BigEndian.PutUint32(datagram, datagramMark)
	binary.BigEndian.PutUint32(datagram[4:], uint32(back))
	e.count(t.Peer, Counts{Sent: Volume{Flows: 1}})
	var both errgroup.Group
	if back > 0 {
		both.Go(func() error {
			buf := make([]byte, 2*maxSize)
			for {
				n, err := conn.Read(buf)
				if errors.Is(err, unix.ECONNREFUSED) {
					continue // about an earlier one
				}
				if err != nil {
					return nil // its time is over
				}
				e.count(t.Peer, Counts{Got: one(n + header)})
			}
		})
	}
	both.Go(func() error {
		return pace(ctx, t.Rate, func(due int) (sent int, err error) {
			for ; due-sent >= there; sent += there {
				if _, err := conn.Write(datagram); err == nil {
					e.count(t.Peer, Counts{Sent: one(there + header)})
				} else if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOBUFS) {
					return sent, err
				}
			}
			return sent, nil
		})
	})
	return both.Wait()
}

func (e *endpoint) serveUDP(conn *net.UDPConn) error {
	buf := make([]byte, 2*maxSize)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if e.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read datagram: %w", err)
		}
		if n < datagramHeader || binary.BigEndian.Uint32(buf) != datagramMark {
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		peer, header := e.peer(net.UDPAddrFromAddrPort(from)), headerOf(from.Addr())
		c := Counts{Got: one(n + header)}
		if e.begins(from) {
			c.Got.Flows = 1
		}
		if back := min(int(binary.BigEndian.Uint32(buf[4:])), maxSize); back > 0 {
			if _, err := conn.WriteToUDPAddrPort(payload[:back], from); err == nil {
				c.Sent = one(back + header)
			}
		}
		e.count(peer, c)
	}
}

// headerOf is what IP and UDP put before the payload.
func headerOf(a netip.Addr) int {
	if a.Is4() {
		return ip4Header + udpHeader
	}
	return ip6Header + udpHeader
}
