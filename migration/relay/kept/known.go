package kept

import (
	"fmt"
	"heliotrope/migration/wan"
	"io"
)

// Known is a destination's digests at the source. The reference of a page is its place.
type Known map[wan.Digest]uint32

// Lookup implements wan.Known.
func (k Known) Lookup(d wan.Digest) (ref uint64, ok bool) {
	n, ok := k[d]
	return uint64(n), ok
}

// ReadKnown reads n digests.
func ReadKnown(r io.Reader, n int) (Known, error) {
	k := Known{}
	buf := make([]byte, 8192*DigestLen)
	for i := 0; i < n; {
		part := buf[:min(len(buf), (n-i)*DigestLen)]
		if _, err := io.ReadFull(r, part); err != nil {
			return nil, fmt.Errorf("read what the destination knows: %w", err)
		}
		for ; len(part) > 0; part = part[DigestLen:] {
			d := wan.Digest(part)
			if _, ok := k[d]; !ok {
				k[d] = uint32(i)
			}
			i++
		}
	}
	return k, nil
}
