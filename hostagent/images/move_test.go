package images

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/hostagent/libvirt"
	"heliotrope/imagesync/nbd"
	"heliotrope/imagesync/site"
	"heliotrope/migration"
	"heliotrope/migration/relay"
)

// granule is what QEMU's mirror copies at least, in bytes.
const granule = 64 << 10

// qemu is one that has a VM's volume as its disk, and no vCPU that runs: what a guest would do, the
// test does.
type qemu struct {
	t    testing.TB
	cmd  *exec.Cmd
	conn net.Conn
	dec  *json.Decoder
}

func startQEMU(t testing.TB, c Config, vm heliotrope.VMID) *qemu {
	t.Helper()
	control := filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", control)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.(*net.UnixListener).SetDeadline(time.Now().Add(30 * time.Second))
	var said bytes.Buffer
	cmd := exec.Command("qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-m", "16", "-nodefaults", "-display", "none", "-S", "-qmp", "unix:"+control,
		"-blockdev", "driver=nbd,node-name=file,server.type=unix,server.path="+libvirt.VolumeSocket(c.DiskDir)+",export="+libvirt.VolumeExport(c.DiskDir, vm)+
			",reconnect-delay=600,discard=unmap,cache.direct=on",
		"-blockdev", "driver=raw,node-name=disk,file=file,discard=unmap,cache.direct=on", "-device", "ide-hd,drive=disk,id=d0")
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("start QEMU (run make deps): %v", err)
	}
	q := &qemu{t: t, cmd: cmd}
	t.Cleanup(q.end)
	if q.conn, err = l.Accept(); err != nil {
		t.Fatalf("QEMU does not connect: %v: %s", err, &said)
	}
	q.conn.SetDeadline(time.Now().Add(2 * time.Minute))
	q.dec = json.NewDecoder(q.conn)
	q.do("qmp_capabilities", nil)
	return q
}

// end ends it as libvirt ends the one that a VM has left.
func (q *qemu) end() {
	if q.cmd.ProcessState == nil {
		q.cmd.Process.Signal(syscall.SIGTERM)
		q.cmd.Wait()
		if q.conn != nil {
			q.conn.Close()
		}
	}
}

// do has it do something and returns the answer; events are passed over.
func (q *qemu) do(command string, args any) json.RawMessage {
	q.t.Helper()
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	if err := json.NewEncoder(q.conn).Encode(request); err != nil {
		q.t.Fatalf("%s: %v", command, err)
	}
	for {
		var m struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		switch err := q.dec.Decode(&m); {
		case err != nil:
			q.t.Fatalf("%s: %v", command, err)
		case m.Error != nil:
			q.t.Fatalf("%s: %s", command, m.Error.Desc)
		case m.Return != nil:
			return m.Return
		}
	}
}

// guest has the guest do something to its disk, in the words of qemu-io.
func (q *qemu) guest(format string, args ...any) {
	q.t.Helper()
	line := fmt.Sprintf(format, args...)
	answer := q.do("human-monitor-command", map[string]any{"command-line": `qemu-io -d d0 "` + line + `"`})
	if s := string(answer); strings.Contains(s, "failed") || strings.Contains(s, "rror") {
		q.t.Fatalf("%s: %s", line, s)
	}
}

// mirror copies the disk as libvirt's incremental copy does, lets the guest do something meanwhile,
// and ends with the guest stopped, and all of it at the target.
func (q *qemu) mirror(socket, export string, meanwhile func()) {
	q.t.Helper()
	q.do("blockdev-add", map[string]any{"driver": "nbd", "node-name": "target", "export": export, "discard": "unmap",
		"server": map[string]any{"type": "unix", "path": socket}})
	q.do("blockdev-mirror", map[string]any{"job-id": "copy", "device": "disk", "target": "target", "sync": "top", "auto-dismiss": true})
	for meanwhile(); ; {
		var jobs []struct{ Ready bool }
		if err := json.Unmarshal(q.do("query-block-jobs", nil), &jobs); err != nil || len(jobs) != 1 {
			q.t.Fatalf("the mirror has gone: %v, %v", jobs, err)
		}
		if jobs[0].Ready {
			break
		}
		pause(q.t.Context(), time.Millisecond)
	}
	q.do("stop", nil)
	q.do("block-job-cancel", map[string]any{"device": "copy"})
	for jobs := "x"; jobs != "[]"; jobs = string(q.do("query-block-jobs", nil)) {
		pause(q.t.Context(), time.Millisecond)
	}
	q.do("blockdev-del", map[string]any{"node-name": "target"})
}

