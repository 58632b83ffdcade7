// Package source opens what an image is imported from: a file of this machine, of whatever form
// (raw, or qcow2 with its backing files), and says of other forms what to do with them. What it
// opens was checked: package qcow2 refuses what no writer of images makes.
package source

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"heliotrope/imagesync"
	"heliotrope/imagesync/qcow2"
)

// File is a file that is imported, with its backing files.
type File struct {
	imagesync.Source
	files []io.Closer
}

// Close closes the files.
func (s *File) Close() {
	for _, f := range s.files {
		f.Close()
	}
}

// Open opens a file of a format, "" for what it looks like. Backing says whether a backing file
// may be read: the image itself names it, and it may be any file of this machine.
func Open(name, format string, backing bool) (*File, error) {
	raw, err := imagesync.OpenRaw(name)
	if err != nil {
		return nil, err
	}
	s := &File{Source: raw, files: []io.Closer{raw}}
	if format == "" {
		head := make([]byte, qcow2.HeadSize)
		n, err := raw.ReadAt(head, 0)
		if err != nil && err != io.EOF {
			s.Close()
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		format = string(qcow2.Detect(head[:n]))
	}
	switch qcow2.Format(format) {
	case qcow2.Raw:
		return s, nil
	case qcow2.QCOW2:
		o := qcow2.Options{}
		if backing {
			o.Backing = s.backing(filepath.Dir(name))
		}
		im, err := qcow2.Open(raw, raw.Size(), o)
		if err == nil {
			err = im.Check()
		}
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		s.Source = &oneAtATime{Image: im}
		return s, nil
	case qcow2.Gzip, qcow2.XZ, qcow2.Zstandard, qcow2.Bzip2, qcow2.Zip, qcow2.Tar:
		err = fmt.Errorf("%s is packed (%s): unpack it first", name, format)
	case qcow2.HTML:
		err = fmt.Errorf("%s is a web page, not an image: the download went wrong", name)
	default:
		err = fmt.Errorf("%s is in format %s: make it qcow2 first, with: qemu-img convert -f %[2]s -O qcow2 %[1]s NEW.qcow2", name, format)
	}
	s.Close()
	return nil, err
}

// backing opens the backing files that an image in dir names.
func (s *File) backing(dir string) func(name, format string) (io.ReaderAt, int64, error) {
	return func(name, _ string) (io.ReaderAt, int64, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		f, err := os.Open(name)
		if err != nil {
			return nil, 0, err
		}
		s.files = append(s.files, f)
		size, err := f.Seek(0, io.SeekEnd)
		return f, size, err
	}
}

// oneAtATime is an image whose reader keeps tables, which an import reads from many places.
type oneAtATime struct {
	*qcow2.Image
	mu sync.Mutex
}

func (o *oneAtATime) ReadAt(p []byte, off int64) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Image.ReadAt(p, off)
}

// Extents holds nothing while what it tells is read.
func (o *oneAtATime) Extents(yield func(off, length int64, zero bool) bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Image.Extents(func(off, length int64, zero bool) bool {
		o.mu.Unlock()
		defer o.mu.Lock()
		return yield(off, length, zero)
	})
}
