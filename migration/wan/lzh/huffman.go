package lzh

import (
	"encoding/binary"
	"math/bits"
)

// Bytes are coded by Huffman's code in blocks, each with a code of its own: memory changes its
// kind from page to page. A block is a byte that says how, and then
//
//	blockStored  the bytes
//	blockSame    the one byte that they all are
//	blockCoded   the lengths of codes, the coded lengths of both halves (16 bits each), and these
//	blockClassed as blockCoded, with the lengths of codes for each class of the byte before
//	blockFew     half a byte of each (few.go)
//
// What follows a byte depends on it: zeros follow zeros, text follows text. Its class is its three
// highest bits, which an entry of the decoder's table has at hand; the byte before a half's
// first is taken to be 0.
//
// Both halves are coded, and decoded, beside each other: each step of one waits for the step
// before, and meanwhile the processor has the other's to do.
const (
	blockStored = iota
	blockSame
	blockCoded
	blockClassed
	blockFew

	blockBytes = 64 << 10 // at most; the halves' lengths have 16 bits
	codeBits   = 11       // of the longest code; four of them, and what is left of a byte, fit into a word

	classBits  = 3
	classes    = 1 << classBits
	classLeast = 1 << 10 // bytes: shorter blocks have one code
	codesMask  = classes*256 - 1

	wordBytes = 8
)

// huffman codes and decodes blocks.
type huffman struct {
	places  [2][classes * 256]uint32 // where is counted, as codes
	counts  [1 + classes][256]uint32 // of all, and of each class
	keys    [256]uint32              // count and symbol, by count
	depths  [256]uint32
	lengths [classes][256]uint8
	// Of a byte, and below it the class of the one before; from the highest bit down, and the
	// length in the lowest.
	codes  [classes * 256]uint64
	table  [classes << codeBits]uint16 // by class, and what bits begin with: symbol, and length in the low byte
	halves [2][blockBytes/2*codeBits/8 + 2*wordBytes]byte

	digits  bool        // the last block that is long is one of few symbols
	symbols [few]byte   // which
	ranks   [256]uint32 // which of these a byte is
	others  [3][fewMost]byte
}

// append appends src, coded; with classes, if it is of a kind that may have some.
func (h *huffman) append(dst, src []byte, classed bool) []byte {
	for len(src) > 0 {
		n := min(len(src), blockBytes)
		dst = h.appendBlock(dst, src[:n], classed && n >= classLeast)
		src = src[n:]
	}
	return dst
}

func (h *huffman) appendBlock(dst, src []byte, classed bool) []byte {
	if h.digits && classed && len(src) == blockBytes {
		if h.sample(src); h.few(len(src) / sampled) {
			if out, ok := h.appendFew(dst, src); ok {
				return out
			}
		}
	}
	if classed {
		h.countClasses(src)
	} else {
		h.count(src)
	}
	if h.counts[0][src[0]] == uint32(len(src)) {
		return append(dst, blockSame, src[0])
	}
	how, counts := byte(blockCoded), h.counts[:1]
	if classed {
		if h.digits = h.few(len(src)); h.digits {
			out, _ := h.appendFew(dst, src)
			return out
		}
		if all, parts := h.entropies(); parts < all-all/128 {
			how, counts = blockClassed, h.counts[1:]
		}
	}
	from, bits := len(dst), 0
	dst = append(dst, how)
	for i := range counts {
		bits += h.measure(&counts[i], &h.lengths[i])
		dst = appendLengths(dst, &h.lengths[i])
	}
	if len(dst)-from+bits/8+6 > len(src) {
		return append(append(dst[:from], blockStored), src...)
	}
	for i := range counts {
		h.assign(i, len(counts))
	}
	half := (len(src) + 1) / 2
	n, m := h.code(src[:half], src[half:])
	dst = binary.LittleEndian.AppendUint16(dst, uint16(n))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(m))
	dst = append(dst, h.halves[0][:n]...)
	return append(dst, h.halves[1][:m]...)
}

// assign makes codes of a class's lengths, and if there is but one for all, for all: of one
// length by symbol, and the bit that is read first is the lowest. It says whether there are so many.
func (h *huffman) assign(class, all int) bool {
	var of, next [codeBits + 1]uint32
	lengths, codes := &h.lengths[class], &h.codes
	for _, l := range lengths {
		of[l]++
	}
	of[0] = 0
	for l := 1; l <= codeBits; l++ {
		next[l] = (next[l-1] + of[l-1]) << 1
		if next[l]+of[l] > 1<<l {
			return false
		}
	}
	for s, l := range lengths {
		if l == 0 {
			continue
		}
		reversed := uint64(bits.Reverse32(next[l])) >> (32 - l)
		for c := class; c < classes; c += all {
			codes[s<<classBits|c] = reversed<<(64-l) | uint64(l)
		}
		next[l]++
	}
	return true
}

