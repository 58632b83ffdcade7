package delta

import "math/bits"

// maxIndexed bounds the index of blocks: 2^25 are 128 GiB of content, for 768 MiB of memory.
// What is not in it is sent though the receiver has it.
const maxIndexed = 1 << 25

// index says where a block with a digest is: an address through all bases and the target. It
// is a table with open addressing; digests are random, so that they are their own hash.
type index struct {
	spaces []span
	own    int64 // where the target's addresses begin
	slots  []int64
	mask   uint64
	used   int
}

// span is where the addresses of an image begin.
type span struct {
	start  int64
	sketch *Sketch
}

// newIndex has all blocks of the bases.
func newIndex(bases []Image, target Image) *index {
	x := &index{}
	blocks := 0
	for _, im := range append(bases[:len(bases):len(bases)], target) {
		x.own = 0
		if n := len(x.spaces); n > 0 {
			x.own = x.spaces[n-1].start + int64(len(x.spaces[n-1].sketch.pages))*pageBlocks
		}
		x.spaces = append(x.spaces, span{x.own, im.Sketch})
		for _, page := range im.Sketch.pages {
			blocks += len(page)
		}
	}
	size := 1 << bits.Len(uint(min(blocks, maxIndexed)*4/3))
	x.slots, x.mask = make([]int64, size), uint64(size-1)
	for _, s := range x.spaces[:len(bases)] {
		for p, page := range s.sketch.pages {
			for b, d := range page {
				if d != 0 {
					x.put(d, s.start+int64(p)*pageBlocks+int64(b))
				}
			}
		}
	}
	return x
}

// add has the target's own block from now on.
func (x *index) add(digest uint64, block int64) { x.put(digest, x.own+block) }

func (x *index) put(digest uint64, address int64) {
	if x.used >= min(maxIndexed, len(x.slots)*3/4) {
		return
	}
	for i := digest & x.mask; ; i = (i + 1) & x.mask {
		switch {
		case x.slots[i] == 0:
			x.slots[i] = address + 1
			x.used++
			return
		case x.digest(x.slots[i]-1) == digest:
			return
		}
	}
}

// find is the first address that has the digest.
func (x *index) find(digest uint64) (address int64, ok bool) {
	for i := digest & x.mask; x.slots[i] != 0; i = (i + 1) & x.mask {
		if x.digest(x.slots[i]-1) == digest {
			return x.slots[i] - 1, true
		}
	}
	return 0, false
}

// digest is that of the block at an address.
func (x *index) digest(address int64) uint64 {
	s := x.spaces[x.space(address)]
	return s.sketch.At(address - s.start)
}

// space is which image an address is of.
func (x *index) space(address int64) int {
	for i := len(x.spaces) - 1; i > 0; i-- {
		if address >= x.spaces[i].start {
			return i
		}
	}
	return 0
}
