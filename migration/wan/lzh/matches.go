// Package lzh packs a guest's memory: what occurred before in a column of some hundred kilobytes is told by where (Lempel and Ziv, 1977), and what is told is
// taken apart into what is alike, each coded by Huffman's code (1952):
//
//	tokens   one for each match: how many literals go before it, how long it is, how its offset is told
//	lengths  what of these does not fit into tokens
//	lows     lowest bytes of offsets: in memory they are multiples of 8 more often than not
//	mids     second bytes
//	highs    third bytes
//	verbals  literals; those behind the last match are the column's end
//
// What takes time is what the processor cannot foresee, a branch that goes either way: so of a match
// as much as can be is reckoned without one.
//
// A column that is packed does not say how long it was: who unpacks it knows.
package lzh

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// Packer packs columns. Each goroutine needs its own.
type Packer struct {
	table [1 << tableBits]uint32 // where words were last seen
	found []match
	copy  *text // of columns that are no text
	least int   // bytes of a match that is worth its offset, by a column before
	out   apart
	huffman
}

const (
	// MaxColumn is how many bytes a column has at most.
	MaxColumn = 1 << 20
	// Slack is how many bytes behind a column may be read and written: one with a capacity of MaxColumn and
	// this is packed where it is.
	Slack = 16
)

// text is a column with room behind it: its places need no check of bounds.
type text [MaxColumn + Slack]byte

// apart is a column taken apart. A token stands for four bytes at least, so does each byte of an offset or a length.
type apart struct {
	token, length, low, mid, high [MaxColumn/matchLeast + Slack]byte
	verbal                        [MaxColumn + Slack]byte
}

// Unpacker unpacks columns. Each goroutine needs its own.
type Unpacker struct {
	streams [streams][]byte
	huffman huffman
}

const (
	tokens = iota
	lengths
	lows
	mids
	highs
	verbals
	streams
)

// A match is told by a token: from the lowest bit, 2 of literals before it, 4 of its length
// beyond matchLeast, and 2 of the bytes that its offset has; 0: it is the one before again.
type match struct {
	literals, length, offset uint32
}

const (
	matchLeast  = 4
	literalsMax = 3  // or more, in lengths
	lengthMax   = 15 // or more, in lengths

	hashBytes = 6
	// A note in the table has where, and some bits of what: to look there in vain takes longer than
	// all else, since it is in no near cache.
	tableBits = 14 // 64 KiB: beside a column, that is what a core has near
	placeBits = 20 // of a column
	placeMask = 1<<placeBits - 1
	// Where nothing was found in so many bytes, every second place is looked at, and so on.
	skipBits, stepMax = 5, 7
)

// Digits take half a byte each, and a match of few of them more than that.
const (
	digitsOf, digitsFrom = 9, 16
	leastOfDigits        = 8
)

// ErrPacked is what an Unpacker says of what no Packer has made.
var ErrPacked = errors.New("not a packed column")

// Append appends col, of MaxColumn bytes at most, to dst, packed.
func (m *Packer) Append(dst, col []byte) []byte {
	parts, last := m.split(col), 0
	for i, part := range parts {
		dst = binary.AppendUvarint(dst, uint64(len(part)))
		last = len(dst)
		dst = m.huffman.append(dst, part, i == tokens || i == lengths || i == verbals)
	}
	if n := len(parts[verbals]); n >= blockBytes/4 { // no more than a few bytes would say nothing
		if m.least = hashBytes; (len(dst)-last)*digitsFrom < n*digitsOf {
			m.least = leastOfDigits
		}
	}
	return dst
}

// split takes a column apart.
func (m *Packer) split(col []byte) [streams][]byte {
	t := m.text(col)
	m.find(t, len(col))
	return m.takeApart(t, len(col))
}

// text is a column as a text.
func (m *Packer) text(col []byte) *text {
	if cap(col) >= len(text{}) {
		return (*text)(col[:len(text{})])
	}
	if m.copy == nil {
		m.copy = new(text)
	}
	copy(m.copy[:], col)
	return m.copy
}

// word is the one at a place.
func (t *text) word(at int) uint64 {
	at &= placeMask
	return binary.LittleEndian.Uint64(t[at : at+8])
}

