package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

// Op is what a client asks for.
type Op struct {
	Kind   Kind
	FUA    bool
	Offset int64
	Length int
	Data   []byte // of a write: Length bytes
}

// Kind is a command of the protocol.
type Kind uint16

// The kinds of an Op.
const (
	Read        Kind = cmdRead
	Write       Kind = cmdWrite
	Flush       Kind = cmdFlush
	Trim        Kind = cmdTrim
	WriteZeroes Kind = cmdWriteZeroes
)

// Client is a client with many requests under way, for tests and measurements. Its methods
// are for one goroutine.
type Client struct {
	Size  int64
	Flags uint16 // of the export

	conn net.Conn
	in   *bufio.Reader
	out  []byte
}

// Dial connects to an export. Structured replies are asked for.
func Dial(ctx context.Context, network, address, export string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("dial NBD server: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	return newClient(conn, export)
}

func newClient(conn net.Conn, export string) (*Client, error) {
	c := &Client{conn: conn, in: bufio.NewReaderSize(conn, 256<<10)}
	if err := c.shakeHands(export); err != nil {
		conn.Close()
		return nil, fmt.Errorf("shake hands with NBD server: %w", err)
	}
	return c, nil
}

// Close says goodbye and closes the connection.
func (c *Client) Close() error {
	c.append(Op{Kind: cmdDisconnect}, 0)
	_, err := c.conn.Write(c.out)
	return errors.Join(err, c.conn.Close())
}

func (c *Client) shakeHands(export string) error {
	var greeting [18]byte
	if _, err := io.ReadFull(c.in, greeting[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(greeting[:]) != magicServer || binary.BigEndian.Uint64(greeting[8:]) != magicOption {
		return fmt.Errorf("greeting %x", greeting)
	}
	out := binary.BigEndian.AppendUint32(nil, handshakeFixed|handshakeNoZeroes)
	body := append(binary.BigEndian.AppendUint32(nil, uint32(len(export))), export...)
	out = appendOption(out, optStructuredReply, nil)
	out = appendOption(out, optGo, append(body, 0, 0))
	if _, err := c.conn.Write(out); err != nil {
		return err
	}
	for acks := 0; acks < 2; {
		option, kind, body, err := readOptionReply(c.in)
		switch {
		case err != nil:
			return err
		case kind&repErrorBit != 0:
			return fmt.Errorf("option %d refused: %#x %s", option, kind, body)
		case kind == repAck:
			acks++
		case kind == repInfo && len(body) == 12 && binary.BigEndian.Uint16(body) == infoExport:
			c.Size, c.Flags = int64(binary.BigEndian.Uint64(body[2:])), binary.BigEndian.Uint16(body[10:])
		}
	}
	return nil
}

func appendOption(b []byte, option uint32, body []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint32(b, option)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(body))), body...)
}

