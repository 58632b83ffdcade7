package wan

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// Bytes are coded by Huffman's code in blocks, each with a code of its own: memory changes its
// kind from page to page. A block is a byte that says how, and then
//
//	blockStored  the bytes
//	blockSame    the one byte that they all are
//	blockCoded   the lengths of codes, the coded lengths of both halves (16 bits each), and these
//
// Both halves are coded, and decoded, beside each other: each step of one waits for the step
// before, and meanwhile the processor has the other's to do.
const (
	blockStored = iota
	blockSame
	blockCoded

	blockBytes = 32 << 10 // at most; the halves' lengths have 16 bits
	codeBits   = 11       // of the longest code; four of them, and what is left of a byte, fit into a word

	wordBytes = 8
)

// huffman codes and decodes blocks.
type huffman struct {
	counts  [4][256]uint32
	keys    [256]uint32 // count and symbol, by count
	depths  [256]uint32
	lengths [256]uint8
	codes   [256]uint64           // from the highest bit down; the length in the lowest
	table   [1 << codeBits]uint16 // what bits begin with: symbol, and length in the low byte
	halves  [2][blockBytes/2*codeBits/8 + 2*wordBytes]byte
}

// append appends src, coded.
func (h *huffman) append(dst, src []byte) []byte {
	for len(src) > 0 {
		n := min(len(src), blockBytes)
		dst = h.appendBlock(dst, src[:n])
		src = src[n:]
	}
	return dst
}

func (h *huffman) appendBlock(dst, src []byte) []byte {
	symbols := h.count(src)
	if symbols == 1 {
		return append(dst, blockSame, src[0])
	}
	from := len(dst)
	if bits := h.measure(symbols); bits/8 < len(src) {
		dst = h.appendLengths(append(dst, blockCoded))
		if len(dst)-from+bits/8+6 <= len(src) {
			return h.appendHalves(dst, src)
		}
	}
	return append(append(dst[:from], blockStored), src...)
}

// appendHalves appends what was measured.
func (h *huffman) appendHalves(dst, src []byte) []byte {
	h.assign()
	half := (len(src) + 1) / 2
	n, m := h.code(src[:half], src[half:])
	dst = binary.LittleEndian.AppendUint16(dst, uint16(n))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(m))
	dst = append(dst, h.halves[0][:n]...)
	return append(dst, h.halves[1][:m]...)
}

// count counts how often each byte occurs, into keys; how many are different is returned. It
// counts in four places, since a byte's like is often near, and one count waits for the other.
func (h *huffman) count(src []byte) (symbols int) {
	c := &h.counts
	*c = [4][256]uint32{}
	for ; len(src) >= 8; src = src[8:] {
		w := binary.LittleEndian.Uint64(src)
		c[0][byte(w)]++
		c[1][byte(w>>8)]++
		c[2][byte(w>>16)]++
		c[3][byte(w>>24)]++
		c[0][byte(w>>32)]++
		c[1][byte(w>>40)]++
		c[2][byte(w>>48)]++
		c[3][byte(w>>56)]++
	}
	for _, b := range src {
		c[0][b]++
	}
	for i := range 256 {
		if n := c[0][i] + c[1][i] + c[2][i] + c[3][i]; n > 0 {
			h.keys[symbols] = n<<8 | uint32(i)
			symbols++
		}
	}
	return symbols
}

