// Package openflow speaks OpenFlow 1.5 with one switch: it dumps its flows, changes them
// by atomic bundles, and counts. It is the only importer of libOpenflow.
//
// # Connection
//
// One goroutine reads a Conn's messages in the order in which the switch sent them, so
// that a barrier's reply comes after every error before it. A second one answers and
// sends echo requests; a third one ends a connection on which nothing was heard for
// EchoTimeout. Close waits for all three. The connection itself comes from elsewhere: we
// are always the controller, whoever dialled.
//
// A request takes a range of message IDs, and every message with an ID of the range goes
// to it. Messages that no request waits for are skipped, unknown ones too.
//
// # Bytes
//
// libOpenflow knows the protocol's numbers, writes control messages and reads small fixed
// ones, inside a recover because it panics on truncated input. Flows are written and read
// by codec.go: libOpenflow lacks some fields of ours, is slow at it, and loops for ever on
// some malformed messages with many parts. All lengths are checked against what is there.
package openflow

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"antrea.io/libOpenflow/openflow15"
)

// Options of a Conn; the zero value of each field takes its default.
type Options struct {
	EchoInterval time.Duration // silence after which the switch is asked for an echo; default 3 s
	EchoTimeout  time.Duration // silence after which the connection is given up; default 15 s
	MaxReply     int           // bytes of the longest reply to one request; default 256 MiB
	_            struct{}      // fields are named
}

// ErrClosed is the error of requests on a Conn that was closed.
var ErrClosed = errors.New("connection is closed")

// Conn is a connection to one switch. Its methods may be used by several goroutines at
// once. After an error of the connection itself all of them fail; make a new one then.
type Conn struct {
	nc       net.Conn
	opts     Options
	datapath uint64

	writing chan struct{} // holds one token: who takes it may use out
	out     *bufio.Writer

	mu      sync.Mutex
	xid     uint32
	bundle  uint32
	pending []*exchange
	err     error // why the connection ended

	done  chan struct{} // closed once err is set
	echo  chan []byte   // echo messages to be written
	heard atomic.Int64  // when the switch last sent anything, in nanoseconds since start
	start time.Time
	group sync.WaitGroup
}

// New greets the switch at the other end of nc and asks who it is. nc is the Conn's from
// now on: it is closed by Close, and by New when it fails or ctx ends before it returns.
func New(ctx context.Context, nc net.Conn, opts Options) (*Conn, error) {
	opts.EchoInterval = cmp.Or(opts.EchoInterval, 3*time.Second)
	opts.EchoTimeout = cmp.Or(opts.EchoTimeout, 15*time.Second)
	opts.MaxReply = cmp.Or(opts.MaxReply, 256<<20)
	c := &Conn{nc: nc, opts: opts, out: bufio.NewWriterSize(nc, 64<<10), writing: make(chan struct{}, 1),
		done: make(chan struct{}), echo: make(chan []byte, 16), start: time.Now(), xid: 1}
	in := bufio.NewReaderSize(nc, 64<<10)
	if err := c.greet(ctx, in); err != nil {
		return nil, fmt.Errorf("greet switch: %w", errors.Join(err, nc.Close()))
	}
	c.writing <- struct{}{}
	c.group.Go(func() { c.fail(c.read(in)) })
	c.group.Go(c.answer)
	c.group.Go(c.watch)
	if err := c.features(ctx); err != nil {
		return nil, fmt.Errorf("ask switch for its features: %w", errors.Join(err, c.Close()))
	}
	return c, nil
}

// Datapath is the switch's ID.
func (c *Conn) Datapath() uint64 { return c.datapath }

// Done is closed when the connection has ended, for whatever reason.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err says why the connection ended, nil while it has not.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and waits for its goroutines.
func (c *Conn) Close() error {
	c.fail(ErrClosed)
	c.group.Wait()
	return nil
}

