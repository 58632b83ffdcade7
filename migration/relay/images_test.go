package relay

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"testing"

	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
)

// imageOf has the pages of an image, and which of them are here.
type imageOf struct {
	name   string
	pages  [][4096]byte
	gone   int // the last so many, which are told to be here
	bytes  int64
	told   []byte // nil: what is here
	spoilt atomic.Bool
	given  atomic.Int64
}

func (m *imageOf) Indexed(name string) int64 {
	if name != m.name || m.spoilt.Load() {
		return 0
	}
	return max(m.bytes, 1)
}

func (m *imageOf) Index(name string) (ImageIndex, error) {
	if m.Indexed(name) == 0 || m.bytes < 0 {
		return nil, errors.New("no index")
	}
	x := &indexOf{byContent: map[[4096]byte]uint64{}}
	for i, p := range m.pages {
		if _, twice := x.byContent[p]; !twice {
			x.byContent[p] = uint64(i)
		}
	}
	return x, nil
}

func (m *imageOf) Open(name string) (ImagePages, error) {
	if m.Indexed(name) == 0 {
		return nil, errors.New("no image")
	}
	return imagePages{m}, nil
}

func (m *imageOf) Spoil(string) { m.spoilt.Store(true) }

type indexOf struct {
	byContent map[[4096]byte]uint64
	all       bool
}

func (x *indexOf) Find(p *[4096]byte) (uint64, bool) {
	n, ok := x.byContent[*p]
	return n, ok && x.all
}

func (x *indexOf) Only(told []byte) error {
	if string(told) != "all" {
		return errors.New("what is that?")
	}
	x.all = true
	return nil
}

type imagePages struct{ *imageOf }

func (m imagePages) Page(n uint64, dst *[4096]byte) error {
	if n >= uint64(len(m.pages)-m.gone) {
		return errors.New("it has gone")
	}
	m.given.Add(1)
	*dst = m.pages[n]
	return nil
}

func (m imagePages) Here() []byte {
	if m.told != nil {
		return m.told
	}
	return []byte("all")
}

func (m imagePages) Close() error { return nil }

// pagesOf are the pages of a stream.
func pagesOf(t *testing.T, stream []byte) (all [][4096]byte) {
	t.Helper()
	enc := wan.NewEncoder(wan.Config{MirrorPages: 1 << 14}, new(wan.Batch), func(b *wan.Batch) (*wan.Batch, error) { b.Reset(); return b, nil })
	if _, err := enc.Write(stream); err != nil {
		t.Fatal(err)
	}
	for i := range enc.Mirror().Len() {
		all = append(all, *enc.Mirror().Page(i))
	}
	return all
}

func withImages(m *imageOf) *Encoding {
	e := &Encoding{MirrorPages: 1 << 14, Least: wan.Fast}
	if m != nil {
		e.Images = m
	}
	return e
}

// TestMemoryOfAnImage: what is found of it, and what crosses, as the two hosts have it or not. What comes out is what went
// in, always.
func TestMemoryOfAnImage(t *testing.T) {
	stream := qemuStream(t)
	all := pagesOf(t, stream)
	image := func(change func(*imageOf)) *imageOf {
		m := &imageOf{name: "a", pages: all}
		if change != nil {
			change(m)
		}
		return m
	}
	older := func(s *Server) { s.tls.NextProtos = []string{alpnV3, alpnV2, ALPN} }
	for name, c := range map[string]struct {
		source, destination *imageOf
		room                *Room
		of                  string // the VM's image
		older               func(*Server)
		found               bool
	}{
		"both":                             {source: image(nil), destination: image(nil), of: "a", found: true},
		"no image":                         {source: image(nil), destination: image(nil)},
		"another image":                    {source: image(nil), destination: image(nil), of: "b"},
		"the source has none":              {destination: image(nil), of: "a"},
		"the destination has none":         {source: image(nil), of: "a"},
		"the destination has another":      {source: image(nil), destination: image(func(m *imageOf) { m.name = "b" }), of: "a"},
		"the destination is of before":     {source: image(nil), destination: image(nil), of: "a", older: older},
		"the index has gone":               {source: image(func(m *imageOf) { m.bytes = -1 }), destination: image(nil), of: "a"},
		"no room for the index":            {source: image(func(m *imageOf) { m.bytes = 1 << 20 }), destination: image(nil), of: "a", room: NewRoom(1<<14 + 255)},
		"room for the index":               {source: image(func(m *imageOf) { m.bytes = 1 << 20 }), destination: image(nil), of: "a", room: NewRoom(1<<14 + 256), found: true},
		"half has gone at the destination": {source: image(nil), destination: image(func(m *imageOf) { m.gone = len(all) / 2 }), of: "a", found: true},
		"all has gone at the destination":  {source: image(nil), destination: image(func(m *imageOf) { m.gone = len(all) }), of: "a", found: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			s, addr := destination(t, p)
			s.Encoding = withImages(c.destination)
			if c.older != nil {
				c.older(s)
			}
			s.Expect("m1", Expectation{VM: "web", From: "src", Sockets: map[Kind]string{Memory: hypervisor(t, mirrorBack)}})
			e := withImages(c.source)
			e.Room = c.room
			client := &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: e, Image: c.of}
			_, connect := source(t, client, memory)
			conn := connect()
			conn.Write(stream)
			conn.CloseWrite()
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(got, stream) {
				t.Fatalf("%d bytes came out of %d: %v", len(got), len(stream), err)
			}
			conn.Close()
			stats := client.Memory()
			t.Logf("sent %d of %d bytes: pages %v", client.Sent(), len(stream), stats.Pages)
			if (stats.Pages[wan.Image] > 0) != c.found || c.found != (c.destination != nil && (c.destination.given.Load() > 0 || c.destination.gone == len(all))) {
				t.Errorf("pages %v", stats.Pages)
			}
			if in, _ := stats.Total(); in < uint64(len(stream)) {
				t.Errorf("%d bytes of %d were encoded", in, len(stream))
			}
			if c.found && c.destination.gone == 0 && client.Sent()*20 > uint64(len(stream)) {
				t.Errorf("%d bytes of %d cross", client.Sent(), len(stream))
			}
			if c.source != nil && c.source.spoilt.Load() || c.destination != nil && c.destination.spoilt.Load() {
				t.Error("the image is given up")
			}
		})
	}
}

