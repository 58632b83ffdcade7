package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"
)

// encode is a request without data.
func encode(kind, flags uint16, cookie, off uint64, n uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, magicRequest)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, off)
	return binary.BigEndian.AppendUint32(b, n)
}

// ready is a connection that requests may be sent on.
func ready(t *testing.T, path, export string, structured bool, contexts ...string) raw {
	t.Helper()
	r := rawDial(t, path, handshakeFixed|handshakeNoZeroes)
	r.prepare(export, structured, contexts...)
	return r
}

func (r raw) prepare(export string, structured bool, contexts ...string) {
	r.t.Helper()
	if structured {
		r.option(optStructuredReply, "")
	}
	if len(contexts) > 0 {
		body := text(export) + u32(uint32(len(contexts)))
		for _, c := range contexts {
			body += text(c)
		}
		r.option(optSetMeta, body)
	}
	if got := r.option(optGo, text(export)+u16(0)); got[len(got)-1] != "ack" {
		r.t.Fatal(got)
	}
}

// reply reads one reply: "ok", "error N", or the chunks of it.
func (r raw) reply(cookie uint64) (said []string) {
	r.t.Helper()
	for {
		h := r.take(simpleSize)
		if c := binary.BigEndian.Uint64(h[8:]); c != cookie {
			r.t.Fatalf("cookie %d, want %d", c, cookie)
		}
		if binary.BigEndian.Uint32(h) == magicSimple {
			if code := binary.BigEndian.Uint32(h[4:]); code != 0 {
				return append(said, fmt.Sprintf("error %d", code))
			}
			return append(said, "ok")
		}
		p := r.take(int(binary.BigEndian.Uint32(r.take(4))))
		switch kind := binary.BigEndian.Uint16(h[6:]); kind {
		case chunkOffsetData:
			said = append(said, fmt.Sprintf("data %d+%d", binary.BigEndian.Uint64(p), len(p)-8))
		case chunkOffsetHole:
			said = append(said, fmt.Sprintf("hole %d+%d", binary.BigEndian.Uint64(p), binary.BigEndian.Uint32(p[8:])))
		case chunkStatus:
			s := fmt.Sprintf("context %d:", binary.BigEndian.Uint32(p))
			for e := range slices.Chunk(p[4:], 8) {
				s += fmt.Sprintf(" %d=%d", binary.BigEndian.Uint32(e), binary.BigEndian.Uint32(e[4:]))
			}
			said = append(said, s)
		case chunkError:
			if int(binary.BigEndian.Uint16(p[4:])) != len(p)-6 {
				r.t.Errorf("error %x", p)
			}
			said = append(said, fmt.Sprintf("error %d", binary.BigEndian.Uint32(p)))
		default:
			r.t.Fatalf("chunk of kind %d", kind)
		}
		if binary.BigEndian.Uint16(h[4:])&chunkDone != 0 {
			return said
		}
	}
}