// fail ends the connection; the first reason stays.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	close(c.done)
	c.nc.Close() // the reason is err; what Close says adds nothing
}

// greet exchanges hellos. Both sides send theirs at once.
func (c *Conn) greet(ctx context.Context, in *bufio.Reader) error {
	stop := context.AfterFunc(ctx, func() { c.nc.Close() })
	defer stop()
	b, err := hello()
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { _, err := c.nc.Write(b); sent <- err }()
	m, err := readMessage(in, make([]byte, openflow15.MSG_MAX_LEN))
	if err == nil {
		err = checkHello(m) // says more than that the peer hung up on our hello
	}
	if err != nil {
		c.nc.Close() // ends the write, if the peer does not read
		<-sent
		return cmp.Or(context.Cause(ctx), err)
	}
	return cmp.Or(context.Cause(ctx), <-sent)
}

func (c *Conn) features(ctx context.Context) error {
	return c.call(ctx, func(xid uint32) ([]byte, error) { return plain(openflow15.Type_FeaturesRequest, xid), nil },
		func(m message) (bool, error) {
			parsed, err := parse(m)
			if err != nil {
				return false, err
			}
			f, ok := parsed.(*openflow15.SwitchFeatures)
			if !ok || len(f.DPID) != 8 {
				return false, unexpected(m)
			}
			c.datapath = binary.BigEndian.Uint64(f.DPID)
			return true, nil
		})
}

// readMessage reads one message into buf, which holds the longest that there is.
func readMessage(in io.Reader, buf []byte) (message, error) {
	if _, err := io.ReadFull(in, buf[:headerLen]); err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	n := int(binary.BigEndian.Uint16(buf[2:]))
	if n < headerLen {
		return nil, fmt.Errorf("read message: length %d is less than a header's", n)
	}
	if _, err := io.ReadFull(in, buf[headerLen:n]); err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	return message(buf[:n]), nil
}

// read hands every message to whoever waits for it until the connection ends.
func (c *Conn) read(in io.Reader) error {
	buf := make([]byte, openflow15.MSG_MAX_LEN)
	for {
		m, err := readMessage(in, buf)
		if err != nil {
			return err
		}
		if m[0] != openflow15.VERSION {
			return fmt.Errorf("read message: version 0x%02x in an OpenFlow 1.5 connection", m[0])
		}
		c.heard.Store(int64(time.Since(c.start)))
		switch m.kind() {
		case openflow15.Type_EchoRequest:
			reply := slices.Clone(m)
			reply[1] = openflow15.Type_EchoReply
			c.queueEcho(reply)
		case openflow15.Type_EchoReply:
		default:
			c.dispatch(m)
		}
	}
}

// queueEcho has b written soon. A peer that asks for echoes faster than it reads them
// does not get all of them.
func (c *Conn) queueEcho(b []byte) {
	select {
	case c.echo <- b:
	default:
	}
}

// answer writes echo messages.
func (c *Conn) answer() {
	for {
		select {
		case <-c.done:
			return
		case b := <-c.echo:
			select {
			case <-c.done:
				return
			case <-c.writing:
			}
			_, err := c.out.Write(b)
			err = errors.Join(err, c.out.Flush())
			c.writing <- struct{}{}
			if err != nil {
				c.fail(fmt.Errorf("write echo: %w", err))
			}
		}
	}
}

// watch asks a silent switch for an echo, and ends the connection when none comes.
func (c *Conn) watch() {
	ticker := time.NewTicker(min(c.opts.EchoInterval, c.opts.EchoTimeout) / 2)
	defer ticker.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-ticker.C:
		}
		silent := time.Since(c.start) - time.Duration(c.heard.Load())
		if silent > c.opts.EchoTimeout {
			c.fail(fmt.Errorf("switch has been silent for %v", silent.Round(time.Millisecond)))
		} else if silent >= c.opts.EchoInterval {
			c.queueEcho(plain(openflow15.Type_EchoRequest, 0))
		}
	}
}
