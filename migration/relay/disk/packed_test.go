package disk

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

func TestPackedStream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 4))
		var wire, sent bytes.Buffer
		w, err := newPackedWriter(&wire)
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(0, 20).Draw(t, "writes") {
			b := make([]byte, rnd.IntN(1+rnd.IntN(600<<10)))
			for i := range b {
				b[i] = byte(rnd.IntN(1 + rnd.IntN(256)))
			}
			sent.Write(b)
			if n, err := w.Write(b); n != len(b) || err != nil {
				t.Fatal(n, err)
			}
			if rnd.IntN(3) > 0 {
				continue
			}
			if err := w.Flush(); err != nil || len(w.piece) > 0 {
				t.Fatal(len(w.piece), err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		whole := bytes.Clone(wire.Bytes())
		r, err := newPackedReader(&wire)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, sent.Bytes()) {
			t.Fatalf("%d bytes of %d came out: %v", len(got), sent.Len(), err)
		}
		if len(whole) == 0 {
			return
		}
		cut := rapid.IntRange(1, len(whole)-1).Draw(t, "cut")
		if r, err = newPackedReader(bytes.NewReader(whole[:cut])); err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(r); !bytes.HasPrefix(sent.Bytes(), got) {
			t.Fatal("other bytes came out of a stream that is cut")
		}
	})
}

func FuzzPackedReader(f *testing.F) {
	var wire bytes.Buffer
	w, err := newPackedWriter(&wire)
	if err != nil {
		f.Fatal(err)
	}
	w.Write(bytes.Repeat([]byte("some words "), 1000))
	w.Flush()
	f.Add(wire.Bytes())
	f.Add([]byte("\x00\x00\x00\x02\x00\x00\x00\x02ab"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := newPackedReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if n, _ := io.Copy(io.Discard, r); n > int64(len(b)/pieceHead+1)*maxPiece {
			t.Errorf("%d bytes of %d", n, len(b))
		}
	})
}
