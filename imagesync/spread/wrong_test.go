package spread

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
)

// spoiler changes the first so many data frames of a piece's end on a line.
func spoiler(from, to heliotrope.HostID, times int) func(heliotrope.HostID, heliotrope.HostID, []byte) {
	return func(f, t heliotrope.HostID, b []byte) {
		if f == from && t == to && len(b) > 1000 && times > 0 {
			times--
			b[len(b)-1] ^= 0x10
		}
	}
}

// A wrong piece is seen by the first who gets it and by nobody else, is never stored, and comes again.
func TestWrongPieceIsFetchedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 20, 6, 400_000) // four fragments each
		hosts := names('a', 5)
		w := newWorld(t, lineRate, hosts...)
		w.spoil = spoiler("a01", "a02", 1)
		all := w.spread(c, hosts...)
		for id, r := range all {
			r.mustSucceed(t)
			want := btoi(id == "a02")
			if got := r.Progress().Wrong; got != want {
				t.Errorf("%s saw %d wrong pieces, it should %d", id, got, want)
			}
			if w.dialled(id) != 1 {
				t.Errorf("%s changed its feeder", id)
			}
		}
	})
}

// Who sends wrong pieces again and again is passed over.
func TestFeederOfWrongPiecesIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 21, 6, 400_000)
		hosts := names('a', 5)
		w := newWorld(t, lineRate, hosts...)
		w.spoil = spoiler("a01", "a02", 1<<30)
		all := w.spread(c, hosts...)
		for _, r := range all {
			r.mustSucceed(t)
		}
		if p := all["a02"].Progress(); p.Wrong != strikes {
			t.Errorf("%d wrong pieces came", p.Wrong)
		}
		if w.bytes("a00", "a02") < c.outline.Bytes()/2 {
			t.Error("it was not fed by the host before")
		}
		if n := all["a03"].Progress().Wrong + all["a04"].Progress().Wrong; n > 0 {
			t.Errorf("%d wrong pieces went on", n)
		}
	})
}

func TestNoRightPieceIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 22, 3, 400_000)
		w := newWorld(t, lineRate, "a0", "a1")
		w.spoil = spoiler("a0", "a1", 1<<30)
		r := w.spread(c, "a0", "a1")["a1"]
		<-r.done
		if !errors.Is(r.err, ErrWrongPiece) || r.Progress().Pieces > 0 {
			t.Errorf("%v, %+v", r.err, r.Progress())
		}
	})
}

// A feeder that cannot read a piece says so, and is passed over for good.
func TestFeederThatCannotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 23, 6, 300_000)
		w := newWorld(t, lineRate, "a0", "a1", "a2")
		w.offer("a0", c, true)
		_, st := w.offer("a1", c, true)
		st.fault = func(piece int) error {
			if piece == 3 {
				return errors.New("a bad block")
			}
			return nil
		}
		r := w.receive(w.plan("a0", "a1", "a2")[1], c)
		r.mustSucceed(t)
		if got := w.bytes("a0", "a2"); got < 900_000 || got > 920_000 {
			t.Errorf("%d bytes came from the other feeder", got)
		}
	})
}

type fullDisk struct{ *shelf }

func (f fullDisk) Put(piece int, data []byte) error {
	if piece == 2 {
		return errors.New("no space is left")
	}
	return f.shelf.Put(piece, data)
}

func TestFullDiskEndsReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 24, 6, 300_000)
		w := newWorld(t, lineRate, "a0", "a1")
		w.offer("a0", c, true)
		s, err := w.members["a1"].node.Offer(c.outline, fullDisk{newShelf(c, false)})
		if err != nil {
			t.Fatal(err)
		}
		err = s.Receive(t.Context(), []Feeder{{Host: "a0"}}, Demand)
		if err == nil || s.Progress().Pieces != 2 {
			t.Errorf("%v, %+v", err, s.Progress())
		}
		s.Close()
	})
}

// A feeder that breaks the protocol is left, whatever it says.
func TestFeederThatBreaksTheProtocol(t *testing.T) {
	c := even(t, 25, 4, 1000)
	for name, say := range map[string][]byte{
		"not asked for": frame{kind: kindData, piece: 9, length: 10}.append(nil),
		"in the middle": frame{kind: kindData, piece: 1, offset: 5, length: 10}.append(nil),
		"too long":      append(frame{kind: kindData, piece: 1, length: 1001}.append(nil), make([]byte, 1001)...),
		"two at once":   frame{kind: kindData, piece: 2, length: 1}.append(append(frame{kind: kindData, piece: 1, length: 1}.append(nil), 0)),
		"void of none":  frame{kind: kindVoid, piece: 1}.append(nil),
		"no frame":      []byte("HTTP/1.1 400 Bad Request\r\n"),
		"refusal":       frame{kind: kindRefuse, reason: reasonFault}.append(nil),
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 0, "a0", "a1", "a2")
			w.offer("a0", c, true)
			w.members["a2"].node.dial = w.liar(w.members["a2"].dial, "a1", say)
			r := w.receive(w.plan("a0", "a1", "a2")[1], c)
			if r.mustSucceed(t); r.took > 5*time.Second {
				t.Errorf("%s: it took %v", name, r.took)
			}
		})
	}
}

// A successor that breaks the protocol is hung up on.
func TestSuccessorThatBreaksTheProtocol(t *testing.T) {
	c := even(t, 26, 4, 1000)
	good := hello{id: c.outline.ID(), pieces: 4}.append(nil)
	for name, say := range map[string][]byte{
		"something else":        []byte(fmt.Sprintf("%-100s", "GET / HTTP/1.1\r\n")),
		"other number":          hello{id: c.outline.ID(), pieces: 5}.append(nil),
		"too many":              appendWant(good, run{3, 2}),
		"unknown kind of frame": append(good[:len(good):len(good)], "xxxxxxxxx"...),
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 0, "a0", "a1")
			w.offer("a0", c, true)
			conn, err := w.members["a1"].dial(t.Context(), "a0")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			w.parts.Go(func() { conn.Write(say) })
			began := time.Now()
			buf := make([]byte, 1024)
			for err == nil {
				_, err = conn.Read(buf)
			}
			if time.Since(began) > time.Second {
				t.Errorf("%s: it was hung up on after %v", name, time.Since(began))
			}
		})
	}
}
