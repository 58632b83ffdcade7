package share

import (
	"context"
	"encoding/binary"
	"heliotrope/migration/wan"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"
)

var there = Way{Addr: netip.MustParseAddrPort("192.0.2.1:7444")}

// ways go to hosts of one site.
var ways = []Way{
	{Addr: netip.MustParseAddrPort("192.0.2.1:7444"), Host: "a", Site: "eu", Seed: 7},
	{Addr: netip.MustParseAddrPort("192.0.2.2:7444"), Host: "b", Site: "eu", Seed: 7},
	{Addr: netip.MustParseAddrPort("192.0.2.3:7444"), Host: "c", Site: "eu", Seed: 7},
	{Addr: netip.MustParseAddrPort("192.0.2.4:7444"), Host: "d", Site: "eu", Seed: 7},
}

func page(n int) *[4096]byte {
	var p [4096]byte
	binary.LittleEndian.PutUint64(p[:], uint64(n)+1)
	return &p
}

func hash(page *[4096]byte) wan.PageHash { return xxh3.Hash128(page[:]) }

// batch is a part of a stream: pages that it carries, and those that it refers to.
type batch struct {
	carries [2]uint64
	refers  []wan.Ref
}

// model is a stream with a window of few batches.
type model struct {
	*Sending
	open    batch
	encoded []batch
	sent    int
	rebuilt int
	arrived [2]uint64
}

func (m *model) encode(p *[4096]byte, noise bool) {
	if ref, ok := m.Find(hash(p)); ok {
		m.open.refers = append(m.open.refers, ref)
		return
	}
	m.Carries(hash(p), noise)
	kind := 0
	if noise {
		kind = 1
	}
	m.open.carries[kind]++
}

func (m *model) close() {
	m.encoded, m.open = append(m.encoded, m.open), batch{}
}

// send sends a batch if the window allows.
func (m *model) send(window int) bool {
	if m.sent == len(m.encoded) || m.sent-m.rebuilt == window {
		return false
	}
	b := m.encoded[m.sent]
	m.sent++
	var s wan.Stats
	s.Pages[wan.Literal], s.Pages[wan.Noise] = b.carries[0], b.carries[1]
	m.Sent(&s)
	for kind, n := range b.carries {
		m.arrived[kind] += n
	}
	return true
}

// rebuild rebuilds a batch if all that it refers to has arrived.
func (m *model) rebuild(all []*model) bool {
	if m.rebuilt == m.sent {
		return false
	}
	for _, r := range m.encoded[m.rebuilt].refers {
		if kind, n := kindOf(r.Number); all[r.Stream].arrived[kind] <= n {
			return false
		}
	}
	m.rebuilt++
	return true
}

// TestNoStreamsWaitForEachOther: whatever streams have in common, and however narrow their
// windows are, all of it is rebuilt.
func TestNoStreamsWaitForEachOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		n := rapid.IntRange(2, 4).Draw(t, "streams")
		window := rapid.IntRange(1, 2).Draw(t, "window")
		hosts := rapid.IntRange(1, n).Draw(t, "hosts")
		var all []*model
		for i := range n {
			all = append(all, &model{Sending: s.Send(ways[i%hosts], uint64(i), 1<<20, true)})
			if rapid.Bool().Draw(t, "disk") {
				all[i].Disk()
			}
		}
		step := func(m *model) bool { return m.send(window) || m.rebuild(all) }
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			m := all[rapid.IntRange(0, n-1).Draw(t, "stream")]
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				m.close()
			case 1:
				m.send(window)
			case 2:
				m.rebuild(all)
			default:
				k := rapid.IntRange(0, 30).Draw(t, "page")
				m.encode(page(k), k%5 == 0)
			}
		}
		for _, m := range all {
			m.close()
		}
		for {
			moved := false
			for _, m := range all {
				moved = step(m) || moved
			}
			if !moved {
				break
			}
		}
		for i, m := range all {
			if m.rebuilt != len(m.encoded) {
				t.Fatalf("stream %d: %d of %d batches are rebuilt, %d sent", i, m.rebuilt, len(m.encoded), m.sent)
			}
			s.SentAll(m.Sending)
		}
		if out, _ := s.Len(); out != 0 {
			t.Fatalf("%d destinations are left", out)
		}
	})
}

