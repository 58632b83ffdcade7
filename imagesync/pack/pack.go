// Package pack is the files in which an image store keeps chunks.
//
// A pack is a file of some hundred chunks, since a file for each would be sixteen thousand a
// GiB, and a request each in a bucket. It is named by its own BLAKE3 hash and never changed. No
// two are alike, even of the same chunks: GC may be about to delete the other one.
//
//	magic, 8 random bytes, the chunks, each a zstd frame, an S2 block or as it is
//	for each chunk: ID, where it begins u32, stored bytes u32, whose two top bits say which
//	BLAKE3 of these entries, how many u32, magic
package pack

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/manifest"
)

const (
	Dir   = "packs"                             // where a store has them
	Full  = 32 << 20                            // bytes, about, at which a pack is full
	Limit = Full + 2*manifest.ChunkSize + 1<<20 // bytes of the largest
	Open  = -1                                  // the Place.Pack of one that is being filled

	magic     = "heliotrope image pack 1\n"
	entrySize = 32 + 4 + 4
	tailSize  = 32 + 4 + len(magic)
	byZstd    = 1 << 31
	byS2      = 1 << 30
)

// Place is where a chunk is.
type Place struct {
	Pack   int32 // the store's number of the pack
	Off    uint32
	stored uint32 // bytes; with byZstd or byS2
}

// Len is how many bytes it takes there.
func (p Place) Len() int { return int(p.stored &^ (byZstd | byS2)) }

// Packer fills a pack.
type Packer struct {
	buf   bytes.Buffer
	ids   []manifest.ID
	where []Place
}

// Add takes a chunk as Compress made it.
func (p *Packer) Add(id manifest.ID, stored []byte, by uint32) Place {
	if p.buf.Len() == 0 {
		p.buf.Grow(Limit)
		p.buf.WriteString(magic)
		var nonce [8]byte
		rand.Read(nonce[:])
		p.buf.Write(nonce[:])
	}
	at := Place{Pack: Open, Off: uint32(p.buf.Len()), stored: uint32(len(stored)) | by}
	p.buf.Write(stored)
	p.ids, p.where = append(p.ids, id), append(p.where, at)
	return at
}

// Len is how many bytes the pack has so far.
func (p *Packer) Len() int { return p.buf.Len() }

// Empty says whether nothing was added.
func (p *Packer) Empty() bool { return len(p.ids) == 0 }

// Chunk reads a chunk that was added.
func (p *Packer) Chunk(id manifest.ID, at Place, dst []byte) error {
	return Expand(id, p.buf.Bytes()[at.Off:][:at.Len()], at, dst)
}

// Seal ends the pack and returns its name and content; the Packer is empty then.
func (p *Packer) Seal() (name string, content []byte, ids []manifest.ID, where []Place) {
	entries := make([]byte, 0, len(p.ids)*entrySize)
	for i, id := range p.ids {
		entries = append(entries, id[:]...)
		entries = binary.BigEndian.AppendUint32(entries, p.where[i].Off)
		entries = binary.BigEndian.AppendUint32(entries, p.where[i].stored)
	}
	hash := blake3.Sum256(entries)
	p.buf.Write(entries)
	p.buf.Write(hash[:])
	p.buf.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p.ids))))
	p.buf.WriteString(magic)
	content, ids, where = p.buf.Bytes(), p.ids, p.where
	*p = Packer{}
	return Name(content), content, ids, where
}

// Name is the file of a pack.
func Name(content []byte) string {
	hash := blake3.Sum256(content)
	return Dir + "/" + hex.EncodeToString(hash[:16])
}

// ReadIndex reads what is in a pack; one that is damaged is an error that says so.
func ReadIndex(ctx context.Context, d depot.Depot, pack depot.Info) (ids []manifest.ID, where []Place, err error) {
	damaged := fmt.Errorf("read %s: %w", pack.Name, ErrDamaged)
	if pack.Size < int64(tailSize) || pack.Size > Limit {
		return nil, nil, damaged
	}
	tail := make([]byte, min(pack.Size, 64<<10)) // the entries of nearly all packs
	if err := d.ReadAt(ctx, pack.Name, tail, pack.Size-int64(len(tail))); err != nil {
		return nil, nil, err
	}
	end := tail[len(tail)-tailSize:]
	n := int64(binary.BigEndian.Uint32(end[32:]))
	if string(end[36:]) != magic || n*entrySize > pack.Size-int64(tailSize) {
		return nil, nil, damaged
	}
	if all := n*entrySize + int64(tailSize); all > int64(len(tail)) {
		tail = make([]byte, all)
		if err := d.ReadAt(ctx, pack.Name, tail, pack.Size-all); err != nil {
			return nil, nil, err
		}
	}
	entries := tail[len(tail)-tailSize-int(n)*entrySize : len(tail)-tailSize]
	if hash := blake3.Sum256(entries); !bytes.Equal(hash[:], end[:32]) {
		return nil, nil, damaged
	}
	chunks := pack.Size - int64(tailSize) - int64(len(entries))
	for e := entries; len(e) > 0; e = e[entrySize:] {
		at := Place{Off: binary.BigEndian.Uint32(e[32:]), stored: binary.BigEndian.Uint32(e[36:])}
		if int64(at.Off)+int64(at.Len()) > chunks || at.Len() > manifest.ChunkSize {
			return nil, nil, damaged
		}
		ids, where = append(ids, manifest.ID(e[:32])), append(where, at)
	}
	return ids, where, nil
}

// ErrDamaged is that of bytes in the store that are not what was written.
var ErrDamaged = errors.New("damaged: not what was written")

// The codecs keep a coder for each goroutine that wants one.
var (
	encoder = must(zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(manifest.ChunkSize), zstd.WithEncoderCRC(false)))
	decoder = must(zstd.NewReader(nil, zstd.WithDecoderMaxMemory(manifest.ChunkSize), zstd.WithDecoderConcurrency(0)))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // the options are constants
	}
	return v
}

// Compress is a chunk as it is stored. What does not get an eighth smaller is left as it is: it
// would cost each reader more than it saves. S2 takes a third of zstd's time and a quarter more
// room: it is for copies, which somebody waits for and which can be had again.
func Compress(chunk, buf []byte, copied bool) (stored []byte, by uint32) {
	if copied {
		stored, by = s2.Encode(buf[:cap(buf)], chunk), byS2
	} else {
		stored, by = encoder.EncodeAll(chunk, buf[:0]), byZstd
	}
	if len(stored) > len(chunk)*7/8 {
		return chunk, 0
	}
	return stored, by
}

// BufferSize is what Compress needs of its buffer.
var BufferSize = s2.MaxEncodedLen(manifest.ChunkSize)

// Expand makes the chunk of what is stored, and checks that it is the one.
func Expand(id manifest.ID, stored []byte, at Place, dst []byte) error {
	out, err := stored, error(nil)
	switch at.stored & (byZstd | byS2) {
	case byZstd:
		out, err = decoder.DecodeAll(stored, dst[:0:len(dst)]) // it may write to all of the capacity
	case byS2:
		if n, wrong := s2.DecodedLen(stored); wrong != nil || n != manifest.ChunkSize {
			err = ErrDamaged
		} else {
			out, err = s2.Decode(dst[:len(dst):len(dst)], stored)
		}
	}
	if err != nil || len(out) != manifest.ChunkSize {
		return fmt.Errorf("chunk %.16s: %w", id, ErrDamaged)
	}
	copy(dst, out) // nothing, if it is in dst already
	if manifest.Name(dst) != id {
		return fmt.Errorf("chunk %.16s: %w", id, ErrDamaged)
	}
	return nil
}
