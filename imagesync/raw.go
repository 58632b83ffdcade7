package imagesync

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Raw is a raw image in a file or a block device. Holes of a file are not read.
type Raw struct {
	f    *os.File
	size int64
}

// OpenRaw opens a raw image.
func OpenRaw(file string) (*Raw, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	size, err := f.Seek(0, io.SeekEnd) // a block device's Stat has no size
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open image: %w", err)
	}
	return &Raw{f, size}, nil
}

// Size is the image's, in bytes.
func (r *Raw) Size() int64 { return r.size }

// ReadAt is io.ReaderAt's.
func (r *Raw) ReadAt(p []byte, off int64) (int, error) { return r.f.ReadAt(p, off) }

// Close closes the file.
func (r *Raw) Close() error { return r.f.Close() }

// Extents is Source's.
func (r *Raw) Extents(yield func(off, length int64, zero bool) bool) error {
	for off := int64(0); off < r.size; {
		data, err := unix.Seek(int(r.f.Fd()), off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // holes up to the end
			data = r.size
		case err != nil: // no such thing here: all is data
			yield(off, r.size-off, false)
			return nil
		}
		if data > off && !yield(off, data-off, true) {
			return nil
		}
		if data >= r.size {
			return nil
		}
		hole, err := unix.Seek(int(r.f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("look for holes: %w", err)
		}
		hole = min(hole, r.size)
		if !yield(data, hole-data, false) {
			return nil
		}
		off = hole
	}
	return nil
}
