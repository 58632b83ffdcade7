package volume

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// file is what a volume or cache needs of a file. Another implementation is a disk that
// loses power, in the tests.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	// Datasync returns once everything written before would survive a power loss.
	Datasync() error
	// Reserve takes space for a range that may be behind the end, if there is some.
	Reserve(off, n int64)
	// Punch makes a range zeros and gives its space back, where that can be done.
	Punch(off, n int64) error
}

// directory is where a volume's or a cache's files are.
type directory interface {
	create(name string) (file, error) // empty, even if it was there
	open(name string) (file, error)
	rename(from, to string) error
	remove(name string) error
	// sync returns once names made, renamed and removed before are so after a power loss.
	sync() error
	// lock takes the lock of that name, which ends with the process at the latest. If wait
	// is false and another has it, the error is ErrInUse.
	lock(name string, wait bool) (io.Closer, error)
	used() (int64, error) // bytes on the disk
}

// errUnsafe is wrapped by errors after which nobody knows what is on the disk: Linux
// reports a failed write-back once, and then takes the lost pages for clean.
var errUnsafe = errors.New("the disk may have lost writes")

type osDirectory string

func (d osDirectory) path(name string) string { return filepath.Join(string(d), name) }

func (d osDirectory) create(name string) (file, error) {
	return openFile(d.path(name), os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}

func (d osDirectory) open(name string) (file, error) { return openFile(d.path(name), os.O_RDWR) }

func openFile(path string, flags int) (file, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d osDirectory) rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

func (d osDirectory) remove(name string) error {
	err := os.Remove(d.path(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (d osDirectory) sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("%w: sync %s: %w", errUnsafe, d, err)
	}
	return nil
}

func (d osDirectory) lock(name string, wait bool) (io.Closer, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			break
		}
	}
	if err == nil {
		return f, nil
	}
	f.Close()
	if err == unix.EWOULDBLOCK {
		return nil, fmt.Errorf("%s: %w", d, ErrInUse)
	}
	return nil, fmt.Errorf("lock %s: %w", d.path(name), err)
}

func (d osDirectory) used() (int64, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return 0, err
	}
	var total int64
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(d.path(e.Name()), &st); err == nil { // else it has just gone
			total += st.Blocks * 512
		}
	}
	return total, nil
}

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// control runs a system call on the descriptor, which is not closed meanwhile.
func (f osFile) control(call func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = c.Control(func(fd uintptr) {
		for {
			if failed = call(int(fd)); failed != unix.EINTR {
				return
			}
		}
	})
	if err == nil {
		err = failed
	}
	return err
}

func (f osFile) Datasync() error {
	if err := f.control(unix.Fdatasync); err != nil {
		return fmt.Errorf("%w: sync %s: %w", errUnsafe, f.Name(), err)
	}
	return nil
}

func (f osFile) Punch(off, n int64) error {
	err := f.control(func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // the space stays taken
	}
	return err
}

func (f osFile) Reserve(off, n int64) {
	_ = f.control(func(fd int) error { return unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, off, n) })
}

// replace writes a file anew: under another name, synced, renamed, and the name synced. What
// a crash leaves is the old file or the new one.
func replace(d directory, name string, fill func(f file) error) (file, error) {
	f, err := d.create(name + ".new")
	if err != nil {
		return nil, err
	}
	if err = fill(f); err == nil {
		err = f.Datasync()
	}
	if err == nil {
		err = d.rename(name+".new", name)
	}
	if err != nil {
		f.Close()
		return nil, errors.Join(err, d.remove(name+".new"))
	}
	if err := d.sync(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
