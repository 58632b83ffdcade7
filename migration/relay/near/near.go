// Package near is what hosts of one site have to say to each other while VMs leave it for another site, or come
// from there, at the same time: what package share does between the streams of two hosts it does between sites.
//
//	source site                 destination site
//	A ──── stream to C ────────► C
//	│ pages that are sent        ▲ pages of A's stream
//	▼                            │
//	B ──── stream to D ────────► D
//
// Sources tell each other the hashes of what they have put on the wire (Meet). A stream then names a page of another
// one, which the source may know of another source, and the destination has it from the host where that stream went
// (Fetcher): when the frame that refers to it is unpacked, before it is needed.
//
// Nothing depends on any of it. A host that does not answer, or has not got a page, is not asked for that stream's
// pages any more; the source is told so (Miss), and asked for what is missing. Nothing is told and nothing
// given out but to hosts of the same Heliotrope, which must name what only those know that were told: the seed
// of a tenant's moves between two sites, from the controller's order, and a stream's number, both random.
package near

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
)

// ALPN is in TLS the name of the protocol.
const ALPN = "heliotrope-near/1"

// The first byte of a connection says what it is for.
const (
	forPages = 'p'
	forTold  = 't'
)

const (
	dialLimit = 2 * time.Second
	// answerLimit is how long a host may take to answer: as long as it waits for pages that have yet to come, and
	// time for the way.
	answerLimit = share.Patience + time.Second
	// idleLimit is how long a connection may be silent.
	idleLimit = 10 * time.Minute
	// requestMost is more pages than a batch has.
	requestMost = 256
	connsMost   = 256 // of other hosts at once
)

// Host is this host as its neighbours know it.
type Host struct {
	Name  heliotrope.HostID
	Share *share.Share
	// Dial connects to the port of another host, which must be that one, for ALPN.
	Dial func(ctx context.Context, host heliotrope.HostID, addr netip.AddrPort) (net.Conn, error)
	Log  *slog.Logger

	mu    sync.Mutex
	conns int             // that others have dialled
	links map[peer]*meets // that this one has dialled
	met   map[peer]int    // that have dialled this one
}