// end is a host of moves: its agent's part of disks, and a hypervisor that copies disks only.
type end struct {
	*host
	Over
	peer      *end
	tls       *tls.Config
	relay     *relay.Server
	addr      netip.AddrPort
	qemu      *qemu
	receiving bool

	meanwhile func() // what the guest does while it is copied
	cut       bool   // the copy is broken off
	restarted bool   // its agent is another one when the VM has come
	written   uint64 // bytes that the last copy from here has sent
	took      time.Duration
	plain     bool // its hypervisor knows of no partial copies
}

// newEnd makes one with a store of its own, where the image has so many MiB, or with that of another.
func newEnd(t testing.TB, name, store string, mib int) *end {
	t.Helper()
	e := &end{host: newHost(t), meanwhile: func() {}}
	e.c.Host, e.c.Kept = name, 1<<30
	if e.c.Store = cmp.Or(store, e.c.Store); store == "" {
		e.image("debian", 1, mib)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	e.must(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(crand.Reader, template, template, key.Public(), key)
	e.must(err)
	e.tls = &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{relay.ALPN}, InsecureSkipVerify: true, ClientAuth: tls.RequireAnyClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}}
	e.relay = relay.NewServer(e.tls, func(tls.ConnectionState) (heliotrope.HostID, error) { return "any", nil }, e.c.Log)
	l, err := relay.Listen(t.Context(), "127.0.0.1:0")
	e.must(err)
	e.addr = l.Addr().(*net.TCPAddr).AddrPort()
	text, err := json.Marshal(e.c)
	e.must(err)
	e.Over = Over{Hypervisor: (*moving)(e), Disks: New(e.c, func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), serverEnv+"="+string(text))
		return cmd
	})}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var life sync.WaitGroup
	life.Go(func() { _ = e.Disks.Run(ctx) })
	life.Go(func() { _ = e.relay.Serve(ctx, l) })
	t.Cleanup(func() {
		cancel()
		life.Wait()
		_ = e.Disks.client.stop(context.WithoutCancel(t.Context()))
	})
	return e
}

// kill kills the server of disks and waits for the next.
func (e *end) kill() {
	e.Helper()
	s, err := e.Disks.client.status(e.Context())
	e.must(err)
	e.must(syscall.Kill(s.PID, syscall.SIGKILL))
	for {
		e.must(e.Disks.wait(e.Context()))
		if now, err := e.Disks.client.status(e.Context()); err == nil && now.PID != s.PID {
			return
		}
		pause(e.Context(), time.Millisecond)
	}
}

// disk is all of the VM's disk.
func (e *end) disk() []byte {
	e.Helper()
	c := e.dial("web")
	defer c.Close()
	p := make([]byte, c.Size)
	for off := int64(0); off < c.Size; off += 1 << 20 {
		n := int(min(1<<20, c.Size-off))
		e.must(c.Do(nbd.Op{Kind: nbd.Read, Offset: off, Length: n}, p[off:][:n]))
	}
	return p
}

// moving is the hypervisor of an end.
type moving end

func (m *moving) Domains(context.Context) ([]libvirt.Domain, error) {
	return []libvirt.Domain{{Name: "web", PID: m.qemu.cmd.Process.Pid}}, nil
}

