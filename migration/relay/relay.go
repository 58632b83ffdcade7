// Package relay carries the byte streams of a move between two hosts, over the one port
// that a host opens to others.
//
// Every stream is a TLS 1.3 connection, dialled by the source, with both hosts'
// certificates. It starts with a header that names the move and the kind of the stream;
// the destination lets it in only if its controller has told it to Expect this move from
// this very host. The answer is one line, "ok" or why not. From then on a stream of kind
// Memory is a wire between two unix sockets, of which the hypervisors hold the far ends:
// bytes go both ways, and the end of one direction is passed on by itself. So is one of
// kind Disk, but for its handshake (disk.Open) and the source's end, which answers writes
// early (disk.Carry). A stream of kind Packets has frames, and is answered with how many
// were taken.
//
// What takes round trips is done before there is somebody who waits for it: connections are
// opened while the destination starts its hypervisor (Client.Ahead), and streams before the
// source's comes for them (Streams.Open).
//
// Where both ends say so, in the header and in the answer (Offer), the source's direction of a
// Memory stream is encoded by package wan (memory.go), and what the two hosts have kept from
// other moves (Site) is not sent again. Peers that know of it speak the protocol's second
// version, which TLS negotiates; with others everything is as it was in the first. What streams of
// several moves have in common crosses once: package share for those between the same two hosts, and
// package near for those of other hosts of the two sites.
//
// TLS is not only for secrecy: a hypervisor's stream has no checksum of its own, and one
// wrong bit becomes a wrong page in the guest. The end of a stream counts only when TLS
// says that it is the end.
package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"heliotrope"
	"heliotrope/migration/relay/disk"
	"io"
	"net"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ALPN is the protocol's name in TLS. A Client and a Server add the second version's, in
// which a header may have an Offer and an answer may take it, and the third's, in which a
// connection may wait for its header, padding may come before that (Client.Ahead), and the
// destination shakes hands with the server of a Disk (disk.Open), and the fourth, in which an Offer may
// name the image of the VM's disk.
const (
	ALPN   = "heliotrope-relay/1"
	alpnV2 = "heliotrope-relay/2"
	alpnV3 = "heliotrope-relay/3"
	alpnV4 = "heliotrope-relay/4"
)

// waitsForHeader says whether a connection may wait for its header.
func waitsForHeader(conn *tls.Conn) bool {
	version := conn.ConnectionState().NegotiatedProtocol
	return version == alpnV3 || version == alpnV4
}

// Kind is what a stream carries.
type Kind string

const (
	Memory  Kind = "memory"  // the hypervisor's migration stream
	Disk    Kind = "disk"    // NBD; a move may open several
	Packets Kind = "packets" // frames that were caught in the stopped VM's queue
)

// Header is how a stream begins.
type Header struct {
	Move heliotrope.MoveID `json:"move"`
	VM   heliotrope.VMID   `json:"vm"`
	Kind Kind              `json:"kind"`
	NIC  int               `json:"nic,omitempty"` // Packets: whose frames they are
	// Batch numbers the frames of a NIC from 1 on, so that a batch that is sent again
	// because its answer got lost is taken once.
	Batch uint64 `json:"batch,omitempty"`
	Codec Offer  `json:"codec,omitzero"` // Memory: how the source would encode it
	// Disk says of which of the server's exports the stream is, from 1 on, and that the
	// destination is to shake hands with it; 0: that is in the stream.
	Disk int `json:"disk,omitempty"`
}

const (
	headerLimit      = 4 << 10   // bytes
	bufferSize       = 256 << 10 // bytes, of each direction of a stream
	handshakeTimeout = 5 * time.Second
	deadPeer         = 30 * time.Second // without an acknowledgement from it
)

var (
	// ErrRefused is the destination's answer to a stream it does not expect.
	ErrRefused = errors.New("relay refused")

	errTruncated = errors.New("the peer's stream broke off")
	errNotAsked  = errors.New("receive memory: pages that nobody has asked for")
	namePattern  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

func writeHeader(w io.Writer, h Header) error {
	body, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("encode relay header: %w", err)
	}
	if len(body) > headerLimit {
		return fmt.Errorf("encode relay header: %d bytes", len(body))
	}
	if _, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(body))), body...)); err != nil {
		return fmt.Errorf("write relay header: %w", err)
	}
	return nil
}

// headerSize is the length of the header, which padding may come before. io.EOF means that
// nothing more comes.
func headerSize(r io.Reader) (int, error) {
	for padded := 0; padded <= padMost; {
		var size [2]byte
		if _, err := io.ReadFull(r, size[:]); err != nil {
			return 0, err
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if n&padBit == 0 {
			return n, nil
		}
		n &^= padBit
		if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
			return 0, noEOF(err)
		}
		padded += 2 + n
	}
	return 0, errors.New("too much padding")
}

