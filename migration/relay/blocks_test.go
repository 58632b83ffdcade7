package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"heliotrope/migration/relay/disk"
	"heliotrope/migration/relay/share"
	"heliotrope/migration/wan"
	"heliotrope/migration/wan/ramstream"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"
)

// diskWay is a way to a disk of that size behind a real NBD server.
type diskWay struct {
	client     *Client
	path, file string // the source's socket, and the destination's disk
	h          Header
}

func newDiskWay(t testing.TB, from, to *Encoding, size int64) *diskWay {
	t.Helper()
	p := newPKI(t)
	s, addr := destination(t, p)
	s.Encoding = to
	w := &diskWay{h: Header{Move: "m1", VM: "web", Kind: Disk}}
	sock, file := qemuNBD(t, "a", size)
	s.Expect(w.h.Move, Expectation{VM: w.h.VM, From: "src", Sockets: map[Kind]string{Disk: sock, Memory: hypervisor(t, mirrorBack)}})
	w.client, w.file = &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: from}, file
	w.path, _ = source(t, w.client, w.h)
	return w
}

// packed makes the way one whose source knows of packed streams only.
func (w *diskWay) packed(t testing.TB) {
	t.Helper()
	h := w.h
	h.Codec, h.Disk = Offer{Version: 3, Packed: true}, 1
	f, err := w.client.Forward(filepath.Join(t.TempDir(), "old.sock"), h)
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{done: func() {}}
	if s.conn, s.taken, err = w.client.offer(t.Context(), h); err != nil || !s.taken.Packed {
		t.Fatal(s.taken, err)
	}
	if err := s.toDisk(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	f.open = append(f.open, s)
	run(t, f.Serve)
	w.path = f.l.Addr().String()
}

// write has QEMU do so, and returns when it is on the destination's disk.
func (w *diskWay) write(t *testing.T, commands ...string) {
	t.Helper()
	args := []string{"-f", "raw"}
	for _, c := range append(commands, "flush") {
		args = append(args, "-c", c)
	}
	out, err := exec.Command("qemu-io", append(args, "nbd+unix:///a?socket="+w.path)...).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("failed")) {
		t.Fatalf("qemu-io (run make deps): %v: %s", err, out)
	}
}

// holds fails unless the destination's disk is this.
func (w *diskWay) holds(t *testing.T, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(w.file); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk is another: %d bytes, %v", len(got), err)
	}
}

// fileOf is a file with that content.
func fileOf(t testing.TB, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func noise(size int, seed uint64) []byte {
	b, rnd := make([]byte, size), rand.New(rand.NewPCG(seed, 9))
	for i := 0; i+8 <= size; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rnd.Uint64())
	}
	return b
}

// TestDiskIsEncodedOverALongWay: what crosses is less than the disk, and the disk is the same.
func TestDiskIsEncodedOverALongWay(t *testing.T) {
	long, short := &Encoding{MirrorPages: 10, Least: wan.Fast}, &Encoding{MirrorPages: 10}
	for name, c := range map[string]struct {
		from, to *Encoding
		encoded  bool
	}{
		"long way":           {long, short, true},
		"within a site":      {short, short, false},
		"an old destination": {long, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			s, addr := destination(t, p)
			s.Encoding = c.to
			const size = 1 << 20
			sock, file := qemuNBD(t, "a", size)
			h := Header{Move: "m1", VM: "web", Kind: Disk}
			s.Expect(h.Move, Expectation{VM: h.VM, From: "src", Sockets: map[Kind]string{Disk: sock}})
			client := &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: c.from}
			path, _ := source(t, client, h)
			out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write -P 65 0 1M", "-c", "flush", "nbd+unix:///a?socket="+path).CombinedOutput()
			if err != nil {
				t.Fatalf("qemu-io (run make deps): %v: %s", err, out)
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{65}, size)) {
				t.Errorf("the disk is another: %v", err)
			}
			if sent := client.Sent(); c.encoded != (sent < size/2) {
				t.Errorf("%d bytes crossed for a disk of %d", sent, size)
			}
		})
	}
}