func (m *moving) Start(context.Context, libvirt.Spec) error     { return nil }
func (m *moving) Remove(context.Context, heliotrope.VMID) error { return nil }
func (m *moving) Sweep(context.Context, string) error           { return nil }
func (m *moving) Receives(heliotrope.VMID) bool                 { return m.receiving }
func (m *moving) stand() string                                 { return libvirt.VolumeExport(m.c.DiskDir, "web") }
func (m *moving) Begin(context.Context, heliotrope.VMID) (libvirt.Description, error) {
	o, err := site.ReadOrigin(m.c.Dir, "web")
	text := fmt.Sprintf(`<domain><metadata><volume xmlns="urn:heliotrope:volume:1" base=%q bytes="%d"/></metadata></domain>`, base(o.Base), o.Base.Size)
	return libvirt.Description{XML: text, Cookie: []byte("<cookie/>\x00"), Partial: !m.plain}, err
}

func (m *moving) Prepare(_ context.Context, in libvirt.Incoming) ([]byte, error) {
	if string(in.Cookie) != "<cookie/>\x00" {
		return nil, fmt.Errorf("the hypervisor gets the cookie %q", in.Cookie)
	}
	m.receiving = true
	m.relay.Expect("m1", relay.Expectation{VM: "web", From: "any", Sockets: map[relay.Kind]string{relay.Disk: libvirt.VolumeSocket(m.c.DiskDir)}})
	return nil, os.WriteFile(m.stand(), nil, 0o600)
}

func (m *moving) Perform(ctx context.Context, out libvirt.Outgoing) ([]byte, error) {
	if len(out.Cookie) > 0 {
		return nil, fmt.Errorf("the hypervisor gets the cookie %q", out.Cookie)
	}
	out.Progress(migration.Progress{})
	socket := filepath.Join(m.c.DiskDir, "relay")
	client := &relay.Client{Addr: m.peer.addr, TLS: m.peer.tls}
	f, err := client.Forward(socket, relay.Header{Move: "m1", VM: "web", Kind: relay.Disk})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	served := make(chan error, 1)
	began := time.Now()
	go func() { served <- f.Serve(ctx) }()
	m.qemu.mirror(socket, (*moving)(m.peer).stand(), m.meanwhile)
	cancel()
	err = <-served
	m.written, m.took = f.Written(), time.Since(began)
	if err == nil && f.Owed() > 0 {
		err = errors.New("writes are owed")
	}
	if m.cut {
		err = errors.New("broken off")
	}
	return nil, err
}

func (m *moving) Finish(_ context.Context, _ heliotrope.VMID, _ []byte, cancelled bool) error {
	m.receiving = false
	if cancelled {
		return os.Remove(m.stand())
	}
	m.qemu = startQEMU(m.TB, m.c, "web")
	return nil
}

func (m *moving) Confirm(_ context.Context, _ heliotrope.VMID, _ []byte, cancelled bool) error {
	if cancelled {
		return nil
	}
	m.qemu.end()
	return os.Remove(m.stand())
}

// move moves the VM to the peer, compares the disks while nobody writes, and returns what was spared.
func (e *end) move(t testing.TB) (spared uint64) {
	t.Helper()
	d, err := e.Begin(t.Context(), "web")
	e.must(err)
	cookie, err := e.peer.Prepare(t.Context(), libvirt.Incoming{VM: "web", XML: d.XML, Cookie: d.Cookie})
	e.must(err)
	out := libvirt.Outgoing{VM: "web", Cookie: cookie, Progress: func(p migration.Progress) { spared = p.SparedBytes }}
	_, err = e.Perform(t.Context(), out)
	if e.cut {
		e.must(e.peer.Finish(t.Context(), "web", nil, true))
		e.must(e.Confirm(t.Context(), "web", nil, true))
		return spared
	}
	e.must(err)
	if here, there := e.disk(), e.peer.disk(); !bytes.Equal(here, there) {
		t.Fatalf("the disks differ: from byte %d on", differ(here, there))
	}
	if e.peer.restarted {
		e.peer.receiving = false
	}
	e.must(e.peer.Finish(t.Context(), "web", nil, false))
	e.must(e.Confirm(t.Context(), "web", nil, false))
	return spared
}

func differ(a, b []byte) (at int) {
	for at < min(len(a), len(b)) && a[at] == b[at] {
		at++
	}
	return at
}

