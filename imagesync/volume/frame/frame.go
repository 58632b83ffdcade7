// Package frame is what a volume's journal is written in: frames of one sector each, which disks write whole or not at
// all. A frame is worth something only behind the one that its maker put it behind (Prev), in its place (Seq), in its
// file (Generation).
//
//	 0  CRC-32C of what follows
//	 4  CRC-32C of the frame before
//	 8  kind, a zero, length of the payload (2 bytes)
//	12  generation: how often the journal has been written anew
//	16  seq: the frame's number in the file
//	20  durable: the number of the last frame that was known to be on the disk
//	24  payload
//
// Where the frames end, a crash may have left anything. What tells a tail that was torn from
// acknowledged frames that were damaged is durable: behind the last acknowledged frame
// stands a mark that says so. It is written but not synced, and overwritten by the next
// frame. If a frame behind the damage says that the damaged one was once safe, the journal
// is refused; else it ends there.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"heliotrope/imagesync/volume/disk"
)

// Sizes in bytes.
const (
	Size    = 512
	Header  = 24
	Payload = Size - Header // at most
)

// Kind is what a frame says; it is its user's.
type Kind byte

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Position is where in a journal a frame stands.
type Position struct{ Generation, Seq, Durable, Prev uint32 }

// Put writes a frame to dst and moves on behind it.
func (p *Position) Put(dst []byte, kind Kind, payload []byte) {
	clear(dst[:Size])
	binary.LittleEndian.PutUint32(dst[4:], p.Prev)
	dst[8] = byte(kind)
	binary.LittleEndian.PutUint16(dst[10:], uint16(len(payload)))
	binary.LittleEndian.PutUint32(dst[12:], p.Generation)
	binary.LittleEndian.PutUint32(dst[16:], p.Seq)
	binary.LittleEndian.PutUint32(dst[20:], p.Durable)
	copy(dst[Header:], payload)
	p.Prev = crc32.Checksum(dst[4:Size], castagnoli)
	binary.LittleEndian.PutUint32(dst, p.Prev)
	p.Seq++
}

// whole says whether a frame is as it was written, wherever that was.
func whole(frame []byte) bool {
	return binary.LittleEndian.Uint32(frame) == crc32.Checksum(frame[4:Size], castagnoli) &&
		int(binary.LittleEndian.Uint16(frame[10:])) <= Payload
}

// Next returns a frame's kind and payload if it is the one that stands at p, and moves on.
func (p *Position) Next(frame []byte) (kind Kind, payload []byte, ok bool) {
	if !whole(frame) || p.Seq != binary.LittleEndian.Uint32(frame[16:]) || p.Prev != binary.LittleEndian.Uint32(frame[4:]) {
		return 0, nil, false
	}
	if generation := binary.LittleEndian.Uint32(frame[12:]); p.Seq == 0 {
		p.Generation = generation
	} else if generation != p.Generation {
		return 0, nil, false
	}
	p.Prev = binary.LittleEndian.Uint32(frame)
	p.Durable = binary.LittleEndian.Uint32(frame[20:])
	p.Seq++
	return Kind(frame[8]), frame[Header:][:binary.LittleEndian.Uint16(frame[10:])], true
}

// CheckTail reads what stands behind the end at p, and fails if a frame there says that there
// was one at p once.
func CheckTail(in io.Reader, p Position) error {
	frame := make([]byte, Size)
	for {
		_, err := io.ReadFull(in, frame)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
		generation, at, durable := binary.LittleEndian.Uint32(frame[12:]), binary.LittleEndian.Uint32(frame[16:]), binary.LittleEndian.Uint32(frame[20:])
		if whole(frame) && generation == p.Generation && at > p.Seq && durable >= p.Seq {
			return fmt.Errorf("%w: frame %d is not as it was written, and frame %d knows that it was on the disk", disk.ErrDamaged, p.Seq, at)
		}
	}
}
