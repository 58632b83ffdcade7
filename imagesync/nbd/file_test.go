package nbd

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOpenFile(t *testing.T) {
	for path, want := range map[string]string{"/dev/null": "neither", t.TempDir(): "directory", filepath.Join(t.TempDir(), "none"): "no such file"} {
		if d, err := OpenFile(path, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", path, d, err)
		}
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, bytes.Repeat([]byte("abcdefgh"), 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	d := openFile(t, path, false)
	ctx := t.Context()
	if err := d.WriteAt(ctx, []byte("written"), 100_000, true); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 7)
	if !d.ReadNow(p, 100_000) || string(p) != "written" {
		t.Errorf("%q: what was just written would have to be waited for", p)
	}
	if err := d.Zero(ctx, 4096, 8192, false); err != nil {
		t.Error(err)
	}
	if err := d.Zero(ctx, 16384+5, 4096, true); err != nil {
		t.Error(err)
	}
	if err := d.Prefetch(ctx, 0, d.Size()); err != nil {
		t.Error(err)
	}
	p = make([]byte, 20480)
	if err := d.ReadAt(ctx, p, 4096); err != nil || !isZero(p[:8192]) || string(p[8192:8200]) != "abcdefgh" || !isZero(p[12288+5:16384+5]) || string(p[16384+5:16384+8]) != "fgh" {
		t.Error("other content than was zeroed", err)
	}
	// What somebody cut off is neither zeros nor there at once.
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	if d.ReadNow(p[:8], 8192) || d.ReadAt(ctx, p[:8], 8192) == nil {
		t.Error("a read beyond the file's end succeeds")
	}
}

// A flush that failed stays failed.
func TestFlushThatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	d := openFile(t, path, false)
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	fd := d.fd
	d.fd = -1 // the disk is gone
	if err := d.Flush(t.Context()); err == nil {
		t.Fatal("a flush without a disk")
	}
	d.fd = fd
	if err := d.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), "earlier") {
		t.Error(err)
	}
	if err := d.WriteAt(t.Context(), []byte("a"), 0, true); err == nil {
		t.Error("FUA after a flush that failed")
	}
}

// Large reads go from the file to the socket as they are: whole, with holes, and at odd places.
func TestLargeReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	data := make([]byte, 40<<20)
	rand.NewChaCha8([32]byte{7}).Read(data)
	clear(data[20<<20 : 24<<20])
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	d := openFile(t, path, false)
	if err := d.Trim(t.Context(), 20<<20, 4<<20); err != nil {
		t.Fatal(err)
	}
	socket := serve(t, NewServer(Static{"": {Device: d}}, nil, logTo(t)))
	c, r := dial(t, socket, ""), ready(t, socket, "", false)
	for _, read := range []struct{ off, n int64 }{{0, 32 << 10}, {5, 32 << 10}, {4095, 512 << 10}, {1, 1 << 20}, {3 << 20, 1<<20 + 1}, {8<<20 - 1, 32 << 20}, {19 << 20, 6 << 20}, {0, 32 << 20}} {
		want, got := data[read.off:read.off+read.n], make([]byte, read.n)
		if err := c.Do(Op{Kind: Read, Offset: read.off, Length: int(read.n)}, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d+%d: other data, %v", read.off, read.n, err)
		}
		r.give(encode(cmdRead, 0, 1, uint64(read.off), uint32(read.n)))
		if b := r.take(simpleSize + int(read.n)); !bytes.Equal(b[simpleSize:], want) {
			t.Errorf("%d+%d: other data without structured replies", read.off, read.n)
		}
	}
	// Many at once, more than there are pipes.
	at, wrong := int64(0), 0
	err := c.Run(60, func() (Op, bool) {
		at += 333_333
		return Op{Kind: Read, Offset: at - 333_333, Length: 700_001}, at < 30<<20
	}, func(op Op, p []byte) {
		if !bytes.Equal(p, data[op.Offset:op.Offset+int64(op.Length)]) {
			wrong++
		}
	})
	if err != nil || wrong > 0 {
		t.Errorf("%d reads of others' data, %v", wrong, err)
	}
	one := ready(t, socket, "", true)
	one.give(encode(cmdRead, cmdFlagDF, 1, 0, 1<<20))
	if got := one.reply(1); len(got) != 1 || got[0] != "data 0+1048576" {
		t.Error(got)
	}
	// Half of it was cut off, and nobody noticed: the client gets what is there, and an error.
	if err := os.Truncate(path, 3<<19); err != nil {
		t.Fatal(err)
	}
	one = ready(t, serve(t, NewServer(Static{"": {Device: allData{d}}}, nil, logTo(t))), "", true)
	one.give(encode(cmdRead, 0, 2, 1<<20, 1<<20))
	if got := one.reply(2); len(got) != 2 || got[0] != "data 1048576+524288" || got[1] != "error 5" {
		t.Error(got)
	}
}

// A client that reads nothing holds up neither another one nor the server's end.
func TestStubbornReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, bytes.Repeat([]byte{5}, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := serve(t, NewServer(Static{"": {Device: openFile(t, path, true), ReadOnly: true, MultiConn: true}}, nil, logTo(t)))
	stubborn := ready(t, socket, "", true)
	for i := range uint64(100) {
		stubborn.give(encode(cmdRead, 0, i, 0, 8<<20))
	}
	c := dial(t, socket, "")
	for range 100 {
		if err := c.Do(Op{Kind: Read, Length: 1 << 20}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// allData is a file that says that it has no holes.
type allData struct{ *File }

func (allData) Extents(_ context.Context, _, n int64, yield func(Extent) bool) error {
	yield(Extent{Length: n})
	return nil
}
