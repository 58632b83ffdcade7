package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"heliotrope/imagesync"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/site"
)

// snapshot gives an order about one.
func (h *host) snapshot(c *client, o agentapi.SnapshotOrder) (s agentapi.ImageSnapshot, err error) {
	h.Helper()
	err = c.call(h.Context(), "PUT", "/v1/snapshots/"+o.Snapshot, o, &s)
	return s, err
}

func (h *host) begin(c *client, id string, vm heliotrope.VMID, image string) agentapi.ImageSnapshot {
	h.Helper()
	s, err := h.snapshot(c, agentapi.SnapshotOrder{Snapshot: id, Do: agentapi.SnapshotBegin, VM: vm, Image: image})
	h.must(err)
	return s
}

// snapshotIs waits until a snapshot is in a state.
func (h *host) snapshotIs(c *client, id, state string) agentapi.ImageSnapshot {
	h.Helper()
	for {
		s, err := h.snapshot(c, agentapi.SnapshotOrder{Snapshot: id, Do: agentapi.SnapshotLook})
		h.must(err)
		if s.State == state {
			return s
		}
		if s.Over() {
			h.Fatalf("snapshot %s is %s: %s", id, s.State, s.Note)
		}
		pause(h.Context(), time.Millisecond)
	}
}

// publish does what a controller does.
func (h *host) publish(c *client, s agentapi.ImageSnapshot) (content []byte) {
	h.Helper()
	h.store(func(store *imagesync.Store) {
		v, err := store.Publish(h.Context(), *s.Sealed, false)
		h.must(err)
		now, err := h.snapshot(c, agentapi.SnapshotOrder{Snapshot: s.Snapshot, Do: agentapi.SnapshotEnd, Made: v.Ref()})
		h.must(err)
		if now.State != agentapi.SnapshotDone || now.Made != v.Ref() {
			h.Fatalf("published, it is %+v", now)
		}
		r, err := store.Open(h.Context(), v.Ref())
		h.must(err)
		defer r.Close()
		content = make([]byte, r.Size())
		_, err = r.ReadAt(content, 0)
		h.must(err)
	})
	return content
}

// hang lets the store answer nobody who begins to write upon an image, until resume.
func (h *host) hang(image string) (resume func()) {
	h.Helper()
	var file string
	h.store(func(store *imagesync.Store) {
		v, err := store.Version(h.Context(), image)
		h.must(err)
		file = filepath.Join(h.c.Store, "sketches", v.Root.String())
	})
	was, err := os.ReadFile(file)
	h.must(err)
	h.must(os.Remove(file))
	h.must(unix.Mkfifo(file, 0o600))
	return func() {
		h.Helper()
		h.must(os.Rename(file, file+".pipe"))
		h.must(os.WriteFile(file, was, 0o600))
		f, err := os.OpenFile(file+".pipe", os.O_RDWR, 0)
		h.must(err)
		defer f.Close()
		_, err = f.Write(was)
		h.must(err)
		h.must(os.Remove(file + ".pipe"))
	}
}

