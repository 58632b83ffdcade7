package relay

import (
	"bytes"
	"context"
	"heliotrope"
	"heliotrope/migration/wan"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func newSite(t *testing.T, dir string, maxPages int) *Site {
	t.Helper()
	s, err := NewSite(dir, maxPages, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mirrorOf is what a source has of a stream once it has sent it.
func mirrorOf(t *testing.T, stream []byte) *wan.Mirror {
	t.Helper()
	enc := wan.NewEncoder(wan.Config{MirrorPages: 1 << 14}, new(wan.Batch), func(b *wan.Batch) (*wan.Batch, error) { b.Reset(); return b, nil })
	if _, err := enc.Write(stream); err != nil {
		t.Fatal(err)
	}
	return enc.Mirror()
}

func TestSiteKeepsPages(t *testing.T) {
	m := mirrorOf(t, qemuStream(t))
	n := m.Len()
	dir := t.TempDir()
	s := newSite(t, dir, 2*n+10)
	if p := s.open("web", "", 0); p.len() != 0 {
		t.Errorf("an empty site has %d pages", p.len())
	}
	age := func(vm heliotrope.VMID, by time.Duration) {
		if err := os.Chtimes(s.path(vm), time.Time{}, time.Now().Add(-by)); err != nil {
			t.Fatal(err)
		}
	}
	for i, vm := range []heliotrope.VMID{"web", "db", "web"} {
		if err := s.write(keepsake{vm, m}); err != nil {
			t.Fatal(err)
		}
		age(vm, time.Duration(10-i)*time.Hour)
	}
	s = newSite(t, dir, 2*n+10) // the agent has restarted
	check := func(p *sitePages) {
		t.Helper()
		defer p.close()
		digester, err := wan.NewDigester(p.key)
		if err != nil {
			t.Fatal(err)
		}
		k, err := readKnown(bytes.NewReader(p.digests), p.len())
		if err != nil {
			t.Fatal(err)
		}
		for i := range p.len() {
			var page [4096]byte
			if err := p.Page(uint64(i), &page); err != nil || page != *m.Page(i % n) {
				t.Fatalf("page %d: %v, or another one", i, err)
			}
			if ref, ok := k.Lookup(digester.Page(&page)); !ok || ref > uint64(i) {
				t.Fatalf("page %d is known as %d, %t", i, ref, ok)
			}
		}
		if err := p.Page(uint64(p.len()), new([4096]byte)); err == nil {
			t.Error("a page too many")
		}
	}
	p := s.open("db", "", 0)
	if p.len() != 2*n || filepath.Base(p.files[0].Name()) != "db.pages" {
		t.Errorf("%d pages of %d, first %s", p.len(), 2*n, p.files[0].Name())
	}
	check(p)

	if err := s.write(keepsake{"third", m}); err != nil { // there is no room for three
		t.Fatal(err)
	}
	if p = s.open("db", "", 0); p.len() != 2*n || filepath.Base(p.files[1].Name()) != "web.pages" {
		t.Errorf("%d pages of %d; the older VM's should have gone", p.len(), 2*n)
	}
	check(p)

	if err := os.Truncate(s.path("third"), 100000); err != nil {
		t.Fatal(err)
	}
	if p = s.open("third", "", 0); p.len() != n {
		t.Errorf("%d pages of %d where a file is not whole", p.len(), n)
	}
	check(p)
}

// TestMemoryComesBack moves a VM from one host to another, and back.
func TestMemoryComesBack(t *testing.T) {
	stream := qemuStream(t)
	p := newPKI(t)
	here, there := newSite(t, t.TempDir(), 1<<14), newSite(t, t.TempDir(), 1<<14)
	move := func(from, to *Site) uint64 {
		t.Helper()
		addr := encodingDestination(t, p, &Encoding{MirrorPages: 1 << 14, Site: to}, hypervisor(t, mirrorBack))
		client := &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: &Encoding{MirrorPages: 1 << 14, Least: wan.Fast, Site: from}}
		_, connect := source(t, client, memory)
		conn := connect()
		conn.Write(stream)
		conn.CloseWrite()
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(got, stream) {
			t.Fatalf("%d bytes came out of %d: %v", len(got), len(stream), err)
		}
		conn.Close()
		for _, s := range []*Site{from, to} {
			k, _, err := receive(t.Context(), s.queue)
			if err == nil {
				err = s.write(k)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		stats := client.Memory()
		t.Logf("sent %d bytes: pages %v", client.Sent(), stats.Pages)
		return client.Sent()
	}
	first := move(here, there)
	if back := move(there, here); back*5 > first {
		t.Errorf("%d bytes first, and %d on the way back", first, back)
	}
	// There is another host, which has the pages of a like VM only.
	other := newSite(t, t.TempDir(), 1<<14)
	if err := other.write(keepsake{"db", mirrorOf(t, stream)}); err != nil {
		t.Fatal(err)
	}
	if third := move(here, other); third*3 > first {
		t.Errorf("%d bytes first, and %d to a host that has the like", first, third)
	}
	if err := os.WriteFile(here.path("web"), []byte("spoilt"), 0o600); err != nil {
		t.Fatal(err)
	}
	move(here, other) // goes without
}

// TestPagesThatRotted: a page of another VM has changed on the destination's disk since its
// digest was made. The move fails; the next one does not.
func TestPagesThatRotted(t *testing.T) {
	stream := qemuStream(t)
	p := newPKI(t)
	site := newSite(t, t.TempDir(), 1<<14)
	if err := site.write(keepsake{"db", mirrorOf(t, stream)}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(site.path("db"))
	if err != nil {
		t.Fatal(err)
	}
	for i := len(data) - 400*4096; i < len(data); i += 4096 {
		data[i] ^= 1
	}
	if err := os.WriteFile(site.path("db"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	addr := encodingDestination(t, p, &Encoding{MirrorPages: 1 << 14, Site: site}, hypervisor(t, mirrorBack))
	client := &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: mirrors}
	_, connect := source(t, client, memory)
	for i, whole := range []bool{false, true} {
		conn := connect()
		conn.Write(stream)
		conn.CloseWrite()
		got, err := io.ReadAll(conn)
		if whole != (err == nil && bytes.Equal(got, stream)) || !whole && len(got) > 0 {
			t.Errorf("attempt %d: %d bytes, %v", i+1, len(got), err)
		}
		conn.Close()
	}
}

// TestKeptPagesThatRotted: what was kept is read by both ends, but one's has changed on disk.
func TestKeptPagesThatRotted(t *testing.T) {
	m := mirrorOf(t, qemuStream(t))
	s := newSite(t, t.TempDir(), 1<<14)
	if err := s.write(keepsake{"web", m}); err != nil {
		t.Fatal(err)
	}
	sum := s.sum("web", 1<<14)
	if kept, err := s.mirror("web", sum); err != nil || kept.Len() != m.Len() {
		t.Fatal(err)
	}
	data, err := os.ReadFile(s.path("web"))
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1000] ^= 1
	if err := os.WriteFile(s.path("web"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if p := s.open("web", sum, 1<<14); p.mirror != nil {
		t.Error("a page that has changed is used")
	}
	if s.sum("web", 1<<14) != "" {
		t.Error("the spoilt file is still there")
	}
}

func TestSiteThatCannotWait(t *testing.T) {
	m := mirrorOf(t, qemuStream(t))
	s := newSite(t, t.TempDir(), 1<<14)
	for range 3 {
		s.keep("web", m) // nobody writes: it does not block
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for n := 0; n == 0 && t.Context().Err() == nil; {
		p := s.open("web", "", 0)
		n = p.len()
		p.close()
	}
	cancel()
	<-done
}

func FuzzSitePages(f *testing.F) {
	head := siteMagic + "0123456789abcdef" + "\x00\x00\x00\x00\x00\x00\x00\x01" + "\x00\x00\x00\x00\x00\x00\x00\x05"
	f.Add([]byte(head))
	f.Add(append([]byte(head), make([]byte, 8+5+4096)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := NewSite(t.TempDir(), 1000, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path("web"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		p := s.open("web", "", 0)
		defer p.close()
		for i := range p.len() {
			if err := p.Page(uint64(i), new([4096]byte)); err != nil {
				t.Errorf("page %d of %d: %v", i, p.len(), err)
			}
		}
		s.open("web", s.sum("web", 1000), 1000).close()
	})
}