func TestCommands(t *testing.T) {
	const size = 1<<20 + 100
	type ask struct {
		kind, flags uint16
		off         uint64
		n           uint32
		want        string // replies, with ", " between them
	}
	const structured, simple, readOnly, plain, slow, waiting = 1, 2, 4, 8, 16, 32
	all := []string{contextAllocation, contextDirty}
	tests := []struct {
		name     string
		how      int
		contexts []string
		asks     []ask
	}{
		{"zeros are holes", structured, nil, []ask{{cmdRead, 0, 0, 4096, "hole 0+4096"}, {cmdRead, 0, 1, 1, "hole 1+1"}, {cmdRead, cmdFlagDF, 0, 1 << 20, "hole 0+1048576"},
			{cmdRead, 0, size - 1, 1, "hole 1048675+1"}}},
		{"data is data", structured, nil, []ask{{cmdWrite, 0, 300_000, 10, "ok"}, {cmdRead, 0, 300_005, 5, "data 300005+5"}, {cmdRead, 0, 0, 1 << 20, "hole 0+299008, data 299008+4096, hole 303104+745472"},
			{cmdRead, cmdFlagDF, 0, 1 << 20, "data 0+1048576"}, {cmdRead, 0, 299_000, 10_000, "data 299000+10000"}, {cmdRead, 0, 1000, size - 1000, "hole 1000+298008, data 299008+4096, hole 303104+745572"}}},
		{"out of range", structured | simple, all, []ask{{cmdRead, 0, size, 1, "error 22"}, {cmdRead, 0, 1 << 63, 1, "error 22"}, {cmdRead, 0, 1<<64 - 1, 1, "error 22"},
			{cmdRead, 0, size - 1, 2, "error 22"}, {cmdTrim, 0, size - 1, 2, "error 22"}, {cmdCache, 0, size - 1, 2, "error 22"}, {cmdWriteZeroes, 0, size - 1, 2, "error 28"},
			{cmdWrite, 0, size - 1, 2, "error 28"}, {cmdWrite, 0, 1 << 63, 300_000, "error 28"}, {cmdFlush, 0, 0, 0, "ok"}}},
		{"nonsense", structured | simple, nil, []ask{{cmdRead, 0, 0, 0, "error 22"}, {cmdRead, 0, 0, MaxRequest + 1, "error 22"}, {cmdWrite, 0, 0, MaxRequest + 1, "error 22"},
			{cmdWrite, 0, 0, 0, "error 22"}, {99, 0, 0, 0, "error 22"}, {cmdFlush, 0, 1, 0, "error 22"}, {cmdFlush, cmdFlagDF, 0, 0, "error 22"}, {cmdBlockStatus, 0, 0, 4096, "error 22"},
			{cmdRead, cmdFlagNoHole, 0, 1, "error 22"}, {cmdTrim, cmdFlagReqOne, 0, 1, "error 22"}, {cmdWrite, 1 << 5, 0, 1, "error 22"}, {cmdRead, 0, 0, 1, "?"}}},
		{"DF without structure", simple, nil, []ask{{cmdRead, cmdFlagDF, 0, 1, "error 22"}}},
		{"read-only", structured | simple | readOnly, nil, []ask{{cmdWrite, 0, 0, 5, "error 1"}, {cmdTrim, 0, 0, 5, "error 1"}, {cmdWriteZeroes, 0, 0, 5, "error 1"},
			{cmdFlush, 0, 0, 0, "ok"}, {cmdCache, 0, 0, 5, "ok"}, {cmdRead, 0, 0, 5, "?"}}},
		{"plain device", structured | simple | plain, []string{contextAllocation}, []ask{{cmdCache, 0, 0, 1, "error 22"}, {cmdWriteZeroes, cmdFlagFastZero, 0, 1, "error 22"}, {cmdRead, 0, 0, 5, "?"}}},
		{"slow zeros", structured | slow, nil, []ask{{cmdWriteZeroes, cmdFlagFastZero, 0, 1, "error 95"}, {cmdWriteZeroes, 0, 0, 1, "ok"}}},
		{"status", structured, all, []ask{{cmdBlockStatus, 0, 0, size, "context 1: 1048676=3, context 2: 1048676=0"}, {cmdWrite, 0, 8192, 1, "ok"}, {cmdWrite, 0, 12288, 4096, "ok"},
			{cmdBlockStatus, 0, 0, size, "context 1: 8192=3 8192=0 1032292=3, context 2: 8192=0 8192=1 1032292=0"},
			{cmdBlockStatus, cmdFlagReqOne, 0, size, "context 1: 8192=3, context 2: 8192=0"}, {cmdBlockStatus, cmdFlagReqOne, 8193, size - 8193, "context 1: 8191=0, context 2: 8191=1"},
			{cmdWriteZeroes, 0, 8192, 4096, "ok"}, {cmdWriteZeroes, cmdFlagNoHole, 12288, 4096, "ok"}, {cmdBlockStatus, 0, 8192, 8192, "context 1: 4096=3 4096=0, context 2: 8192=1"},
			{cmdTrim, 0, 12288, 4096, "ok"}, {cmdBlockStatus, 0, 8192, 8192, "context 1: 8192=3, context 2: 8192=1"}, {cmdBlockStatus, 0, size - 1, 1, "context 1: 1=3, context 2: 1=0"}}},
		{"status of one context", structured, []string{contextDirty}, []ask{{cmdBlockStatus, 0, 0, 5, "context 2: 5=0"}, {cmdBlockStatus, 0, size, 1, "error 22"}}},
	}
	for _, test := range tests {
		for _, how := range []int{structured, simple, structured | waiting, simple | waiting} {
			mode := how &^ waiting
			if test.how&mode == 0 {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", test.name, how), func(t *testing.T) {
				d := newMemory(size)
				d.never = how&waiting != 0
				d.slow = test.how&slow != 0
				var device Device = d
				if test.how&plain != 0 {
					device = plainDevice{d}
				}
				path := serve(t, NewServer(Static{"": {Device: device, ReadOnly: test.how&readOnly != 0}}, nil, logTo(t)))
				r := ready(t, path, "", mode == structured, test.contexts...)
				for i, a := range test.asks {
					b := encode(a.kind, a.flags, uint64(i), a.off, a.n)
					if a.kind == cmdWrite {
						b = append(b, bytes.Repeat([]byte{7}, int(a.n))...)
					}
					r.give(b)
					if a.want == "?" {
						if mode == structured {
							a.want = fmt.Sprintf("hole %d+%d", a.off, a.n)
						} else {
							a.want = "ok"
						}
					}
					got := strings.Join(r.reply(uint64(i)), ", ")
					if a.kind == cmdRead && got == "ok" {
						r.take(int(a.n))
					}
					if got != a.want {
						t.Errorf("command %d flags %#x %d+%d: %s, want %s", a.kind, a.flags, a.off, a.n, got, a.want)
					}
				}
			})
		}
	}
}