// measure finds how long codes are, of two symbols or more, and returns how many bits all
// that was counted takes. It is Moffat and Katajainen's way, "In-place calculation of
// minimum-redundancy codes" (1995), with too long codes cut off.
func (h *huffman) measure(symbols int) (total int) {
	keys, d := h.keys[:symbols], h.depths[:symbols]
	slices.Sort(keys)
	for i, k := range keys {
		d[i] = k >> 8
	}
	// d[i]: what a leaf or a node weighs, then a node's parent, then its depth, then a leaf's.
	d[0] += d[1]
	root, leaf := 0, 2
	for next := 1; next < symbols-1; next++ {
		take := func() (w uint32) {
			if leaf >= symbols || root < next && d[root] < d[leaf] {
				w = d[root]
				d[root] = uint32(next)
				root++
			} else {
				w = d[leaf]
				leaf++
			}
			return w
		}
		w := take()
		d[next] = w + take()
	}
	d[symbols-2] = 0
	for i := symbols - 3; i >= 0; i-- {
		d[i] = d[d[i]] + 1
	}
	room, used, depth := 1, 0, uint32(0)
	root = symbols - 2
	for next := symbols - 1; room > 0; depth++ {
		for root >= 0 && d[root] == depth {
			used++
			root--
		}
		for ; room > used; room-- {
			d[next] = depth
			next--
		}
		room, used = 2*used, 0
	}
	h.limit(d)
	h.lengths = [256]uint8{}
	for i, k := range keys {
		h.lengths[byte(k)] = uint8(d[i])
		total += int(k>>8) * int(d[i])
	}
	return total
}

// limit shortens codes to codeBits; those that are rarest among the others become longer.
func (h *huffman) limit(d []uint32) {
	if d[0] <= codeBits {
		return
	}
	room := 1 << codeBits
	for i := range d {
		d[i] = min(d[i], codeBits)
		room -= 1 << (codeBits - d[i])
	}
	for i := 0; room < 0; {
		if d[i] == codeBits {
			i++
			continue
		}
		d[i]++
		room += 1 << (codeBits - d[i])
	}
	for i := len(d) - 1; i >= 0 && room > 0; i-- {
		for d[i] > 1 && room >= 1<<(codeBits-d[i]) {
			room -= 1 << (codeBits - d[i])
			d[i]--
		}
	}
}

// assign makes codes of lengths: of one length by symbol, and the bit that is read first is the
// lowest. It says whether there are so many.
func (h *huffman) assign() bool {
	var of, next [codeBits + 1]uint32
	for _, l := range h.lengths {
		of[l]++
	}
	of[0] = 0
	for l := 1; l <= codeBits; l++ {
		next[l] = (next[l-1] + of[l-1]) << 1
		if next[l]+of[l] > 1<<l {
			return false
		}
	}
	for s, l := range h.lengths {
		if l == 0 {
			continue
		}
		reversed := uint64(bits.Reverse32(next[l])) >> (32 - l)
		h.codes[s] = reversed<<(64-l) | uint64(l)
		next[l]++
	}
	return true
}

