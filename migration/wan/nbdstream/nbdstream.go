// Package nbdstream finds the blocks of a disk in what an NBD client sends when it writes them.
//
// The stream is requests, each a head of 28 bytes; a write's is followed by its data (doc/proto.md of the
// NBD project, compact requests). A Parser cuts it into tokens, which laid end to end are the stream again:
// of a write's data, what fills 4 KiB of the disk is a page, and of zeros where it is; all else is to be
// passed on as it is. A guest's file system, and so its page cache, cuts files at the same places: a block
// is found again where it is, elsewhere on the disk, and in the guest's memory.
//
// What is taken for a page is a matter of how well the stream is compressed and never of whether it
// arrives, as with package ramstream, whose tokens these are. From the first head on that is none, all is
// passed on. Less than one page is held back, nothing of a head, and nothing is allocated by a length that
// the stream tells.
package nbdstream

import (
	"bytes"
	"encoding/binary"
	"heliotrope/migration/wan/ramstream"
)

// PageSize is a page's in bytes.
const PageSize = 4096

const (
	headBytes    = 28 // magic, flags, type, cookie, offset, length
	requestMagic = 0x25609513
	typeWrite    = 1
)

var zeros [PageSize]byte

// Parser cuts a stream into tokens. The zero value is ready.
type Parser struct {
	head    [headBytes]byte
	got     int    // bytes of head
	offset  uint64 // on the disk, of what comes next of a write's data
	left    int64  // bytes of that
	passing bool   // everything, to the end

	carry []byte // the begin of a page whose end has not arrived
	taken bool   // carry was handed out
}

// Whole says whether all that came so far are requests, the last of them to its end.
func (p *Parser) Whole() bool { return !p.passing && p.got == 0 && p.left == 0 && p.held() == 0 }

// Ended says whether the stream has said that nothing more comes: it never does.
func (p *Parser) Ended() bool { return false }

// Lost is how often the stream was not understood: once at most.
func (p *Parser) Lost() int {
	if p.passing {
		return 1
	}
	return 0
}

func (p *Parser) held() int {
	if p.taken {
		return 0
	}
	return len(p.carry)
}

// Next returns the first token of what was held back and in, and the rest of in. Without
// a token in it, ok is false, and what there is of it is held back.
func (p *Parser) Next(in []byte) (t ramstream.Token, rest []byte, ok bool) {
	if p.taken {
		p.carry, p.taken = p.carry[:0], false
	}
	if len(p.carry) > 0 {
		n := min(PageSize-len(p.carry), len(in))
		p.carry = append(p.carry, in[:n]...)
		if len(p.carry) < PageSize {
			return t, nil, false
		}
		p.taken = true
		return p.page(p.carry), in[n:], true
	}
	if len(in) == 0 {
		return t, nil, false
	}
	n := len(in)
	switch {
	case p.passing:
	case p.left == 0:
		n = p.request(in)
	case p.offset%PageSize == 0 && p.left >= PageSize:
		if n < PageSize {
			p.carry = append(p.carry, in...)
			return t, nil, false
		}
		return p.page(in[:PageSize]), in[PageSize:], true
	default: // to the next page, or the end
		n = int(min(int64(n), p.left, PageSize-int64(p.offset%PageSize)))
		p.data(n)
	}
	return ramstream.Token{Raw: in[:n]}, in[n:], true
}

// request takes more of a head, and returns how much of b.
func (p *Parser) request(b []byte) int {
	n := copy(p.head[p.got:], b)
	if p.got += n; p.got < headBytes {
		return n
	}
	p.got = 0
	if binary.BigEndian.Uint32(p.head[:]) != requestMagic {
		p.passing = true
		return n
	}
	if binary.BigEndian.Uint16(p.head[6:]) == typeWrite {
		p.offset, p.left = binary.BigEndian.Uint64(p.head[16:]), int64(binary.BigEndian.Uint32(p.head[24:]))
	}
	return n
}

func (p *Parser) data(n int) {
	p.offset += uint64(n)
	p.left -= int64(n)
}

func (p *Parser) page(data []byte) ramstream.Token {
	t := ramstream.Token{Kind: ramstream.Page, Raw: data, Data: data, Offset: p.offset}
	if bytes.Equal(data, zeros[:]) {
		t.Kind, t.Data = ramstream.Zero, nil
	}
	p.data(PageSize)
	return t
}

// Drain gives up what is held back: it is to be passed on as it is, and what is yet to come of its page.
func (p *Parser) Drain() (t ramstream.Token, ok bool) {
	if p.held() == 0 {
		return t, false
	}
	p.data(len(p.carry))
	p.taken = true
	return ramstream.Token{Raw: p.carry}, true
}

// AppendHead appends what stands before a page's content: nothing; of a page of zeros, all of it.
func AppendHead(dst []byte, kind ramstream.Kind) []byte {
	if kind == ramstream.Zero {
		return append(dst, zeros[:]...)
	}
	return dst
}
