package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
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

	"pgregory.net/rapid"
)

// What a client is told is what the server has told, whichever of its exports it wants.
func TestExportIsToldOn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		structured := rapid.Bool().Draw(rt, "structured")
		exports := rapid.SliceOfNDistinct(rapid.Custom(func(rt *rapid.T) Export {
			e := Export{Name: rapid.StringN(0, 20, 80).Draw(rt, "name"), Size: rapid.Uint64().Draw(rt, "size"), Flags: rapid.Uint16().Draw(rt, "flags"), Structured: structured}
			if rapid.Bool().Draw(rt, "says blocks") {
				e.Blocks = [3]uint32{1, 4096, rapid.Uint32().Draw(rt, "most")}
			}
			if e.Allocation = structured && rapid.Bool().Draw(rt, "allocation"); e.Allocation {
				e.Context = rapid.Uint32().Draw(rt, "context")
			}
			return e
		}), 1, 5, func(e Export) string { return e.Name }).Draw(rt, "exports")
		want := rapid.IntRange(1, len(exports)).Draw(rt, "which")
		client, server := net.Pipe()
		var group sync.WaitGroup
		group.Go(func() {
			defer server.Close()
			if n, err := answerHandshake(server, exports); err != nil || n != want-1 {
				rt.Errorf("the server's end came to %d, %v, want %d", n, err, want-1)
			}
		})
		got, err := openExport(client, want)
		client.Close()
		group.Wait()
		if err != nil || got != exports[want-1] {
			rt.Fatalf("told %+v, %v, want %+v", got, err, exports[want-1])
		}
	})
}

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
func qemuNBD(t *testing.T, name string, size int64) (socket, file string) {
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
	for name, old := range map[string]bool{"a destination of today": false, "an older destination": true} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			s, addr := destination(t, p)
			if old {
				s.tls.NextProtos = []string{alpnV2, ALPN}
			}
			sock, file := qemuNBD(t, "drive-virtio-disk0", 1<<20)
			s.Expect("m1", Expectation{VM: "web", From: "src", Sockets: map[Kind]string{Disk: sock}})
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
			if !f.open[0].export.Zeros {
				t.Error("the disk is zeros, and nobody says so")
			}
			open := g.shut()
			defer open()
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			e, err := openExport(conn, 1)
			if err != nil || e.Name != "drive-virtio-disk0" || e.Size != 1<<20 || !e.Structured || !e.Allocation || e.Flags&nbdSendFUA == 0 {
				t.Fatalf("while the way was shut: %+v, %v", e, err)
			}
			conn.Close()
			open()

			out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write -P 7 4096 8192", "-c", "read -P 7 4096 8192", "-c", "flush",
				"nbd+unix:///drive-virtio-disk0?socket="+path).CombinedOutput()
			if err != nil {
				t.Fatalf("qemu-io (run make deps): %v: %s", err, out)
			}
			if disk, err := os.ReadFile(file); err != nil || disk[4095] != 0 || disk[4096] != 7 || disk[4096+8191] != 7 || disk[4096+8192] != 0 {
				t.Errorf("the disk is not what was written: %v", err)
			}
			if f.Owed() != 0 {
				t.Errorf("%d writes owed", f.Owed())
			}
			if err := f.Open(t.Context(), 1); err != nil || f.open[0].export.Zeros {
				t.Errorf("the disk that is no zeros any more is said to be: %v", err)
			}
		})
	}
}

// A client that wants what nobody told of, or asks as nobody does any more, is told so.
func TestHandshakeRefuses(t *testing.T) {
	option := func(kind uint32, body string) string {
		b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, nbdOptionMagic), kind)
		return string(append(binary.BigEndian.AppendUint32(b, uint32(len(body))), body...))
	}
	const flags = "\x00\x00\x00\x03"
	for name, c := range map[string]struct{ says, want string }{
		"old":                 {flags + option(nbdOptExportName, "a"), "too old"},
		"gives up":            {flags + option(nbdOptExtended, "") + option(nbdOptAbort, ""), "gave up"},
		"another export":      {flags + option(nbdOptStructured, "") + option(nbdOptGo, "\x00\x00\x00\x01b\x00\x00"), "unexpected EOF"},
		"simple replies":      {flags + option(nbdOptGo, "\x00\x00\x00\x01a\x00\x00"), "structured"},
		"a name that is none": {flags + option(nbdOptGo, "\xff\xff\xff\xffa"), "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := answerHandshake(wire{strings.NewReader(c.says), io.Discard}, []Export{{Name: "a", Structured: true}})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

type wire struct {
	io.Reader
	io.Writer
}

func FuzzAnswerHandshake(f *testing.F) {
	b := append(make([]byte, 4), binary.BigEndian.AppendUint64(nil, nbdOptionMagic)...)
	for _, n := range []uint32{nbdOptGo, 5, 1} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	f.Add(append(b, 'a'))
	f.Fuzz(func(t *testing.T, client []byte) {
		// It has to end, whatever comes.
		n, err := answerHandshake(wire{bytes.NewReader(client), io.Discard}, []Export{{Name: "a", Size: 5, Blocks: [3]uint32{1, 2, 3}}, {Allocation: true}})
		if err == nil && (n < 0 || n > 1) {
			t.Errorf("the client wants export %d of 2", n)
		}
	})
}

func FuzzOpenDisk(f *testing.F) {
	var server bytes.Buffer
	server.WriteString(nbdWelcome + "\x00\x03")
	h := handshake{}
	h.reply(nbdOptStructured, nbdRepUnsupported, nil)
	h.reply(nbdOptList, nbdRepServer, []byte("\x00\x00\x00\x01a"))
	h.reply(nbdOptList, nbdRepAck, nil)
	h.reply(nbdOptGo, nbdRepInfo, make([]byte, 12))
	h.reply(nbdOptGo, nbdRepAck, nil)
	f.Add(append(server.Bytes(), h.out...))
	h = handshake{}
	h.reply(nbdOptStructured, nbdRepAck, nil)
	h.reply(nbdOptList, nbdRepServer, []byte("\x00\x00\x00\x01a"))
	h.reply(nbdOptList, nbdRepAck, nil)
	h.reply(nbdOptSetContext, nbdRepContext, []byte("\x00\x00\x00\x05"+allocation))
	h.reply(nbdOptSetContext, nbdRepAck, nil)
	h.reply(nbdOptGo, nbdRepInfo, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0})
	h.reply(nbdOptGo, nbdRepAck, nil)
	status := binary.BigEndian.AppendUint32(nil, nbdChunkMagic)
	status = append(append(status, 0, nbdFlagDone, 0, nbdChunkStatus), make([]byte, 8)...)
	status = append(binary.BigEndian.AppendUint32(status, 12), 0, 0, 0, 5, 0, 0, 0, 9, 0, 0, 0, nbdStateZero)
	f.Add(append(append(server.Bytes()[:nbdGreeting:nbdGreeting], h.out...), status...))
	f.Fuzz(func(t *testing.T, server []byte) {
		e, err := openDisk(wire{bytes.NewReader(server), io.Discard}, 1)
		if err == nil && len(e.Name) > len(server) {
			t.Errorf("%d bytes tell of %+v", len(server), e)
		}
	})
}