// find finds matches in a text of so many bytes: of six bytes or more by a table of where such were last
// seen, and of four or more at the offset of the match before. It looks at two places that are next to each
// other with what it has read of one.
func (m *Packer) find(t *text, size int) {
	found, table := m.found[:0], &m.table
	clear(table[:])
	anchor, last := 0, 1 // where the match before ended, and its offset
	limit := size - Slack
	for at := 1; at < limit; {
		w := t.word(at)
		x := w ^ t.word(at-last)
		slot, now := place(w, at)
		seen := table[slot]
		table[slot] = now
		before := at - last
		if uint32(x) != 0 {
			if before = int(seen & placeMask); (seen^now)>>placeBits != 0 {
				slot, now = place(w>>8, at+1)
				seen = table[slot]
				table[slot] = now
				at++
				before = at - last
				if uint32(x>>8) != 0 {
					if before = int(seen & placeMask); (seen^now)>>placeBits != 0 {
						at += 1 + 2*min((at-anchor)>>skipBits, stepMax)
						continue
					}
				}
				w = t.word(at)
			}
			if x = w ^ t.word(before); uint32(x) != 0 || before != at-last && x<<(64-8*hashBytes) != 0 {
				at++
				continue
			}
		}
		n, offset := 0, at-before
		if y := t.word(at+8) ^ t.word(before+8); x|y == 0 {
			n = 16 + t.alike(at+16, before+16, size)
		} else {
			if x == 0 {
				x, n = y, 8
			}
			n += bits.TrailingZeros64(x) / 8
		}
		if before >= 8 && at > anchor {
			back := min(bits.LeadingZeros64(t.word(at-8)^t.word(before-8))/8, at-anchor)
			at, n = at-back, n+back
		}
		if n < m.least && offset != last {
			at += n
			continue
		}
		q := match{uint32(at - anchor), uint32(n), uint32(offset)}
		if offset == last {
			q.offset = 0
		}
		found, at, last = append(found, q), at+n, offset
		for at < limit {
			slot, now := place(t.word(at-2), at-2)
			table[slot] = now
			differ, n := t.again(at, last, size)
			if n == 0 {
				break
			}
			found, at = append(found, match{uint32(differ), uint32(n), 0}), at+differ+n
		}
		anchor = at
	}
	m.found = found
}

// place is where in the table it is noted where a word was seen, and what is noted.
func place(w uint64, at int) (slot uint64, note uint32) {
	hash := w << (64 - 8*hashBytes) * 0x9e3779b185ebca87
	return hash >> (64 - tableBits), uint32(at) | uint32(hash>>(32-tableBits))&^placeMask
}

// again says whether, behind up to four bytes that differ, four or more are as they were an
// offset before: records and pointers are often so.
func (t *text) again(at, offset, size int) (differ, n int) {
	x := t.word(at) ^ t.word(at-offset)
	if byte(x>>32) != 0 {
		return 0, 0
	}
	differ = (bits.Len32(uint32(x)) + 7) / 8
	if x >>= 8 * differ & 63; uint32(x) != 0 {
		return 0, 0
	}
	if x != 0 {
		return differ, bits.TrailingZeros64(x) / 8
	}
	return differ, 8 - differ + t.alike(at+8, at+8-offset, size)
}

// alike is how many bytes from i on, below size, are those from j on.
func (t *text) alike(i, j, size int) int {
	from := i
	for ; i < size; i, j = i+8, j+8 {
		if x := t.word(i) ^ t.word(j); x != 0 {
			return min(i+bits.TrailingZeros64(x)/8, size) - from
		}
	}
	return size - from
}

// takeApart fills the streams. Matches are short and many: it writes without asking for room
// each time, and what is not to be written, it overwrites.
func (m *Packer) takeApart(t *text, size int) [streams][]byte {
	const mask = MaxColumn/matchLeast - 1
	o := &m.out
	var nLength, nLow, nMid, nHigh, nVerbal, at int
	for i, q := range m.found {
		n, k := int(q.literals), int(q.length-matchLeast)
		if n > Slack {
			copy(o.verbal[nVerbal:], t[at:at+n])
		} else {
			*(*[Slack]byte)(o.verbal[nVerbal&placeMask:]) = *(*[Slack]byte)(t[at&placeMask:])
		}
		nVerbal += n
		at += n + int(q.length)
		told, short := min(n, literalsMax), min(k, lengthMax)
		if max(n-literalsMax, k-lengthMax) < lengthShort {
			o.length[nLength&mask] = byte(n - literalsMax)
			nLength += (told + 1) >> 2
			o.length[nLength&mask] = byte(k - lengthMax)
			nLength += (short + 1) >> 4
		} else {
			if told == literalsMax {
				nLength += putLength(o.length[nLength:], n-literalsMax)
			}
			if short == lengthMax {
				nLength += putLength(o.length[nLength:], k-lengthMax)
			}
		}
		far := (bits.Len32(q.offset) + 7) / 8 // bytes of the offset
		o.token[i&mask] = byte(told | short<<2 | far<<6)
		o.low[nLow&mask], o.mid[nMid&mask], o.high[nHigh&mask] = byte(q.offset), byte(q.offset>>8), byte(q.offset>>16)
		nLow, nMid, nHigh = nLow+(far+3)>>2, nMid+far>>1, nHigh+(far+1)>>2
	}
	nVerbal += copy(o.verbal[nVerbal:], t[at:size])
	return [streams][]byte{tokens: o.token[:len(m.found)], lengths: o.length[:nLength], lows: o.low[:nLow], mids: o.mid[:nMid], highs: o.high[:nHigh], verbals: o.verbal[:nVerbal]}
}

