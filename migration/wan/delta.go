package wan

import (
	"encoding/binary"
	"math/bits"
)

// A delta says where a page differs from its last version: pairs of how many bytes to keep
// and how many follow, and those. It ends with the last difference. Places less than a word
// apart are one, since two numbers cost as much.
//
// deltaLimit is the longest that is worth it: what a delta holds is compressed as well as
// a literal is, but out of its neighbourhood.
const deltaLimit = 3 << 10

// appendDelta appends the delta from old to page. It returns ok false if that would be
// longer than deltaLimit; without a difference it appends nothing.
func appendDelta(dst []byte, old, page *[pageSize]byte) (delta []byte, ok bool) {
	from, at := len(dst), 0 // at: where the last difference ended
	for i := differ(old, page, 0); i < pageSize; {
		end := equal(old, page, i)
		first := i + bits.TrailingZeros64(word(old, i)^word(page, i))/8
		last := end - bits.LeadingZeros64(word(old, end-8)^word(page, end-8))/8
		if len(dst)-from+last-first+4 > deltaLimit {
			return dst[:from], false
		}
		dst = binary.AppendUvarint(dst, uint64(first-at))
		dst = binary.AppendUvarint(dst, uint64(last-first))
		dst = append(dst, page[first:last]...)
		at = last
		i = differ(old, page, end)
	}
	return dst, true
}

func word(p *[pageSize]byte, i int) uint64 { return binary.LittleEndian.Uint64(p[i : i+8]) }

// differ is where, from i on, the first word lies that differs.
func differ(old, page *[pageSize]byte, i int) int {
	for ; i <= pageSize-32; i += 32 {
		if (word(old, i)^word(page, i))|(word(old, i+8)^word(page, i+8))|(word(old, i+16)^word(page, i+16))|(word(old, i+24)^word(page, i+24)) != 0 {
			break
		}
	}
	for ; i < pageSize && word(old, i) == word(page, i); i += 8 {
	}
	return i
}

// equal is where, from i on, the first word lies that does not.
func equal(old, page *[pageSize]byte, i int) int {
	for ; i < pageSize && word(old, i) != word(page, i); i += 8 {
	}
	return i
}

// applyDelta makes the new version of a page out of the old one.
func applyDelta(page *[pageSize]byte, delta []byte) bool {
	at := 0
	for len(delta) > 0 {
		keep, n := binary.Uvarint(delta)
		if n <= 0 || keep > pageSize {
			return false
		}
		delta = delta[n:]
		length, n := binary.Uvarint(delta)
		if n <= 0 || length > uint64(len(delta)-n) || keep+length > uint64(pageSize-at) || length > pageSize {
			return false
		}
		at += int(keep)
		at += copy(page[at:], delta[n:n+int(length)])
		delta = delta[n+int(length):]
	}
	return true
}
