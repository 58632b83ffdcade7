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
	out := libvirt.Outgoing{VM: "web", Cookie: cookie, Progress: func(p migration.Progress) (to libvirt.Course) { spared = p.SparedBytes; return to }}
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
