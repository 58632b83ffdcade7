package nbdstream

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"heliotrope/migration/wan/ramstream"

	"pgregory.net/rapid"
)

func request(kind uint16, offset uint64, length int) []byte {
	h := binary.BigEndian.AppendUint32(nil, requestMagic)
	h = binary.BigEndian.AppendUint16(h, 1) // FUA
	h = binary.BigEndian.AppendUint16(h, kind)
	h = binary.BigEndian.AppendUint64(h, 77)
	h = binary.BigEndian.AppendUint64(h, offset)
	return binary.BigEndian.AppendUint32(h, uint32(length))
}

func write(offset uint64, data []byte) []byte {
	return append(request(typeWrite, offset, len(data)), data...)
}

// found is a token's kind, and where it is on the disk.
type found struct {
	kind   ramstream.Kind
	offset uint64
}

// cut feeds a stream in pieces, and returns the pages in it.
func cut(t interface{ Fatalf(string, ...any) }, p *Parser, stream []byte, piece func(left int) int) (pages []found) {
	var out []byte
	for left := stream; len(left) > 0; {
		n := piece(len(left))
		in := left[:n]
		left = left[n:]
		for {
			token, rest, ok := p.Next(in)
			if !ok {
				break
			}
			if in = rest; len(token.Raw) == 0 {
				t.Fatalf("an empty token")
			}
			out = append(out, token.Raw...)
			switch {
			case token.Kind != ramstream.Other:
				pages = append(pages, found{token.Kind, token.Offset})
				if len(token.Raw) != PageSize || token.Spelled || token.Kind == ramstream.Page && !bytes.Equal(token.Data, token.Raw) {
					t.Fatalf("a page is %+v", token)
				}
			case token.Data != nil:
				t.Fatalf("what is no page has the data of one")
			}
		}
		if p.held() >= PageSize {
			t.Fatalf("%d bytes are held back", p.held())
		}
	}
	if token, ok := p.Drain(); ok {
		out = append(out, token.Raw...)
	}
	if !bytes.Equal(out, stream) {
		t.Fatalf("%d bytes came out of %d, or others", len(out), len(stream))
	}
	return pages
}

func TestCuts(t *testing.T) {
	text := bytes.Repeat([]byte{7}, 4*PageSize)
	page, zero := found{kind: ramstream.Page}, found{kind: ramstream.Zero}
	at := func(f found, offset uint64) found { f.offset = offset; return f }
	for name, c := range map[string]struct {
		stream []byte
		want   []found
		whole  bool
	}{
		"nothing":                {nil, nil, true},
		"a page":                 {write(8192, text[:PageSize]), []found{at(page, 8192)}, true},
		"zeros":                  {write(4096, make([]byte, 2*PageSize)), []found{at(zero, 4096), at(zero, 8192)}, true},
		"a sector":               {write(4096, text[:512]), nil, true},
		"sectors before a page":  {write(3584, text[:512+PageSize]), []found{at(page, 4096)}, true},
		"sectors behind a page":  {write(0, text[:PageSize+512]), []found{at(page, 0)}, true},
		"across two pages":       {write(512, text[:PageSize]), nil, true},
		"empty":                  {slices.Concat(write(0, nil), write(0, text[:PageSize])), []found{at(page, 0)}, true},
		"no data":                {slices.Concat(request(0, 0, 1<<20), request(6, 0, 1<<31), request(3, 0, 0), request(2, 0, 0)), nil, true},
		"at the disk's end":      {write(1<<64-PageSize, text[:2*PageSize]), []found{at(page, 1<<64-PageSize), at(page, 0)}, true},
		"cut off":                {write(0, text[:2*PageSize])[:headBytes+PageSize+5], []found{at(page, 0)}, false},
		"half of a head":         {request(3, 0, 0)[:20], nil, false},
		"another magic":          {slices.Concat(write(0, text[:PageSize]), []byte(strings.Repeat("what is this? ", 900))), []found{at(page, 0)}, false},
		"another magic's writes": {slices.Concat(make([]byte, headBytes), write(0, text[:PageSize])), nil, false},
	} {
		for _, size := range []int{1, 27, 28, 29, 4095, 4096, 100000} {
			var p Parser
			if got := cut(t, &p, c.stream, func(left int) int { return min(left, size) }); !slices.Equal(got, c.want) || p.Whole() != c.whole {
				t.Errorf("%s, %d bytes at once: got %v, whole: %t, want %v, %t", name, size, got, p.Whole(), c.want, c.whole)
			}
		}
	}
}

// What is drained in the middle of a page is no page, and those behind it are.
func TestDrainInAPage(t *testing.T) {
	stream := write(0, bytes.Repeat([]byte{7}, 3*PageSize))
	for _, at := range []int{1, headBytes, headBytes + 1, headBytes + 4095, headBytes + PageSize + 100} {
		var p Parser
		pages := cut(t, &p, stream[:at], func(left int) int { return left })
		pages = append(pages, cut(t, &p, stream[at:], func(left int) int { return left })...)
		want := 2
		if (at-headBytes)%PageSize == 0 || at < headBytes {
			want = 3
		}
		if len(pages) != want || !p.Whole() {
			t.Errorf("drained after %d bytes: %d pages, whole: %t", at, len(pages), p.Whole())
		}
	}
}

// Whatever is written, however it comes in, every page of the disk that a write fills is found.
func TestEveryPageIsFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		var stream []byte
		var want []found
		for range rapid.IntRange(0, 10).Draw(t, "requests") {
			offset, n := uint64(rnd.IntN(1<<20))&^511, rnd.IntN(20<<10)
			if rnd.IntN(2) == 0 {
				offset, n = offset&^4095, n&^4095
			}
			if rnd.IntN(4) == 0 {
				stream = append(stream, request([]uint16{0, 2, 3, 6, 7}[rnd.IntN(5)], offset, n)...)
				continue
			}
			data := make([]byte, n)
			kind := ramstream.Zero
			if rnd.IntN(2) == 0 {
				kind = ramstream.Page
				for i := range data {
					data[i] = byte(1 + rnd.IntN(255))
				}
			}
			stream = append(stream, write(offset, data)...)
			for at := (offset + 4095) &^ 4095; at+PageSize <= offset+uint64(n); at += PageSize {
				want = append(want, found{kind, at})
			}
		}
		var p Parser
		most := rapid.IntRange(1, 9000).Draw(t, "most")
		if got := cut(t, &p, stream, func(left int) int { return min(left, 1+rnd.IntN(most)) }); !slices.Equal(got, want) || !p.Whole() {
			t.Fatalf("got %v, want %v, whole: %t", got, want, p.Whole())
		}
	})
}

func FuzzParser(f *testing.F) {
	f.Add(write(512, bytes.Repeat([]byte{7}, 9000)), uint16(100))
	f.Add(slices.Concat(request(6, 0, 1<<31), write(0, make([]byte, 8192)), []byte("else")), uint16(4096))
	f.Add(request(typeWrite, 1<<63, 1<<31), uint16(5))
	f.Fuzz(func(t *testing.T, stream []byte, size uint16) {
		var p Parser
		cut(t, &p, stream, func(left int) int { return min(left, int(size)+1) })
		if cap(p.carry) > 4*PageSize {
			t.Errorf("%d bytes are set aside", cap(p.carry))
		}
	})
}
