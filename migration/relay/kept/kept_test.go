package kept

import (
	"bytes"
	"context"
	"errors"
	"heliotrope"
	"heliotrope/migration/wan"
	"heliotrope/migration/wan/ramstream/golden"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func newSite(t *testing.T, dir string, maxPages int) *Site {
	t.Helper()
	s, err := New(dir, maxPages, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// stream is one that QEMU made.
func stream(t *testing.T) []byte {
	t.Helper()
	s, err := golden.Stream("qemu10-rounds")
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
	m := mirrorOf(t, stream(t))
	n := m.Len()
	dir := t.TempDir()
	s := newSite(t, dir, 2*n+10)
	if p := s.Open("web", "", 0); p.Len() != 0 {
		t.Errorf("an empty site has %d pages", p.Len())
	}
	age := func(vm heliotrope.VMID, by time.Duration) {
		if err := os.Chtimes(s.path(vm), time.Time{}, time.Now().Add(-by)); err != nil {
			t.Fatal(err)
		}
	}
	for i, vm := range []heliotrope.VMID{"web", "db", "web"} {
		if err := s.write(keepsake{s, vm, m}); err != nil {
			t.Fatal(err)
		}
		age(vm, time.Duration(10-i)*time.Hour)
	}
	if err := os.WriteFile(filepath.Join(dir, "new-1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s = newSite(t, dir, 2*n+10) // the agent has restarted
	if _, err := os.Stat(filepath.Join(dir, "new-1")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what an agent that died had begun is left: %v", err)
	}
	check := func(p *Pages) {
		t.Helper()
		defer p.Close()
		digester, err := wan.NewDigester(p.Key)
		if err != nil {
			t.Fatal(err)
		}
		k, err := ReadKnown(bytes.NewReader(p.Digests), p.Len())
		if err != nil {
			t.Fatal(err)
		}
		for i := range p.Len() {
			var page [4096]byte
			if err := p.Page(uint64(i), &page); err != nil || page != *m.Page(i % n) {
				t.Fatalf("page %d: %v, or another one", i, err)
			}
			if ref, ok := k.Lookup(digester.Page(&page)); !ok || ref > uint64(i) {
				t.Fatalf("page %d is known as %d, %t", i, ref, ok)
			}
		}
		if err := p.Page(uint64(p.Len()), new([4096]byte)); err == nil {
			t.Error("a page too many")
		}
	}
	p := s.Open("db", "", 0)
	if p.Len() != 2*n || filepath.Base(p.files[0].Name()) != "db.pages" {
		t.Errorf("%d pages of %d, first %s", p.Len(), 2*n, p.files[0].Name())
	}
	check(p)

	if err := s.write(keepsake{s, "third", m}); err != nil { // there is no room for three
		t.Fatal(err)
	}
	if p = s.Open("db", "", 0); p.Len() != 2*n || filepath.Base(p.files[1].Name()) != "web.pages" {
		t.Errorf("%d pages of %d; the older VM's should have gone", p.Len(), 2*n)
	}
	check(p)

	if err := os.Truncate(s.path("third"), 100000); err != nil {
		t.Fatal(err)
	}
	if p = s.Open("third", "", 0); p.Len() != n {
		t.Errorf("%d pages of %d where a file is not whole", p.Len(), n)
	}
	check(p)
}

// TestKeptPagesThatRotted: what was kept is read by both ends, but one's has changed on disk.
func TestKeptPagesThatRotted(t *testing.T) {
	m := mirrorOf(t, stream(t))
	s := newSite(t, t.TempDir(), 1<<14)
	if err := s.write(keepsake{s, "web", m}); err != nil {
		t.Fatal(err)
	}
	sum := s.Sum("web", 1<<14)
	if kept, err := s.Mirror("web", sum); err != nil || kept.Len() != m.Len() {
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
	if p := s.Open("web", sum, 1<<14); p.Mirror != nil {
		t.Error("a page that has changed is used")
	}
	if s.Sum("web", 1<<14) != "" {
		t.Error("the spoilt file is still there")
	}
}

func TestSiteThatCannotWait(t *testing.T) {
	m := mirrorOf(t, stream(t))
	s := newSite(t, t.TempDir(), 1<<14)
	for range 3 {
		s.Keep("web", m) // nobody writes: it does not block
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Run(ctx) // what there is, it keeps nevertheless
	p := s.Open("web", "", 0)
	defer p.Close()
	if p.Len() != m.Len() {
		t.Errorf("%d pages are kept of %d", p.Len(), m.Len())
	}
}

// TestSiteLetsVMsSettle: a VM that has just arrived needs its cores.
func TestSiteLetsVMsSettle(t *testing.T) {
	m := mirrorOf(t, stream(t))
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, t.TempDir(), 1<<14)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		s.Keep("web", m)
		time.Sleep(settle - time.Millisecond)
		synctest.Wait()
		if s.Sum("web", 1<<14) != "" {
			t.Error("pages are written while the VM may stand still")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if s.Sum("web", 1<<14) == "" {
			t.Error("pages are not written")
		}
		cancel()
		<-done
	})
}

// TestPagesReadAhead: pages are read in any order, some of which are no more.
func TestPagesReadAhead(t *testing.T) {
	m := mirrorOf(t, stream(t))
	s := newSite(t, t.TempDir(), 1<<14)
	for _, vm := range []heliotrope.VMID{"web", "db"} {
		if err := s.write(keepsake{s, vm, m}); err != nil {
			t.Fatal(err)
		}
	}
	p := s.Open("other", "", 0)
	defer p.Close()
	n := m.Len()
	rapid.Check(t, func(t *rapid.T) {
		ref := 0
		for range 100 {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				ref = rapid.IntRange(0, 2*n-1).Draw(t, "page")
			case 1:
				ref += rapid.IntRange(-3, 20).Draw(t, "distance")
			default:
				ref++
			}
			var got [4096]byte
			err := p.Page(uint64(ref), &got)
			if there := ref >= 0 && ref < 2*n; there != (err == nil) || there && got != *m.Page(ref % n) {
				t.Fatalf("page %d of %d: %v, or another", ref, 2*n, err)
			}
		}
	})
}

func FuzzSitePages(f *testing.F) {
	head := siteMagic + "0123456789abcdef" + "\x00\x00\x00\x00\x00\x00\x00\x01" + "\x00\x00\x00\x00\x00\x00\x00\x05"
	f.Add([]byte(head))
	f.Add(append([]byte(head), make([]byte, 8+5+4096)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := New(t.TempDir(), 1000, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path("web"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		p := s.Open("web", "", 0)
		defer p.Close()
		for i := range p.Len() {
			if err := p.Page(uint64(i), new([4096]byte)); err != nil {
				t.Errorf("page %d of %d: %v", i, p.Len(), err)
			}
		}
		s.Open("web", s.Sum("web", 1000), 1000).Close()
	})
}

// TestTenantsHaveTheRoomTogether: what is kept of one tenant's VMs is neither seen by others nor under their key,
// and the oldest goes for lack of room, whosesoever it is.
func TestTenantsHaveTheRoomTogether(t *testing.T) {
	dir := t.TempDir()
	m := mirrorOf(t, stream(t))
	n := m.Len()
	s := newSite(t, dir, 2*n)
	red, blue := s.For("red"), s.For("blue")
	if err := red.write(keepsake{red, "web", m}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(red.path("web"), time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	p := s.For("red").Open("db", "", 1<<14)
	defer p.Close()
	if p.Len() != n || p.Key == s.key {
		t.Errorf("its tenant finds %d pages", p.Len())
	}
	for _, other := range []*Site{s, blue} {
		q := other.Open("web", red.Sum("web", 1<<14), 1<<14)
		defer q.Close()
		if q.Len() != 0 || q.Mirror != nil || q.Key == p.Key || other.Sum("web", 1<<14) != "" {
			t.Errorf("others find %d pages", q.Len())
		}
	}
	for _, k := range []keepsake{{blue, "web", m}, {s, "web", m}} {
		if err := k.site.write(k); err != nil {
			t.Fatal(err)
		}
	}
	if red.Sum("web", 1<<14) != "" || blue.Sum("web", 1<<14) == "" || s.Sum("web", 1<<14) == "" {
		t.Error("it was not the oldest that went")
	}
	if again := newSite(t, dir, 2*n).For("red"); again.key != red.key {
		t.Error("a tenant has another key after a restart")
	}
}
