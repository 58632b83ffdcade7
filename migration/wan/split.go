package wan

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/huff0"
	"github.com/klauspost/compress/s2"
)

// A splitter packs as the level Quick does: S2 finds matches, several times as fast as zstd
// does, but codes nothing by how often it occurs. So what S2 has made is taken apart into
// what is alike, and each of that is coded by Huffman's code.
type splitter struct {
	s2      []byte // a block
	streams [streams][]byte
	huffman [streams]huff0.Scratch
}

// The parts of an S2 block. The elements that it consists of are tags, of which the lowest
// two bits tell the kind: literals and three forms of copies.
const (
	tags    = iota // and lengths that do not fit into them
	lows           // lowest bytes of offsets
	highs          // the others
	verbals        // literals
	streams
)

const (
	tagLiteral = iota
	tagCopy1   // an offset of 11 bits; 0 is the last one again
	tagCopy2   // of 16
	tagCopy4   // of 32

	splitSlack   = 16        // bytes behind a block and a stream that may be read and written
	huffmanBlock = 128 << 10 // at most so much has one code
)

var errBlock = errors.New("not an S2 block")

// pack appends col to dst, packed.
func (s *splitter) pack(dst, col []byte) ([]byte, error) {
	if room := s2.MaxEncodedLen(len(col)) + splitSlack; cap(s.s2) < room {
		s.s2 = make([]byte, room)
	}
	if err := s.takeApart(s2.Encode(s.s2[:cap(s.s2)], col)); err != nil {
		return nil, err
	}
	for i, part := range s.streams {
		dst = binary.AppendUvarint(dst, uint64(len(part)))
		for len(part) > 0 {
			n := min(len(part), huffmanBlock)
			dst = appendHuffman(dst, part[:n], &s.huffman[i])
			part = part[n:]
		}
	}
	return dst, nil
}

// appendHuffman appends the length of the coded part, or 0, and that, or the part as it is.
func appendHuffman(dst, part []byte, h *huff0.Scratch) []byte {
	h.Reuse = huff0.ReusePolicyNone
	coded, _, err := huff0.Compress4X(part, h)
	if err != nil || len(coded) == 0 { // not shorter, or all the same
		return append(append(dst, 0), part...)
	}
	return append(binary.AppendUvarint(dst, uint64(len(coded))), coded...)
}

// takeApart fills streams from a block. Elements are short and many: it writes without asking
// for room each time, and copies more than it needs.
func (s *splitter) takeApart(b []byte) error {
	p := &s.streams
	for i := range p {
		if cap(p[i]) < len(b)+splitSlack {
			p[i] = make([]byte, max(len(b), cap(s.s2))+splitSlack)
		}
		p[i] = p[i][:cap(p[i])]
	}
	_, at := binary.Uvarint(b)
	if at <= 0 || cap(b) < len(b)+splitSlack {
		return errBlock
	}
	end := len(b)
	b = b[:end+splitSlack]
	tag, low, high, verbal := p[tags], p[lows], p[highs], p[verbals]
	var nTags, nLows, nHighs, nVerbals int
	for at < end {
		t := b[at]
		tag[nTags] = t
		nTags++
		at++
		switch t & 3 {
		case tagLiteral:
			n := int(t>>2) + 1
			if n > 60 {
				k := n - 60
				n = lengthOf(t, b[at:at+k])
				nTags += copy(tag[nTags:], b[at:at+k])
				at += k
			}
			if n > end-at {
				return errBlock
			}
			if n <= splitSlack {
				copy(verbal[nVerbals:nVerbals+splitSlack], b[at:at+splitSlack])
			} else {
				copy(verbal[nVerbals:], b[at:at+n])
			}
			nVerbals += n
			at += n
		case tagCopy1:
			low[nLows] = b[at]
			nLows++
			at++
			if k := repeatBytes(t, b[at-1]); k > 0 {
				nTags += copy(tag[nTags:], b[at:at+k])
				at += k
			}
		case tagCopy2:
			low[nLows], high[nHighs] = b[at], b[at+1]
			nLows, nHighs = nLows+1, nHighs+1
			at += 2
		case tagCopy4:
			low[nLows] = b[at]
			nLows++
			nHighs += copy(high[nHighs:], b[at+1:at+4])
			at += 4
		}
	}
	if at > end {
		return errBlock
	}
	p[tags], p[lows], p[highs], p[verbals] = tag[:nTags], low[:nLows], high[:nHighs], verbal[:nVerbals]
	return nil
}

// lengthOf is how many literals follow a tag, whose length may be in up to four bytes more.
func lengthOf(tag byte, more []byte) int {
	n := int(tag >> 2)
	if n < 60 {
		return n + 1
	}
	length := 0
	for i := n - 60; i >= 0; i-- {
		length = length<<8 | int(more[i])
	}
	return length + 1
}

