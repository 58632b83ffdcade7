// Package pages finds a guest's memory in the image that its disk stands on: the page cache of an
// operating system is blocks of 4 KiB of its disk, so where two hosts have the image, most of an
// idle guest's memory is at both.
//
// Page n of an image is the 4 KiB from n*4096 on: who has an image of that manifest numbers its
// pages the same way, and no digest has to be told. A host has of an image what package volume has
// cached, and of that:
//
//   - an Index, made once (Make), which finds the page that has a content. It is kept beside the cache,
//     as a file. What it says stays true: an image's content is its name. The source of a move reads it.
//   - an Image, which gives pages out. The destination reads no more of the cache than it is asked for,
//     and only what is there: nothing is fetched. It needs no index.
//
// The index goes by XXH3 of 64 bits with a seed that is drawn with the index and told to nobody, so that no guest
// can make a page that is taken for another. Two pages that are are found out by who uses this: a
// stream of memory has a hash of its own.
//
// Both ends look at a chunk as a whole, by its name, the first time: a bit that a disk has flipped gets
// into no index, and a page of a chunk that is damaged is not given out.
//
// The cache may be another process's, which writes it meanwhile: a chunk that has come since counts as not here, and
// of one that has gone its name, or that it is all zeros, tells.
package pages

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/volume"
	"heliotrope/imagesync/volume/bitmap"
	"heliotrope/imagesync/volume/present"
)

const (
	pageBytes  = manifest.BlockSize
	chunkPages = manifest.ChunkSize / pageBytes

	// MaxPages is how many pages an index has at most: 16 GiB of content. Those behind them are not found.
	MaxPages = 1 << 22
	// MaxSize is of an image that is used, in bytes: its pages have numbers of 32 bits.
	MaxSize = 8 << 40
)

// cache is what has come of an image.
type cache struct {
	*manifest.Manifest
	root   manifest.ID
	chunks *os.File
	here   bitmap.Set
}

// openCache opens the cache in dir, as it is now. Somebody else may have it open.
func openCache(dir string) (_ *cache, err error) {
	c := &cache{}
	if c.root, err = manifest.ParseID(filepath.Base(dir)); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, manifest.File))
	if err != nil {
		return nil, err
	}
	if c.Manifest, err = manifest.Decode(b); err != nil {
		return nil, err
	}
	switch {
	case c.Root() != c.root:
		return nil, errors.New("its manifest is that of another image")
	case c.Size() > MaxSize:
		return nil, fmt.Errorf("it has %d bytes, and pages are found in %d", c.Size(), int64(MaxSize))
	}
	f, err := os.Open(filepath.Join(dir, present.File))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if c.here, err = (present.Of{Size: c.Size(), Chunks: int64(c.Chunks()), Identity: c.root.String()}).Read(f, info.Size()); err != nil {
		return nil, err
	}
	c.chunks, err = os.Open(filepath.Join(dir, volume.ChunksFile))
	return c, err
}

// read reads a chunk as a whole, and looks at it.
func (c *cache) read(chunk int, dst *[manifest.ChunkSize]byte) error {
	if _, err := c.chunks.ReadAt(dst[:], int64(chunk)*manifest.ChunkSize); err != nil {
		return fmt.Errorf("read chunk %d: %w", chunk, err)
	}
	if manifest.Name(dst[:]) != c.At(chunk) {
		return fmt.Errorf("read chunk %d: it is another than it was", chunk)
	}
	return nil
}

// Image gives pages of an image out. It is not for use by several at once.
type Image struct {
	*cache
	seen bitmap.Set // chunks that were looked at
	last int        // the chunk that is in data; -1: none
	data [manifest.ChunkSize]byte
}

// Open opens what has come of an image, whose cache dir is.
func Open(dir string) (*Image, error) {
	c, err := openCache(dir)
	if err != nil {
		return nil, fmt.Errorf("open pages of %.16s: %w", filepath.Base(dir), err)
	}
	return &Image{cache: c, last: -1}, nil
}

// Close ends its use.
func (m *Image) Close() error { return m.chunks.Close() }

// Here says which chunks are here, for Index.Only: as pairs of a distance from where the last run ended, and
// a length. Chunks of zeros, which nobody asks for, are; an image of which all is here is one run.
func (m *Image) Here() (told []byte) {
	all := m.here.Clone()
	n := int64(m.Chunks())
	for i := range m.Chunks() {
		if m.At(i).IsZero() {
			all.Add(int64(i), int64(i)+1)
		}
	}
	end := int64(0)
	for from, to := range all.Runs(0, n) {
		told = binary.AppendUvarint(told, uint64(from-end))
		told = binary.AppendUvarint(told, uint64(to-from))
		end = to
	}
	return told
}

// Page writes the page of a number into dst. One that is not here is an error.
func (m *Image) Page(number uint64, dst *[pageBytes]byte) error {
	if number >= uint64(m.Chunks())*chunkPages {
		return fmt.Errorf("read page %d of an image: it has no more than %d", number, m.Chunks()*chunkPages)
	}
	chunk := int(number / chunkPages)
	if !m.here.Has(int64(chunk)) {
		return fmt.Errorf("read page %d of an image: it is not here", number)
	}
	if chunk != m.last && m.seen.Has(int64(chunk)) {
		if _, err := m.chunks.ReadAt(dst[:], int64(number)*pageBytes); err != nil {
			return fmt.Errorf("read page %d of an image: %w", number, err)
		}
		if manifest.IsZeros(dst[:]) {
			return fmt.Errorf("read page %d of an image: it has gone", number)
		}
		return nil
	}
	if chunk != m.last {
		m.last = -1
		if err := m.read(chunk, &m.data); err != nil {
			return fmt.Errorf("read page %d of an image: %w", number, err)
		}
		m.last = chunk
		m.seen.Add(int64(chunk), int64(chunk)+1)
	}
	copy(dst[:], m.data[number%chunkPages*pageBytes:])
	return nil
}
