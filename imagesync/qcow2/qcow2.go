// Package qcow2 reads disk images in QEMU's qcow2 format, so that they can be imported.
// It reads images as people have them: versions 2 and 3, clusters of 512 bytes to 2 MiB,
// chains of backing files, deflate and zstd, zero and preallocated clusters, subclusters.
//
// Nobody vouches for an image. Whoever uploads one chooses every byte of it, and the
// format's tables are full of offsets; QEMU's readers of them have a history of CVEs. So:
//
//   - A file that contradicts itself is refused, not read as well as it can be. What reads
//     differently here than in QEMU would be a disk that nobody tested.
//   - Every host cluster has one owner. A table or data cluster that lies where another one,
//     the header or a refcount block lies, is refused, once the second of the two is met: in
//     Open for tables, in Check, Extents and ReadAt for the rest. Compressed clusters share
//     host clusters by design, but only among themselves.
//   - Memory is bounded by the file's real size and by constants, whatever the file
//     announces: an L1 table of 32 MiB at most, a few L2 tables, two clusters, and two bits
//     for each host cluster that is in use. A compressed cluster yields one cluster, or none.
//   - An image opens no file. The names of backing files are the uploader's choice ("name
//     the host's own disk as backing file" is an old trick), so the caller opens them, by
//     Options.Backing, or there are none. Their formats are never guessed: a guest that
//     writes a qcow2 header onto its raw disk would else choose the backing file.
//
// Only the active state is read. Internal snapshots, saved machine states and persistent
// dirty bitmaps are left alone, and Ignored says so. Encrypted images, external data files
// and features that are not known are refused, with the command that makes the image
// readable.
//
// The package is pure: no files, no locks, no clock. An Image is therefore for one
// goroutine at a time; who wants to read in parallel opens the same reader twice.
//
// Source: docs/interop/qcow2.rst in QEMU's repository, and qemu-img, against which the
// tests hold every content byte for byte.
package qcow2

import (
	"errors"
	"fmt"
	"io"
)

// MaxSize is the largest disk that is read, in bytes; Options may say less.
const MaxSize = 64 << 40

// maxChain is how many files a chain may have. Backing files that form a loop end there.
const maxChain = 32

// ErrCorrupt is wrapped by errors about images that contradict themselves.
var ErrCorrupt = errors.New("damaged qcow2 image")

// ErrUnsupported is wrapped by errors about images that are in order and not read here.
var ErrUnsupported = errors.New("qcow2 image that cannot be read")

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
}

// Options are the caller's part of opening an image.
type Options struct {
	// MaxSize refuses larger disks; bytes, 0 for MaxSize.
	MaxSize int64

	// Backing opens a backing file and returns its size in bytes. Name and format ("raw" or
	// "qcow2") are what the image says, and the image is not to be trusted. Without Backing
	// an image that has a backing file is refused.
	Backing func(name, format string) (r io.ReaderAt, size int64, err error)
}

// layer is an image of a chain.
type layer interface {
	io.ReaderAt
	Size() int64
	// status says whether the bytes at off read as zeros that nobody stored, and for how
	// many bytes up to n that is so.
	status(off, n int64) (run int64, zero bool, err error)
}

// raw is a backing file that is a disk byte for byte.
type raw struct {
	io.ReaderAt
	size int64
}

func (r raw) Size() int64 { return r.size }

func (r raw) status(off, n int64) (int64, bool, error) { return min(n, r.size-off), false, nil }

// Image is an opened image.
type Image struct {
	header
	r        io.ReaderAt
	fileSize int64
	base     layer // nil for none
	l1       []uint64
	refs     []uint64 // the refcount table
	owners   owners
	checked  []uint64 // one bit for each L2 table: its clusters have their owner
	tables   []table  // L2 tables that were read, the last used one first
	unpacked unpacker
}

// Open reads the header, the L1 table and the refcount table of an image whose file has
// size bytes, opens its backing files, and checks all of it. r is used until the Image is
// no longer.
func Open(r io.ReaderAt, size int64, o Options) (*Image, error) {
	if o.MaxSize <= 0 || o.MaxSize > MaxSize {
		o.MaxSize = MaxSize
	}
	return open(r, size, o, 1)
}

func open(r io.ReaderAt, size int64, o Options, depth int) (*Image, error) {
	h, err := readHeader(r, size, o.MaxSize)
	if err != nil {
		return nil, err
	}
	im := &Image{header: *h, r: r, fileSize: size}
	if im.owners, err = newOwners(size, h.clusterBits); err != nil {
		return nil, err
	}
	if err := im.readTables(); err != nil {
		return nil, err
	}
	if h.backing == "" {
		return im, nil
	}
	im.base, err = openBacking(h, o, depth)
	if err != nil {
		return nil, fmt.Errorf("open backing file %q: %w", h.backing, err)
	}
	return im, nil
}