// A length is a byte, if it is below lengthShort; two, if below lengthLong, the first of them
// lengthShort or more; or lengthMark and three.
const (
	lengthShort = 192
	lengthMark  = 255
	lengthLong  = lengthShort + (lengthMark-lengthShort)<<8
)

func putLength(dst []byte, n int) int {
	switch {
	case n < lengthShort:
		dst[0] = byte(n)
		return 1
	case n < lengthLong:
		n -= lengthShort
		dst[0], dst[1] = byte(lengthShort+n>>8), byte(n)
		return 2
	}
	dst[0], dst[1], dst[2], dst[3] = lengthMark, byte(n), byte(n>>8), byte(n>>16)
	return 4
}

// takeLength reads a length, of which 4 bytes may be read.
func takeLength(src []byte) (n, bytes int) {
	switch b := int(src[0]); {
	case b < lengthShort:
		return b, 1
	case b < lengthMark:
		return lengthShort + (b-lengthShort)<<8 + int(src[1]), 2
	}
	return int(src[1]) | int(src[2])<<8 | int(src[3])<<16, 4
}

// Unpack is Append's inverse, of n bytes, into dst with a capacity of that and Slack at least.
func (p *Unpacker) Unpack(dst, packed []byte, n int) ([]byte, error) {
	for i := range p.streams {
		size, k := binary.Uvarint(packed)
		if k <= 0 || size > uint64(n) {
			return nil, ErrPacked
		}
		part, ok := p.streams[i], false
		if part, packed, ok = p.huffman.read(part[:0], packed[k:], int(size)); !ok {
			return nil, ErrPacked
		}
		// So that what a match has at most can be read before it is known how much it has.
		p.streams[i] = append(part, blankBlock[:Slack]...)[:len(part)]
	}
	if len(packed) > 0 {
		return nil, ErrPacked
	}
	if !p.putTogether(dst[:n+Slack], n) {
		return nil, ErrPacked
	}
	return dst[:n], nil
}

// putTogether makes a column of n bytes of the streams again.
func (p *Unpacker) putTogether(dst []byte, n int) bool {
	parts := &p.streams
	length, low, mid, high := parts[lengths], parts[lows], parts[mids], parts[highs]
	length, low, mid, high = length[:len(length)+Slack], low[:len(low)+Slack], mid[:len(mid)+Slack], high[:len(high)+Slack]
	verbal := parts[verbals][:len(parts[verbals])+Slack]
	var nLength, nLow, nMid, nHigh, nVerbal, at int
	last := 1
	for _, t := range parts[tokens] {
		if nLength > len(parts[lengths]) || nLow > len(parts[lows]) || nMid > len(parts[mids]) || nHigh > len(parts[highs]) {
			return false
		}
		literals, more := int(t&3), int(t>>2&15)
		if literals == literalsMax {
			v, k := takeLength(length[nLength : nLength+4])
			literals, nLength = literals+v, nLength+k
		}
		if more == lengthMax {
			v, k := takeLength(length[nLength : nLength+4])
			more, nLength = more+v, nLength+k
		}
		more += matchLeast
		if t >= 1<<6 {
			last = int(low[nLow])
			nLow++
			if t >= 2<<6 {
				last |= int(mid[nMid]) << 8
				nMid++
				if t >= 3<<6 {
					last |= int(high[nHigh]) << 16
					nHigh++
				}
			}
		}
		if literals > len(parts[verbals])-nVerbal || literals+more > n-at || last > at+literals || last == 0 {
			return false
		}
		if literals <= Slack {
			copy(dst[at:at+Slack], verbal[nVerbal:nVerbal+Slack])
		} else {
			copy(dst[at:], verbal[nVerbal:nVerbal+literals])
		}
		at, nVerbal = at+literals, nVerbal+literals
		repeat(dst, at, more, last)
		at += more
	}
	rest := len(parts[verbals]) - nVerbal
	if nLength != len(parts[lengths]) || nLow != len(parts[lows]) || nMid != len(parts[mids]) || nHigh != len(parts[highs]) || rest != n-at {
		return false
	}
	copy(dst[at:n], verbal[nVerbal:])
	return true
}

// repeat writes n bytes at a place that are those offset before it; what is within Slack behind
// them may be overwritten.
func repeat(dst []byte, at, n, offset int) {
	from := at - offset
	if n <= Slack && offset >= Slack {
		copy(dst[at:at+Slack], dst[from:from+Slack])
		return
	}
	for n > offset {
		at, n = at+copy(dst[at:at+offset], dst[from:at]), n-offset
		offset *= 2
	}
	copy(dst[at:at+n], dst[from:from+n])
}