// TestImageThatIsAnother: the two hosts' images have one name, and are not the same. The move fails, and nothing wrong comes
// out; the next one goes without.
func TestImageThatIsAnother(t *testing.T) {
	stream := qemuStream(t)
	all := pagesOf(t, stream)
	other := slices.Clone(all)
	for i := range other {
		other[i][100] ^= 1
	}
	p := newPKI(t)
	addr := encodingDestination(t, p, withImages(&imageOf{name: "a", pages: other}), hypervisor(t, mirrorBack))
	client := &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: withImages(&imageOf{name: "a", pages: all}), Image: "a"}
	_, connect := source(t, client, memory)
	for i, whole := range []bool{false, true} {
		conn := connect()
		conn.Write(stream)
		conn.CloseWrite()
		got, err := io.ReadAll(conn)
		if whole != (err == nil && bytes.Equal(got, stream)) || !whole && !bytes.HasPrefix(stream, got) {
			t.Errorf("attempt %d: %d bytes, %v", i+1, len(got), err)
		}
		conn.Close()
	}
}

// TestImageOfWhichNonsenseIsTold ends the move before anything of it was sent.
func TestImageOfWhichNonsenseIsTold(t *testing.T) {
	stream := qemuStream(t)
	m := &imageOf{name: "a", pages: pagesOf(t, stream)}
	p := newPKI(t)
	addr := encodingDestination(t, p, withImages(&imageOf{name: "a", told: []byte("nonsense")}), hypervisor(t, mirrorBack))
	client := &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: withImages(m), Image: "a"}
	_, connect := source(t, client, memory)
	conn := connect()
	conn.Write(stream)
	conn.CloseWrite()
	if got, _ := io.ReadAll(conn); len(got) > 0 {
		t.Errorf("%d bytes come out", len(got))
	}
}

// TestImageOfAnOlderSource: a source that does not know of images is answered as ever.
func TestImageOfAnOlderSource(t *testing.T) {
	p := newPKI(t)
	addr := encodingDestination(t, p, withImages(&imageOf{name: "a", pages: make([][4096]byte, 9)}), hypervisor(t, mirrorBack))
	config := p.config(t, "src")
	config.NextProtos = []string{alpnV3, alpnV2, ALPN}
	conn, err := tls.Dial("tcp", addr.String(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h := memory
	h.Codec, _ = withImages(nil).offer("web", 1<<14, share.Way{})
	if err := writeHeader(conn, h); err != nil {
		t.Fatal(err)
	}
	taken, err := readAnswer(conn)
	if err != nil || taken.Version != codecVersion || taken.Image != "" || taken.fits(h) != nil {
		t.Errorf("the answer is %+v, %v", taken, err)
	}
}

// TestImageThatWasNotOffered: an answer that takes another one than was offered ends the stream.
func TestImageThatWasNotOffered(t *testing.T) {
	h := memory
	h.Codec, _ = withImages(nil).offer("web", 1<<14, share.Way{})
	for offered, taken := range map[string]string{"": "a", "a": "b"} {
		h.Codec.Image = offered
		answer := h.Codec
		answer.Kept, answer.Image = "", taken
		if answer.fits(h) == nil {
			t.Errorf("%q is offered, and %q taken", offered, taken)
		}
		answer.Image = ""
		if err := answer.fits(h); err != nil {
			t.Error(err)
		}
	}
}