// FUA is the device's own for a write, and a flush behind what has no other way to it.
func TestFUA(t *testing.T) {
	d := newMemory(8 << 20)
	c := dial(t, serve(t, NewServer(Static{"": {Device: d}}, nil, logTo(t))), "")
	do := func(op Op) {
		t.Helper()
		if err := c.Do(op, nil); err != nil {
			t.Fatal(err)
		}
	}
	do(Op{Kind: Write, Length: 3, Data: []byte("abc")})
	do(Op{Kind: Trim, Length: 3})
	do(Op{Kind: WriteZeroes, Length: 3})
	if d.called("flush") != 0 {
		t.Error("a flush that nobody asked for")
	}
	do(Op{Kind: Write, FUA: true, Length: 3, Data: []byte("abc")})
	do(Op{Kind: Trim, FUA: true, Length: 3})
	do(Op{Kind: WriteZeroes, FUA: true, Length: 3})
	do(Op{Kind: Read, FUA: true, Length: 3})
	do(Op{Kind: Flush})
	if d.called("write fua") != 1 || d.called("flush") != 3 {
		t.Errorf("%v", d.calls)
	}
	// A large write comes in pieces; it is answered once, after the last.
	data := make([]byte, 3<<20+1)
	for i := range data {
		data[i] = byte(i * 7)
	}
	do(Op{Kind: Write, FUA: true, Offset: 1<<20 - 5, Length: len(data), Data: data})
	got := make([]byte, len(data))
	if err := c.Do(Op{Kind: Read, Offset: 1<<20 - 5, Length: len(data)}, got); err != nil || !bytes.Equal(got, data) || d.called("write fua") != 5 {
		t.Error(err, d.calls)
	}
}

