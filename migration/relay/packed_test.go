package relay

import (
	"bytes"
	"heliotrope/migration/wan"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
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

// TestDiskIsPackedOverALongWay: what crosses is less than the disk, and the disk is the same.
func TestDiskIsPackedOverALongWay(t *testing.T) {
	long, short := &Encoding{MirrorPages: 10, Least: wan.Fast}, &Encoding{MirrorPages: 10}
	for name, c := range map[string]struct {
		from, to *Encoding
		packed   bool
	}{
		"long way":           {long, short, true},
		"within a site":      {short, short, false},
		"an old destination": {long, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			s, addr := destination(t, p)
			s.Encoding = c.to
			const size = 1 << 20
			sock, file := qemuNBD(t, "a", size)
			h := Header{Move: "m1", VM: "web", Kind: Disk}
			s.Expect(h.Move, Expectation{VM: h.VM, From: "src", Sockets: map[Kind]string{Disk: sock}})
			client := &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: c.from}
			path, _ := source(t, client, h)
			out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write -P 65 0 1M", "-c", "flush", "nbd+unix:///a?socket="+path).CombinedOutput()
			if err != nil {
				t.Fatalf("qemu-io (run make deps): %v: %s", err, out)
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{65}, size)) {
				t.Errorf("the disk is another: %v", err)
			}
			if sent := client.Sent(); c.packed != (sent < size/2) {
				t.Errorf("%d bytes crossed for a disk of %d", sent, size)
			}
		})
	}
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