func openBacking(h *header, o Options, depth int) (layer, error) {
	switch {
	case o.Backing == nil:
		return nil, unsupported("the image is only the difference to a backing file; make it whole with " +
			`qemu-img convert -O qcow2 IMAGE NEW, or in place with qemu-img rebase -b "" IMAGE`)
	case depth >= maxChain:
		return nil, unsupported("a chain of more than %d files, or a loop; flatten it with qemu-img convert -O qcow2", maxChain)
	case h.format == "":
		return nil, unsupported("the image does not say what format it has; say it with qemu-img rebase -u -b FILE -F FORMAT IMAGE")
	case h.format != string(Raw) && h.format != string(QCOW2):
		return nil, unsupported("its format is %q; raw and qcow2 are read", h.format)
	}
	r, size, err := o.Backing(h.backing, h.format)
	if err != nil {
		return nil, err
	}
	if h.format == string(QCOW2) {
		return open(r, size, o, depth+1)
	}
	if size < 0 || size > MaxSize {
		return nil, unsupported("a disk of %d bytes; the limit is %d", size, int64(MaxSize))
	}
	return raw{r, size}, nil
}

// Size is the disk's size in bytes.
func (im *Image) Size() int64 { return im.size }

// Backing is the name of the backing file, as the image says it; "" for none.
func (im *Image) Backing() string { return im.backing }

// Ignored says, a sentence each, what the image's files hold beside the disk's active
// state. None of it is read.
func (im *Image) Ignored() []string {
	var said []string
	if im.snapshots > 0 {
		said = append(said, fmt.Sprintf("%d internal snapshots are not imported; qemu-img convert -l NAME makes an image of one", im.snapshots))
	}
	if im.bitmaps {
		said = append(said, "persistent dirty bitmaps are not imported")
	}
	if base, ok := im.base.(*Image); ok {
		for _, s := range base.Ignored() {
			said = append(said, fmt.Sprintf("backing file %q: %s", im.backing, s))
		}
	}
	return said
}

// ReadAt reads the disk's content, as io.ReaderAt does, but for one goroutine at a time.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read qcow2 image at %d: before its beginning", off)
	}
	if off >= im.size {
		return 0, io.EOF
	}
	want := len(p)
	p = p[:min(int64(len(p)), im.size-off)]
	for done := 0; done < len(p); {
		at := off + int64(done)
		piece, err := im.lookup(at)
		if err != nil {
			return done, err
		}
		q := p[done:]
		q = q[:min(int64(len(q)), piece.n)]
		if err := im.read(q, at, piece); err != nil {
			return done, fmt.Errorf("read disk at %d: %w", at, err)
		}
		done += len(q)
	}
	if len(p) < want {
		return len(p), io.EOF
	}
	return len(p), nil
}

// read fills p from one piece, which begins at off and is at least as long.
func (im *Image) read(p []byte, off int64, s piece) error {
	switch s.kind {
	case kindHole:
		return im.readBase(p, off)
	case kindZero:
		clear(p)
		return nil
	case kindData:
		return readFull(im.r, p, s.host)
	}
	content, err := im.unpack(s)
	if err != nil {
		return err
	}
	copy(p, content[off&(im.cluster()-1):])
	return nil
}

// readBase reads from the backing file, which may be shorter than the image.
func (im *Image) readBase(p []byte, off int64) error {
	if im.base != nil && off < im.base.Size() {
		n := min(int64(len(p)), im.base.Size()-off)
		if err := readFull(im.base, p[:n], off); err != nil {
			return fmt.Errorf("backing file %q: %w", im.backing, err)
		}
		p = p[n:]
	}
	clear(p)
	return nil
}

// Extents calls yield for each run of bytes of the disk, in order and without gaps, until
// it returns false. A run that is zero need not be read: no file of the chain stores
// anything for it. What is not zero may hold zeros all the same. A nil error after the last
// run means that all of the image's tables were checked, as Check does.
func (im *Image) Extents(yield func(off, n int64, zero bool) bool) error {
	start, was := int64(0), false // the run that has not ended yet
	for off := int64(0); off < im.size; {
		n, zero, err := im.status(off, im.size-off)
		if err != nil {
			return err
		}
		if off > start && zero != was {
			if !yield(start, off-start, was) {
				return nil
			}
			start = off
		}
		off, was = off+n, zero
	}
	if im.size > start {
		yield(start, im.size-start, was)
	}
	return nil
}

// status looks at one piece only. Were runs joined at every level of a chain, each level
// would look twice at what ended the run of the level below: 2^32 times, at maxChain.
func (im *Image) status(off, n int64) (run int64, zero bool, err error) {
	n = min(n, im.size-off)
	s, err := im.lookup(off)
	if err != nil {
		return 0, false, err
	}
	n = min(n, s.n)
	if s.kind == kindHole {
		return im.baseStatus(off, n)
	}
	return n, s.kind == kindZero, nil
}

func (im *Image) baseStatus(off, n int64) (int64, bool, error) {
	if im.base == nil || off >= im.base.Size() {
		return n, true, nil
	}
	run, zero, err := im.base.status(off, n)
	if err != nil {
		err = fmt.Errorf("backing file %q: %w", im.backing, err)
	}
	return run, zero, err
}

// Check reads every table of the image and of its backing files, and none of the data. An
// image that passes may still hold compressed clusters that do not decompress.
func (im *Image) Check() error {
	for i := range im.l1Needed() {
		if im.l1[i]&entryOffset == 0 {
			continue
		}
		if _, err := im.table(i); err != nil {
			return err
		}
	}
	if base, ok := im.base.(*Image); ok {
		if err := base.Check(); err != nil {
			return fmt.Errorf("backing file %q: %w", im.backing, err)
		}
	}
	return nil
}

// readFull reads all of p; a reader that ends before is an error.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}
