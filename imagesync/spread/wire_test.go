package spread

import (
	"bytes"
	"encoding"
	"testing"

	"pgregory.net/rapid"
)

var _ encoding.BinaryMarshaler = (*Outline)(nil)

func TestOutlineIsRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var pieces []Piece
		for range rapid.IntRange(0, 20).Draw(t, "pieces") {
			p := Piece{Length: rapid.Uint32Range(1, MaxPiece).Draw(t, "length")}
			copy(p.Hash[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "hash"))
			pieces = append(pieces, p)
		}
		o, err := NewOutline(pieces)
		if err != nil {
			t.Fatal(err)
		}
		b, err := o.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseOutline(b)
		if err != nil || again.ID() != o.ID() || again.Bytes() != o.Bytes() || again.Len() != o.Len() {
			t.Fatalf("read again it is %+v, %v", again, err)
		}
	})
	for _, p := range []Piece{{Length: 0}, {Length: MaxPiece + 1}} {
		if _, err := NewOutline([]Piece{p}); err == nil {
			t.Errorf("a piece of %d bytes is taken", p.Length)
		}
	}
}

func TestSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 200).Draw(t, "n")
		s, model := newSet(n), make([]bool, n)
		for range rapid.IntRange(0, 20).Draw(t, "changes") {
			from := rapid.IntRange(0, n-1).Draw(t, "from")
			count := rapid.IntRange(1, n-from).Draw(t, "count")
			s.addRun(from, count)
			for i := from; i < from+count; i++ {
				model[i] = true
			}
			out := rapid.IntRange(0, n-1).Draw(t, "out")
			s.remove(out)
			model[out] = false
		}
		rest, first := newSet(n), -1
		for _, r := range s.missing(n) {
			rest.addRun(r.from, r.n)
		}
		for i, in := range model {
			if s.has(i) != in || rest.has(i) == in {
				t.Fatalf("%d is in it: %t, should be %t, is missing: %t", i, s.has(i), in, rest.has(i))
			}
			if in && first < 0 {
				first = i
			}
		}
		all := newSet(n)
		all.addRun(0, n)
		if got := firstCommon(s, all); got != first {
			t.Fatalf("the first is %d, not %d", got, first)
		}
	})
}

func FuzzParseOutline(f *testing.F) {
	for _, pieces := range [][]Piece{nil, {{Length: 1}}, {{Length: 5, Hash: HashOf(nil)}, {Length: MaxPiece}}} {
		o, err := NewOutline(pieces)
		if err != nil {
			f.Fatal(err)
		}
		b, _ := o.MarshalBinary()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, err := ParseOutline(raw)
		if err != nil {
			return
		}
		if b, err := o.MarshalBinary(); err != nil || !bytes.Equal(b, raw) {
			t.Fatalf("written again it differs: %v", err)
		}
	})
}

func FuzzFrame(f *testing.F) {
	for _, fr := range []frame{
		{kind: kindData, piece: 7, offset: 9, length: 3}, {kind: kindVoid, piece: 7}, {kind: kindRefuse, reason: reasonFault},
		{kind: kindStatus, status: status{live: true, held: true, lame: true, have: 1 << 40, feeds: 2, upHave: 1 << 41, upFeeds: 3, session: 4}},
	} {
		f.Add(fr.append(nil))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		in := bytes.NewReader(raw)
		for {
			before := in.Len()
			fr, err := readFrame(in)
			if err != nil {
				return
			}
			if fr.length > fragment || fr.offset+fr.length > MaxPiece || fr.piece >= MaxPieces {
				t.Fatalf("read %+v", fr)
			}
			if at := len(raw) - before; !bytes.Equal(fr.append(nil), raw[at:len(raw)-in.Len()]) {
				t.Fatalf("written again it differs: %+v", fr)
			}
		}
	})
}

func FuzzSuccessor(f *testing.F) {
	good := hello{id: ID{1, 2}, pieces: 100, priority: Background}.append(nil)
	f.Add(good)
	f.Add(appendWant(appendWant(good, run{3, 97}), run{}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		in := bytes.NewReader(raw)
		h, err := readHello(in)
		if err != nil {
			return
		}
		again := h.append(nil)
		for {
			w, err := readWant(in, h.pieces)
			if err != nil {
				break
			}
			newSet(h.pieces).addRun(w.from, w.n)
			again = appendWant(again, w)
		}
		if !bytes.HasPrefix(raw, again) {
			t.Fatal("written again it differs")
		}
	})
}