// appendLengths appends them in halves of bytes: each that is not 0; 0 is followed by how many
// more of it follow.
func (h *huffman) appendLengths(dst []byte) []byte {
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
		l := h.lengths[i]
		put(l)
		if l > 0 {
			continue
		}
		n := i
		for ; n < 255 && n < i+15 && h.lengths[n+1] == 0; n++ {
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
	i := 0
	for ; i+4 <= len(b) && i+4 <= len(a); i += 4 {
		p, q := a[i:i+4:i+4], b[i:i+4:i+4]
		x, y := codes[p[0]], codes[q[0]]
		accA, accB = accA>>(x&63)|x, accB>>(y&63)|y
		haveA, haveB = haveA+x, haveB+y
		x, y = codes[p[1]], codes[q[1]]
		accA, accB = accA>>(x&63)|x, accB>>(y&63)|y
		haveA, haveB = haveA+x, haveB+y
		x, y = codes[p[2]], codes[q[2]]
		accA, accB = accA>>(x&63)|x, accB>>(y&63)|y
		haveA, haveB = haveA+x, haveB+y
		x, y = codes[p[3]], codes[q[3]]
		accA, accB = accA>>(x&63)|x, accB>>(y&63)|y
		haveA, haveB = haveA+x, haveB+y
		binary.LittleEndian.PutUint64(dstA[n:n+8], accA>>(-haveA&63))
		binary.LittleEndian.PutUint64(dstB[m:m+8], accB>>(-haveB&63))
		n, m = n+int(haveA>>3&7), m+int(haveB>>3&7)
		haveA, haveB = haveA&7, haveB&7
	}
	rest := func(dst, src []byte, n int, acc, have uint64) int {
		for _, c := range src {
			x := codes[c]
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
	return rest(dstA, a[i:], n, accA, haveA), rest(dstB, b[i:], m, accB, haveB)
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
	case blockCoded:
		at := len(dst)
		dst = append(dst, blankBlock[:n]...)
		rest, ok = h.decode(dst[at:], src)
		return dst, rest, ok
	}
	return nil, nil, false
}

var blankBlock [blockBytes]byte

// decode reads a coded block into dst.
func (h *huffman) decode(dst, src []byte) (rest []byte, ok bool) {
	src, ok = h.readLengths(src)
	if !ok || len(src) < 4 || !h.assign() {
		return nil, false
	}
	n, m := int(binary.LittleEndian.Uint16(src)), int(binary.LittleEndian.Uint16(src[2:]))
	src = src[4:]
	if n+m > len(src) || n > len(h.halves[0])-2*wordBytes || m > len(h.halves[1])-2*wordBytes {
		return nil, false
	}
	h.fill()
	// Behind them words are read.
	copy(h.halves[0][copy(h.halves[0][:], src[:n]):], blankBlock[:2*wordBytes])
	copy(h.halves[1][copy(h.halves[1][:], src[n:n+m]):], blankBlock[:2*wordBytes])
	half := (len(dst) + 1) / 2
	return src[n+m:], h.both(dst[:half], dst[half:], n, m)
}

// readLengths is appendLengths' inverse.
func (h *huffman) readLengths(src []byte) (rest []byte, ok bool) {
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
	h.lengths = [256]uint8{}
	for i := 0; i < 256; i++ {
		l := take()
		if h.lengths[i] = l; l == 0 {
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

// fill fills the table from codes.
func (h *huffman) fill() {
	clear(h.table[:])
	for s, l := range h.lengths {
		if l == 0 {
			continue
		}
		for i := h.codes[s] >> (64 - l); i < 1<<codeBits; i += 1 << l {
			h.table[i] = uint16(s)<<8 | uint16(l)
		}
	}
}

// both decodes both halves, of n and m bytes.
func (h *huffman) both(a, b []byte, n, m int) bool {
	const mask = 1<<codeBits - 1
	table, srcA, srcB := &h.table, h.halves[0][:n+2*wordBytes], h.halves[1][:m+2*wordBytes]
	var accA, accB uint64 // the lowest have bits are yet to be decoded
	var haveA, haveB uint
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
		e, f := table[accA&mask], table[accB&mask]
		accA, accB, haveA, haveB = accA>>(e&15), accB>>(f&15), haveA-uint(e&15), haveB-uint(f&15)
		x[0], y[0] = byte(e>>8), byte(f>>8)
		e, f = table[accA&mask], table[accB&mask]
		accA, accB, haveA, haveB = accA>>(e&15), accB>>(f&15), haveA-uint(e&15), haveB-uint(f&15)
		x[1], y[1] = byte(e>>8), byte(f>>8)
		e, f = table[accA&mask], table[accB&mask]
		accA, accB, haveA, haveB = accA>>(e&15), accB>>(f&15), haveA-uint(e&15), haveB-uint(f&15)
		x[2], y[2] = byte(e>>8), byte(f>>8)
		e, f = table[accA&mask], table[accB&mask]
		accA, accB, haveA, haveB = accA>>(e&15), accB>>(f&15), haveA-uint(e&15), haveB-uint(f&15)
		x[3], y[3] = byte(e>>8), byte(f>>8)
	}
	rest := func(dst, src []byte, p, n int, acc uint64, have uint) bool {
		for i := range dst {
			if p > n+wordBytes {
				return false
			}
			acc |= binary.LittleEndian.Uint64(src[p:]) << (have & 63)
			p += int((63 - have) >> 3)
			have |= 56
			e := table[acc&mask]
			acc >>= e & 15
			have -= uint(e & 15)
			dst[i] = byte(e >> 8)
		}
		return p-int(have/8) <= n
	}
	return rest(a[i:], srcA, p, n, accA, haveA) && rest(b[i:], srcB, q, m, accB, haveB)
}