// trip is a VM that moves to and fro, and what its disk has to be.
type trip struct {
	testing.TB
	at     *end
	want   []byte
	byte   byte
	moved  map[int]bool // granules that changed since the VM was made
	recent map[int]bool // and since it came to where it is
}

func newTrip(t testing.TB, mib int) *trip {
	a := newEnd(t, "left-1", "", mib)
	b := newEnd(t, "right-1", a.c.Store, 0)
	a.peer, b.peer = b, a
	w := &trip{TB: t, at: a, moved: map[int]bool{}, recent: map[int]bool{}}
	_, _, err := a.Disks.put(t.Context(), "web", wanted{Image: "debian"})
	a.must(err)
	a.must(os.WriteFile((*moving)(a).stand(), nil, 0o600))
	w.want = a.disk()
	a.qemu = startQEMU(t, a.c, "web")
	return w
}

// write has the guest write n bytes; how is qemu-io's: "write", or "write -z" for zeros, or "discard".
func (w *trip) write(how string, off, n int) {
	w.Helper()
	if how == "write" {
		w.byte++
		w.at.qemu.guest("write -P %d %d %d", w.byte, off, n)
		copy(w.want[off:off+n], bytes.Repeat([]byte{w.byte}, n))
	} else {
		w.at.qemu.guest("%s %d %d", how, off, n)
		if how != "discard" || off%4096 == 0 && n%4096 == 0 {
			clear(w.want[off : off+n])
		}
	}
	for g := off / granule; g <= (off+n-1)/granule; g++ {
		w.moved[g], w.recent[g] = true, true
	}
}

// move moves the VM, and wants that no more than some granules are copied.
func (w *trip) move(most int) {
	w.Helper()
	from := w.at
	spared := from.move(w)
	w.at, w.recent = from.peer, map[int]bool{}
	w.Logf("%d bytes of %d were copied, and %d spared", from.written, len(w.want), spared)
	if limit := uint64(most * granule); from.written > limit || spared+limit < uint64(len(w.want)) {
		w.Errorf("%d bytes were copied and %d spared; at most %d had to be", from.written, spared, limit)
	}
	w.check()
}

func (w *trip) check() {
	w.Helper()
	if got := w.at.disk(); !bytes.Equal(got, w.want) {
		w.Fatalf("the disk is not what it has to be from byte %d on", differ(got, w.want))
	}
}

// A disk crosses by what was written since it was made, comes back by what was written since it
// came, and is the same byte by byte, whatever the guest does meanwhile and whatever dies.
func TestMoveCopiesWhatDiffers(t *testing.T) {
	w := newTrip(t, 16)
	a, b := w.at, w.at.peer
	w.write("write", 1<<20, 4096)
	w.write("write", 3<<20+512, 1024)
	w.write("write -z", 5<<20, 128<<10)
	w.write("discard", 7<<20, 64<<10)
	w.write("discard", 9<<20+1024, 2048) // which changes nothing
	a.meanwhile = func() {
		w.write("write", 1<<20+8192, 4096)
		w.write("write", 11<<20, 64<<10)
		w.write("discard", 12<<20+1024, 2048)
	}
	w.move(2*len(w.moved) + 2)
	a.meanwhile = func() {}

	w.write("write", 2<<20, 4096)
	b.qemu.guest("flush")
	w.write("write", 2<<20+4096, 4096) // which was not flushed
	b.kill()
	w.write("write -z", 11<<20, 4096)
	w.check()
	b.meanwhile = func() { w.write("write", 15<<20, 4096) }
	w.move(2 * 3)
	b.meanwhile = func() {}

	w.move(0) // nothing was written here
	w.move(0)
	w.write("write", 15<<20+4096, 4096)
	a.kill()
	w.move(1)

	// A move that is broken off takes away what was kept; the next one goes by the base.
	w.write("write", 1<<20, 4096)
	b.cut = true
	b.move(t)
	b.cut = false
	w.check()
	w.write("write", 4<<20, 4096)
	w.move(len(w.moved))
	w.write("write", 4<<20, 8192)
	w.move(1)
}

