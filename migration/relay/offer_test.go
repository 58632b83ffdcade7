package relay

import "testing"

// Streams take of the room what there is, and give it back.
func TestRoom(t *testing.T) {
	e := &Encoding{MirrorPages: 60, Room: NewRoom(100)}
	a, doneA := e.offer("a", 1<<20)
	b, doneB := e.offer("b", 1<<20)
	c, doneC := e.offer("c", 1<<20)
	if a.MirrorPages != 60 || b.MirrorPages != 40 || c.MirrorPages != 0 {
		t.Errorf("offered %d, %d and %d pages of 100", a.MirrorPages, b.MirrorPages, c.MirrorPages)
	}
	doneC()
	doneA()
	taken, _, done := e.take(Header{Kind: Memory, VM: "d", Codec: Offer{Version: codecVersion, MirrorPages: 50}}, "src")
	if taken.MirrorPages != 50 {
		t.Errorf("took %d", taken.MirrorPages)
	}
	doneB()
	done()
	if e.Room.left != 100 {
		t.Errorf("%d are left of 100", e.Room.left)
	}
	if o, done := (&Encoding{MirrorPages: 60}).offer("a", 1<<20); o.MirrorPages != 60 {
		t.Errorf("without a room: %d", o.MirrorPages)
	} else {
		done()
	}
}