// Serve serves a connection that another host has dialled, until it ends. It closes it.
func (h *Host) Serve(ctx context.Context, from heliotrope.HostID, conn net.Conn) error {
	defer conn.Close()
	h.mu.Lock()
	h.conns++
	n := h.conns
	h.mu.Unlock()
	defer func() { h.mu.Lock(); h.conns--; h.mu.Unlock() }()
	if n > connsMost {
		return errors.New("serve neighbours: too many connections")
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	in := bufio.NewReaderSize(conn, 64<<10)
	conn.SetReadDeadline(time.Now().Add(dialLimit))
	hello, err := readHello(in)
	if err == io.EOF {
		return nil // it has thought better of it
	}
	if err != nil {
		return fmt.Errorf("serve neighbour %s: %w", from, err)
	}
	s := h.Share.Of(heliotrope.TenantID(hello.tenant))
	if hello.what == forTold {
		err = h.meet(ctx, from, s, hello, conn, in)
	} else {
		err = give(ctx, s, hello.seed, conn, in)
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve neighbour %s: %w", from, err)
	}
	return nil
}

// hello is how a connection begins.
type hello struct {
	what   byte
	tenant string
	site   string // forTold: where streams go
	seed   uint64
}

func (h hello) append(to []byte) []byte {
	to = append(to, h.what)
	to = appendText(to, h.tenant)
	to = appendText(to, h.site)
	return binary.BigEndian.AppendUint64(to, h.seed)
}

func appendText(to []byte, s string) []byte { return append(append(to, byte(len(s))), s...) }

func readHello(in *bufio.Reader) (h hello, err error) {
	if h.what, err = in.ReadByte(); err == io.EOF {
		return h, err
	}
	if err == nil && h.what != forPages && h.what != forTold {
		err = fmt.Errorf("connection of kind %q", h.what)
	}
	if err == nil {
		h.tenant, err = readText(in)
	}
	if err == nil {
		h.site, err = readText(in)
	}
	if err == nil {
		h.seed, err = readNumber(in)
	}
	if err != nil {
		return h, fmt.Errorf("read greeting: %w", err)
	}
	return h, nil
}

func readText(in *bufio.Reader) (string, error) {
	n, err := in.ReadByte()
	if err != nil {
		return "", err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(in, b)
	return string(b), err
}

func readNumber(in io.Reader) (uint64, error) {
	var b [8]byte
	_, err := io.ReadFull(in, b[:])
	return binary.BigEndian.Uint64(b[:]), err
}

// dial connects to a host that is named as in wan.Ref, and says hello.
func (h *Host) dial(ctx context.Context, at string, say hello) (net.Conn, error) {
	name, addr, ok := strings.Cut(at, " ")
	where, err := netip.ParseAddrPort(addr)
	if !ok || err != nil {
		return nil, fmt.Errorf("dial neighbour: %q is no host", at)
	}
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	conn, err := h.Dial(ctx, heliotrope.HostID(name), where)
	if err != nil {
		return nil, fmt.Errorf("dial neighbour %s: %w", name, err)
	}
	conn.SetWriteDeadline(time.Now().Add(dialLimit))
	if _, err := conn.Write(say.append(nil)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet neighbour %s: %w", name, err)
	}
	return conn, nil
}

// A request names pages of one stream: the stream, how many, and their numbers, each less the one before. The answer
// is a byte for each, 1 if it follows, and those that do.

func appendRequest(to []byte, refs []wan.Ref) []byte {
	to = binary.BigEndian.AppendUint64(to, refs[0].Stream)
	to = binary.BigEndian.AppendUint16(to, uint16(len(refs)))
	before := uint64(0)
	for _, r := range refs {
		to = binary.AppendVarint(to, int64(r.Number-before))
		before = r.Number
	}
	return to
}

// readRequest returns io.EOF if nothing more comes.
func readRequest(in *bufio.Reader) (refs []wan.Ref, err error) {
	stream, err := readNumber(in)
	if err != nil {
		return nil, err
	}
	var n [2]byte
	if _, err := io.ReadFull(in, n[:]); err != nil {
		return nil, noEOF(err)
	}
	if count := binary.BigEndian.Uint16(n[:]); count == 0 || count > requestMost {
		return nil, fmt.Errorf("request for %d pages", count)
	}
	number := uint64(0)
	for range binary.BigEndian.Uint16(n[:]) {
		distance, err := binary.ReadVarint(in)
		if err != nil {
			return nil, noEOF(err)
		}
		number += uint64(distance)
		refs = append(refs, wan.Ref{Stream: stream, Number: number})
	}
	return refs, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// give answers requests for pages.
func give(ctx context.Context, s *share.Share, seed uint64, conn net.Conn, in *bufio.Reader) error {
	for {
		conn.SetReadDeadline(time.Now().Add(idleLimit))
		refs, err := readRequest(in)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		answer, err := pagesOf(ctx, s, seed, refs)
		if err != nil {
			return err
		}
		conn.SetWriteDeadline(time.Now().Add(answerLimit))
		if _, err := conn.Write(answer); err != nil {
			return err
		}
	}
}

// pagesOf is the answer to a request.
func pagesOf(ctx context.Context, s *share.Share, seed uint64, refs []wan.Ref) ([]byte, error) {
	answer := make([]byte, len(refs), len(refs)+len(refs)*pageBytes)
	var page [pageBytes]byte
	limited, cancel := context.WithTimeout(ctx, share.Patience)
	defer cancel()
	for i, ref := range refs {
		ok, err := s.Give(limited, seed, ref, &page)
		if ctx.Err() != nil {
			return nil, err
		}
		if !ok {
			break // those behind it are not to be had either, or who asks has no use for them
		}
		answer[i] = 1
		answer = append(answer, page[:]...)
	}
	return answer, nil
}

const pageBytes = 4096
