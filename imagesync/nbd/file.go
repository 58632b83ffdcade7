package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is a device that is a raw image: a file, or a block device.
//
// A flush that fails stays failed. The kernel tells of a page that could not be written only
// once and then takes it for clean, so another fdatasync would succeed and be wrong; the file
// must be opened anew, and read.
type File struct {
	f     *os.File
	fd    int // f's, while it is open
	size  int64
	block bool

	waits atomic.Bool // the file system cannot say whether a read would wait

	mu     sync.Mutex
	failed error // the flush that did
	// Where data was found last, since looking for the next hole may take long. Holes come
	// only by way of the device, which forgets it then.
	from, to int64
	holes    int // times that there were more
}

// OpenFile opens an image. Its size stays what it is now.
func OpenFile(path string, readOnly bool) (*File, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	d := &File{f: f, fd: int(f.Fd())}
	info, err := f.Stat()
	if err == nil {
		switch mode := info.Mode(); {
		case mode.IsRegular():
			d.size = info.Size()
		case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
			d.block = true
			d.size, err = f.Seek(0, io.SeekEnd)
		default:
			err = fmt.Errorf("%s is neither a file nor a block device", path)
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open image: %w", err)
	}
	return d, nil
}

// Close closes the image. Nothing may be served of it any more.
func (d *File) Close() error { return d.f.Close() }

// Size implements Device.
func (d *File) Size() int64 { return d.size }

// ReadAt implements Device. A part that somebody cut off the file is an error.
func (d *File) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := d.f.ReadAt(p, off)
	return noEOF(err)
}

// ReadNow implements Immediate: it takes what the page cache has.
func (d *File) ReadNow(p []byte, off int64) bool {
	if d.waits.Load() {
		return false
	}
	n, err := unix.Preadv2(d.fd, [][]byte{p}, off, unix.RWF_NOWAIT)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		d.waits.Store(true)
	}
	return err == nil && n == len(p)
}

// Backing implements Backed: it is all in the file.
func (d *File) Backing(off, _ int64) (*os.File, int64) { return d.f, off }

// WriteAt implements Device.
func (d *File) WriteAt(_ context.Context, p []byte, off int64, fua bool) error {
	if !fua {
		_, err := d.f.WriteAt(p, off)
		return err
	}
	if err := d.failure(); err != nil {
		return err
	}
	for len(p) > 0 {
		n, err := unix.Pwritev2(d.fd, [][]byte{p}, off, unix.RWF_DSYNC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			err = fmt.Errorf("write through: %w", err)
			if errors.Is(err, unix.EIO) { // others mean that nothing was written
				d.fail(err)
			}
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Flush implements Device.
func (d *File) Flush(context.Context) error {
	if err := d.failure(); err != nil {
		return err
	}
	for {
		switch err := unix.Fdatasync(d.fd); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			err = fmt.Errorf("flush: %w", err)
			d.fail(err)
			return err
		default:
			return nil
		}
	}
}

func (d *File) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failed
}

func (d *File) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed == nil {
		d.failed = fmt.Errorf("an earlier write is lost: %w", err)
	}
}

// Trim implements Device. Where nothing can be given back, nothing is.
func (d *File) Trim(_ context.Context, off, n int64) error {
	err := d.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if cannot(err) || d.block && errors.Is(err, unix.EINVAL) { // a part of a sector
		return nil
	}
	return err
}

// Zero implements Device.
func (d *File) Zero(ctx context.Context, off, n int64, mayTrim bool) error {
	err := d.ZeroFast(ctx, off, n, mayTrim)
	if !errors.Is(err, ErrNotFast) {
		return err
	}
	zeros := newBuffer(pieceSize)
	defer zeros.free()
	clear(zeros.data(pieceSize))
	for n > 0 && ctx.Err() == nil {
		part := min(n, pieceSize)
		if _, err := d.f.WriteAt(zeros.data(int(part)), off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return ctx.Err()
}

// ZeroFast implements FastZeroer.
func (d *File) ZeroFast(_ context.Context, off, n int64, mayTrim bool) error {
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	if mayTrim {
		mode = unix.FALLOC_FL_PUNCH_HOLE
	}
	err := d.fallocate(mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if cannot(err) || d.block && errors.Is(err, unix.EINVAL) {
		return ErrNotFast
	}
	return err
}

func (d *File) fallocate(mode uint32, off, n int64) error {
	defer d.forget()
	for {
		if err := unix.Fallocate(d.fd, mode, off, n); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func cannot(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENODEV)
}

// Extents implements Device. What has no data in the file is told as a hole, though space may
// have been set apart for it.
func (d *File) Extents(_ context.Context, off, n int64, yield func(Extent) bool) error {
	for end := off + n; off < end; {
		from, to, err := d.data(off, end)
		if err != nil {
			return err
		}
		if from > off && !yield(Extent{Length: from - off, Hole: true, Zero: true}) || to > from && !yield(Extent{Length: to - from}) {
			return nil
		}
		off = to
	}
	return nil
}

// data finds the first data in a range. A file system that does not know says that all is.
func (d *File) data(off, end int64) (from, to int64, err error) {
	if d.block {
		return off, end, nil
	}
	known, holes := d.known(off)
	if known > off {
		return off, min(known, end), nil
	}
	from, err = unix.Seek(d.fd, off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return end, end, nil
	}
	if err != nil {
		return off, end, ignoreUnknown(err)
	}
	if from >= end {
		return end, end, nil
	}
	to, err = unix.Seek(d.fd, from, unix.SEEK_HOLE)
	if err != nil {
		return off, end, ignoreUnknown(err)
	}
	to = max(to, from+1)
	d.remember(from, to, holes)
	return from, min(to, end), nil
}

// known says up to where data is known to be from off on.
func (d *File) known(off int64) (to int64, holes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off >= d.from && off < d.to {
		to = d.to
	}
	return to, d.holes
}

func (d *File) remember(from, to int64, holes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if holes == d.holes {
		d.from, d.to = from, to
	}
}

func (d *File) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.from, d.to = 0, 0
	d.holes++
}

func ignoreUnknown(err error) error {
	if cannot(err) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return fmt.Errorf("find data: %w", err)
}

// Prefetch implements Prefetcher: the kernel begins to read.
func (d *File) Prefetch(_ context.Context, off, n int64) error {
	if err := unix.Fadvise(d.fd, off, n, unix.FADV_WILLNEED); err != nil && !cannot(err) {
		return fmt.Errorf("read ahead: %w", err)
	}
	return nil
}