// appendLengths appends them in halves of bytes: each that is not 0; 0 is followed by how many
// more of it follow.
func appendLengths(dst []byte, lengths *[256]uint8) []byte {
	full := true
	put := func(v uint8) {
		if full {
			dst = append(dst, v)
		} else {
			dst[len(dst)-1] |= v << 4
		}
		full = !full
	}
	for i := 0; i < 256; i++ {
		l := lengths[i]
		put(l)
		if l > 0 {
			continue
		}
		n := i
		for ; n < 255 && n < i+15 && lengths[n+1] == 0; n++ {
		}
		put(uint8(n - i))
		i = n
	}
	return dst
}

// code codes two halves, of which the second may be shorter by one, into h.halves.
func (h *huffman) code(a, b []byte) (n, m int) {
	codes, dstA, dstB := &h.codes, h.halves[0][:], h.halves[1][:]
	var accA, accB, haveA, haveB uint64 // the highest have bits of acc are to be written
	var classA, classB uint64
	i := 0
	for ; i+4 <= len(b) && i+4 <= len(a); i += 4 {
		p, q := uint64(binary.LittleEndian.Uint32(a[i:i+4])), uint64(binary.LittleEndian.Uint32(b[i:i+4]))
		v, w := p<<classBits|classA, q<<classBits|classB
		classA, classB = p>>(32-classBits), q>>(32-classBits)
		x, y := codes[v&codesMask], codes[w&codesMask]
		accA, accB = accA>>(x&63)|x, accB>>(y&63)|y
		haveA, haveB = haveA+x, haveB+y
		x, y = codes[v>>8&codesMask], codes[w>>8&codesMask]
		accA, accB = accA>>(x&63)|x, accB>>(y&63)|y
		haveA, haveB = haveA+x, haveB+y
		x, y = codes[v>>16&codesMask], codes[w>>16&codesMask]
		accA, accB = accA>>(x&63)|x, accB>>(y&63)|y
		haveA, haveB = haveA+x, haveB+y
		x, y = codes[v>>24&codesMask], codes[w>>24&codesMask]
		accA, accB = accA>>(x&63)|x, accB>>(y&63)|y
		haveA, haveB = haveA+x, haveB+y
		binary.LittleEndian.PutUint64(dstA[n:n+8], accA>>(-haveA&63))
		binary.LittleEndian.PutUint64(dstB[m:m+8], accB>>(-haveB&63))
		n, m = n+int(haveA>>3&7), m+int(haveB>>3&7)
		haveA, haveB = haveA&7, haveB&7
	}
	rest := func(dst, src []byte, n int, acc, have, class uint64) int {
		for _, c := range src {
			x := codes[(uint64(c)<<classBits|class)&codesMask]
			class = uint64(c) >> (8 - classBits)
			acc, have = acc>>(x&63)|x, have+x&63
			binary.LittleEndian.PutUint64(dst[n:n+8], acc>>(-have&63))
			n += int(have >> 3)
			have &= 7
		}
		if have > 0 {
			n++
		}
		return n
	}
	return rest(dstA, a[i:], n, accA, haveA, classA), rest(dstB, b[i:], m, accB, haveB, classB)
}

// read appends n bytes to dst, and returns what lies behind them in src.
func (h *huffman) read(dst, src []byte, n int) (out, rest []byte, ok bool) {
	for ok = true; n > 0 && ok; n -= min(n, blockBytes) {
		dst, src, ok = h.readBlock(dst, src, min(n, blockBytes))
	}
	return dst, src, ok
}

func (h *huffman) readBlock(dst, src []byte, n int) (out, rest []byte, ok bool) {
	if len(src) < 2 {
		return nil, nil, false
	}
	how := src[0]
	src = src[1:]
	switch how {
	case blockStored:
		if len(src) < n {
			return nil, nil, false
		}
		return append(dst, src[:n]...), src[n:], true
	case blockSame:
		at := len(dst)
		dst = append(dst, blankBlock[:n]...)
		for i := range dst[at:] {
			dst[at+i] = src[0]
		}
		return dst, src[1:], true
	case blockCoded, blockClassed:
		at := len(dst)
		dst = append(dst, blankBlock[:n]...)
		rest, ok = h.decode(dst[at:], src, how)
		return dst, rest, ok
	case blockFew:
		at := len(dst)
		dst = append(dst, blankBlock[:n]...)
		rest, ok = h.readFew(dst[at:], src)
		return dst, rest, ok
	}
	return nil, nil, false
}

var blankBlock [blockBytes]byte

// decode reads a coded block into dst.
func (h *huffman) decode(dst, src []byte, how byte) (rest []byte, ok bool) {
	codes := 1
	if how == blockClassed {
		codes = classes
	}
	for i := range codes {
		if src, ok = readLengths(&h.lengths[i], src); !ok || !h.assign(i, codes) {
			return nil, false
		}
		h.fill(i)
	}
	if len(src) < 4 {
		return nil, false
	}
	n, m := int(binary.LittleEndian.Uint16(src)), int(binary.LittleEndian.Uint16(src[2:]))
	src = src[4:]
	if n+m > len(src) || n > len(h.halves[0])-2*wordBytes || m > len(h.halves[1])-2*wordBytes {
		return nil, false
	}
	// Behind them words are read.
	copy(h.halves[0][copy(h.halves[0][:], src[:n]):], blankBlock[:2*wordBytes])
	copy(h.halves[1][copy(h.halves[1][:], src[n:n+m]):], blankBlock[:2*wordBytes])
	half := (len(dst) + 1) / 2
	return src[n+m:], h.both(dst[:half], dst[half:], n, m, uint64(codes-1)<<(16-classBits))
}

