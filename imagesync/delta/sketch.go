package delta

import (
	"encoding/binary"
	"errors"

	"github.com/zeebo/xxh3"

	"heliotrope/imagesync/manifest"
)

const (
	chunkBlocks = manifest.ChunkSize / manifest.BlockSize
	pageBlocks  = manifest.PageSize / manifest.BlockSize
)

// Sketch has a digest of 64 bits for each block of an image, 0 for one of zeros. It is made
// while the image is read anyway, can be made again at any time, and is never trusted: two blocks
// that are taken for the same and are not make a page with a wrong hash, and are told.
type Sketch struct {
	pages [][]uint64 // pageBlocks each; nil: zeros
}

// NewSketch is that of an image of size zeros.
func NewSketch(size int64) *Sketch {
	return &Sketch{pages: make([][]uint64, (size+manifest.PageSize-1)/manifest.PageSize)}
}

// At is the digest of a block; beyond the end there are zeros.
func (s *Sketch) At(block int64) uint64 {
	p := block / pageBlocks
	if p >= int64(len(s.pages)) || s.pages[p] == nil {
		return 0
	}
	return s.pages[p][block%pageBlocks]
}

// Digests are those of a chunk's blocks.
type Digests [chunkBlocks]uint64

// DigestsOf makes those of a chunk, which has ChunkSize bytes.
func DigestsOf(chunk []byte) (d Digests) {
	for b := range d {
		d[b] = digest(chunk[b*manifest.BlockSize:][:manifest.BlockSize])
	}
	return d
}

// Set takes the digests of chunk i.
func (s *Sketch) Set(i int, d Digests) { copy(s.chunk(i), d[:]) }

// Copy takes those of chunk i from another sketch.
func (s *Sketch) Copy(i int, from *Sketch) {
	at := s.chunk(i)
	for b := range at {
		at[b] = from.At(int64(i)*chunkBlocks + int64(b))
	}
}

func (s *Sketch) chunk(i int) []uint64 {
	page := &s.pages[i/manifest.PageChunks]
	if *page == nil {
		*page = make([]uint64, pageBlocks)
	}
	return (*page)[i%manifest.PageChunks*chunkBlocks:][:chunkBlocks]
}

// digest is that of a block; 0 is that of zeros alone.
func digest(block []byte) uint64 {
	if manifest.IsZeros(block) {
		return 0
	}
	return max(xxh3.Hash(block), 1)
}

const sketchMagic = "heliotrope image sketch 1\n"

// Encode is the sketch as bytes: the magic, then for each page 0, or 1 and its digests.
func (s *Sketch) Encode() []byte {
	b := []byte(sketchMagic)
	for _, page := range s.pages {
		if page == nil {
			b = append(b, 0)
			continue
		}
		b = append(b, 1)
		for _, d := range page {
			b = binary.LittleEndian.AppendUint64(b, d)
		}
	}
	return b
}

// DecodeSketch reads what Encode wrote, for an image of size bytes.
func DecodeSketch(b []byte, size int64) (*Sketch, error) {
	wrong := errors.New("read sketch: it is none of this image")
	s := NewSketch(size)
	if len(b) < len(sketchMagic)+len(s.pages) || string(b[:len(sketchMagic)]) != sketchMagic {
		return nil, wrong
	}
	b = b[len(sketchMagic):]
	for p := range s.pages {
		if len(b) == 0 {
			return nil, wrong
		}
		kind := b[0]
		b = b[1:]
		if kind == 0 {
			continue
		}
		if kind != 1 || len(b) < 8*pageBlocks {
			return nil, wrong
		}
		s.pages[p] = make([]uint64, pageBlocks)
		for i := range s.pages[p] {
			s.pages[p][i] = binary.LittleEndian.Uint64(b[8*i:])
		}
		b = b[8*pageBlocks:]
	}
	if len(b) > 0 {
		return nil, wrong
	}
	return s, nil
}