// A device's error is one line and an errno; the connection goes on.
func TestDeviceErrors(t *testing.T) {
	for _, test := range []struct {
		err  error
		want uint32
	}{
		{errors.New("burnt"), codeIO}, {syscall.ENOSPC, codeSpace}, {fmt.Errorf("write: %w", &fs.PathError{Err: syscall.EDQUOT}), codeSpace}, {syscall.EROFS, codePermission},
		{syscall.EACCES, codePermission}, {syscall.ENOMEM, codeMemory}, {syscall.EINVAL, codeInvalid}, {syscall.EOVERFLOW, codeOverflow}, {unix.EOPNOTSUPP, codeUnsupported},
		{syscall.ESHUTDOWN, codeShutdown}, {syscall.ENOENT, codeIO}, {io.ErrUnexpectedEOF, codeIO},
	} {
		var log bytes.Buffer
		d := newMemory(8 << 20)
		d.fail = func(_ string, off int64) error {
			if off == 4096 {
				return test.err
			}
			return nil
		}
		s := NewServer(Static{"x": {Device: d}}, nil, slog.New(slog.NewTextHandler(&log, nil)))
		path := serve(t, s)
		r := ready(t, path, "x", true, contextAllocation)
		asked := 0
		for _, kind := range []uint16{cmdRead, cmdWrite, cmdTrim, cmdWriteZeroes, cmdBlockStatus, cmdCache} {
			b := encode(kind, 0, uint64(kind), 4096, 2)
			if kind == cmdWrite {
				b = append(b, "ab"...)
			}
			r.give(b)
			asked++
			if got := r.reply(uint64(kind)); !slices.Equal(got, []string{fmt.Sprintf("error %d", test.want)}) {
				t.Errorf("%v, command %d: %v", test.err, kind, got)
			}
		}
		// A piece of a write that fails is the whole write's error.
		r.give(append(encode(cmdWrite, 0, 9, 4096, 3<<20), make([]byte, 3<<20)...))
		asked++
		if got := r.reply(9); !slices.Equal(got, []string{fmt.Sprintf("error %d", test.want)}) {
			t.Errorf("%v: %v", test.err, got)
		}
		r.give(encode(cmdFlush, 0, 10, 0, 0))
		if got := r.reply(10); !slices.Equal(got, []string{"ok"}) {
			t.Error(got)
		}
		r.give(encode(cmdDisconnect, 0, 0, 0, 0))
		if !r.closed() {
			t.Error("the connection goes on after its end")
		}
		if n := strings.Count(log.String(), "\n"); n != asked || !strings.Contains(log.String(), "offset=4096") {
			t.Errorf("%d lines for %d errors: %s", n, asked, log.String())
		}
	}
}

// Reads that wait for a long way hold up nobody, and nothing is written for those that are
// gone.
func TestReadsThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const far = 1 << 19
		open := make(chan struct{})
		d := newMemory(1 << 20)
		d.never = true
		d.wait = func(ctx context.Context, _ string, off int64) error {
			if off < far {
				return nil
			}
			select {
			case <-open:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		r := raw{t, piped(t.Context(), t, NewServer(Static{"": {Device: d}}, nil, logTo(t)))}
		r.take(18)
		r.give([]byte{0, 0, 0, 3})
		r.prepare("", true)
		for i := range uint64(maxWorkers - 1) {
			r.give(encode(cmdRead, 0, i, far+i*512, 512))
		}
		for i := range uint64(1000) {
			r.give(encode(cmdRead, 0, 1_000_000+i, i*512, 512))
			r.reply(1_000_000 + i)
		}
		close(open)
		seen := map[uint64]bool{}
		for range maxWorkers - 1 {
			b := r.take(chunkSize + holeSize)
			seen[binary.BigEndian.Uint64(b[8:])] = true
		}
		if len(seen) != maxWorkers-1 {
			t.Errorf("%d replies", len(seen))
		}
		r.Close()
	})
}

// What goes beyond the memory of a connection stays in the socket.
func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		open := make(chan struct{})
		d := newMemory(128 << 20)
		d.wait = func(context.Context, string, int64) error { <-open; return nil }
		r := raw{t, piped(t.Context(), t, NewServer(Static{"": {Device: d}}, nil, logTo(t)))}
		r.take(18)
		r.give([]byte{0, 0, 0, 3})
		r.prepare("", true)
		taken := 0
		var writer, reader sync.WaitGroup
		writer.Go(func() {
			part := make([]byte, 1<<16)
			for i := range uint64(4) {
				r.give(encode(cmdWrite, 0, i, i*MaxRequest, MaxRequest))
				for range MaxRequest / len(part) {
					r.give(part)
					taken += len(part)
				}
			}
		})
		synctest.Wait()
		if taken > memoryLimit+inputSize {
			t.Errorf("%d bytes were taken", taken)
		}
		close(open)
		reader.Go(func() { r.take(4 * simpleSize) })
		writer.Wait()
		reader.Wait()
		r.Close()
	})
}

