// Package present is the file by which a cache of an image remembers which chunks it has (package
// volume), for its owner, who writes it, and for others on the host, who read it meanwhile.
//
// It has pages of a sector, which disks write whole or not at all: the first says whose it is, each
// other one has a CRC-32C, its number, and the bits of its chunks. A page that is not whole is one
// that a crash has torn, or that is being written: its chunks are as if they were not here.
package present

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"heliotrope/imagesync/volume/bitmap"
	"heliotrope/imagesync/volume/disk"
)

// Sizes in bytes, of a page and of what stands before its bits, and how many bits that leaves.
const (
	PageSize = 512
	pageHead = 8
	PageBits = (PageSize - pageHead) * 8
)

// File is the file's name.
const File = "present"

// Of says which image a bitmap is of.
type Of struct {
	Size     int64  // bytes
	Chunks   int64  // how many it has
	Identity string // at most 256 bytes
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func seal(page []byte) []byte {
	binary.LittleEndian.PutUint32(page, crc32.Checksum(page[4:], castagnoli))
	return page
}

func sealed(page []byte) bool {
	return binary.LittleEndian.Uint32(page) == crc32.Checksum(page[4:], castagnoli)
}

func (o Of) header() []byte {
	page := make([]byte, PageSize)
	binary.LittleEndian.PutUint64(page[4:], uint64(o.Size))
	binary.LittleEndian.PutUint16(page[12:], uint16(len(o.Identity)))
	copy(page[14:], o.Identity)
	return seal(page)
}

// Create makes an empty bitmap in place of what there is.
func (o Of) Create(d disk.Directory) (disk.File, error) {
	return disk.Replace(d, File, func(f disk.File) error {
		_, err := f.WriteAt(o.header(), 0)
		return err
	})
}

// Read reads a bitmap's file, of so many bytes.
func (o Of) Read(f io.ReaderAt, size int64) (have bitmap.Set, err error) {
	page := make([]byte, PageSize)
	if _, err := f.ReadAt(page, 0); err != nil {
		return have, fmt.Errorf("read bitmap: %w", err)
	}
	if string(page) != string(o.header()) {
		return have, errors.New("it is that of another base, or damaged; it can be deleted, and fills again")
	}
	in := io.NewSectionReader(f, PageSize, size-PageSize)
	for n := int64(0); n*PageBits < o.Chunks; n++ {
		if _, err := io.ReadFull(in, page); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				break
			}
			return have, fmt.Errorf("read bitmap: %w", err)
		}
		if !sealed(page) || binary.LittleEndian.Uint32(page[4:]) != uint32(n) {
			continue
		}
		for bit := range min(PageBits, o.Chunks-n*PageBits) {
			if page[pageHead+bit/8]>>(bit%8)&1 != 0 {
				have.Add(n*PageBits+bit, n*PageBits+bit+1)
			}
		}
	}
	return have, nil
}

// Write writes the pages that have one of the changed chunks.
func (o Of) Write(f disk.File, have, changed *bitmap.Set) error {
	for n := int64(0); n*PageBits < o.Chunks; n++ {
		first, end := n*PageBits, min((n+1)*PageBits, o.Chunks)
		if !changed.Any(first, end) {
			continue
		}
		page := make([]byte, PageSize)
		binary.LittleEndian.PutUint32(page[4:], uint32(n))
		for from, to := range have.Runs(first, end) {
			for i := from - first; i < to-first; i++ {
				page[pageHead+i/8] |= 1 << (i % 8)
			}
		}
		if _, err := f.WriteAt(seal(page), (n+1)*PageSize); err != nil {
			return err
		}
	}
	return f.Datasync()
}