// TestBlocksThatAreThereCostNothing: what is twice on a disk crosses once, where both ends have room for it.
func TestBlocksThatAreThereCostNothing(t *testing.T) {
	const size = 8 << 20
	half := noise(size/2, 1)
	for name, c := range map[string]struct {
		from, to *Encoding
		disk     []byte
		most     int
		class    wan.Class // of most of what was written; Classes: nothing was counted
	}{
		"twice":                             {sharing(), sharing(), append(half[:len(half):len(half)], half...), size/2 + size/50, wan.Peer},
		"twice, and nobody has room":        {sharing(), mirrors, append(half[:len(half):len(half)], half...), size + size/50, wan.Noise},
		"twice, and it has little":          {sharing(), &Encoding{MirrorPages: 1 << 14, Room: NewRoom(3072), Share: share.New()}, append(half[:len(half):len(half)], half...), size*9/10 + size/50, wan.Noise},
		"zeros":                             {sharing(), sharing(), make([]byte, size), size / 100, wan.Zero},
		"zeros, and nobody shares":          {mirrors, mirrors, make([]byte, size), size / 100, wan.Zero},
		"one block":                         {sharing(), sharing(), bytes.Repeat(half[:4096], size/4096), size / 100, wan.Peer},
		"twice, and it cannot but compress": {sharing(), nil, append(half[:len(half):len(half)], half...), size * 2, wan.Classes},
	} {
		t.Run(name, func(t *testing.T) {
			w := newDiskWay(t, c.from, c.to, size)
			w.write(t, fmt.Sprintf("write -s %s 0 %d", fileOf(t, c.disk), size))
			w.holds(t, c.disk)
			s := w.client.Disks()
			t.Logf("%d bytes crossed, pages %v", w.client.Sent(), s.Pages)
			if w.client.Sent() > uint64(c.most) {
				t.Errorf("%d bytes crossed for a disk of %d, want no more than %d", w.client.Sent(), size, c.most)
			}
			if in, _ := s.Total(); c.class == wan.Classes {
				if in > 0 {
					t.Errorf("%d bytes are counted as encoded", in)
				}
			} else if s.Pages[c.class] < size/4096*45/100 || in < size {
				t.Errorf("%d bytes of the stream, pages %v, want most of them %s", in, s.Pages, c.class)
			}
			if m := w.client.Memory(); m != (wan.Stats{}) {
				t.Errorf("it counts as memory: %v", m)
			}
		})
	}
}

// TestMemoryFindsItsDisk: a guest's page cache has blocks of its disk, which went first.
func TestMemoryFindsItsDisk(t *testing.T) {
	stream := guestStream(1024, 1)
	var parser ramstream.Parser
	var blocks []byte
	for rest := stream; ; {
		token, r, ok := parser.Next(rest)
		if !ok {
			break
		}
		if rest = r; len(token.Data) == 4096 {
			blocks = append(blocks, token.Data...)
		}
	}
	from := sharing()
	w := newDiskWay(t, from, sharing(), int64(len(blocks)))
	path := filepath.Join(t.TempDir(), "memory.sock")
	streams, err := w.client.Forwarders(t.Context(), w.h, map[Kind]string{Memory: path}, func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer streams.Close()
	if err := streams.Open(t.Context(), 0); err != nil { // as a move does before anything is copied
		t.Fatal(err)
	}
	w.write(t, fmt.Sprintf("write -s %s 0 %d", fileOf(t, blocks), len(blocks)))
	w.holds(t, blocks)
	before := w.client.Sent()
	memory, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	if _, err := memory.Write(stream); err != nil {
		t.Fatal(err)
	}
	memory.CloseWrite()
	if got, err := io.ReadAll(memory); err != nil || !bytes.Equal(got, stream) {
		t.Fatalf("%d bytes came out of %d: %v", len(got), len(stream), err)
	}
	s := w.client.Memory()
	t.Logf("the disk took %d bytes, pages %v, memory %d, pages %v", before, w.client.Disks().Pages, w.client.Sent()-before, s.Pages)
	if s.Pages[wan.Peer] < 1000 || w.client.Sent()-before > uint64(len(stream)/100) {
		t.Errorf("%d bytes crossed for memory that is all on the disk, pages %v", w.client.Sent()-before, s.Pages)
	}
}

// TestBlocksThatAreNotThereAreAskedFor: the source believes that the destination has what it has not.
func TestBlocksThatAreNotThereAreAskedFor(t *testing.T) {
	const size = 2 << 20
	content, from := noise(size, 5), sharing()
	w := newDiskWay(t, from, sharing(), size)
	lost := from.Share.Send(w.client.way(), 999, 1<<14, false).Disk()
	for at := 0; at < size; at += 4096 {
		lost.Carries(xxh3.Hash128Seed(content[at:at+4096], from.Share.Seed(w.client.way())), true)
	}
	w.write(t, fmt.Sprintf("write -s %s 0 %d", fileOf(t, content), size))
	w.holds(t, content)
	if s := w.client.Disks(); s.Pages[wan.Peer] == 0 || w.client.Sent() < size {
		t.Errorf("%d bytes crossed, pages %v", w.client.Sent(), s.Pages)
	}
}

// TestDiskComesOut: whatever is written, in whatever order, is on the disk.
func TestDiskComesOut(t *testing.T) {
	const size = 1 << 20
	content := noise(256<<10, 3)
	copy(content[64<<10:], bytes.Repeat([]byte("some words "), 6000))
	name := fileOf(t, content)
	w, want := newDiskWay(t, sharing(), sharing(), size), make([]byte, size)
	rapid.Check(t, func(rt *rapid.T) {
		var commands []string
		for range rapid.IntRange(1, 12).Draw(rt, "writes") {
			at, n := rapid.IntRange(0, size/512-1).Draw(rt, "sector")*512, rapid.IntRange(1, 512).Draw(rt, "sectors")*512
			n = min(n, size-at)
			how := "write"
			if rapid.Bool().Draw(rt, "durable") {
				how = "write -f"
			}
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0:
				commands = append(commands, fmt.Sprintf("write -z %d %d", at, n))
				clear(want[at : at+n])
			case 1:
				commands = append(commands, fmt.Sprintf("%s -P 7 %d %d", how, at, n))
				copy(want[at:], bytes.Repeat([]byte{7}, n))
			default:
				n = min(n, len(content))
				commands = append(commands, fmt.Sprintf("%s -s %s %d %d", how, name, at, n))
				copy(want[at:], content[:n])
			}
			if rapid.Bool().Draw(rt, "flush") {
				commands = append(commands, "flush")
			}
		}
		w.write(t, commands...)
		w.holds(t, want)
		if t.Failed() {
			rt.Fatalf("after %q", commands)
		}
	})
}

