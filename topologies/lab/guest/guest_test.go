//go:build lab

package guest

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// build makes the image in a directory of the test.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := Build(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestBuildWritesTheImage(t *testing.T) {
	dir := build(t)
	for name, limits := range map[string][2]int64{
		"vmlinuz": {4 << 20, 64 << 20}, "initrd.img": {2 << 20, 10 << 20},
		"disk.img": {diskSize, diskSize}, "cmdline": {20, 2000},
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if info.Size() < limits[0] || info.Size() > limits[1] {
			t.Errorf("%s has %d bytes, want %d to %d", name, info.Size(), limits[0], limits[1])
		}
	}
	began := time.Now()
	if err := Build(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("a second build with nothing changed took %v", took)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".new-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestBuildTakesPrebuilt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "some.img")
	if err := os.WriteFile(path, []byte("prebuilt"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HELIOTROPE_GUEST_INITRD", path)
	got, err := os.ReadFile(filepath.Join(build(t), "initrd.img"))
	if err != nil || string(got) != "prebuilt" {
		t.Fatalf("initrd.img holds %q: %v", got, err)
	}
}

func TestBuildWithoutKernelSaysWhatToDo(t *testing.T) {
	t.Setenv("HELIOTROPE_CACHE", t.TempDir())
	err := Build(t.Context(), t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "make deps") {
		t.Fatalf("got %v, want an error that names make deps", err)
	}
}

func TestArchiveFormat(t *testing.T) {
	var b bytes.Buffer
	a := archive{w: &b}
	a.add("abc", modeFile|0o644, device{}, []byte("hello"))
	if err := a.end(); err != nil {
		t.Fatal(err)
	}
	want := "070701" + "00000001" + "000081a4" + "00000000" + "00000000" + "00000001" + "00000000" +
		"00000005" + "00000000" + "00000000" + "00000000" + "00000000" + "00000004" + "00000000" + "abc\x00\x00\x00" + "hello\x00\x00\x00"
	if got := b.String()[:len(want)]; got != want {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
	if b.Len()%4 != 0 {
		t.Fatalf("%d bytes are no multiple of four", b.Len())
	}
}

// TestGuest boots the guest under plain emulation, uses everything it serves, and moves it to
// a second QEMU while it works.
func TestGuest(t *testing.T) {
	image := build(t)
	disk := filepath.Join(image, "disk.img")
	peer := echoServer(t)
	metadata := []string{
		"heliotrope.hostname=lab-guest", "heliotrope.workingset_mib=16", "heliotrope.dirty_pages_per_s=500",
		"heliotrope.disk_writes_per_s=50", "heliotrope.peer=10.0.2.2:" + peer, "heliotrope.unknown=fine",
	}
	began := time.Now()
	source := startQEMU(t, image, disk, metadata)
	source.waitUp(t)
	t.Logf("up %v after QEMU started: %s", time.Since(began).Round(10*time.Millisecond), source.console())

	before := checkServices(t, source)
	target := startQEMU(t, image, disk, metadata, "-incoming", "defer")
	source.migrate(t, target)
	checkAfterMove(t, target, before)
}

type ticksAnswer struct {
	Hostname    string  `json:"hostname"`
	BootID      string  `json:"boot_id"`
	Ticks       int64   `json:"ticks"`
	Uptime      float64 `json:"uptime"`
	MonotonicNS int64   `json:"monotonic_ns"`
	Resumes     int64   `json:"resumes"`
}

type memoryAnswer struct {
	Pages, Rate                    int
	Dirtied, Verified, Bad, Sweeps uint64
	Took                           string
}

type diskAnswer struct {
	Records, Bad, Errors uint64
	LastSeq              uint64 `json:"last_seq"`
	Error                string
}

type peerAnswer struct {
	Connected                      bool
	Sent, Acked, Wrong, Reconnects uint64
}

func checkServices(t *testing.T, q *qemu) ticksAnswer {
	t.Helper()
	if hello := q.get(t, "/"); !strings.HasPrefix(hello, "hello from lab-guest\nticks ") {
		t.Errorf("/ says %q", hello)
	}
	checkEcho(t, q)
	var memory memoryAnswer
	q.getJSON(t, "/checksum", &memory)
	if memory.Pages != 4096 || memory.Verified < 4096 || memory.Bad != 0 || memory.Sweeps == 0 || memory.Rate != 500 {
		t.Errorf("/checksum: %+v", memory)
	}
	t.Logf("a sweep of %d pages took %s", memory.Pages, memory.Took)
	q.getJSON(t, "/workload?pages=2048&rate=2000", &memory)
	if memory.Pages != 2048 || memory.Rate != 2000 {
		t.Errorf("/workload: %+v", memory)
	}
	if answer := q.get(t, "/workload?pages=99999999"); !strings.Contains(answer, "do not fit") {
		t.Errorf("a working set larger than the memory was answered with %q", answer)
	}
	q.eventually(t, "the disk workload", func() bool {
		var d diskAnswer
		q.getJSON(t, "/disk", &d)
		if d.Bad != 0 || d.Errors != 0 {
			t.Fatalf("/disk: %+v", d)
		}
		return d.LastSeq >= 50 && d.Records == d.LastSeq
	})
	q.eventually(t, "the peer", func() bool {
		var p []peerAnswer
		q.getJSON(t, "/peer", &p)
		return len(p) == 1 && p[0].Connected && p[0].Acked >= 20 && p[0].Wrong == 0
	})
	var ticks ticksAnswer
	q.getJSON(t, "/ticks", &ticks)
	if ticks.Hostname != "lab-guest" || len(ticks.BootID) != 36 || ticks.Ticks < 10 || ticks.Uptime <= 0 || ticks.Resumes != 0 {
		t.Errorf("/ticks: %+v", ticks)
	}
	return ticks
}

func checkEcho(t *testing.T, q *qemu) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		conn, err := net.Dial(network, q.forwarded(t, network, 7))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		for i := range 20 {
			sent := []byte("echo " + strconv.Itoa(1000+i))
			if _, err := conn.Write(sent); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("%s echo of %q: %q, %v", network, sent, got, err)
			}
		}
	}
}