func readOptionReply(in io.Reader) (option, kind uint32, body []byte, err error) {
	var h [20]byte
	if _, err := io.ReadFull(in, h[:]); err != nil {
		return 0, 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[16:])
	if magic := binary.BigEndian.Uint64(h[:]); magic != magicReply || n > optionLimit {
		return 0, 0, nil, fmt.Errorf("reply with magic %#x, %d bytes", magic, n)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(in, body)
	return binary.BigEndian.Uint32(h[8:]), binary.BigEndian.Uint32(h[12:]), body, err
}

// Do carries out one Op. What was read goes to p, which may be nil.
func (c *Client) Do(op Op, p []byte) error {
	asked := false
	return c.Run(1, func() (Op, bool) { asked = !asked; return op, asked }, func(_ Op, data []byte) { copy(p, data) })
}

// slot is a request under way.
type slot struct {
	op   Op
	data []byte
	busy bool
	err  error
}

// Run carries out what next gives, depth at a time, until it gives no more. Done is told of
// each that was, with what was read, which is its own until it returns; it may be nil. Run
// ends with the first error.
func (c *Client) Run(depth int, next func() (Op, bool), done func(Op, []byte)) error {
	slots := make([]slot, depth)
	idle := make([]int, depth)
	for i := range idle {
		idle[i] = i
	}
	for more := true; ; {
		for more && len(idle) > 0 {
			var op Op
			if op, more = next(); !more {
				break
			}
			if len(idle) == depth {
				c.expect(op.Length)
			}
			i := idle[len(idle)-1]
			idle = idle[:len(idle)-1]
			s := &slots[i]
			s.op, s.busy, s.err = op, true, nil
			if op.Kind == Read && cap(s.data) < op.Length {
				s.data = make([]byte, op.Length)
			}
			c.append(op, uint64(i))
		}
		if len(c.out) > 0 {
			if _, err := c.conn.Write(c.out); err != nil {
				return fmt.Errorf("write NBD requests: %w", err)
			}
			c.out = c.out[:0]
		}
		if len(idle) == depth {
			return nil
		}
		for first := true; first || c.in.Buffered() >= simpleSize; first = false {
			i, end, err := c.reply(slots)
			if err != nil {
				return fmt.Errorf("read NBD reply: %w", err)
			}
			if !end {
				continue
			}
			s := &slots[i]
			if s.busy = false; s.err != nil {
				return fmt.Errorf("NBD command %d at %d: %w", s.op.Kind, s.op.Offset, s.err)
			}
			if idle = append(idle, i); done == nil {
				continue
			}
			if s.op.Kind == Read {
				done(s.op, s.data[:s.op.Length])
			} else {
				done(s.op, nil)
			}
		}
	}
}

// expect is told the size of requests while none is under way. Many small replies come by one
// system call; large ones are read to where they belong.
func (c *Client) expect(length int) {
	size := 256 << 10
	if length >= 32<<10 {
		size = chunkSize + holeSize
	}
	if c.in.Size() != size {
		c.in = bufio.NewReaderSize(c.conn, size)
	}
}

func (c *Client) append(op Op, cookie uint64) {
	flags := uint16(0)
	if op.FUA {
		flags = cmdFlagFUA
	}
	c.out = binary.BigEndian.AppendUint32(c.out, magicRequest)
	c.out = binary.BigEndian.AppendUint16(c.out, flags)
	c.out = binary.BigEndian.AppendUint16(c.out, uint16(op.Kind))
	c.out = binary.BigEndian.AppendUint64(c.out, cookie)
	c.out = binary.BigEndian.AppendUint64(c.out, uint64(op.Offset))
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(op.Length))
	c.out = append(c.out, op.Data...)
}

// reply reads a simple reply or a chunk, and whether it is the last of its request.
func (c *Client) reply(slots []slot) (i int, end bool, err error) {
	var h [chunkSize]byte
	if _, err := io.ReadFull(c.in, h[:simpleSize]); err != nil {
		return 0, false, noEOF(err)
	}
	cookie := binary.BigEndian.Uint64(h[8:])
	if cookie >= uint64(len(slots)) || !slots[cookie].busy {
		return 0, false, fmt.Errorf("cookie %#x", cookie)
	}
	i = int(cookie)
	s := &slots[i]
	switch binary.BigEndian.Uint32(h[:]) {
	case magicSimple:
		if code := binary.BigEndian.Uint32(h[4:]); code != 0 {
			s.err = syscall.Errno(code)
		} else if s.op.Kind == Read {
			return i, true, errors.New("a simple reply to a read")
		}
		return i, true, nil
	case magicChunk:
		if _, err := io.ReadFull(c.in, h[simpleSize:]); err != nil {
			return i, false, noEOF(err)
		}
		done := binary.BigEndian.Uint16(h[4:])&chunkDone != 0
		return i, done, noEOF(c.chunk(s, binary.BigEndian.Uint16(h[6:]), int(binary.BigEndian.Uint32(h[16:]))))
	}
	return i, false, fmt.Errorf("magic %x", h[:4])
}

// chunk reads the payload of a chunk.
func (c *Client) chunk(s *slot, kind uint16, n int) error {
	var h [holeSize]byte
	switch {
	case kind == chunkOffsetData && n > offsetSize, kind == chunkOffsetHole && n == holeSize:
		head := h[:holeSize]
		if kind == chunkOffsetData {
			head = h[:offsetSize]
		}
		if _, err := io.ReadFull(c.in, head); err != nil {
			return err
		}
		if n -= len(head); kind == chunkOffsetHole {
			n = int(binary.BigEndian.Uint32(h[offsetSize:]))
		}
		at := int64(binary.BigEndian.Uint64(h[:])) - s.op.Offset
		if s.op.Kind != Read || at < 0 || at+int64(n) > int64(s.op.Length) {
			return fmt.Errorf("a chunk of %d bytes at %d of the request", n, at)
		}
		if part := s.data[at : at+int64(n)]; kind == chunkOffsetData {
			_, err := io.ReadFull(c.in, part)
			return err
		} else {
			clear(part)
		}
		return nil
	case kind == chunkError && n >= 6 && n <= nameLimit+6:
		p := make([]byte, n)
		_, err := io.ReadFull(c.in, p)
		s.err = syscall.Errno(binary.BigEndian.Uint32(p))
		return err
	case n == 0:
		return nil
	}
	return fmt.Errorf("a chunk of kind %d and %d bytes", kind, n)
}
