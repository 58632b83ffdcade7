package hostagent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// OpenFlow 1.5, as much as it takes to know whether a switch has flows.
const (
	ofVersion     = 6
	ofHello       = 0
	ofError       = 1
	ofEchoRequest = 2
	ofEchoReply   = 3
	ofFlowMod     = 14
	ofGroupMod    = 15
	ofMeterMod    = 29
	ofMultiReq    = 18
	ofMultiReply  = 19
	ofBundle      = 33
	ofAggregate   = 2      // kind of a multipart message
	oxsFlowCount  = 3      // field of its answer
	oxsClass      = 0x8002 // of the fields
	ofHeaderSize  = 8
	mgmtTimeout   = 2 * time.Second
)

// mgmt is a connection to a bridge's management socket.
type mgmt struct{ net.Conn }

func dialMgmt(ctx context.Context, path string) (*mgmt, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	c := &mgmt{conn}
	if err := c.send(ofHello, 0, nil); err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet switch: %w", err)
	}
	return c, nil
}

func (c *mgmt) send(kind byte, xid uint32, body []byte) error {
	msg := make([]byte, ofHeaderSize, ofHeaderSize+len(body))
	msg[0], msg[1] = ofVersion, kind
	binary.BigEndian.PutUint16(msg[2:], uint16(ofHeaderSize+len(body)))
	binary.BigEndian.PutUint32(msg[4:], xid)
	_, err := c.Write(append(msg, body...))
	return err
}

func (c *mgmt) receive() (kind byte, xid uint32, body []byte, err error) {
	var head [ofHeaderSize]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return 0, 0, nil, err
	}
	size := int(binary.BigEndian.Uint16(head[2:]))
	if size < ofHeaderSize {
		return 0, 0, nil, fmt.Errorf("read from switch: a message of %d bytes", size)
	}
	body = make([]byte, size-ofHeaderSize)
	_, err = io.ReadFull(c, body)
	return head[1], binary.BigEndian.Uint32(head[4:]), body, err
}

// flows asks how many flows the bridge has.
func (c *mgmt) flows(ctx context.Context, xid uint32) (uint64, error) {
	deadline := time.Now().Add(mgmtTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	c.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.send(ofMultiReq, xid, aggregateRequest()); err != nil {
		return 0, fmt.Errorf("count flows: %w", err)
	}
	for {
		kind, id, body, err := c.receive()
		switch {
		case err != nil:
			return 0, fmt.Errorf("count flows: %w", err)
		case kind == ofEchoRequest:
			if err := c.send(ofEchoReply, id, body); err != nil {
				return 0, fmt.Errorf("count flows: %w", err)
			}
		case id != xid:
		case kind == ofMultiReply:
			return flowCount(body)
		case kind == ofError:
			return 0, fmt.Errorf("count flows: the switch answers with error %x", body[:min(len(body), 4)])
		}
	}
}

// aggregateRequest asks for all flows of all tables together.
func aggregateRequest() []byte {
	b := binary.BigEndian.AppendUint16(nil, ofAggregate)
	b = append(b, make([]byte, 2+4)...)              // flags, padding
	b = append(b, 0xff, 0, 0, 0)                     // every table
	b = binary.BigEndian.AppendUint32(b, 0xffffffff) // every port
	b = binary.BigEndian.AppendUint32(b, 0xffffffff) // every group
	b = append(b, make([]byte, 4+8+8)...)            // padding, cookie and its mask
	return append(b, 0, 1, 0, 4, 0, 0, 0, 0)         // a match that is empty
}

// flowCount reads the answer: a header, padding, and statistics as type-length-value.
func flowCount(body []byte) (uint64, error) {
	const before = 8 /* multipart */ + 4 /* of the statistics: reserved, length */
	if len(body) < before || binary.BigEndian.Uint16(body) != ofAggregate {
		return 0, fmt.Errorf("count flows: no answer to the question")
	}
	size := int(binary.BigEndian.Uint16(body[before-2:]))
	if size < 4 || size > len(body)-before+4 {
		return 0, fmt.Errorf("count flows: statistics of %d bytes", size)
	}
	for b := body[before : before+size-4]; len(b) >= 4; {
		class, field, length := binary.BigEndian.Uint16(b), b[2]>>1, int(b[3])
		if len(b) < 4+length {
			break
		}
		if class == oxsClass && field == oxsFlowCount && length == 4 {
			return uint64(binary.BigEndian.Uint32(b[4:])), nil
		}
		b = b[4+length:]
	}
	return 0, fmt.Errorf("count flows: the answer does not say")
}

// writes watches what the controller says to the switch.
type writes struct {
	net.Conn
	changed func() // called when it said something that changes flows

	head [ofHeaderSize]byte
	have int // bytes of head
	skip int // bytes of the message's body that are still to come
}

func (w *writes) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	if w.follow(p[:n]) {
		w.changed()
	}
	return n, err
}

// follow goes through the messages that p continues, and says whether one changes flows.
func (w *writes) follow(p []byte) (change bool) {
	for len(p) > 0 {
		if w.skip > 0 {
			n := min(w.skip, len(p))
			w.skip, p = w.skip-n, p[n:]
			continue
		}
		n := copy(w.head[w.have:], p)
		w.have, p = w.have+n, p[n:]
		if w.have < ofHeaderSize {
			break
		}
		switch w.head[1] {
		case ofFlowMod, ofGroupMod, ofMeterMod, ofBundle:
			change = true
		}
		// A length that is none: the switch will end the connection.
		w.have, w.skip = 0, max(int(binary.BigEndian.Uint16(w.head[2:]))-ofHeaderSize, 0)
	}
	return change
}

// idle waits for d. It answers the switch meanwhile, and returns at once when the switch
// ends.
func (c *mgmt) idle(ctx context.Context, d time.Duration) error {
	c.SetDeadline(time.Now().Add(d))
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		kind, id, body, err := c.receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil:
			return nil
		case err != nil:
			return err
		case kind == ofEchoRequest:
			if err := c.send(ofEchoReply, id, body); err != nil {
				return err
			}
		}
	}
}
