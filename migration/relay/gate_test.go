package relay

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// gate is a way between two hosts that can be shut: then nothing that is under way arrives.
type gate struct {
	addr netip.AddrPort

	mu    sync.Mutex
	open  chan struct{} // closed while it is open
	conns int
}

func newGate(t *testing.T, to netip.AddrPort) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{addr: l.Addr().(*net.TCPAddr).AddrPort(), open: make(chan struct{})}
	close(g.open)
	run(t, func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { l.Close() })
		defer stop()
		var conns sync.WaitGroup
		defer conns.Wait()
		for {
			a, err := l.Accept()
			if err != nil {
				return err
			}
			b, err := net.Dial("tcp", to.String())
			if err != nil {
				return err
			}
			g.mu.Lock()
			g.conns++
			g.mu.Unlock()
			stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
			for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
				conns.Go(func() {
					defer stop()
					g.pass(ctx, way[0], way[1])
				})
			}
		}
	})
	return g
}

func (g *gate) pass(ctx context.Context, to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		g.mu.Lock()
		open := g.open
		g.mu.Unlock()
		select {
		case <-open:
		case <-ctx.Done():
			return
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (g *gate) shut() (open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	shut := make(chan struct{})
	g.open = shut
	return sync.OnceFunc(func() { close(shut) })
}

func (g *gate) connections() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.conns
}

// qemuNBD serves a disk of so many bytes, as a destination's hypervisor does.
func qemuNBD(t testing.TB, name string, size int64) (socket, file string) {
	t.Helper()
	dir := t.TempDir()
	socket, file = filepath.Join(dir, "nbd.sock"), filepath.Join(dir, "disk.img")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	pid := filepath.Join(dir, "pid")
	// It comes back when it listens.
	out, err := exec.Command("qemu-nbd", "--fork", "--pid-file", pid, "-k", socket, "-x", name, "-f", "raw", "--persistent", "--shared=8", file).CombinedOutput()
	if err != nil {
		t.Fatalf("start qemu-nbd (run make deps): %v: %s", err, out)
	}
	t.Cleanup(func() {
		var n int
		data, err := os.ReadFile(pid)
		if err == nil {
			_, err = fmt.Sscan(string(data), &n)
		}
		if err == nil {
			err = syscall.Kill(n, syscall.SIGTERM)
		}
		if err != nil {
			t.Errorf("end qemu-nbd: %v", err)
		}
	})
	return socket, file
}

// QEMU opens a disk, and the way to it carries nothing: a hypervisor's main loop, and with it
// its guest, does not wait for a round trip.
func TestDiskOpensWithoutTheWay(t *testing.T) {
	for name, c := range map[string]struct{ old, blank bool }{
		"a destination of today": {false, true}, "an older destination": {true, true}, "a disk that may have something": {false, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			s, addr := destination(t, p)
			if c.old {
				s.tls.NextProtos = []string{alpnV2, ALPN}
			}
			sock, file := qemuNBD(t, "drive-virtio-disk0", 1<<20)
			s.Expect("m1", Expectation{VM: "web", From: "src", Sockets: map[Kind]string{Disk: sock}, BlankDisks: c.blank})
			g := newGate(t, addr)
			client := &Client{Addr: g.addr, TLS: p.config(t, "src")}
			path := filepath.Join(t.TempDir(), "fwd.sock")
			f, err := client.Forward(path, Header{Move: "m1", VM: "web", Kind: Disk})
			if err != nil {
				t.Fatal(err)
			}
			run(t, f.Serve)
			if err := f.Open(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			if said, want := firstIsZeros(f), c.blank && !c.old; said != want {
				t.Errorf("that the disk is zeros is said: %t, want %t", said, want)
			}
			open := g.shut()
			defer open()
			url := "nbd+unix:///drive-virtio-disk0?socket=" + path
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if out, err := exec.CommandContext(ctx, "qemu-io", "-r", "-f", "raw", "-c", "length", url).CombinedOutput(); err != nil || !strings.Contains(string(out), "1 MiB") {
				t.Fatalf("while the way was shut qemu-io (run make deps) said %s: %v", out, err)
			}
			open()

			if err := f.Open(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write -P 7 4096 8192", "-c", "read -P 7 4096 8192", "-c", "flush", url).CombinedOutput()
			if err != nil {
				t.Fatalf("qemu-io (run make deps): %v: %s", err, out)
			}
			if disk, err := os.ReadFile(file); err != nil || disk[4095] != 0 || disk[4096] != 7 || disk[4096+8191] != 7 || disk[4096+8192] != 0 {
				t.Errorf("the disk is not what was written: %v", err)
			}
			if f.Owed() != 0 {
				t.Errorf("%d writes owed", f.Owed())
			}
			if err := f.Open(t.Context(), 1); err != nil || firstIsZeros(f) {
				t.Errorf("the disk that is no zeros any more is said to be: %v", err)
			}
		})
	}
}

// firstIsZeros says what the destination told of the disk of the first stream that is open.
func firstIsZeros(f *Forwarder) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open[0].export.Zeros
}
