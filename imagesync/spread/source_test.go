package spread

import (
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
)

// bring has what is kept elsewhere come to a host, a piece at a time, until all is there or stop is closed.
func bring(s *Share, st *shelf, stop <-chan struct{}) {
	s.Source(true)
	defer s.Source(false)
	for i := range st.pieces {
		select {
		case <-stop:
			return
		case <-time.After(50 * time.Millisecond):
		}
		if !st.Has(i) {
			if err := st.Put(i, st.pieces[i]); err != nil {
				return // it came from a feeder meanwhile
			}
		}
		s.Refresh()
	}
}

// Without a source in the plan the first host brings the content from where it is kept, and all others have it
// from there; when it dies the next one does, and nobody behind that one notices.
func TestFirstHostBringsIt(t *testing.T) {
	for _, dies := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := even(t, 30, 100, 64<<10)
			w := newWorld(t, lineRate, "a0", "a1", "a2")
			first, firstShelf := w.offer("a0", c, false)
			r1 := w.receive(Hop{Host: "a1", From: []Feeder{{Host: "a0"}}}, c)
			r2 := w.receive(Hop{Host: "a2", From: []Feeder{{Host: "a1"}, {Host: "a0"}}}, c)
			stop := make(chan struct{})
			w.parts.Go(func() { bring(first, firstShelf, stop) })
			if dies {
				time.Sleep(2 * time.Second)
				close(stop)
				w.members["a0"].crash()
				for !r1.Alone() {
					if r2.Alone() {
						t.Fatal("the last host is alone, though there is one before it")
					}
					time.Sleep(100 * time.Millisecond)
				}
				w.parts.Go(func() { bring(r1.Share, r1.shelf, nil) })
			}
			r2.mustSucceed(t)
			for _, hop := range [][2]heliotrope.HostID{{"a0", "a1"}, {"a1", "a2"}} {
				if got, all := w.bytes(hop[0], hop[1]), c.outline.Bytes(); got > all+all/50 || !dies && got < all {
					t.Errorf("first host dies %v: %d bytes of %d went from %s to %s", dies, got, all, hop[0], hop[1])
				}
			}
			if got := w.bytes("a0", "a2"); got > 0 {
				t.Errorf("first host dies %v: %d bytes went past the second host", dies, got)
			}
		})
	}
}

// What has come otherwise since it was asked for is taken from the feeder, and not counted twice.
func TestPieceThatComesTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 31, 40, 64<<10)
		w := newWorld(t, 1e6, "a0", "a1")
		w.offer("a0", c, true)
		r := w.receive(w.plan("a0", "a1")[0], c)
		time.Sleep(500 * time.Millisecond)
		for i := 20; i < 30; i++ {
			if err := r.shelf.Put(i, c.pieces[i]); err != nil {
				t.Fatal(err)
			}
		}
		r.Refresh()
		r.mustSucceed(t)
		if p := r.Progress(); p.Pieces != 40 || p.Bytes != c.outline.Bytes() || p.Wrong != 0 || p.Feeders != 1 {
			t.Errorf("%+v", p)
		}
	})
}