// repeatBytes is how many bytes of length follow a copy, if it is of the last offset again.
func repeatBytes(tag, low byte) int {
	if tag>>5 != 0 || low != 0 {
		return 0
	}
	return max(int(tag>>2&7)-4, 0)
}

// unpack is pack's inverse, of n bytes, into dst with a capacity of that at least.
func (s *splitter) unpack(dst, packed []byte, n int) ([]byte, error) {
	most := s2.MaxEncodedLen(n)
	for i := range s.streams {
		var err error
		if s.streams[i], packed, err = s.read(s.streams[i][:0], packed, most, &s.huffman[i]); err != nil {
			return nil, err
		}
	}
	if len(packed) > 0 {
		return nil, errBlock
	}
	var err error
	if s.s2, err = s.putTogether(binary.AppendUvarint(s.s2[:0], uint64(n)), most); err != nil {
		return nil, err
	}
	return s2.Decode(dst[:n], s.s2)
}

// read reads a stream of no more than most bytes, and returns what is behind it.
func (s *splitter) read(dst, packed []byte, most int, h *huff0.Scratch) (stream, rest []byte, err error) {
	total, k := binary.Uvarint(packed)
	if k <= 0 || total > uint64(most) {
		return nil, nil, errBlock
	}
	packed = packed[k:]
	for left := int(total); left > 0; {
		n := min(left, huffmanBlock)
		left -= n
		coded, k := binary.Uvarint(packed)
		if k <= 0 || coded > uint64(len(packed)-k) || coded == 0 && n > len(packed)-k {
			return nil, nil, errBlock
		}
		packed = packed[k:]
		if coded == 0 {
			dst, packed = append(dst, packed[:n]...), packed[n:]
			continue
		}
		table, data, err := huff0.ReadTable(packed[:coded], h)
		if err != nil {
			return nil, nil, fmt.Errorf("read table: %w", err)
		}
		dst = append(dst, blankBlock[:n]...)
		if _, err := table.Decoder().Decompress4X(dst[len(dst)-n:len(dst):len(dst)], data); err != nil {
			return nil, nil, fmt.Errorf("decode block: %w", err)
		}
		packed = packed[coded:]
	}
	return dst, packed, nil
}

var blankBlock [huffmanBlock]byte

// putTogether makes a block of streams again; b has its head. As takeApart, it asks for room
// once, and copies more than it needs.
func (s *splitter) putTogether(b []byte, most int) ([]byte, error) {
	if cap(b) < most+splitSlack {
		b = append(make([]byte, 0, most+splitSlack), b...)
	}
	at := len(b)
	b = b[:cap(b)]
	var padded [streams][]byte // so that what an element has at most can be read before it is known how much it has
	for i, p := range s.streams {
		padded[i] = append(p, blankBlock[:splitSlack]...)
	}
	tag, low, high, verbal := padded[tags], padded[lows], padded[highs], padded[verbals]
	var nTags, nLows, nHighs, nVerbals int
	for nTags < len(s.streams[tags]) {
		if at > most || nLows > len(s.streams[lows]) || nHighs > len(s.streams[highs]) {
			return nil, errBlock
		}
		t := tag[nTags]
		b[at] = t
		nTags, at = nTags+1, at+1
		switch t & 3 {
		case tagLiteral:
			n := int(t>>2) + 1
			if n > 60 {
				k := n - 60
				n = lengthOf(t, tag[nTags:nTags+k])
				at += copy(b[at:], tag[nTags:nTags+k])
				nTags += k
			}
			if n > len(s.streams[verbals])-nVerbals || n > most-at {
				return nil, errBlock
			}
			if n <= splitSlack {
				copy(b[at:at+splitSlack], verbal[nVerbals:nVerbals+splitSlack])
			} else {
				copy(b[at:], verbal[nVerbals:nVerbals+n])
			}
			at, nVerbals = at+n, nVerbals+n
		case tagCopy1:
			b[at] = low[nLows]
			k := repeatBytes(t, low[nLows])
			nLows, at = nLows+1, at+1
			at += copy(b[at:], tag[nTags:nTags+k])
			nTags += k
		case tagCopy2:
			b[at], b[at+1] = low[nLows], high[nHighs]
			nLows, nHighs, at = nLows+1, nHighs+1, at+2
		case tagCopy4:
			b[at] = low[nLows]
			copy(b[at+1:at+4], high[nHighs:nHighs+3])
			nLows, nHighs, at = nLows+1, nHighs+3, at+4
		}
	}
	for i, n := range [streams]int{nTags, nLows, nHighs, nVerbals} {
		s.streams[i] = padded[i][:len(s.streams[i])] // it may have moved
		if n != len(s.streams[i]) {
			return nil, errBlock
		}
	}
	if at > most {
		return nil, errBlock
	}
	return b[:at], nil
}