// When the server ends, what waits is answered with ESHUTDOWN.
func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemory(1 << 20)
		d.never = true
		d.wait = func(ctx context.Context, _ string, _ int64) error { <-ctx.Done(); return ctx.Err() }
		ctx, cancel := context.WithCancel(t.Context())
		r := raw{t, piped(ctx, t, NewServer(Static{"": {Device: d}}, nil, logTo(t)))}
		r.take(18)
		r.give([]byte{0, 0, 0, 3})
		r.prepare("", true)
		r.give(slices.Concat(encode(cmdRead, 0, 1, 0, 4096), encode(cmdFlush, 0, 2, 0, 0)))
		synctest.Wait()
		cancel()
		for range 2 {
			h := r.take(simpleSize)
			if binary.BigEndian.Uint32(h) == magicSimple {
				if code := binary.BigEndian.Uint32(h[4:]); code != codeShutdown {
					t.Errorf("flush: error %d", code)
				}
				continue
			}
			if p := r.take(int(binary.BigEndian.Uint32(r.take(4)))); binary.BigEndian.Uint32(p) != codeShutdown {
				t.Errorf("read: %x", p)
			}
		}
		if !r.closed() {
			t.Error("the connection goes on")
		}
		r.Close()
	})
}

// A server that cuts connections answers nothing that it has not done.
func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemory(1 << 20)
		d.never = true
		d.wait = func(ctx context.Context, _ string, _ int64) error { <-ctx.Done(); return ctx.Err() }
		ctx, cancel := context.WithCancel(t.Context())
		server := NewServer(Static{"": {Device: d}}, nil, logTo(t))
		server.Cut = true
		r := raw{t, piped(ctx, t, server)}
		r.take(18)
		r.give([]byte{0, 0, 0, 3})
		r.prepare("", true)
		r.give(slices.Concat(encode(cmdRead, 0, 1, 0, 4096), encode(cmdFlush, 0, 2, 0, 0)))
		synctest.Wait()
		cancel()
		if b, err := io.ReadAll(r); len(b) > 0 || err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the client gets %x, %v", b, err)
		}
		r.Close()
	})
}

// A client that does not read its replies, nor goes away, is no hindrance to the end.
func TestStubbornClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		client, server := net.Pipe()
		s := NewServer(Static{"": {Device: newMemory(1 << 20)}}, nil, logTo(t))
		var g sync.WaitGroup
		g.Go(func() { s.serve(ctx, server, func() {}) })
		r := raw{t, client}
		r.take(18)
		r.give([]byte{0, 0, 0, 3})
		r.prepare("", false)
		r.give(slices.Concat(encode(cmdRead, 0, 1, 0, 1<<20), encode(cmdRead, 0, 2, 0, 1<<20), encode(cmdRead, 0, 2, 0, 512)))
		synctest.Wait()
		cancel()
		g.Wait()
		client.Close()
	})
}

// All that one system call brings is answered, in whatever portions it comes.
func TestPortions(t *testing.T) {
	for _, never := range []bool{false, true} {
		d := newMemory(1 << 20)
		r := rand.New(rand.NewPCG(1, 2))
		for i := range d.data {
			d.data[i] = byte(r.Uint32() | 1)
		}
		d.never = never
		c := ready(t, serve(t, NewServer(Static{"": {Device: d}}, nil, logTo(t))), "", false)
		var all []byte
		const n = 300
		for i := range uint64(n) {
			all = append(all, encode(cmdRead, 0, i, i*3000, 2999)...)
		}
		var g sync.WaitGroup
		g.Go(func() {
			for rest := all; len(rest) > 0; {
				k := min(len(rest), 1+r.IntN(2000))
				c.give(rest[:k])
				rest = rest[k:]
			}
		})
		for range n {
			b := c.take(simpleSize + 2999)
			off := binary.BigEndian.Uint64(b[8:]) * 3000
			if !bytes.Equal(b[simpleSize:], d.data[off:off+2999]) {
				t.Fatalf("other data at %d", off)
			}
		}
		g.Wait()
	}
}

func TestZeroRuns(t *testing.T) {
	p := make([]byte, 1<<20)
	runs := func(off int64) (s string) {
		zeroRuns(p, off, func(from, to int) bool { s += fmt.Sprintf("%d-%d ", from, to); return true })
		return s
	}
	if got := runs(5); got != "0-1048576 " {
		t.Error(got)
	}
	p[0], p[len(p)-1] = 1, 1
	if got := runs(0); got != "4096-1044480 " {
		t.Error(got)
	}
	if got := runs(1); got != "4095-1048575 " {
		t.Error(got)
	}
	p[100_000] = 1
	if got := runs(0); got != "4096-98304 102400-1044480 " {
		t.Error(got)
	}
	for i := 0; i < len(p); i += zeroRun {
		p[i] = 1
	}
	if got := runs(0); got != "" {
		t.Error(got)
	}
}