// Where the two ends do not speak of one and the same move, or one speaks of none, more is copied.
func TestMoveInDoubt(t *testing.T) {
	w := newTrip(t, 16)
	a, b := w.at, w.at.peer
	w.write("write", 1<<20, 256<<10)
	w.move(4)
	w.write("write", 2<<20, 4096)

	// What was kept is of another move.
	origin := filepath.Join(a.c.Dir, "volumes", "web", "origin.json")
	text, err := os.ReadFile(origin)
	a.must(err)
	var o site.Origin
	a.must(json.Unmarshal(text, &o))
	if o.Moves.Left == "" {
		t.Fatalf("nothing is kept: %s", text)
	}
	a.must(os.WriteFile(origin, bytes.ReplaceAll(text, []byte(o.Moves.Left), []byte("ANOTHER")), 0o600))
	w.move(len(w.moved))

	// What was kept has been opened by somebody.
	w.write("write", 3<<20, 4096)
	a.peer.put(b.Disks.client, "web", wanted{Image: "debian"})
	w.move(len(w.moved))

	// The agent that waited for the VM has died: nobody says when it began to run.
	a.restarted = true
	w.move(1)
	w.write("write", 3<<20, 4096)
	w.move(len(w.moved))
	a.restarted = false

	// The server of disks dies while it tells what the other host has; the next one tells nothing.
	b.meanwhile = func() {
		w.write("write", 3<<20, 4096)
		b.kill()
		w.write("write", 4<<20, 4096)
	}
	w.move(len(w.want)/granule + 1)
	b.meanwhile = func() {}
	w.move(1)

	// One of the hypervisors copies all of a disk or nothing.
	b.plain = true
	from := w.at
	if spared := from.move(t); spared != 0 || from.written < uint64(len(w.want))/2 {
		t.Errorf("%d bytes were copied, %d spared", from.written, spared)
	}
	w.at = from.peer
	w.check()
	w.write("write", 3<<20, 4096)
	w.move(len(w.want)/granule + 1)
}

// What is kept of disks goes by a budget, the one that left first at the beginning; and a removal takes
// away what is kept like any disk.
func TestKept(t *testing.T) {
	h := newHost(t)
	h.image("debian", 1, 1)
	h.c.Kept = 1 << 20
	c, _ := h.serve()
	leave := func(vm string, kib int) {
		t.Helper()
		h.put(c, vm, wanted{Image: "debian"})
		for off := 0; off < kib<<10; off += 64 << 10 {
			h.write(heliotrope.VMID(vm), int64(off), bytes.Repeat([]byte{7}, 64<<10))
		}
		l, err := c.leave(t.Context(), vm)
		h.must(err)
		if l.Move == "" || l.Came != "" {
			t.Errorf("%s leaves by %+v", vm, l)
		}
		h.must(c.keep(t.Context(), vm))
	}
	kept := func() (names []string) {
		all, err := listKept(h.c.Dir)
		h.must(err)
		for _, k := range all {
			names = append(names, k.name)
		}
		return names
	}
	leave("one", 256)
	h.must(c.keep(t.Context(), "one"))
	leave("two", 256)
	if got := kept(); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("kept are %v", got)
	}
	if s, err := c.status(t.Context()); err != nil || s.KeptDisks != 2 || s.Kept < 512<<10 || s.KeptBudget != 1<<20 || len(s.Volumes) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := nbd.Dial(t.Context(), "unix", libvirt.VolumeSocket(h.c.DiskDir), libvirt.VolumeExport(h.c.DiskDir, "one")); err == nil {
		t.Error("a disk that has left is served")
	}
	leave("three", 512)
	if got := kept(); !slices.Equal(got, []string{"two", "three"}) {
		t.Errorf("kept are %v", got)
	}
	leave("four", 1024)
	if got := kept(); len(got) != 0 {
		t.Errorf("kept are %v", got)
	}
	h.put(c, "five", wanted{Image: "debian"})
	h.must(c.keep(t.Context(), "five")) // which no move takes away
	if got, err := site.Volumes(h.c.Dir); err != nil || len(got) != 0 {
		t.Errorf("left are %v, %v", got, err)
	}
}