// TestPackedDisksOfOlderAgents: those of before blocks were encoded are sent packed streams, and send them.
func TestPackedDisksOfOlderAgents(t *testing.T) {
	const size = 1 << 20
	want := bytes.Repeat([]byte{65}, size)
	t.Run("destination", func(t *testing.T) {
		p := newPKI(t)
		sock, file := qemuNBD(t, "a", size)
		l, err := tls.Listen("tcp", "127.0.0.1:0", withVersions(p.config(t, "dst")))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		run(t, func(ctx context.Context) error {
			conn, err := l.Accept()
			if err != nil {
				return err
			}
			defer conn.Close()
			h, err := readHeader(conn)
			if err != nil || h.Codec.Version != 3 || !h.Codec.Packed || h.Codec.MirrorPages != 0 {
				t.Errorf("an offer that it does not know: %+v, %v", h, err)
				return err
			}
			local, err := net.Dial("unix", sock)
			if err != nil {
				return err
			}
			export, err := disk.Open(local, h.Disk, false)
			if err == nil {
				err = writeAnswer(conn, Offer{Version: 3, Packed: true, Export: export}, nil)
			}
			in, e := disk.Unpack(conn)
			if err = errors.Join(err, e); err != nil {
				return err
			}
			return join(ctx, conn.(*tls.Conn), in, local.(*net.UnixConn))
		})
		w := &diskWay{h: Header{Move: "m1", VM: "web", Kind: Disk}, file: file,
			client: &Client{Addr: l.Addr().(*net.TCPAddr).AddrPort(), TLS: p.config(t, "src"), Encoding: sharing()}}
		w.path, _ = source(t, w.client, w.h)
		w.write(t, "write -P 65 0 1M")
		w.holds(t, want)
		if s := w.client.Disks(); s != (wan.Stats{}) || w.client.Sent() > size/2 {
			t.Errorf("%d bytes crossed, %v", w.client.Sent(), s)
		}
	})
	t.Run("source", func(t *testing.T) {
		w := newDiskWay(t, nil, sharing(), size)
		w.packed(t)
		w.write(t, "write -P 65 0 1M")
		w.holds(t, want)
		if w.client.Sent() > size/2 {
			t.Errorf("%d bytes crossed", w.client.Sent())
		}
	})
}

