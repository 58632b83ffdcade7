package near

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"

	"golang.org/x/sync/errgroup"
)

// Peer is another host of the site that streams leave.
type Peer struct {
	Host  heliotrope.HostID
	Relay netip.AddrPort
}

// peer is a group's neighbour.
type peer struct {
	group *share.Group
	host  heliotrope.HostID
}

// meets is a connection to a neighbour, for as long as streams want it.
type meets struct {
	streams int
	cancel  context.CancelFunc
	ended   chan struct{}
}

const (
	dialAgain     = 500 * time.Millisecond
	dialAgainMost = 8 * time.Second
)

// Meet tells peers what streams of m's group carry, and hears what theirs do, until end is called for the last
// of them. m may be nil, or share nothing with other hosts: then it does nothing.
func (h *Host) Meet(s *share.Share, m *share.Sending, peers []Peer) (end func()) {
	group := m.Group()
	if h == nil || group == nil {
		return func() {}
	}
	w := m.Way()
	say := hello{what: forTold, tenant: string(s.Tenant()), site: string(w.Site), seed: w.Seed}
	h.mu.Lock()
	defer h.mu.Unlock()
	var mine []peer
	for _, p := range peers {
		key := peer{group, p.Host}
		one := h.links[key]
		if one == nil {
			ctx, cancel := context.WithCancel(context.Background())
			one = &meets{cancel: cancel, ended: make(chan struct{})}
			if h.links == nil {
				h.links = map[peer]*meets{}
			}
			h.links[key] = one
			go func() { // whose end is waited for by end
				defer close(one.ended)
				h.keepMeeting(ctx, key, string(p.Host)+" "+p.Relay.String(), say)
			}()
		}
		one.streams++
		mine = append(mine, key)
	}
	return sync.OnceFunc(func() {
		for _, key := range mine {
			h.leave(key)
		}
	})
}

func (h *Host) leave(key peer) {
	h.mu.Lock()
	one := h.links[key]
	one.streams--
	last := one.streams == 0
	if last {
		delete(h.links, key)
	}
	h.mu.Unlock()
	if last {
		one.cancel()
		<-one.ended
	}
}

// keepMeeting meets a neighbour again and again until ctx ends: it may have no streams yet.
func (h *Host) keepMeeting(ctx context.Context, p peer, at string, say hello) {
	for wait := dialAgain; ctx.Err() == nil; wait = min(2*wait, dialAgainMost) {
		if !h.isMet(p) {
			conn, err := h.dial(ctx, at, say)
			if err == nil {
				err = h.exchange(ctx, p.group.Link(p.host < h.Name), conn, bufio.NewReaderSize(conn, 64<<10))
			}
			if ctx.Err() == nil {
				h.Log.Debug("does not hear of a neighbour's pages", "at", at, "error", err)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// isMet says whether a neighbour has come by itself.
func (h *Host) isMet(p peer) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.met[p] > 0
}

// meet serves a neighbour that has come by itself.
func (h *Host) meet(ctx context.Context, from heliotrope.HostID, s *share.Share, say hello, conn net.Conn, in *bufio.Reader) error {
	group := s.Meeting(share.Way{Site: heliotrope.SiteID(say.site), Seed: say.seed})
	if group == nil {
		return nil // it has nothing to say to it yet
	}
	p := peer{group, from}
	h.mu.Lock()
	if h.met == nil {
		h.met = map[peer]int{}
	}
	h.met[p]++
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.met[p]--; h.met[p] == 0 {
			delete(h.met, p)
		}
	}()
	return h.exchange(ctx, group.Link(from < h.Name), conn, in)
}

var errEnded = errors.New("the last stream has ended")

// exchange tells the other end what there is and hears what it tells, until one of them has no streams any more.
// It closes conn.
func (h *Host) exchange(ctx context.Context, l *share.Link, conn net.Conn, in *bufio.Reader) error {
	defer l.Drop()
	defer conn.Close()
	conn.SetDeadline(time.Time{}) // it is found out by TCP if the other end is gone
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	g.Go(func() error { return tell(ctx, l, conn) })
	g.Go(func() error {
		for {
			t, err := readTold(in)
			if err == io.EOF {
				return errEnded
			}
			if err == nil {
				err = l.Hear(&t)
			}
			if err != nil {
				return fmt.Errorf("hear of pages: %w", err)
			}
		}
	})
	if err := g.Wait(); !errors.Is(err, errEnded) {
		return err
	}
	return nil
}

func tell(ctx context.Context, l *share.Link, conn net.Conn) error {
	out := bufio.NewWriterSize(conn, 64<<10)
	var buf []byte
	for {
		told, news, ended := l.Next()
		for i := range told {
			buf = appendTold(buf[:0], &told[i])
			if _, err := out.Write(buf); err != nil {
				return fmt.Errorf("tell of pages: %w", err)
			}
		}
		if err := out.Flush(); err != nil {
			return fmt.Errorf("tell of pages: %w", err)
		}
		if ended {
			return errEnded
		}
		if len(told) > 0 {
			continue
		}
		select {
		case <-news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// What is told of a stream: what of the following there is, its name, where it goes, and the hashes of pages.
const (
	toldNoise = 1 << iota
	toldGone
	toldAt
)

func appendTold(to []byte, t *share.Told) []byte {
	flags := byte(0)
	if t.Noise {
		flags |= toldNoise
	}
	if t.Gone {
		flags |= toldGone
	}
	if t.At != "" {
		flags |= toldAt
	}
	to = binary.BigEndian.AppendUint64(append(to, flags), t.Stream)
	if t.At != "" {
		to = appendText(to, t.At)
	}
	to = binary.BigEndian.AppendUint64(to, t.First)
	to = binary.BigEndian.AppendUint16(to, uint16(len(t.Pages)))
	for _, p := range t.Pages {
		to = binary.BigEndian.AppendUint64(to, p.Hi)
		to = binary.BigEndian.AppendUint64(to, p.Lo)
	}
	return to
}

// readTold returns io.EOF if nothing more comes.
func readTold(in *bufio.Reader) (t share.Told, err error) {
	flags, err := in.ReadByte()
	if err != nil {
		return t, err
	}
	if flags >= toldAt<<1 {
		return t, fmt.Errorf("something of kind %#x is told", flags)
	}
	t.Noise, t.Gone = flags&toldNoise != 0, flags&toldGone != 0
	if t.Stream, err = readNumber(in); err != nil {
		return t, noEOF(err)
	}
	if flags&toldAt != 0 {
		if t.At, err = readText(in); err != nil {
			return t, noEOF(err)
		}
	}
	if t.First, err = readNumber(in); err != nil {
		return t, noEOF(err)
	}
	var n [2]byte
	if _, err := io.ReadFull(in, n[:]); err != nil {
		return t, noEOF(err)
	}
	count := int(binary.BigEndian.Uint16(n[:]))
	if count > share.ToldMost {
		return t, fmt.Errorf("%d pages are told at once", count)
	}
	for range count {
		var p wan.PageHash
		if p.Hi, err = readNumber(in); err == nil {
			p.Lo, err = readNumber(in)
		}
		if err != nil {
			return t, noEOF(err)
		}
		t.Pages = append(t.Pages, p)
	}
	return t, nil
}
