package near

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"

	"pgregory.net/rapid"
)

func FuzzHello(f *testing.F) {
	f.Add(hello{forTold, "red", "eu", 7}.append(nil))
	f.Add([]byte{forPages, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bufio.NewReader(bytes.NewReader(data))
		h, err := readHello(in)
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(in)
		if again := append(h.append(nil), rest...); !bytes.Equal(again, data) {
			t.Errorf("%x is written back as %x", data, again)
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add(appendRequest(nil, []wan.Ref{{Stream: 5, Number: 9}, {Stream: 5, Number: 3}, {Stream: 5, Number: 1 << 63}}))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 255, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		refs, err := readRequest(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		again, err := readRequest(bufio.NewReader(bytes.NewReader(appendRequest(nil, refs))))
		if err != nil || !reflect.DeepEqual(refs, again) {
			t.Errorf("%v is read back as %v, %v", refs, again, err)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add(append([]byte{1, 0}, make([]byte, pageBytes)...))
	f.Add([]byte{1, 2})
	f.Fuzz(func(t *testing.T, data []byte) {
		n := 0
		whole, err := readPages(bytes.NewReader(data), []wan.Ref{{Stream: 1}, {Stream: 1, Number: 2}}, func(wan.Ref, *[pageBytes]byte) { n++ })
		if err == nil && whole != (n == 2) {
			t.Errorf("%d pages of 2, whole: %t", n, whole)
		}
	})
}

func FuzzTold(f *testing.F) {
	f.Add(appendTold(nil, &share.Told{Stream: 3, At: "c 192.0.2.1:7444", First: 8, Pages: []wan.PageHash{{Hi: 1, Lo: 2}}}))
	f.Add(appendTold(nil, &share.Told{Stream: 3, Gone: true}))
	f.Add([]byte{255})
	f.Fuzz(func(t *testing.T, data []byte) {
		told, err := readTold(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		again, err := readTold(bufio.NewReader(bytes.NewReader(appendTold(nil, &told))))
		if err != nil || !reflect.DeepEqual(told, again) {
			t.Errorf("%+v is read back as %+v, %v", told, again, err)
		}
		s := share.New()
		m := s.Send(share.Way{Host: "c", Site: "eu", Addr: netip.MustParseAddrPort("192.0.2.9:7444")}, 4, 1<<10, true)
		l := m.Group().Link(true)
		_ = l.Hear(&told) // what it says may be wrong; it does no harm
		_ = l.Hear(&told)
		l.Drop()
		s.SentAll(m)
	})
}

// TestRequestsAreReadBack holds of whatever is asked.
func TestRequestsAreReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stream := rapid.Uint64().Draw(t, "stream")
		var refs []wan.Ref
		for _, n := range rapid.SliceOfN(rapid.Uint64(), 1, requestMost).Draw(t, "numbers") {
			refs = append(refs, wan.Ref{Stream: stream, Number: n})
		}
		again, err := readRequest(bufio.NewReader(bytes.NewReader(appendRequest(nil, refs))))
		if err != nil || !reflect.DeepEqual(refs, again) {
			t.Errorf("%v is read back as %v, %v", refs, again, err)
		}
	})
}

const (
	seed  = 77
	place = "c 192.0.2.1:7444"
)

// holder is a host that has two pages of stream 5, of a tenant.
func holder() *Host {
	s := share.New()
	var body [2 * pageBytes]byte
	body[0], body[pageBytes] = 1, 2
	s.For("red").Get("src", 5, seed, 8).Keep(wan.Again(body[:]))
	return &Host{Name: "c", Share: s, Log: slog.New(slog.DiscardHandler)}
}

// TestFetch asks a holder: for pages that it has, that never come, and of what it has never told.
func TestFetch(t *testing.T) {
	for name, c := range map[string]struct {
		tenant heliotrope.TenantID
		seed   uint64
		refs   []wan.Ref
		dial   error
		want   []int // what pages begin with; 0: it is not to be had
		missed int   // streams
	}{
		"pages that it has":     {"red", seed, []wan.Ref{{Stream: 5, Number: 2}, {Stream: 5}}, nil, []int{2, 1}, 0},
		"one that never comes":  {"red", seed, []wan.Ref{{Stream: 5}, {Stream: 5, Number: 4}}, nil, []int{1, 0}, 1},
		"an unknown stream":     {"red", seed, []wan.Ref{{Stream: 6}}, nil, []int{0}, 1},
		"two streams":           {"red", seed, []wan.Ref{{Stream: 6}, {Stream: 5}}, nil, []int{0, 1}, 1},
		"another tenant's":      {"blue", seed, []wan.Ref{{Stream: 5}}, nil, []int{0}, 1},
		"nobody's":              {"", seed, []wan.Ref{{Stream: 5}}, nil, []int{0}, 1},
		"a seed that is wrong":  {"red", seed + 1, []wan.Ref{{Stream: 5}}, nil, []int{0}, 1},
		"a holder that is dead": {"red", seed, []wan.Ref{{Stream: 5}, {Stream: 6}}, errors.New("dead"), []int{0, 0}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				there := holder()
				here := &Host{Name: "d", Share: share.New(), Log: slog.New(slog.DiscardHandler)}
				here.Dial = func(_ context.Context, host heliotrope.HostID, addr netip.AddrPort) (net.Conn, error) {
					if c.dial != nil {
						return nil, c.dial
					}
					if string(host)+" "+addr.String() != place {
						t.Errorf("it dials %s at %v", host, addr)
					}
					near, far := net.Pipe()
					go there.Serve(ctx, "d", far)
					return near, nil
				}
				f := here.Fetcher(ctx, here.Share.For(c.tenant), c.seed)
				missed, lacks := 0, 0
				f.Miss = func(uint64) { missed++ }
				for range 2 { // and again, where it has failed once
					for i := range c.refs {
						c.refs[i].At = place
					}
					b := f.Fetch(c.refs, func() { lacks++ })
					for i, want := range c.want {
						var page [pageBytes]byte
						ok, err := b.Page(ctx, c.refs[i], &page)
						if err != nil || ok != (want != 0) && c.missed == 0 || ok && int(page[0]) != want {
							t.Errorf("page %d: %t, %v, %d", i, ok, err, page[0])
						}
					}
				}
				if missed != c.missed || (lacks > 0) != (missed > 0) {
					t.Errorf("%d streams are missed, %d batches lack something", missed, lacks)
				}
				cancel()
				f.Wait()
			})
		})
	}
}

// TestSilentHolder: one that never answers is given up once for all that is asked of it.
func TestSilentHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		here := &Host{Share: share.New(), Log: slog.New(slog.DiscardHandler)}
		here.Dial = func(context.Context, heliotrope.HostID, netip.AddrPort) (net.Conn, error) {
			near, far := net.Pipe()
			go io.Copy(io.Discard, far)
			return near, nil
		}
		f := here.Fetcher(ctx, here.Share, seed)
		begun := time.Now()
		for i := range uint64(50) {
			ref := wan.Ref{Stream: i, At: place}
			if ok, err := f.Fetch([]wan.Ref{ref}, func() {}).Page(ctx, ref, new([pageBytes]byte)); ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		if took := time.Since(begun); took > answerLimit+dialLimit {
			t.Errorf("it took %v", took)
		}
		cancel()
		f.Wait()
	})
}