// A guest that numbers what it writes, each after the one before was answered: the image has what it had written
// up to a moment after it was asked for, and nothing of after. A VM made of the image has it, and the image's
// guest goes on as if nothing had been.
func TestSnapshotOfARunningGuest(t *testing.T) {
	e := newEnd(t, "left-1", "", 16)
	_, _, err := e.Disks.put(t.Context(), "web", wanted{Image: "debian"})
	e.must(err)
	e.must(os.WriteFile((*moving)(e).stand(), nil, 0o600))
	was := e.disk()
	e.qemu = startQEMU(t, e.c, "web")
	const places = 96 // of 4 KiB, 20 KiB apart: some share a chunk of 64 KiB, some do not
	at := func(n int) int { return n * 37 % places * 20 << 10 }
	n := 0
	write := func() { n++; e.qemu.guest("write -P %d %d 4096", n%256, at(n)) }
	for range 50 {
		write()
	}
	resume := e.hang("debian") // so that the guest writes on for as long as we like
	before := n
	s := e.begin(e.Disks.client, "s-1", "web", "web")
	for range 150 {
		write()
	}
	resume()
	s = e.snapshotIs(e.Disks.client, "s-1", agentapi.SnapshotSealed)
	t.Logf("%d bytes of %d were read and %d sent, as %d; a write may have waited %d µs", s.Read, len(was), s.New, s.Stored, s.TookUs)
	got := e.publish(e.Disks.client, s)
	want := bytes.Clone(was)
	for k := 1; k <= before; k++ {
		copy(want[at(k):], bytes.Repeat([]byte{byte(k)}, 4096))
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("the image is not the disk as of write %d: from byte %d on", before, differ(got, want))
	}
	if most := int64(before) * 64 << 10; s.Total != s.Read || s.Read > most || s.Stored <= 0 {
		t.Errorf("%d bytes were read of %d; %d chunks were written to", s.Read, s.Total, before)
	}
	for k := before + 1; k <= n; k++ {
		copy(want[at(k):], bytes.Repeat([]byte{byte(k)}, 4096))
	}
	if now := e.disk(); !bytes.Equal(now, want) {
		t.Fatalf("the guest's disk is not what it wrote, from byte %d on", differ(now, want))
	}
	if o, err := site.ReadOrigin(e.c.Dir, "web"); err != nil || o.Base.Image != "debian" || o.Version.Image != "debian" {
		t.Errorf("the disk stands on %+v, %v", o, err)
	}
	// Of another one only what is new is sent.
	write()
	e.begin(e.Disks.client, "s-2", "web", "web-2")
	if s = e.snapshotIs(e.Disks.client, "s-2", agentapi.SnapshotSealed); s.New > 151*64<<10 {
		t.Errorf("the next one has sent %d bytes", s.New)
	}
	e.publish(e.Disks.client, s)
	_, _, err = e.Disks.put(t.Context(), "copy", wanted{Image: "web-2"})
	e.must(err)
	copy(want[at(n):], bytes.Repeat([]byte{byte(n)}, 4096))
	if !bytes.Equal(e.read("copy", 0, len(want)), want) {
		t.Error("the disk of a VM that was made of the image is another")
	}
}

// A VM that moves away while its disk is read: the snapshot is of its moment all the same, and what is kept for the
// VM's way back is kept then.
func TestSnapshotSurvivesAMove(t *testing.T) {
	w := newTrip(t, 16)
	a, b := w.at, w.at.peer
	w.write("write", 1<<20, 256<<10)
	then := bytes.Clone(w.want)
	resume := a.hang("debian")
	a.begin(a.Disks.client, "s-1", "web", "web")
	w.write("write", 1<<20, 4096)
	w.write("discard", 1<<20+64<<10, 64<<10)
	a.meanwhile = func() { w.write("write", 3<<20, 4096) }
	w.move(2*len(w.moved) + 2)
	a.meanwhile = func() {}
	w.write("write", 5<<20, 4096)
	if o, err := site.ReadOrigin(a.c.Dir, "web"); err != nil || o.Moves.Left != "" {
		t.Errorf("what is still read has left already: %+v, %v", o.Moves, err)
	}
	// An agent that starts removes what nobody needs, and this is needed.
	a.must(a.Disks.sweep(t.Context()))
	resume()
	s := a.snapshotIs(a.Disks.client, "s-1", agentapi.SnapshotSealed)
	if got := a.publish(a.Disks.client, s); !bytes.Equal(got, then) {
		t.Fatalf("the image is not the disk as it was: from byte %d on", differ(got, then))
	}
	for { // the disk is kept right after it was read
		o, err := site.ReadOrigin(a.c.Dir, "web")
		a.must(err)
		if o.Moves.Left != "" {
			break
		}
		pause(t.Context(), time.Millisecond)
	}
	w.move(2)

	// One that comes back sooner ends it.
	resume = a.hang("debian")
	a.begin(a.Disks.client, "s-2", "web", "web-2")
	w.move(len(w.moved))
	w.at.move(w)
	w.at = a
	resume()
	w.check()
	for {
		s, err := a.snapshot(a.Disks.client, agentapi.SnapshotOrder{Snapshot: "s-2", Do: agentapi.SnapshotLook})
		a.must(err)
		if s.Over() {
			if s.State != agentapi.SnapshotFailed || !strings.Contains(s.Note, "came back") {
				t.Errorf("it is %+v", s)
			}
			break
		}
		pause(t.Context(), time.Millisecond)
	}
	_ = b
}