// TestStreamThatBreaksOff: what it had encoded and not sent is not referred to any more; what it
// had sent is.
func TestStreamThatBreaksOff(t *testing.T) {
	s := New()
	a, b := s.Send(there, 1, 1<<20, false), s.Send(there, 2, 1<<20, false)
	for i := range 4 {
		if _, ok := a.Find(hash(page(i))); ok {
			t.Fatal("a page that nobody carries")
		}
		a.Carries(hash(page(i)), false)
	}
	var sent wan.Stats
	sent.Pages[wan.Literal] = 2
	a.Sent(&sent)
	s.SentAll(a)
	for i, want := range []bool{true, true, false, false} {
		if ref, ok := b.Find(hash(page(i))); ok != want || ok && ref != (wan.Ref{Stream: 1, Number: uint64(2 * i)}) {
			t.Errorf("page %d: %+v, %t", i, ref, ok)
		}
	}
	s.SentAll(b)
}

// carrying is a batch that carries these literals.
func carrying(pages ...int) *wan.Batch {
	var all []byte
	for _, n := range pages {
		all = append(all, page(n)[:]...)
	}
	return wan.Again(all)
}

func TestDestination(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		a, b := s.Get("src", 1, 7, 3), s.Get("src", 2, 7, 3)
		other := s.Get("another", 9, 7, 3)
		other.Keep(carrying(9))
		pages := b.During(t.Context())
		want := func(stream, number uint64, content int, ok bool) {
			t.Helper()
			var got [4096]byte
			found, err := pages.CarriedPage(wan.Ref{Stream: stream, Number: number}, &got)
			if err != nil || found != ok || ok && got != *page(content) {
				t.Errorf("page %d of stream %d: %t, %v", number>>1, stream, found, err)
			}
		}
		come := make(chan bool)
		go func() {
			var got [4096]byte
			found, err := pages.CarriedPage(wan.Ref{Stream: 1, Number: 2}, &got)
			come <- found && err == nil && got == *page(6)
		}()
		synctest.Wait()
		a.Keep(carrying(5))
		synctest.Wait()
		a.Keep(carrying(6))
		if !<-come {
			t.Error("a page that comes later is not found")
		}
		want(1, 0, 5, true)
		want(3, 0, 0, false)   // no such stream
		a.Keep(carrying(7, 8)) // more than there is room for
		want(1, 4, 0, false)   // so that it is not waited for
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var got [4096]byte
		if _, err := a.During(ctx).CarriedPage(wan.Ref{Stream: 2}, &got); err == nil {
			t.Error("it waits for a page, though its context has ended")
		}
		if n := s.GotAll("src", b); n != 0 {
			t.Errorf("%d pages are free", n)
		}
		if n := s.GotAll("src", a); n != 6 {
			t.Errorf("%d pages are free at the end", n)
		}
		if n := s.GotAll("another", other); n != 3 {
			t.Errorf("%d pages of another source are free at the end", n)
		}
	})
}

// TestTenantsShareNothing: the same page goes for each tenant by itself, and comes by itself.
func TestTenantsShareNothing(t *testing.T) {
	s := New()
	red, blue := s.For("red"), s.For("blue")
	if s.For("") != s || s.For("red") != red {
		t.Error("a tenant's streams are not together")
	}
	a, b, c := red.Send(there, 1, 1<<20, true), blue.Send(there, 2, 1<<20, true), red.Send(there, 3, 1<<20, true)
	p := page(1)
	a.Carries(hash(p), false)
	if _, ok := b.Find(hash(p)); ok {
		t.Error("another tenant's page is found")
	}
	if ref, ok := c.Find(hash(p)); !ok || ref.Stream != 1 {
		t.Error("the tenant's own is not")
	}
	g, h := red.Get("src", 1, 7, 3), blue.Get("src", 2, 7, 3)
	g.Keep(carrying(1))
	if ok, err := h.During(t.Context()).CarriedPage(wan.Ref{Stream: 1}, new([4096]byte)); ok || err != nil {
		t.Error("another tenant's page is given out", err)
	}
}

// A disk's stream finds its own pages and what memory has sent, but does not wait for memory; another disk it waits for.
func TestDisksDoNotWaitForMemory(t *testing.T) {
	s := New()
	memory, disk, other := s.Send(there, 1, 1000, false), s.Send(there, 2, 1000, false).Disk(), s.Send(there, 3, 1000, false).Disk()
	page := func(n byte) wan.PageHash { return hash(&[4096]byte{n}) }
	finds := func(m *Sending, n byte, want uint64) {
		t.Helper()
		ref, ok := m.Find(page(n))
		if ok != (want > 0) || ok && ref.Stream != want {
			t.Errorf("page %d: found with stream %d, %t, want %d", n, ref.Stream, ok, want)
		}
	}
	memory.Carries(page(1), false)
	disk.Carries(page(2), false)
	finds(disk, 1, 0)
	finds(disk, 2, 2)
	finds(memory, 2, 2)
	finds(other, 2, 2)
	finds(disk, 3, 0)
	var sent wan.Stats
	sent.Pages[wan.Literal] = 1
	memory.Sent(&sent)
	finds(disk, 1, 1)
}
