package relay

import (
	"bytes"
	"context"
	"fmt"
	"heliotrope"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
	"heliotrope/migration/wan/ramstream"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"

	"github.com/zeebo/xxh3"
)

// together sends streams at the same time, each in its own move, and says what crossed.
func together(t *testing.T, from, to *Encoding, streams [][]byte, before ...func(*Client)) *Client {
	t.Helper()
	p := newPKI(t)
	s := NewServer(p.config(t, "dst"), peer, slog.New(slog.NewTextHandler(t.Output(), nil)))
	s.Encoding = to
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) error { return s.Serve(ctx, l) })
	client := &Client{Addr: l.Addr().(*net.TCPAddr).AddrPort(), TLS: p.config(t, "src"), Encoding: from}
	for _, f := range before {
		f(client)
	}
	sock := hypervisor(t, mirrorBack)
	var g sync.WaitGroup
	for i, stream := range streams {
		h := memory
		h.Move, h.VM = heliotrope.MoveID(fmt.Sprintf("m%d", i)), heliotrope.VMID(fmt.Sprintf("vm%d", i))
		s.Expect(h.Move, Expectation{VM: h.VM, From: "src", Sockets: map[Kind]string{Memory: sock}})
		_, connect := source(t, client, h)
		conn := connect()
		g.Go(func() {
			if _, err := conn.Write(stream); err != nil {
				t.Error(err)
			}
			conn.CloseWrite()
			if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, stream) {
				t.Errorf("%s: %d bytes came out of %d: %v", h.VM, len(got), len(stream), err)
			}
		})
	}
	g.Wait()
	return client
}

func sharing() *Encoding {
	return &Encoding{MirrorPages: 1 << 14, Least: wan.Fast, Share: share.New()}
}

// TestVMsThatLeaveTogether are four of one image: an eighth of their pages is their own.
func TestVMsThatLeaveTogether(t *testing.T) {
	for name, c := range map[string]struct {
		source, destination *Encoding
		pages               int
		shared              bool
	}{
		"both share":                {sharing(), sharing(), 2048, true},
		"the source alone":          {sharing(), mirrors, 512, false},
		"the destination alone":     {mirrors, sharing(), 512, false},
		"the destination is narrow": {sharing(), &Encoding{MirrorPages: 1 << 14, Room: NewRoom(1<<14 + 3*300), Share: share.New()}, 512, false},
	} {
		t.Run(name, func(t *testing.T) {
			var streams [][]byte
			for i := range uint64(4) {
				streams = append(streams, guestStream(c.pages, i))
			}
			t.Cleanup(func() { // what together starts has ended then
				for _, e := range []*Encoding{c.source, c.destination} {
					if out, in := e.Share.Len(); out > 0 || in > 0 {
						t.Errorf("streams are left: %d out, %d in", out, in)
					}
					if r := e.Room; r != nil && r.left != 1<<14+3*300 {
						t.Errorf("%d pages of room are left", r.left)
					}
				}
			})
			client := together(t, c.source, c.destination, streams)
			s := client.Memory()
			t.Logf("pages %v, %d bytes sent", s.Pages, client.Sent())
			// An eighth is each one's own; the rest crosses once, but for what some send at the same moment.
			all := uint64(len(streams) * c.pages)
			if bodies := s.Pages[wan.Literal] + s.Pages[wan.Noise]; c.shared != (bodies < all*3/4) || c.shared != (s.Pages[wan.Peer] > uint64(c.pages)) {
				t.Errorf("%d pages carried, %d referred to", bodies, s.Pages[wan.Peer])
			}
		})
	}
}

// TestWhatIsNotThereIsAskedFor: the source believes that all is on its way in a stream of which
// the destination knows nothing.
func TestWhatIsNotThereIsAskedFor(t *testing.T) {
	stream := guestStream(2048, 1)
	e := sharing()
	client := together(t, e, sharing(), [][]byte{stream}, func(c *Client) {
		lost := e.Share.Send(c.way(), 999, 1<<14, false)
		var parser ramstream.Parser
		for rest := stream; ; {
			token, r, ok := parser.Next(rest)
			if !ok {
				break
			}
			if rest = r; len(token.Data) == 4096 {
				hash := xxh3.Hash128Seed(token.Data, e.Share.Seed(c.way()))
				lost.Find(hash)
				lost.Carries(hash, false)
			}
		}
	})
	s := client.Memory()
	t.Logf("pages %v, out %v, %d bytes sent for %d", s.Pages, s.Out, client.Sent(), len(stream))
	if s.Pages[wan.Peer] < 1500 || client.Sent() < uint64(len(stream)/10) {
		t.Errorf("%d pages referred to, %d bytes sent", s.Pages[wan.Peer], client.Sent())
	}
}
