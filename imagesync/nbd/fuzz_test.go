package nbd

import (
	"bytes"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// script is a connection whose client says what it has to say and leaves.
type script struct {
	net.Conn
	in  *bytes.Reader
	mu  sync.Mutex
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error) { return s.in.Read(p) }

func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

func (s *script) Close() error                     { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// play has a server answer all that a client says. The device has 1 MiB.
func play(t *testing.T, said []byte) []byte {
	s := NewServer(Static{"disk": {Device: newMemory(1 << 20)}}, nil, slog.New(slog.DiscardHandler))
	conn := &script{in: bytes.NewReader(said)}
	s.serve(t.Context(), conn, func() {}) // its error says what the client did wrong
	return conn.out.Bytes()
}

func options(list ...any) []byte {
	b := []byte{0, 0, 0, 3}
	for o := range slices.Chunk(list, 2) {
		b = appendOption(b, uint32(o[0].(int)), []byte(o[1].(string)))
	}
	return b
}

// Whatever a client says in the handshake, each answer is well-formed and answers an option
// that it had.
func FuzzOptions(f *testing.F) {
	f.Add(options(optList, "", optStructuredReply, "", optSetMeta, text("disk")+u32(2)+text(contextAllocation)+text(contextDirty), optGo, text("disk")+u16(1, 3)))
	f.Add(options(optInfo, text("disk")+u16(2, 1, 2), optListMeta, text("")+u32(0), optStartTLS, "", 11, "", optAbort, ""))
	f.Add(options(optExportName, "disk"))
	f.Add(append(options(), "IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff"...))
	f.Fuzz(func(t *testing.T, said []byte) {
		out := bytes.NewReader(play(t, said))
		if _, err := out.Seek(18, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		for out.Len() > 0 {
			option, kind, _, err := readOptionReply(out)
			if err != nil {
				if bytes.Contains(said, appendOption(nil, optExportName, nil)[:12]) {
					return // the reply to it has no form
				}
				t.Fatal(err)
			}
			if (option == optGo || option == optExportName) && kind == repAck {
				return // requests follow
			}
		}
	})
}

// Whatever a client sends as requests, replies are well-formed, and each answers a request
// that there was, at most once.
func FuzzRequests(f *testing.F) {
	write := append(encode(cmdWrite, cmdFlagFUA, 2, 100, 5), "hello"...)
	f.Add(slices.Concat(encode(cmdRead, 0, 1, 0, 4096), write, encode(cmdRead, cmdFlagDF, 3, 0, 1<<20), encode(cmdFlush, 0, 4, 0, 0), encode(cmdDisconnect, 0, 5, 0, 0)))
	f.Add(slices.Concat(encode(cmdTrim, 0, 1, 0, 4096), encode(cmdWriteZeroes, cmdFlagNoHole|cmdFlagFastZero, 2, 0, 1<<20), encode(cmdBlockStatus, cmdFlagReqOne, 3, 5, 1<<19), encode(cmdCache, 0, 4, 0, 1)))
	f.Add(slices.Concat(encode(cmdRead, 0, 1, 1<<63, 1), encode(cmdWrite, 0, 2, 0, 1<<31), encode(99, 0xffff, 3, 0, 0)))
	f.Fuzz(func(t *testing.T, said []byte) {
		agree := options(optStructuredReply, "", optSetMeta, text("disk")+u32(2)+text(contextAllocation)+text(contextDirty), optGo, text("disk")+u16(0))
		out := bytes.NewReader(play(t, slices.Concat(agree, said)))
		out.Seek(18, io.SeekStart)
		for {
			option, kind, _, err := readOptionReply(out)
			if err != nil {
				t.Fatal(err)
			}
			if option == optGo && kind == repAck {
				break
			}
		}
		open := cookies(said)
		for out.Len() > 0 {
			cookie, done := readAnswer(t, out)
			if open[cookie] == 0 {
				t.Fatalf("a reply to %#x, which nobody asked or which was answered", cookie)
			}
			if done {
				open[cookie]--
			}
		}
	})
}

// cookies are those of the requests, and how many have each.
func cookies(said []byte) map[uint64]int {
	open := map[uint64]int{}
	for len(said) >= requestSize && binary.BigEndian.Uint32(said) == magicRequest {
		open[binary.BigEndian.Uint64(said[8:])]++
		n := requestSize
		if binary.BigEndian.Uint16(said[6:]) == cmdWrite {
			n += int(binary.BigEndian.Uint32(said[24:]))
		}
		said = said[min(n, len(said)):]
	}
	return open
}

func readAnswer(t *testing.T, in *bytes.Reader) (cookie uint64, done bool) {
	h := make([]byte, simpleSize)
	if _, err := io.ReadFull(in, h); err != nil {
		t.Fatal(err)
	}
	cookie = binary.BigEndian.Uint64(h[8:])
	if binary.BigEndian.Uint32(h) == magicSimple {
		return cookie, true
	}
	if binary.BigEndian.Uint32(h) != magicChunk {
		t.Fatalf("reply %x", h)
	}
	var n uint32
	if err := binary.Read(in, binary.BigEndian, &n); err != nil || int64(n) > int64(in.Len()) {
		t.Fatalf("a chunk of %d bytes, %v", n, err)
	}
	in.Seek(int64(n), io.SeekCurrent)
	return cookie, binary.BigEndian.Uint16(h[4:])&chunkDone != 0
}