// TestQEMUMirrorsThroughTheCodec has QEMU copy a disk that is written to meanwhile.
func TestQEMUMirrorsThroughTheCodec(t *testing.T) {
	const size = 32 << 20
	content := make([]byte, size)
	copy(content[1<<20:], noise(6<<20, 4))
	copy(content[20<<20:], content[1<<20:7<<20])
	file := fileOf(t, content)
	w := newDiskWay(t, sharing(), sharing(), size)
	m := newMachine(t, "-blockdev", "driver=file,node-name=disk,filename="+file, "-device", "ide-hd,drive=disk,id=d0,bus=ide.1")
	m.do("blockdev-add", map[string]any{"driver": "nbd", "node-name": "target", "export": "a", "server": map[string]any{"type": "unix", "path": w.path}})
	m.do("blockdev-mirror", map[string]any{"job-id": "copy", "device": "disk", "target": "target", "sync": "full", "copy-mode": "write-blocking"})
	copying := func() (jobs []struct{ Ready bool }) {
		if err := json.Unmarshal(m.do("query-block-jobs", nil), &jobs); err != nil {
			t.Fatal(err)
		}
		return jobs
	}
	write := func(command string) {
		if said := m.do("human-monitor-command", map[string]any{"command-line": fmt.Sprintf("qemu-io -d d0 %q", command)}); strings.Contains(string(said), "rror") {
			t.Fatalf("%s: %s", command, said)
		}
	}
	for i := range 20 {
		write(fmt.Sprintf("write -P %d %d 4096", i+1, 2<<20+i*12288))
	}
	for jobs := copying(); !jobs[0].Ready; {
		if jobs = copying(); len(jobs) == 0 {
			t.Fatal("the copy has failed")
		}
	}
	for i := range 20 {
		write(fmt.Sprintf("write -P %d %d 4096", i+101, 2<<20+i*8192))
	}
	m.do("block-job-cancel", map[string]any{"device": "copy"}) // which ends a copy that is ready as it is
	for len(copying()) > 0 {
	}
	m.do("blockdev-del", map[string]any{"node-name": "target"})
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	w.holds(t, want)
	s := w.client.Disks()
	in, _ := s.Total()
	t.Logf("%d bytes of the stream, %d sent, pages %v", in, w.client.Sent(), s.Pages)
	if w.client.Sent() > 8<<20 || s.Pages[wan.Peer] < 1000 {
		t.Errorf("%d bytes crossed, pages %v", w.client.Sent(), s.Pages)
	}
}

// A disk takes less of the room than memory, and gives it back.
func TestRoomOfDisks(t *testing.T) {
	e := &Encoding{MirrorPages: 60, Least: wan.Fast, Room: NewRoom(120), Share: share.New()}
	h := Header{Kind: Disk, VM: "d", Disk: 1, Codec: e.offerDisk(share.Way{})}
	if h.Codec.Share != 60 || e.Room.left != 120 {
		t.Errorf("a source offers %d pages, and has %d left", h.Codec.Share, e.Room.left)
	}
	one, _, doneOne := e.take(h, "src")
	if h.Codec.Seed++; one.Share != 20 || one.MirrorPages != 0 {
		t.Errorf("took %+v", one)
	}
	two, _, doneTwo := e.take(h, "src")
	if two.Share != 16 {
		t.Errorf("took %+v", two)
	}
	doneOne()
	doneTwo()
	if e.Room.left != 120 {
		t.Errorf("%d are left of 120", e.Room.left)
	}
	for name, change := range map[string]func(*Offer){
		"another seed": func(o *Offer) { o.Seed++ }, "a mirror": func(o *Offer) { o.MirrorPages = 1 }, "more to share": func(o *Offer) { o.Share = 61 },
		"packed with a seed": func(o *Offer) { o.Packed = true }, "another version": func(o *Offer) { o.Version++ },
	} {
		answer := Offer{Version: h.Codec.Version, Seed: h.Codec.Seed, PageSeed: h.Codec.PageSeed, Share: 20}
		if err := answer.fits(h); err != nil {
			t.Fatal(err)
		}
		if change(&answer); answer.fits(h) == nil {
			t.Errorf("an answer with %s is taken", name)
		}
	}
}

var diskImage = flag.String("disk", "", "the raw image that BenchmarkDisk copies; none: one made up")

// BenchmarkDisk has QEMU copy an image over loopback, encoded and as before blocks were, TLS and both ends on
// this machine's processors; QEMU's time is not counted.
func BenchmarkDisk(b *testing.B) {
	image := *diskImage
	if image == "" {
		text := guestStream(4096, 1)
		image = fileOf(b, slices.Concat(make([]byte, 16<<20), noise(8<<20, 1), text[:8<<20], text[:8<<20]))
	}
	at, err := os.Stat(image)
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"packed", "encoded"} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(at.Size())
			sent, took := uint64(0), time.Duration(0)
			for b.Loop() {
				room := &Encoding{MirrorPages: 1 << 17, Room: NewRoom(1 << 18), Share: share.New()} // as agents have it
				long := *room
				long.Least, long.Share = wan.Fast, share.New()
				w := newDiskWay(b, &long, room, at.Size())
				if name == "packed" {
					w.packed(b)
				}
				before := processorTime(b)
				out, err := exec.Command("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, "nbd+unix:///a?socket="+w.path).CombinedOutput()
				if err != nil {
					b.Fatalf("qemu-img (run make deps): %v: %s", err, out)
				}
				took += processorTime(b) - before
				sent += w.client.Sent()
				b.Logf("pages %v", w.client.Disks().Pages)
			}
			n := float64(at.Size()) * float64(b.N)
			b.ReportMetric(float64(sent)/n, "wire/B")
			b.ReportMetric(n/1e6/took.Seconds(), "cpuMB/s")
		})
	}
}
