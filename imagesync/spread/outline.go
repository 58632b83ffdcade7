package spread

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"

	"github.com/zeebo/blake3"
)

const (
	// MaxPiece is the most bytes of a piece.
	MaxPiece = 4 << 20
	// MaxPieces is the most pieces of an Outline: 4 TiB of the largest.
	MaxPieces = 1 << 20

	outlineMagic = "hspread-outline1"
	outlineHead  = len(outlineMagic) + 4
	pieceBytes   = 4 + len(Hash{})
)

// Hash is a BLAKE3 hash.
type Hash [32]byte

// HashOf is the hash of data.
func HashOf(data []byte) Hash { return blake3.Sum256(data) }

// ID names a content: the hash of its Outline's encoding.
type ID Hash

// String is the beginning of the ID: enough for a person to tell two apart.
func (id ID) String() string { return hex.EncodeToString(id[:6]) }

// Piece is what must be known of a piece to take it from anybody.
type Piece struct {
	Length uint32 // bytes, from 1 to MaxPiece
	Hash   Hash
}

// Outline describes a content: its pieces in order. It does not change.
type Outline struct {
	pieces []Piece
	bytes  int64
	id     ID
}

// NewOutline returns the Outline of these pieces, which it keeps.
func NewOutline(pieces []Piece) (*Outline, error) {
	if len(pieces) > MaxPieces {
		return nil, fmt.Errorf("make outline: %d pieces, there may be %d", len(pieces), MaxPieces)
	}
	o := &Outline{pieces: pieces}
	for i, p := range pieces {
		if p.Length == 0 || p.Length > MaxPiece {
			return nil, fmt.Errorf("make outline: piece %d has %d bytes, it must have 1 to %d", i, p.Length, MaxPiece)
		}
		o.bytes += int64(p.Length)
	}
	encoded, err := o.MarshalBinary()
	if err != nil {
		return nil, err
	}
	o.id = ID(HashOf(encoded))
	return o, nil
}

// Len is the number of pieces.
func (o *Outline) Len() int { return len(o.pieces) }

// Piece returns the piece of that number.
func (o *Outline) Piece(i int) Piece { return o.pieces[i] }

// Bytes is the length of all pieces together.
func (o *Outline) Bytes() int64 { return o.bytes }

// ID names the content.
func (o *Outline) ID() ID { return o.id }

// MarshalBinary encodes the Outline: a magic, the number of pieces, and of each its length and
// hash; numbers are big-endian.
func (o *Outline) MarshalBinary() ([]byte, error) {
	b := make([]byte, 0, outlineHead+len(o.pieces)*pieceBytes)
	b = append(b, outlineMagic...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(o.pieces)))
	for _, p := range o.pieces {
		b = binary.BigEndian.AppendUint32(b, p.Length)
		b = append(b, p.Hash[:]...)
	}
	return b, nil
}

// ParseOutline decodes what MarshalBinary has encoded, and nothing else.
func ParseOutline(b []byte) (*Outline, error) {
	if len(b) < outlineHead || string(b[:len(outlineMagic)]) != outlineMagic {
		return nil, errors.New("parse outline: this is none")
	}
	n := binary.BigEndian.Uint32(b[len(outlineMagic):])
	b = b[outlineHead:]
	if n > MaxPieces || len(b) != int(n)*pieceBytes {
		return nil, fmt.Errorf("parse outline: %d bytes for %d pieces", len(b), n)
	}
	pieces := make([]Piece, n)
	for i := range pieces {
		pieces[i].Length = binary.BigEndian.Uint32(b)
		copy(pieces[i].Hash[:], b[4:])
		b = b[pieceBytes:]
	}
	return NewOutline(pieces)
}

// set is a set of pieces.
type set []uint64

func newSet(pieces int) set  { return make(set, (pieces+63)/64) }
func (s set) has(i int) bool { return s[i/64]>>(i%64)&1 != 0 }
func (s set) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s set) remove(i int)   { s[i/64] &^= 1 << (i % 64) }
func (s set) addRun(from, n int) { // a run may be the whole image
	for i := from; i < from+n; i++ {
		s.add(i)
	}
}

// firstCommon is the first that is in both, -1 where none is.
func firstCommon(a, b set) int {
	for w := range a {
		if both := a[w] & b[w]; both != 0 {
			return w*64 + bits.TrailingZeros64(both)
		}
	}
	return -1
}

// run is a number of pieces one after another.
type run struct{ from, n int }

// missing are the runs of the first n that are not in s.
func (s set) missing(n int) []run {
	var runs []run
	for i := range n {
		switch {
		case s.has(i):
		case len(runs) > 0 && runs[len(runs)-1].from+runs[len(runs)-1].n == i:
			runs[len(runs)-1].n++
		default:
			runs = append(runs, run{i, 1})
		}
	}
	return runs
}