// A server that is killed in the middle loses the snapshot, says so, and nothing else is lost.
func TestSnapshotKilled(t *testing.T) {
	w := newTrip(t, 8)
	e := w.at
	w.write("write", 1<<20, 256<<10)
	resume := e.hang("debian")
	e.begin(e.Disks.client, "s-1", "web", "web")
	w.write("write", 1<<20, 64<<10)
	w.write("write", 2<<20, 64<<10)
	e.kill()
	w.write("write", 3<<20, 64<<10)
	w.check()
	if s, err := e.snapshot(e.Disks.client, agentapi.SnapshotOrder{Snapshot: "s-1", Do: agentapi.SnapshotLook}); err != nil || s.State != agentapi.SnapshotFailed || !strings.Contains(s.Note, "killed") {
		t.Errorf("it is %+v, %v", s, err)
	}
	if _, err := os.Stat(filepath.Join(e.c.Dir, "volumes", "web", "disk", "before")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was saved for it remains: %v", err)
	}
	file, err := filepath.Glob(filepath.Join(e.c.Store, "sketches", "*"))
	if err != nil || len(file) != 1 {
		t.Fatal(file, err)
	}
	go resume() // nobody waits for it any more
	for {
		if info, err := os.Stat(file[0]); err == nil && info.Mode().IsRegular() {
			break
		}
		pause(t.Context(), time.Millisecond)
	}
	e.begin(e.Disks.client, "s-2", "web", "web")
	if got := e.publish(e.Disks.client, e.snapshotIs(e.Disks.client, "s-2", agentapi.SnapshotSealed)); !bytes.Equal(got, w.want) {
		t.Error("the next one is not the disk")
	}
	e.kill()
	if s, err := e.snapshot(e.Disks.client, agentapi.SnapshotOrder{Snapshot: "s-2", Do: agentapi.SnapshotLook}); err != nil || s.State != agentapi.SnapshotDone || s.Made != "web@1" {
		t.Errorf("after a restart it is %+v, %v", s, err)
	}
}

// What cannot be is said, and leaves nothing.
func TestSnapshotRefused(t *testing.T) {
	h := newHost(t)
	h.image("debian", 1, 1)
	c, stop := h.serve()
	h.put(c, "web", wanted{Image: "debian"})
	h.write("web", 0, bytes.Repeat([]byte{9}, 100_000))
	if s, err := h.snapshot(c, agentapi.SnapshotOrder{Snapshot: "dry", Do: agentapi.SnapshotForesee, VM: "web", Image: "x"}); err != nil || s.Total != 2*64<<10 {
		t.Errorf("foreseen is %+v, %v", s, err)
	}
	for name, o := range map[string]agentapi.SnapshotOrder{
		"no such VM":       {Snapshot: "a", Do: agentapi.SnapshotBegin, VM: "nobody", Image: "x"},
		"no VM":            {Snapshot: "a", Do: agentapi.SnapshotBegin, VM: "../web", Image: "x"},
		"no image":         {Snapshot: "a", Do: agentapi.SnapshotBegin, VM: "web", Image: "../x"},
		"no such snapshot": {Snapshot: "a", Do: agentapi.SnapshotLook},
		"and no end":       {Snapshot: "a", Do: agentapi.SnapshotEnd, Made: "x@1"},
	} {
		if s, err := h.snapshot(c, o); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
	// The agent knows whether a disk is a volume, and says what to do where it is none.
	d := New(h.c, nil)
	for _, do := range []string{agentapi.SnapshotBegin, agentapi.SnapshotForesee} {
		_, err := d.Snapshot(t.Context(), agentapi.SnapshotOrder{Snapshot: "a", Do: do, VM: "plain", Image: "x"})
		if !errors.Is(err, agentapi.ErrInvalid) || !strings.Contains(err.Error(), "heliotrope image import") {
			t.Errorf("a disk that is a file: %v", err)
		}
	}
	d.c.Store = ""
	if _, err := d.Snapshot(t.Context(), agentapi.SnapshotOrder{Snapshot: "a", Do: agentapi.SnapshotBegin, VM: "plain", Image: "x"}); !strings.Contains(err.Error(), "--image-store") {
		t.Errorf("a host without a store: %v", err)
	}
	stale := &Orders{Fence: func(uint64) error { return agentapi.ErrStale }}
	if _, err := stale.Snapshot(t.Context(), agentapi.SnapshotOrder{}); !errors.Is(err, agentapi.ErrStale) {
		t.Errorf("an order of a controller that does not lead any more: %v", err)
	}
	resume := h.hang("debian")
	s := h.begin(c, "s-1", "web", "web")
	if again := h.begin(c, "s-1", "web", "web"); again.Began != s.Began {
		t.Errorf("the same order again: %+v", again)
	}
	if _, err := h.snapshot(c, agentapi.SnapshotOrder{Snapshot: "s-2", Do: agentapi.SnapshotBegin, VM: "web", Image: "y"}); !errors.Is(err, agentapi.ErrBusy) {
		t.Errorf("a second one of the same disk: %v", err)
	}
	h.write("web", 0, bytes.Repeat([]byte{10}, 100_000))
	if s, err := h.snapshot(c, agentapi.SnapshotOrder{Snapshot: "s-1", Do: agentapi.SnapshotEnd, Note: "given up"}); err != nil || s.State != agentapi.SnapshotFailed || s.Note != "given up" {
		t.Errorf("given up, it is %+v, %v", s, err)
	}
	resume()
	before := filepath.Join(h.c.Dir, "volumes", "web", "disk", "before")
	for {
		if _, err := os.Stat(before); errors.Is(err, fs.ErrNotExist) {
			break
		}
		pause(t.Context(), time.Millisecond)
	}
	// The store is away.
	h.must(os.Rename(h.c.Store, h.c.Store+".away"))
	h.begin(c, "s-3", "web", "web")
	for {
		s, err := h.snapshot(c, agentapi.SnapshotOrder{Snapshot: "s-3", Do: agentapi.SnapshotLook})
		h.must(err)
		if s.State == agentapi.SnapshotFailed {
			t.Log(s.Note)
			break
		}
		pause(t.Context(), time.Millisecond)
	}
	if _, err := os.Stat(before); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was saved remains: %v", err)
	}
	h.must(os.RemoveAll(h.c.Store))
	h.must(os.Rename(h.c.Store+".away", h.c.Store))
	// One that is sealed when the server is stopped.
	h.begin(c, "s-4", "web", "web")
	h.snapshotIs(c, "s-4", agentapi.SnapshotSealed)
	stop()
	if leases, _ := filepath.Glob(filepath.Join(h.c.Store, "leases", "*")); len(leases) > 0 {
		for _, l := range leases {
			b, _ := os.ReadFile(l)
			if strings.Contains(string(b), "writer") {
				t.Errorf("a lease remains: %s", b)
			}
		}
	}
	c, _ = h.serve()
	if st, err := c.status(t.Context()); err != nil || len(st.Snapshots) != 3 {
		t.Errorf("after a restart there are %+v, %v", st.Snapshots, err)
	}
}

