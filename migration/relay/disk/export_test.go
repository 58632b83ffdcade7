package disk

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// What a client is told is what the server has told, whichever of its exports it wants.
func TestExportIsToldOn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		structured := rapid.Bool().Draw(rt, "structured")
		exports := rapid.SliceOfNDistinct(rapid.Custom(func(rt *rapid.T) Export {
			e := Export{Name: rapid.StringN(0, 20, 80).Draw(rt, "name"), Size: rapid.Uint64().Draw(rt, "size"), Flags: rapid.Uint16().Draw(rt, "flags"), Structured: structured}
			if rapid.Bool().Draw(rt, "says blocks") {
				e.Blocks = [3]uint32{1, 4096, rapid.Uint32().Draw(rt, "most")}
			}
			if e.Allocation = structured && rapid.Bool().Draw(rt, "allocation"); e.Allocation {
				e.Context = rapid.Uint32().Draw(rt, "context")
			}
			return e
		}), 1, 5, func(e Export) string { return e.Name }).Draw(rt, "exports")
		want := rapid.IntRange(1, len(exports)).Draw(rt, "which")
		client, server := net.Pipe()
		var group sync.WaitGroup
		group.Go(func() {
			defer server.Close()
			if n, err := Answer(server, exports); err != nil || n != want-1 {
				rt.Errorf("the server's end came to %d, %v, want %d", n, err, want-1)
			}
		})
		got, err := openExport(client, want)
		client.Close()
		group.Wait()
		if err != nil || got != exports[want-1] {
			rt.Fatalf("told %+v, %v, want %+v", got, err, exports[want-1])
		}
	})
}

// A client that wants what nobody told of, or asks as nobody does any more, is told so.
func TestHandshakeRefuses(t *testing.T) {
	option := func(kind uint32, body string) string {
		b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, nbdOptionMagic), kind)
		return string(append(binary.BigEndian.AppendUint32(b, uint32(len(body))), body...))
	}
	const flags = "\x00\x00\x00\x03"
	for name, c := range map[string]struct{ says, want string }{
		"old":                 {flags + option(nbdOptExportName, "a"), "too old"},
		"gives up":            {flags + option(nbdOptExtended, "") + option(nbdOptAbort, ""), "gave up"},
		"another export":      {flags + option(nbdOptStructured, "") + option(nbdOptGo, "\x00\x00\x00\x01b\x00\x00"), "unexpected EOF"},
		"simple replies":      {flags + option(nbdOptGo, "\x00\x00\x00\x01a\x00\x00"), "structured"},
		"a name that is none": {flags + option(nbdOptGo, "\xff\xff\xff\xffa"), "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Answer(wire{strings.NewReader(c.says), io.Discard}, []Export{{Name: "a", Structured: true}})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

type wire struct {
	io.Reader
	io.Writer
}

func FuzzAnswer(f *testing.F) {
	b := append(make([]byte, 4), binary.BigEndian.AppendUint64(nil, nbdOptionMagic)...)
	for _, n := range []uint32{nbdOptGo, 5, 1} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	f.Add(append(b, 'a'))
	f.Fuzz(func(t *testing.T, client []byte) {
		// It has to end, whatever comes.
		n, err := Answer(wire{bytes.NewReader(client), io.Discard}, []Export{{Name: "a", Size: 5, Blocks: [3]uint32{1, 2, 3}}, {Allocation: true}})
		if err == nil && (n < 0 || n > 1) {
			t.Errorf("the client wants export %d of 2", n)
		}
	})
}

func FuzzOpen(f *testing.F) {
	var server bytes.Buffer
	server.WriteString(nbdWelcome + "\x00\x03")
	h := handshake{}
	h.reply(nbdOptStructured, nbdRepUnsupported, nil)
	h.reply(nbdOptList, nbdRepServer, []byte("\x00\x00\x00\x01a"))
	h.reply(nbdOptList, nbdRepAck, nil)
	h.reply(nbdOptGo, nbdRepInfo, make([]byte, 12))
	h.reply(nbdOptGo, nbdRepAck, nil)
	f.Add(append(server.Bytes(), h.out...))
	h = handshake{}
	h.reply(nbdOptStructured, nbdRepAck, nil)
	h.reply(nbdOptList, nbdRepServer, []byte("\x00\x00\x00\x01a"))
	h.reply(nbdOptList, nbdRepAck, nil)
	h.reply(nbdOptSetContext, nbdRepContext, []byte("\x00\x00\x00\x05"+allocation))
	h.reply(nbdOptSetContext, nbdRepAck, nil)
	h.reply(nbdOptGo, nbdRepInfo, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0})
	h.reply(nbdOptGo, nbdRepAck, nil)
	status := binary.BigEndian.AppendUint32(nil, nbdChunkMagic)
	status = append(append(status, 0, nbdFlagDone, 0, nbdChunkStatus), make([]byte, 8)...)
	status = append(binary.BigEndian.AppendUint32(status, 12), 0, 0, 0, 5, 0, 0, 0, 9, 0, 0, 0, nbdStateZero)
	f.Add(append(append(server.Bytes()[:nbdGreeting:nbdGreeting], h.out...), status...))
	f.Fuzz(func(t *testing.T, server []byte) {
		e, err := Open(wire{bytes.NewReader(server), io.Discard}, 1, true)
		if err == nil && len(e.Name) > len(server) {
			t.Errorf("%d bytes tell of %+v", len(server), e)
		}
	})
}