func readHeader(r io.Reader) (Header, error) {
	n, err := headerSize(r)
	if err == nil && n > headerLimit {
		err = fmt.Errorf("%d bytes", n)
	}
	if err != nil {
		return Header{}, fmt.Errorf("read relay header: %w", err)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return Header{}, fmt.Errorf("read relay header: %w", err)
	}
	var h Header
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil {
		return Header{}, fmt.Errorf("parse relay header: %w", err)
	}
	switch {
	case !namePattern.MatchString(string(h.Move)) || !namePattern.MatchString(string(h.VM)):
		return Header{}, errors.New("parse relay header: no name of a move or VM")
	case h.Kind != Memory && h.Kind != Disk && h.Kind != Packets:
		return Header{}, fmt.Errorf("parse relay header: unknown kind %q", h.Kind)
	case h.NIC < 0 || h.NIC > 255:
		return Header{}, fmt.Errorf("parse relay header: NIC %d", h.NIC)
	case h.Disk < 0 || h.Disk > disk.MaxExports || h.Disk > 0 && h.Kind != Disk:
		return Header{}, fmt.Errorf("parse relay header: disk %d of %s", h.Disk, h.Kind)
	case h.Codec.MirrorPages < 0:
		return Header{}, fmt.Errorf("parse relay header: a mirror of %d pages", h.Codec.MirrorPages)
	}
	return h, nil
}

// writeAnswer tells the source that its stream is let in, and what of its offer is taken, or
// why not.
func writeAnswer(w io.Writer, taken Offer, refusal error) error {
	line := "ok"
	switch {
	case refusal != nil:
		line = strings.ReplaceAll(refusal.Error(), "\n", " ")
		line = line[:min(len(line), 1000)]
	case taken != Offer{}:
		body, err := json.Marshal(taken)
		if err != nil {
			return fmt.Errorf("encode relay answer: %w", err)
		}
		line += " " + string(body)
	}
	_, err := io.WriteString(w, line+"\n")
	return err
}

// readAnswer reads bytewise: what follows the line belongs to the stream.
func readAnswer(r io.Reader) (taken Offer, err error) {
	var line []byte
	one := make([]byte, 1)
	for len(line) < 1024 {
		if _, err := io.ReadFull(r, one); err != nil {
			return Offer{}, fmt.Errorf("read relay answer: %w", err)
		}
		if one[0] != '\n' {
			line = append(line, one[0])
			continue
		}
		if body, ok := bytes.CutPrefix(line, []byte("ok ")); ok {
			if err := json.Unmarshal(body, &taken); err != nil {
				return Offer{}, fmt.Errorf("parse relay answer: %w", err)
			}
			return taken, nil
		}
		if string(line) != "ok" {
			return Offer{}, fmt.Errorf("%w: %s", ErrRefused, line)
		}
		return Offer{}, nil
	}
	return Offer{}, errors.New("read relay answer: it has no end")
}

// halfConn is a connection whose directions end separately.
type halfConn interface {
	io.ReadWriter
	CloseWrite() error
}

// join passes bytes between remote and local until both directions have ended, one has
// failed, or ctx ends. It closes both. An error means that the stream is not whole; the
// peer learns that because TLS then does not say that it is the end.
// What comes from remote is read from in.
func join(ctx context.Context, remote *tls.Conn, in io.Reader, local *net.UnixConn) error {
	closeBoth := func() { remote.NetConn().Close(); local.Close() }
	defer closeBoth()
	stop := context.AfterFunc(ctx, closeBoth)
	defer stop()
	pump := func(dst halfConn, src io.Reader) func() error {
		return func() error {
			// The plain interfaces keep io.CopyBuffer from choosing smaller buffers.
			_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, bufferSize))
			if err == nil {
				err = dst.CloseWrite()
			}
			if err != nil {
				closeBoth()
				return fmt.Errorf("relay bytes: %w", err)
			}
			return nil
		}
	}
	var g errgroup.Group
	g.Go(pump(remote, local))
	g.Go(pump(local, in))
	err := g.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// wireConn counts what crosses the wire. The bare end of TCP is an error to it, since the
// end that TLS announces comes first.
type wireConn struct {
	net.Conn
	sent, received *atomic.Uint64
}

func (c wireConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.received.Add(uint64(n))
	if err == io.EOF {
		err = errTruncated
	}
	return n, err
}

func (c wireConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(uint64(n))
	return n, err
}

// keepAlive and the user timeout of tune find a peer that died without a word, whether it owes us an
// acknowledgement or we wait for its bytes.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}

// A WAN has a long round trip: windowBytes fill 465 Mbit/s over 180 ms and more. What is
// not sent yet waits in the hypervisor, not here, so that the last round of a move does
// not queue behind what came before it.
const (
	windowBytes = 32 << 20
	unsentBytes = 128 << 10
)

// tune sets what a stream needs of TCP. Larger buffers take privilege;
// without them a stream is only slower.
func tune(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadPeer.Milliseconds()))
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, windowBytes)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, windowBytes)
	}); e != nil {
		return e
	}
	return err
}
