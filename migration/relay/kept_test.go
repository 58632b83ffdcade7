package relay

import (
	"bytes"
	"context"
	"heliotrope"
	"heliotrope/migration/relay/kept"
	"heliotrope/migration/wan"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func newSite(t *testing.T, dir string) *kept.Site {
	t.Helper()
	s, err := kept.New(dir, 1<<14, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// keepNow keeps what a VM with that stream would leave.
func keepNow(t *testing.T, s *kept.Site, vm heliotrope.VMID, stream []byte) {
	t.Helper()
	enc := wan.NewEncoder(wan.Config{MirrorPages: 1 << 14}, new(wan.Batch), func(b *wan.Batch) (*wan.Batch, error) { b.Reset(); return b, nil })
	if _, err := enc.Write(stream); err != nil {
		t.Fatal(err)
	}
	s.Keep(vm, enc.Mirror())
	if err := s.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestMemoryComesBack moves a VM from one host to another, and back.
func TestMemoryComesBack(t *testing.T) {
	stream := qemuStream(t)
	p := newPKI(t)
	hereDir := t.TempDir()
	here, there := newSite(t, hereDir), newSite(t, t.TempDir())
	move := func(from, to *kept.Site) uint64 {
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
		for _, s := range []*kept.Site{from, to} {
			if err := s.Next(t.Context()); err != nil {
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
	other := newSite(t, t.TempDir())
	keepNow(t, other, "db", stream)
	if third := move(here, other); third*3 > first {
		t.Errorf("%d bytes first, and %d to a host that has the like", first, third)
	}
	if err := os.WriteFile(filepath.Join(hereDir, "web.pages"), []byte("spoilt"), 0o600); err != nil {
		t.Fatal(err)
	}
	move(here, other) // goes without
}

// TestPagesAreKeptBeforeTheHypervisorCloses: the move may be over by the time it does, and its
// streams with it.
func TestPagesAreKeptBeforeTheHypervisorCloses(t *testing.T) {
	p := newPKI(t)
	from, to := newSite(t, t.TempDir()), newSite(t, t.TempDir())
	addr := encodingDestination(t, p, &Encoding{MirrorPages: 1 << 14, Site: to}, hypervisor(t, func(c *net.UnixConn) { io.Copy(io.Discard, c) }))
	client := &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: &Encoding{MirrorPages: 1 << 14, Least: wan.Fast, Site: from}}
	_, connect := source(t, client, memory)
	if _, err := connect().Write(qemuStream(t)); err != nil {
		t.Fatal(err)
	}
	soon, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, s := range map[string]*kept.Site{"source": from, "destination": to} {
		if err := s.Next(soon); err != nil {
			t.Fatalf("the %s keeps nothing: %v", name, err)
		}
	}
	if sum := from.Sum("web", 1<<14); sum == "" || sum != to.Sum("web", 1<<14) {
		t.Errorf("the source has kept %q, the destination %q", sum, to.Sum("web", 1<<14))
	}
}

// TestPagesThatRotted: a page of another VM has changed on the destination's disk since its
// digest was made. The move fails; the next one does not.
func TestPagesThatRotted(t *testing.T) {
	stream := qemuStream(t)
	p := newPKI(t)
	dir := t.TempDir()
	site := newSite(t, dir)
	keepNow(t, site, "db", stream)
	file := filepath.Join(dir, "db.pages")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(data) - 400*4096; i < len(data); i += 4096 {
		data[i] ^= 1
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
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

// TestTenantsDoNotMeet: a host has kept the pages of a VM like the one that comes. Only one of the same tenant
// finds them; how much crosses for another says nothing of them.
func TestTenantsDoNotMeet(t *testing.T) {
	stream := qemuStream(t)
	p := newPKI(t)
	site := newSite(t, t.TempDir())
	keepNow(t, site.For("red"), "db", stream)
	crosses := func(tenant heliotrope.TenantID) uint64 {
		t.Helper()
		addr := tenantsDestination(t, p, &Encoding{MirrorPages: 1 << 14, Site: site}, hypervisor(t, mirrorBack), tenant)
		client := &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: (&Encoding{MirrorPages: 1 << 14, Least: wan.Fast}).For(tenant)}
		_, connect := source(t, client, memory)
		conn := connect()
		defer conn.Close()
		conn.Write(stream)
		conn.CloseWrite()
		if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, stream) {
			t.Fatalf("%d bytes came out of %d: %v", len(got), len(stream), err)
		}
		stats := client.Memory()
		if found := stats.Pages[wan.Site] > 0; found != (tenant == "red") {
			t.Errorf("a VM of %q finds %d pages", tenant, stats.Pages[wan.Site])
		}
		return client.Sent()
	}
	red, blue, nobody := crosses("red"), crosses("blue"), crosses("")
	if red*3 > blue || red*3 > nobody {
		t.Errorf("%d bytes with what is kept, %d and %d without", red, blue, nobody)
	}
}
