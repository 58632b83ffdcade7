package relay

import (
	"bytes"
	"heliotrope/migration/wan"
	"io"
	"math/rand/v2"
	"net"
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
			disk := newDiskServer(1, true)
			h := Header{Move: "m1", VM: "web", Kind: Disk}
			s.Expect(h.Move, Expectation{VM: h.VM, From: "src", Sockets: map[Kind]string{Disk: hypervisor(t, func(c *net.UnixConn) {
				if _, err := answerHandshake(c, []Export{disk.export()}); err == nil {
					disk.serve(c)
				}
			})}})
			client := &Client{Addr: addr, TLS: p.config(t, "src"), Encoding: c.from}
			_, connect := source(t, client, h)
			d := &diskClient{conn: connect()}
			if _, err := openExport(d.conn, 1); err != nil {
				t.Fatal(err)
			}
			want := bytes.Repeat([]byte("a line of a log, and one like it\n"), diskSize)[:diskSize]
			for at := uint64(0); at < diskSize; at += 4096 {
				if _, err := d.do(nbdRequest{kind: nbdWrite, offset: at, length: 4096, data: want[at : at+4096]}, 0); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // the first is answered early
				if _, err := d.do(nbdRequest{kind: nbdFlush}, 0); err != nil {
					t.Fatal(err)
				}
			}
			disk.mu.Lock()
			defer disk.mu.Unlock()
			if !bytes.Equal(disk.durable, want) {
				t.Error("the disk is another")
			}
			if sent := client.Sent(); c.packed != (sent < diskSize/2) {
				t.Errorf("%d bytes crossed for a disk of %d", sent, diskSize)
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
