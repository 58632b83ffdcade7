package wan

import (
	"encoding/binary"
	"fmt"
	"heliotrope/migration/wan/lzh"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// Level is how hard a batch is compressed: the less a way carries, the harder.
type Level uint8

const (
	Plain  Level = iota // not at all, and pages are not looked at either
	Light               // S2
	Fast                // package lzh
	Levels = iota
)

var levelNames = [Levels]string{"plain", "light", "fast"}

func (l Level) String() string {
	if l < Levels {
		return levelNames[l]
	}
	return "unknown"
}

// A frame is a head and the columns. The head, big-endian: the length of all columns, the
// length and the hash of the stream up to here, and of each column what it is when unpacked,
// and packed with how in the highest bits.
const (
	// FrameHead is its length in bytes.
	FrameHead = 4 + 4 + 16 + int(columns)*8
	// MaxFrame is the longest frame's.
	MaxFrame = FrameHead + int(columns)*maxBatch

	stored     = 0 << 30
	zstdPacked = 1 << 30 // by older sources
	s2Packed   = 2 << 30
	lzhPacked  = 3 << 30
	howMask    = 3 << 30

	worthPacking = 64 // bytes: a shorter column is stored
)

// Packer makes frames of batches. Each goroutine needs its own.
type Packer struct {
	lzh *lzh.Packer
}

// Pack appends the batch's frame to dst.
func (p *Packer) Pack(dst []byte, b *Batch) []byte {
	from := len(dst)
	dst = append(dst, make([]byte, FrameHead)...)
	for i, col := range b.columns {
		at := len(dst)
		how := uint32(stored)
		if len(col) >= worthPacking && len(col) <= maxBatch && column(i) != noise && b.Level != Plain {
			dst, how = p.pack(dst, col, b.Level)
		}
		if n := len(dst) - at; how == stored || n >= len(col) {
			dst, how = append(dst[:at], col...), stored
		}
		b.packed[i] = len(dst) - at
		head := dst[from+24+8*i:]
		binary.BigEndian.PutUint32(head, uint32(len(col)))
		binary.BigEndian.PutUint32(head[4:], uint32(b.packed[i])|how)
	}
	b.frame = len(dst) - from
	head := dst[from:]
	binary.BigEndian.PutUint32(head, uint32(b.frame-FrameHead))
	binary.BigEndian.PutUint32(head[4:], uint32(b.size))
	copy(head[8:24], b.sum[:])
	return dst
}

func (p *Packer) pack(dst, col []byte, l Level) ([]byte, uint32) {
	if l == Fast {
		if p.lzh == nil {
			p.lzh = new(lzh.Packer)
		}
		return p.lzh.Append(dst, col), lzhPacked
	}
	at := len(dst)
	room := s2.MaxEncodedLen(len(col))
	if cap(dst)-at < room {
		dst = append(dst, make([]byte, room)...)
	}
	return dst[:at+len(s2.Encode(dst[at:at+room], col))], s2Packed
}

// Unpacked is how many bytes the columns of a frame with this head have, which an Unpacker accepts.
func Unpacked(head *[FrameHead]byte) int {
	n := 0
	for i := range int(columns) {
		n += int(min(binary.BigEndian.Uint32(head[24+8*i:]), maxBatch))
	}
	return n
}

// BodySize is how many bytes of a frame follow its head.
func BodySize(head *[FrameHead]byte) (int, error) {
	n := binary.BigEndian.Uint32(head[:])
	if n > uint32(MaxFrame-FrameHead) {
		return 0, fmt.Errorf("%w: a frame of %d bytes", ErrCorrupt, n)
	}
	return int(n), nil
}

// Unpacker makes batches of frames. Each goroutine needs its own.
type Unpacker struct {
	zstd *zstd.Decoder
	lzh  lzh.Unpacker
}

// Unpack fills b, which is reset, from a frame's head and body.
func (u *Unpacker) Unpack(b *Batch, head *[FrameHead]byte, body []byte) error {
	b.Reset()
	size := binary.BigEndian.Uint32(head[4:])
	if size > maxBatch {
		return fmt.Errorf("%w: a batch of %d bytes", ErrCorrupt, size)
	}
	b.size, b.frame = int(size), FrameHead+len(body)
	copy(b.sum[:], head[8:24])
	for i := range b.columns {
		n, packed := binary.BigEndian.Uint32(head[24+8*i:]), binary.BigEndian.Uint32(head[28+8*i:])
		how := packed & howMask
		packed &^= howMask
		if n > maxBatch || int(packed) > len(body) {
			return fmt.Errorf("%w: a column of %d bytes, packed %d", ErrCorrupt, n, packed)
		}
		b.packed[i] = int(packed)
		col, err := u.unpack(b.columns[i][:0], body[:packed], int(n), how)
		if err != nil {
			return err
		}
		b.columns[i], body = col, body[packed:]
	}
	if len(body) > 0 {
		return fmt.Errorf("%w: %d bytes behind the columns", ErrCorrupt, len(body))
	}
	return nil
}

// unpack unpacks n bytes, no more than maxBatch, into dst.
func (u *Unpacker) unpack(dst, packed []byte, n int, how uint32) ([]byte, error) {
	var err error
	switch how {
	case stored:
		dst = append(dst, packed...)
	case s2Packed:
		if l, e := s2.DecodedLen(packed); e != nil || l != n {
			return nil, fmt.Errorf("%w: unpack column: %d bytes, %w", ErrCorrupt, l, e)
		}
		dst = room(dst, n)
		dst, err = s2.Decode(dst[:n], packed)
	case zstdPacked:
		if u.zstd == nil {
			u.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBatch),
				zstd.WithDecodeAllCapLimit(true), zstd.IgnoreChecksum(true))
			if err != nil {
				return nil, fmt.Errorf("make zstd decoder: %w", err)
			}
		}
		dst, err = u.zstd.DecodeAll(packed, room(dst, n+lzh.Slack))
	case lzhPacked:
		dst, err = u.lzh.Unpack(room(dst, n+lzh.Slack), packed, n)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: unpack column: %w", ErrCorrupt, err)
	}
	if len(dst) != n {
		return nil, fmt.Errorf("%w: a column of %d bytes, not %d", ErrCorrupt, len(dst), n)
	}
	return dst, nil
}

// room is dst, empty, with a capacity of n at least. Many batches may wait at a destination, and most columns
// are short.
func room(dst []byte, n int) []byte {
	const step = 32 << 10
	if cap(dst) < n {
		return make([]byte, 0, (n+step-1)/step*step)
	}
	return dst[:0]
}
