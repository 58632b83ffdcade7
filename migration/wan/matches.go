package wan

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// A matcher packs as the level Fast does: what occurred before in the column is told by where,
// and what is told is taken apart into what is alike, each coded by Huffman's code.
//
//	tokens   one for each match: how many literals go before it, how long it is, how its offset is told
//	lengths  what of these does not fit into tokens
//	lows     lowest bytes of offsets: in memory they are multiples of 8 more often than not
//	mids     second bytes
//	highs    third bytes
//	verbals  literals; those behind the last match are the column's end
type matcher struct {
	parts
	table [1 << tableBits]uint32 // where words were last seen
	found []match
}

// parts is what a column is taken apart into.
type parts struct {
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
	// all else, since it is in no cache.
	tableBits = 13 // it fits into the cache that is nearest
	placeBits = 20 // of a column
	checkBits = 32 - placeBits
	// Where nothing was found in so many bytes, every second place is looked at, and so on.
	skipBits, stepMax = 5, 7
	slack             = 16 // bytes behind a column and a stream that may be read and written
)

var errBlock = errors.New("not a packed column")

// pack appends col to dst, packed.
func (m *matcher) pack(dst, col []byte) []byte {
	m.find(col)
	m.takeApart(col)
	for _, part := range m.streams {
		dst = binary.AppendUvarint(dst, uint64(len(part)))
		dst = m.huffman.append(dst, part)
	}
	return dst
}

func word64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i : i+8]) }