// What a server of disks is asked about moves that it does not know changes nothing.
func TestUnknownMoves(t *testing.T) {
	h := newHost(t)
	h.image("debian", 1, 1)
	c, _ := h.serve()
	for name, err := range map[string]error{
		"leave": func() error { _, err := c.leave(t.Context(), "web"); return err }(), "stay": c.stay(t.Context(), "web"),
		"arrive": c.arrive(t.Context(), "web"), "tell": func() error { _, _, err := c.tell(t.Context(), "web", telling{"x", site.HasBase, 1}); return err }(),
		"a path": c.arrive(t.Context(), "../web"),
	} {
		if err == nil {
			t.Errorf("%s of a disk that is not there", name)
		}
	}
	h.must(c.keep(t.Context(), "web"))
	h.put(c, "web", wanted{Image: "debian"})
	l, err := c.leave(t.Context(), "web")
	h.must(err)
	for _, what := range []telling{{"x", site.HasBase, 1}, {l.Move, site.HasLeft, 1}, {l.Move, "all", 1}, {l.Move, site.HasBase, 0}, {"", site.HasBase, 1}} {
		if _, _, err := c.tell(t.Context(), "web", what); err == nil {
			t.Errorf("QEMU is told %+v", what)
		}
	}
	told, end, err := c.tell(t.Context(), "web", telling{l.Move, site.HasBase, 1})
	h.must(err)
	if m := h.put(c, "web", wanted{}); told.Spared != m.Bytes {
		t.Errorf("spared are %+v of %d", told, m.Bytes)
	}
	end()
	h.must(c.stay(t.Context(), "web"))
	if _, _, err := c.tell(t.Context(), "web", telling{l.Move, site.HasBase, 1}); err == nil {
		t.Error("QEMU is told of a move that has ended")
	}
}

func FuzzSplitNote(f *testing.F) {
	for _, cookie := range [][]byte{nil, []byte("<c/>\x00"), []byte("<c/>"), withNote([]byte("<c/>\x00"), note{Leaving: leaving{"a", "b"}}),
		withNote(nil, note{Telling: telling{"a", site.HasLeft, 3}})} {
		f.Add(cookie)
	}
	f.Fuzz(func(t *testing.T, cookie []byte) {
		rest, n := splitNote(cookie)
		if !bytes.HasPrefix(cookie, rest) || n == (note{}) && len(rest) == 0 && len(cookie) > noteLimit+2 {
			t.Fatalf("%q of %q", rest, cookie)
		}
		if n == (note{}) || len(cookie) > noteLimit/8 { // what JSON escapes becomes longer
			return
		}
		again, m := splitNote(withNote(rest, n))
		if m != n || !bytes.Equal(again, rest) {
			t.Fatalf("%q, %+v became %q, %+v", rest, n, again, m)
		}
	})
}

// BenchmarkMove moves a disk of 256 MiB, of which 16 MiB were written by pieces of 64 KiB, by what
// differs, back after 1 MiB more, and as a whole. Relay and servers of disks are the real ones.
func BenchmarkMove(b *testing.B) {
	const disk, wrote, more = 256, 256, 16 // MiB, pieces, pieces
	w := newTrip(b, disk)
	for i := range wrote {
		w.write("write", i<<20, granule)
	}
	for _, way := range []string{"differs", "back", "all"} {
		b.Run(way, func(b *testing.B) {
			var bytes uint64
			var took time.Duration
			for range b.N {
				w.at.plain = way == "all"
				if way == "back" {
					for i := range more {
						w.write("write", i<<20+granule, granule)
					}
				}
				from := w.at
				from.move(w)
				w.at, bytes, took = from.peer, bytes+from.written, took+from.took
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(bytes)/float64(b.N), "sent-B/op")
			b.ReportMetric(took.Seconds()/float64(b.N), "copy-s/op")
		})
	}
}