// A guest of an image that was a snapshot boots, by what the first guest wrote.
func TestSnapshotBoots(t *testing.T) {
	h := newHost(t)
	h.content = make([]byte, 4<<20)
	copy(h.content, bootCode)
	h.content[510], h.content[511], h.content[512] = 0x55, 0xaa, '!'
	h.image("boots", 0, 0)
	c, _ := h.serve()
	h.put(c, "web", wanted{Image: "boots"})
	h.write("web", 512, append([]byte("?"), make([]byte, 511)...))
	h.begin(c, "s-1", "web", "other")
	h.publish(c, h.snapshotIs(c, "s-1", agentapi.SnapshotSealed))
	h.put(c, "two", wanted{Image: "other"})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-m", "64", "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04",
		"-drive", "file.driver=nbd,file.server.type=unix,file.server.path="+libvirt.VolumeSocket(h.c.DiskDir)+",file.export="+
			libvirt.VolumeExport(h.c.DiskDir, "two")+",file.reconnect-delay=600,format=raw,if=virtio").CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatal("there is no qemu-system-x86_64: run make deps")
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2*0x10+1 || !bytes.Contains(out, []byte("?")) {
		t.Errorf("QEMU: %v: %s", err, out)
	}
}

// What crosses between agent and controller is read back as it was.
func TestSealedCrosses(t *testing.T) {
	s := agentapi.ImageSnapshot{Snapshot: "s", State: agentapi.SnapshotSealed, Sealed: &manifest.Sealed{Version: manifest.Version{Image: "web", Root: manifest.ID{7}, Size: 5, Content: 1}, Lease: "l"}}
	b, err := json.Marshal(s)
	var got agentapi.ImageSnapshot
	if err == nil {
		err = json.Unmarshal(b, &got)
	}
	if err != nil || *got.Sealed != *s.Sealed {
		t.Errorf("%s is read as %+v, %v", b, got.Sealed, err)
	}
}
