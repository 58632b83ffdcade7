package images

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/hostagent/libvirt"
	"heliotrope/imagesync/nbd"
	"heliotrope/imagesync/site"
)

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
