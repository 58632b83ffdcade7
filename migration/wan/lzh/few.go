package lzh

import "encoding/binary"

// Digits of hexadecimal numbers are 16 symbols, each about as often as the others, and now and then
// there is something between them. A code of whole bits has no room for that without a fifth bit for
// one of the digits. So a block of that kind has half a byte of each, and tells others apart:
//
//	the 16 symbols
//	halves of bytes, the first in the low one; that of another is 0
//	how many others there are, in 16 bits; and as blocks, of all of them: the low byte of the distance from the
//	one before, the high one, and what it is
const (
	few      = 16
	fewOther = 1 << 16           // their rank
	fewMost  = blockBytes/64 - 1 // others
)

// sampled is of how many bytes one is counted where the block before was of that kind.
const sampled = 8

// sample counts some of a block.
func (h *huffman) sample(src []byte) {
	h.counts[0] = [256]uint32{}
	for ; len(src) >= 8*sampled; src = src[8*sampled:] {
		for _, c := range src[:8] {
			h.counts[0][c]++
		}
	}
}

// few says whether n bytes that are counted are of that kind.
func (h *huffman) few(n int) bool {
	k, within := 0, 0
	for s, c := range h.counts[0] {
		h.ranks[s] = fewOther // above what four halves of bytes have
		if int(c) < n/40 {
			continue
		}
		if k == few {
			return false
		}
		h.symbols[k], h.ranks[s] = byte(s), uint32(k)
		k++
		within += int(c)
	}
	return k == few && n-within < n/64 && 4*n+8*(n-within) < entropy(&h.counts[0])+n/32
}

// appendFew appends such a block. There may be more others than few took it for, if it has not seen all.
func (h *huffman) appendFew(dst, src []byte) (out []byte, ok bool) {
	ranks, halves, others, last := &h.ranks, &h.halves[0], 0, 0
	for i := 0; i < len(src); i += 8 {
		group := src[i:]
		if len(group) < 8 {
			end := [8]byte{}
			for j := copy(end[:], group); j < 8; j++ {
				end[j] = h.symbols[0]
			}
			group = end[:]
		}
		w := binary.LittleEndian.Uint64(group)
		low := ranks[byte(w)] | ranks[byte(w>>8)]<<4 | ranks[byte(w>>16)]<<8 | ranks[byte(w>>24)]<<12
		high := ranks[byte(w>>32)] | ranks[byte(w>>40)]<<4 | ranks[byte(w>>48)]<<8 | ranks[byte(w>>56)]<<12
		binary.LittleEndian.PutUint32(halves[i/2:i/2+4], low&0xffff|high<<16)
		if low|high < fewOther {
			continue
		}
		for j, c := range group[:8] {
			if ranks[c] == fewOther {
				if others == fewMost {
					return dst, false
				}
				distance := i + j - last
				h.others[0][others], h.others[1][others], h.others[2][others] = byte(distance), byte(distance>>8), c
				last, others = i+j, others+1
			}
		}
	}
	dst = append(append(append(dst, blockFew), h.symbols[:]...), halves[:(len(src)+1)/2]...)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(others))
	for k := range h.others {
		dst = h.append(dst, h.others[k][:others], false)
	}
	return dst, true
}

// readFew is its inverse: it fills dst, and returns what lies behind the block.
func (h *huffman) readFew(dst, src []byte) (rest []byte, ok bool) {
	half := (len(dst) + 1) / 2
	if len(src) < few+half+2 {
		return nil, false
	}
	symbols := [few]byte(src)
	for i, b := range src[few : few+half] {
		if dst[2*i] = symbols[b&15]; 2*i+1 < len(dst) {
			dst[2*i+1] = symbols[b>>4]
		}
	}
	src = src[few+half:]
	n := int(binary.LittleEndian.Uint16(src))
	if src = src[2:]; n > fewMost {
		return nil, false
	}
	var others [len(h.others)][]byte
	for k := range others {
		if n > 0 && len(src) > 0 && src[0] == blockFew { // none is written in another
			return nil, false
		}
		if others[k], src, ok = h.read(h.others[k][:0], src, n); !ok {
			return nil, false
		}
	}
	at := 0
	for i := range n {
		at += int(others[0][i]) | int(others[1][i])<<8
		if at >= len(dst) {
			return nil, false
		}
		dst[at] = others[2][i]
	}
	return src, true
}
