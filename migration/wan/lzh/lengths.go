package lzh

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// count counts how often each byte occurs, in four places, since a byte's like is often near, and
// one count waits for the other.
func (h *huffman) count(src []byte) {
	var a, b, c, d [256]uint32
	for ; len(src) >= 4; src = src[4:] {
		w := binary.LittleEndian.Uint32(src)
		a[byte(w)]++
		b[byte(w>>8)]++
		c[byte(w>>16)]++
		d[byte(w>>24)]++
	}
	for _, s := range src {
		a[s]++
	}
	for i := range 256 {
		h.counts[0][i] = a[i] + b[i] + c[i] + d[i]
	}
}

// countClasses counts how often each byte occurs, after each class and in all.
func (h *huffman) countClasses(src []byte) {
	h.places = [2][classes * 256]uint32{}
	half := (len(src) + 1) / 2
	h.countHalf(src[:half])
	h.countHalf(src[half:])
	for i := range 256 {
		all := uint32(0)
		for class := range classes {
			at := i<<classBits | class
			n := h.places[0][at] + h.places[1][at]
			h.counts[1+class][i] = n
			all += n
		}
		h.counts[0][i] = all
	}
}

// countHalf counts in two places.
func (h *huffman) countHalf(src []byte) {
	a, b := &h.places[0], &h.places[1]
	class := uint64(0) // of the byte before
	for ; len(src) >= 8; src = src[8:] {
		w := binary.LittleEndian.Uint64(src)
		a[(w<<classBits|class)&codesMask]++
		b[w>>(8-classBits)&codesMask]++
		a[w>>(16-classBits)&codesMask]++
		b[w>>(24-classBits)&codesMask]++
		a[w>>(32-classBits)&codesMask]++
		b[w>>(40-classBits)&codesMask]++
		a[w>>(48-classBits)&codesMask]++
		b[w>>(56-classBits)&codesMask]++
		class = w >> (64 - classBits)
	}
	for _, c := range src {
		a[(uint64(c)<<classBits|class)&codesMask]++
		class = uint64(c) >> (8 - classBits)
	}
}

// entropies are about how many bits a code for all takes, and one for each class.
func (h *huffman) entropies() (all, parts int) {
	for i := range classes {
		parts += entropy(&h.counts[1+i])
	}
	return entropy(&h.counts[0]), parts
}

// entropy is about how many bits what was counted takes, with the lengths of its codes.
func entropy(counts *[256]uint32) int {
	n, symbols, sum := 0, 0, 0
	for _, c := range counts {
		if c > 0 {
			sum += int(c) * log(c)
			n += int(c)
			symbols++
		}
	}
	return (n*log(uint32(n))-sum)>>logBits + 128 + symbols*9/2
}

// log is the binary logarithm, in parts of 1<<logBits.
func log(n uint32) int {
	l := bits.Len32(n | 1)
	return (l-1)<<logBits + int(logs[n<<(32-l)>>(31-logBits)&(1<<logBits-1)])
}

const logBits = 8

// logs has the fractions of logarithms, by the bits behind a number's first.
var logs = func() (logs [1 << logBits]uint16) {
	for i := range logs {
		logs[i] = uint16(math.Log2(1+(float64(i)+0.5)/(1<<logBits)) * (1 << logBits))
	}
	return logs
}()

// measure finds how long codes are and returns how many bits all that was counted takes. It is
// Moffat and Katajainen's way, "In-place calculation of minimum-redundancy codes" (1995), with
// too long codes cut off.
func (h *huffman) measure(counts *[256]uint32, lengths *[256]uint8) (total int) {
	symbols := 0
	for i, n := range counts {
		if n > 0 {
			h.keys[symbols] = n<<8 | uint32(i)
			symbols++
		}
	}
	*lengths = [256]uint8{}
	if symbols < 2 {
		if symbols == 1 {
			lengths[byte(h.keys[0])] = 1
		}
		return int(h.keys[0]>>8) * symbols
	}
	keys, d := h.keys[:symbols], h.depths[:symbols]
	h.sort(keys)
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
	limit(d)
	for i, k := range keys {
		lengths[byte(k)] = uint8(d[i])
		total += int(k>>8) * int(d[i])
	}
	return total
}

// sort sorts keys by count, of 16 bits, a byte at a time.
func (h *huffman) sort(keys []uint32) {
	from, to := keys, h.depths[:len(keys)]
	for shift := 8; shift < 24; shift += 8 {
		var at [256]uint32
		for _, k := range from {
			at[byte(k>>shift)]++
		}
		sum := uint32(0)
		for i, n := range at {
			at[i] = sum
			sum += n
		}
		for _, k := range from {
			slot := &at[byte(k>>shift)]
			to[*slot] = k
			*slot++
		}
		from, to = to, from
	}
}

// limit shortens codes to codeBits; those that are rarest among the others become longer.
func limit(d []uint32) {
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