func checkAfterMove(t *testing.T, q *qemu, before ticksAnswer) {
	t.Helper()
	var after ticksAnswer
	q.getJSON(t, "/ticks", &after)
	if after.BootID != before.BootID || after.Ticks <= before.Ticks || after.MonotonicNS <= before.MonotonicNS {
		t.Errorf("ticks before the move %+v, after it %+v", before, after)
	}
	q.eventually(t, "the announcement", func() bool {
		q.getJSON(t, "/ticks", &after)
		return after.Resumes == 1
	})
	var memory memoryAnswer
	q.getJSON(t, "/checksum", &memory)
	if memory.Pages != 2048 || memory.Bad != 0 || memory.Dirtied == 0 {
		t.Errorf("/checksum after the move: %+v", memory)
	}
	var d diskAnswer
	q.getJSON(t, "/disk", &d)
	if d.Bad != 0 || d.Errors != 0 || d.Records != min(d.LastSeq, diskSize/4096) {
		t.Errorf("/disk after the move: %+v", d)
	}
	q.eventually(t, "writing to the disk after the move", func() bool {
		var later diskAnswer
		q.getJSON(t, "/disk", &later)
		return later.LastSeq > d.LastSeq && later.Bad == 0
	})
	checkEcho(t, q)
	t.Logf("moved: %d ticks before, %d after; memory %+v; disk %+v", before.Ticks, after.Ticks, memory, d)
}

// echoServer is a peer for the guest, who reaches it as the gateway.
func echoServer(t *testing.T) (port string) {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	context.AfterFunc(ctx, func() { listener.Close() })
	t.Cleanup(cancel)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(ctx, func() { conn.Close() })
			go io.Copy(conn, conn)
		}
	}()
	_, port, _ = net.SplitHostPort(listener.Addr().String())
	return port
}