// readLengths is appendLengths' inverse.
func readLengths(lengths *[256]uint8, src []byte) (rest []byte, ok bool) {
	at := 0 // in halves of bytes
	take := func() uint8 {
		if at/2 >= len(src) {
			at++
			return 0
		}
		v := src[at/2] >> (at % 2 * 4) & 15
		at++
		return v
	}
	*lengths = [256]uint8{}
	for i := 0; i < 256; i++ {
		l := take()
		if lengths[i] = l; l == 0 {
			i += int(take())
		}
		if l > codeBits {
			return nil, false
		}
	}
	n := (at + 1) / 2
	if n > len(src) {
		return nil, false
	}
	return src[n:], true
}

// fill fills a class's table from codes.
func (h *huffman) fill(class int) {
	table := h.table[class<<codeBits:][:1<<codeBits]
	clear(table)
	for s, l := range h.lengths[class] {
		if l == 0 {
			continue
		}
		for i := h.codes[s<<classBits|class] >> (64 - l); i < 1<<codeBits; i += 1 << l {
			table[i] = uint16(s)<<8 | uint16(l)
		}
	}
}

// both decodes both halves, of n and m bytes; class masks what of an entry tells the next table.
func (h *huffman) both(a, b []byte, n, m int, class uint64) bool {
	// The class in the entry before is moved down to where it says which of the tables it is.
	const (
		mask  = 1<<codeBits - 1
		in    = classes<<codeBits - 1
		shift = 16 - classBits - codeBits
	)
	table, srcA, srcB := &h.table, h.halves[0][:n+2*wordBytes], h.halves[1][:m+2*wordBytes]
	var accA, accB uint64 // the lowest have bits are yet to be decoded
	var haveA, haveB uint
	var e, f uint16
	i, p, q := 0, 0, 0
	for ; i+4 <= len(b) && i+4 <= len(a); i += 4 {
		if p > n+wordBytes || q > m+wordBytes {
			return false
		}
		accA |= binary.LittleEndian.Uint64(srcA[p:]) << (haveA & 63)
		accB |= binary.LittleEndian.Uint64(srcB[q:]) << (haveB & 63)
		p, q = p+int((63-haveA)>>3), q+int((63-haveB)>>3)
		haveA, haveB = haveA|56, haveB|56
		x, y := a[i:i+4:i+4], b[i:i+4:i+4]
		e, f = table[(uint64(e)&class>>shift|accA&mask)&in], table[(uint64(f)&class>>shift|accB&mask)&in]
		accA, accB, haveA, haveB = accA>>(e&15), accB>>(f&15), haveA-uint(e&15), haveB-uint(f&15)
		x[0], y[0] = byte(e>>8), byte(f>>8)
		e, f = table[(uint64(e)&class>>shift|accA&mask)&in], table[(uint64(f)&class>>shift|accB&mask)&in]
		accA, accB, haveA, haveB = accA>>(e&15), accB>>(f&15), haveA-uint(e&15), haveB-uint(f&15)
		x[1], y[1] = byte(e>>8), byte(f>>8)
		e, f = table[(uint64(e)&class>>shift|accA&mask)&in], table[(uint64(f)&class>>shift|accB&mask)&in]
		accA, accB, haveA, haveB = accA>>(e&15), accB>>(f&15), haveA-uint(e&15), haveB-uint(f&15)
		x[2], y[2] = byte(e>>8), byte(f>>8)
		e, f = table[(uint64(e)&class>>shift|accA&mask)&in], table[(uint64(f)&class>>shift|accB&mask)&in]
		accA, accB, haveA, haveB = accA>>(e&15), accB>>(f&15), haveA-uint(e&15), haveB-uint(f&15)
		x[3], y[3] = byte(e>>8), byte(f>>8)
	}
	rest := func(dst, src []byte, p, n int, acc uint64, have uint, e uint16) bool {
		for i := range dst {
			if p > n+wordBytes {
				return false
			}
			acc |= binary.LittleEndian.Uint64(src[p:]) << (have & 63)
			p += int((63 - have) >> 3)
			have |= 56
			e = table[(uint64(e)&class>>shift|acc&mask)&in]
			acc >>= e & 15
			have -= uint(e & 15)
			dst[i] = byte(e >> 8)
		}
		return p-int(have/8) <= n
	}
	return rest(a[i:], srcA, p, n, accA, haveA, e) && rest(b[i:], srcB, q, m, accB, haveB, f)
}
