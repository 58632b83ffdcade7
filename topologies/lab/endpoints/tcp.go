package endpoints

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"heliotrope"
)

const (
	dialLimit  = 10 * time.Second
	drainLimit = 10 * time.Second // for what is in buffers when a talk's time is over
	closeLimit = time.Second      // for the last acknowledgement

	helloSize = 24
	helloTCP  = 0x68656c696f740001
)

// helloTCP opens a connection: it tells the server how quickly to send back and how long.
func appendHello(b []byte, back float64, left time.Duration) []byte {
	b = binary.BigEndian.AppendUint64(b, helloTCP)
	b = binary.BigEndian.AppendUint64(b, uint64(back))
	return binary.BigEndian.AppendUint64(b, uint64(left))
}

func readHello(r io.Reader) (back float64, left time.Duration, err error) {
	var b [helloSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, 0, fmt.Errorf("read hello: %w", err)
	}
	if binary.BigEndian.Uint64(b[:]) != helloTCP {
		return 0, 0, errors.New("read hello: it is none")
	}
	back, left = float64(binary.BigEndian.Uint64(b[8:])), time.Duration(binary.BigEndian.Uint64(b[16:]))
	if back > float64(maxRate) || left < 0 || left > maxFor {
		return 0, 0, errors.New("read hello: it asks for too much")
	}
	return back, left, nil
}

// talkTCP opens a connection, sends until ctx ends, and closes it in order, so that the
// kernel's counts of it are complete.
func (e *endpoint) talkTCP(ctx context.Context, t talk) error {
	until, _ := ctx.Deadline()
	dialer := net.Dialer{Timeout: dialLimit}
	c, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(t.Address.String(), fmt.Sprint(t.Service.Port)))
	if err != nil {
		return err
	}
	conn := c.(*net.TCPConn)
	defer conn.Close()
	defer context.AfterFunc(e.ctx, func() { conn.Close() })()
	if _, err = conn.Write(appendHello(nil, t.Back, time.Until(until))); err == nil {
		err = exchange(ctx, conn, t.Rate)
	}
	return errors.Join(err, e.countTCP(conn, t.Peer, true))
}

func (e *endpoint) serveTCP(l net.Listener) error {
	for {
		c, err := l.Accept()
		if e.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		e.group.Go(func() error { e.answerTCP(c.(*net.TCPConn)); return nil })
	}
}

// answerTCP serves one connection. What goes wrong with it the client says.
func (e *endpoint) answerTCP(conn *net.TCPConn) {
	defer conn.Close()
	defer context.AfterFunc(e.ctx, func() { conn.Close() })()
	conn.SetReadDeadline(time.Now().Add(dialLimit))
	back, left, err := readHello(conn)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(e.ctx, left)
	defer cancel()
	exchange(ctx, conn, back)
	e.countTCP(conn, e.peer(conn.RemoteAddr()), false)
}

// payload is sent again and again.
var payload = func() []byte {
	b := make([]byte, paceMost)
	for i := range b {
		b[i] = byte(i * i >> 7)
	}
	return b
}()

// exchange sends at a rate until ctx ends and takes what comes until the other side has
// said all.
func exchange(ctx context.Context, conn *net.TCPConn, rate float64) error {
	until, _ := ctx.Deadline()
	conn.SetReadDeadline(until.Add(drainLimit))
	conn.SetWriteDeadline(until)
	var both errgroup.Group
	both.Go(func() error {
		_, err := io.Copy(io.Discard, conn)
		return err
	})
	both.Go(func() error {
		err := pace(ctx, rate, func(due int) (int, error) { return conn.Write(payload[:due]) })
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil // the network is slower than the plan: its buffers are full
		}
		return errors.Join(err, conn.CloseWrite())
	})
	return both.Wait()
}

// IP and TCP header bytes. Linux's SYN carries MSS, SACK-permitted, timestamps and window
// scale; what follows carries timestamps.
const (
	ip4Header      = 20
	ip6Header      = 40
	udpHeader      = 8
	tcpHeader      = 20
	timestamps     = 12
	synOptions     = 20
	tcpiTimestamps = 1 // TCPI_OPT_TIMESTAMPS
	tcpClose       = 7 // TCP_CLOSE: also what a socket in TIME-WAIT says
)

// countTCP counts a connection that has been closed on both sides by what the kernel says
// of it (struct tcp_info). Segments are what goes on the wire: segmentation is in software
// and before the device. What it does not tell comes with loss only: the options of
// selective acknowledgements, a SYN-ACK sent again, data that arrives twice.
func (e *endpoint) countTCP(conn *net.TCPConn, peer heliotrope.VMID, client bool) error {
	info, err := closedInfo(conn)
	if err != nil {
		return err
	}
	ip, options := ip4Header, 0
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok && a.IP.To4() == nil {
		ip = ip6Header
	}
	if info.Options&tcpiTimestamps != 0 {
		options = timestamps
	}
	header := uint64(ip + tcpHeader + options)
	syn := uint64(synOptions - options) // each side sends one SYN and gets one
	sent := Volume{Packets: uint64(info.Segs_out), Bytes: uint64(info.Segs_out)*header + info.Bytes_sent + syn}
	got := Volume{Packets: uint64(info.Segs_in), Bytes: uint64(info.Segs_in)*header + info.Bytes_received + syn}
	if info.State == tcpClose && got.Bytes > 0 {
		got.Bytes-- // for Linux the other side's FIN is a byte
	}
	if client {
		sent.Flows = 1
	} else {
		got.Flows = 1
		sent = sent.plus(one(int(header))) // SYN and ACK: sent before there was a socket
	}
	e.count(peer, Counts{Sent: sent, Got: got})
	return nil
}

// closedInfo waits for the other side's last acknowledgement and returns what the kernel
// knows of the connection.
func closedInfo(conn *net.TCPConn) (info *unix.TCPInfo, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("count connection: %w", err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; <-tick.C {
		var failed error
		err = raw.Control(func(fd uintptr) { info, failed = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) })
		if err = errors.Join(err, failed); err != nil {
			return nil, fmt.Errorf("count connection: %w", err)
		}
		if info.State == tcpClose || time.Since(began) > closeLimit {
			return info, nil
		}
	}
}