// find finds matches: of six bytes or more by a table of where such were last seen, and of
// four or more at the offset of the match before.
func (m *matcher) find(src []byte) {
	found, table := m.found[:0], &m.table
	shift := 64 - min(tableBits, bits.Len(uint(len(src))))
	clear(table[:1<<(64-shift)])
	anchor, last := 0, 1 // where the match before ended, and its offset
	limit := len(src) - slack
	for at := 1; at < limit; {
		w := word64(src, at)
		slot, now := place(w, at, shift)
		seen := table[slot&(1<<tableBits-1)]
		table[slot&(1<<tableBits-1)] = now
		before := at - last
		x := w ^ word64(src, before)
		if uint32(x) != 0 {
			if (seen^now)>>placeBits != 0 {
				at += 1 + min((at-anchor)>>skipBits, stepMax)
				continue
			}
			before = int(seen & (1<<placeBits - 1))
			if x = w ^ word64(src, before); x<<(64-8*hashBytes) != 0 {
				at++
				continue
			}
		}
		n := 8
		if x != 0 {
			n = bits.TrailingZeros64(x) / 8
		} else {
			n += alike(src, at+8, before+8)
		}
		offset := at - before
		for at > anchor && before > 0 && src[at-1] == src[before-1] {
			at, before, n = at-1, before-1, n+1
		}
		q := match{uint32(at - anchor), uint32(n), uint32(offset)}
		if offset == last {
			q.offset = 0
		}
		found, at, last = append(found, q), at+n, offset
		for at < limit {
			slot, now := place(word64(src, at-2), at-2, shift)
			table[slot&(1<<tableBits-1)] = now
			differ, n := again(src, at, last)
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
func place(w uint64, at, shift int) (slot int, note uint32) {
	hash := w << (64 - 8*hashBytes) * 0x9e3779b185ebca87
	return int(hash >> (shift & 63)), uint32(at) | uint32(hash>>((shift-checkBits)&63))<<placeBits
}

// again says whether, behind up to four bytes that differ, four or more are as they were an
// offset before: records and pointers are often so.
func again(src []byte, at, offset int) (differ, n int) {
	x := word64(src, at) ^ word64(src, at-offset)
	if byte(x>>32) != 0 {
		return 0, 0
	}
	differ = (bits.Len32(uint32(x)) + 7) / 8
	if x >>= 8 * differ; uint32(x) != 0 {
		return 0, 0
	}
	if x != 0 {
		return differ, bits.TrailingZeros64(x) / 8
	}
	return differ, 8 - differ + alike(src, at+8, at+8-offset)
}

// alike is how many bytes from i on are those from j on.
func alike(b []byte, i, j int) int {
	from := i
	for ; i <= len(b)-8; i, j = i+8, j+8 {
		if x := word64(b, i) ^ word64(b, j); x != 0 {
			return i - from + bits.TrailingZeros64(x)/8
		}
	}
	for ; i < len(b) && b[i] == b[j]; i, j = i+1, j+1 {
	}
	return i - from
}

// takeApart fills the streams. Matches are short and many: it writes without asking for room
// each time, and copies more than it needs.
func (m *matcher) takeApart(src []byte) {
	p := &m.streams
	for i := range p {
		if cap(p[i]) < len(src)+slack {
			p[i] = make([]byte, max(len(src), BatchBytes)+slack)
		}
		p[i] = p[i][:cap(p[i])]
	}
	token, length, low, mid, high, verbal := p[tokens], p[lengths], p[lows], p[mids], p[highs], p[verbals]
	var nLength, nLow, nMid, nHigh, nVerbal, at int
	for i, q := range m.found {
		n := int(q.literals)
		if n <= slack && at+slack <= len(src) {
			copy(verbal[nVerbal:nVerbal+slack], src[at:at+slack])
		} else {
			copy(verbal[nVerbal:], src[at:at+n])
		}
		nVerbal += n
		at += n + int(q.length)
		t := min(n, literalsMax)
		if t == literalsMax {
			nLength += putLength(length[nLength:nLength+4], n-literalsMax)
		}
		k := min(int(q.length-matchLeast), lengthMax)
		if k == lengthMax {
			nLength += putLength(length[nLength:nLength+4], int(q.length)-matchLeast-lengthMax)
		}
		t |= k << 2
		if q.offset != 0 {
			t |= 1 << 6
			low[nLow] = byte(q.offset)
			nLow++
			if q.offset >= 1<<8 {
				t += 1 << 6
				mid[nMid] = byte(q.offset >> 8)
				nMid++
				if q.offset >= 1<<16 {
					t += 1 << 6
					high[nHigh] = byte(q.offset >> 16)
					nHigh++
				}
			}
		}
		token[i] = byte(t)
	}
	nVerbal += copy(verbal[nVerbal:], src[at:])
	p[tokens], p[lengths], p[lows] = token[:len(m.found)], length[:nLength], low[:nLow]
	p[mids], p[highs], p[verbals] = mid[:nMid], high[:nHigh], verbal[:nVerbal]
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

// unpack is pack's inverse, of n bytes, into dst with a capacity of that and slack at least.
func (p *parts) unpack(dst, packed []byte, n int) ([]byte, error) {
	for i := range p.streams {
		size, k := binary.Uvarint(packed)
		if k <= 0 || size > uint64(n) {
			return nil, errBlock
		}
		part, ok := p.streams[i], false
		if part, packed, ok = p.huffman.read(part[:0], packed[k:], int(size)); !ok {
			return nil, errBlock
		}
		// So that what a match has at most can be read before it is known how much it has.
		p.streams[i] = append(part, blankBlock[:slack]...)[:len(part)]
	}
	if len(packed) > 0 {
		return nil, errBlock
	}
	if !p.putTogether(dst[:n+slack], n) {
		return nil, errBlock
	}
	return dst[:n], nil
}

// putTogether makes a column of n bytes of the streams again.
func (p *parts) putTogether(dst []byte, n int) bool {
	parts := &p.streams
	length, low, mid, high := parts[lengths], parts[lows], parts[mids], parts[highs]
	length, low, mid, high = length[:len(length)+slack], low[:len(low)+slack], mid[:len(mid)+slack], high[:len(high)+slack]
	verbal := parts[verbals][:len(parts[verbals])+slack]
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
		if literals <= slack {
			copy(dst[at:at+slack], verbal[nVerbal:nVerbal+slack])
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

// repeat writes n bytes at a place that are those offset before it; what is within slack behind
// them may be overwritten.
func repeat(dst []byte, at, n, offset int) {
	from := at - offset
	if n <= slack && offset >= slack {
		copy(dst[at:at+slack], dst[from:from+slack])
		return
	}
	for n > offset {
		at, n = at+copy(dst[at:at+offset], dst[from:at]), n-offset
		offset *= 2
	}
	copy(dst[at:at+n], dst[from:from+n])
}
