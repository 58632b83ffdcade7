package wan

import (
	"heliotrope/migration/wan/lzh"
	"slices"
)

// A column holds what is alike of a batch, one after another.
type column uint8

const (
	ops      column = iota // a byte each: what it is, how its page is told
	args                   // varints of ops
	deltas                 // of Delta
	other                  // bytes of Verbatim, names of blocks
	literals               // pages of Literal
	noise                  // pages of Noise
	columns
)

// An op says what comes next in the stream. The low bits are its Class.
const (
	opClass = 0x0f
	// opNext: the page lies behind the one before. Without it, args has the distance from
	// there, in pages, zigzag.
	opNext = 0x10
	// opBlock: the record spells the name of its block. Its number is in args; a number that is
	// new is followed by the name's length, and other has the name.
	opBlock = 0x20
)

// What else args has of an op, in this order, behind where the page is:
//
//	Zero      how many more pages of zeros lie behind it, in records that spell no name
//	Dup       the slot, less the one of the dup before, zigzag
//	Site      the reference, less the one before and 1, zigzag
//	Image     the page's number, as of Site
//	Peer      the stream's number; its name, if the number is new; the page's number, less the one before and 2, zigzag.
//	          A new stream at another place has number 256, and behind its name the length of the place, which other has
//	Delta     the delta's length
//	Verbatim  how many bytes

// Batch is a part of the stream. An Encoder fills it, or an Unpacker. It is used again and
// again.
type Batch struct {
	Level Level // how a Packer is to compress it

	size    int // bytes of the stream
	sum     [16]byte
	columns [columns][]byte
	// referred are the pages told by where the destination has them: it may ask for them after all.
	referred []byte
	packed   [columns]int // bytes, once a Packer has packed it
	frame    int          // bytes, in all
	stats    Stats        // without Out
}

// Size is how many bytes of the stream the batch stands for.
func (b *Batch) Size() int { return b.size }

// Stats is what the batch consists of. Out is known once it is packed.
func (b *Batch) Stats() Stats {
	s := b.stats
	heads := b.frame
	for col, class := range map[column]Class{deltas: Delta, other: Verbatim, literals: Literal, noise: Noise} {
		s.Out[class] += uint64(b.packed[col])
		heads -= b.packed[col]
	}
	s.Heads += uint64(heads)
	return s
}

// Reset empties the batch.
func (b *Batch) Reset() {
	for i := range b.columns {
		b.columns[i] = b.columns[i][:0]
	}
	b.referred = b.referred[:0]
	b.size, b.frame, b.packed, b.stats = 0, 0, [columns]int{}, Stats{}
}

// page makes room for a page at the end of a column.
func (b *Batch) page(c column) *[pageSize]byte {
	col := b.columns[c]
	n := len(col)
	if cap(col) == 0 && c == literals {
		col = make([]byte, 0, maxBatch+lzh.Slack) // and a packer need not copy it
	}
	col = slices.Grow(col, pageSize)[:n+pageSize]
	b.columns[c] = col
	return (*[pageSize]byte)(col[n:])
}

func zigzag(n int64) uint64   { return uint64(n)<<1 ^ uint64(n>>63) }
func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }
