// Package disk is what volumes and caches ask of the file system below them: a directory of a
// few files, and of these and their names what survives a power loss, and when.
//
// It is told by two interfaces, Directory and File, so that the tests of volumes can put a disk
// below them whose power is cut; OSDirectory and OSFile are the host's. What holds:
//
//   - What was written, made, renamed or removed survives once a sync has returned, and may or may
//     not before. Replace is made of this, so it leaves the old file or the new one.
//   - A sync that failed is ErrUnsafe, and trying again proves nothing.
//   - A lock is the kernel's, so none outlives its process. Who finds it taken gets ErrInUse.
package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// File is what a volume or cache needs of a file. Another implementation is a disk that
// loses power, in the tests.
type File interface {
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

// Directory is where a volume's or a cache's files are.
type Directory interface {
	Create(name string) (File, error) // empty, even if it was there
	Open(name string) (File, error)   // os.ErrNotExist if it is not there
	Rename(from, to string) error
	Remove(name string) error // nil, too, if it is not there
	// Sync returns once names made, renamed and removed before are so after a power loss.
	Sync() error
	// Lock takes the lock of that name, which ends with the process at the latest. If wait
	// is false and another has it, the error is ErrInUse.
	Lock(name string, wait bool) (io.Closer, error)
	Used() (int64, error) // bytes on the disk
}

// Errors that callers ask for.
var (
	// ErrInUse is wrapped when another process or handle has a lock.
	ErrInUse = errors.New("in use by another process or handle")
	// ErrUnsafe is wrapped by errors after which nobody knows what is on the disk: Linux
	// reports a failed write-back once, and then takes the lost pages for clean.
	ErrUnsafe = errors.New("the disk may have lost writes")
	// ErrDamaged is wrapped when a file is not what it was written as.
	ErrDamaged = errors.New("damaged")
)

// OSDirectory is a directory of the host, by its path.
type OSDirectory string

func (d OSDirectory) path(name string) string { return filepath.Join(string(d), name) }

// Create makes a file, or empties it.
func (d OSDirectory) Create(name string) (File, error) {
	return openFile(d.path(name), os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}

// Open opens a file that is there.
func (d OSDirectory) Open(name string) (File, error) { return openFile(d.path(name), os.O_RDWR) }

func openFile(path string, flags int) (File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return OSFile{f}, nil
}

// Rename gives a file another name, and takes it from the file that had it.
func (d OSDirectory) Rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

// Remove removes a file, if it is there.
func (d OSDirectory) Remove(name string) error {
	err := os.Remove(d.path(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Sync syncs the names.
func (d OSDirectory) Sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("%w: sync %s: %w", ErrUnsafe, d, err)
	}
	return nil
}

// Lock takes a lock of flock(2), on a file of that name.
func (d OSDirectory) Lock(name string, wait bool) (io.Closer, error) {
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
		return osLock{f}, nil
	}
	f.Close()
	if err == unix.EWOULDBLOCK {
		return nil, fmt.Errorf("%s: %w", d, ErrInUse)
	}
	return nil, fmt.Errorf("lock %s: %w", d.path(name), err)
}

type osLock struct{ *os.File }

// Close gives the lock back, and does not leave that to the descriptor's end: a process that is
// just being started has a copy of it until its exec, and would keep the lock so long.
func (l osLock) Close() error {
	return errors.Join(OSFile(l).control(func(fd int) error { return unix.Flock(fd, unix.LOCK_UN) }), l.File.Close())
}

// Used is how many bytes the directory's files take of the disk, holes not counted.
func (d OSDirectory) Used() (int64, error) {
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

// OSFile is a file of the host.
type OSFile struct{ *os.File }

// Size is in bytes, holes counted.
func (f OSFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// control runs a system call on the descriptor, which is not closed meanwhile.
func (f OSFile) control(call func(fd int) error) error {
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

// Datasync is fdatasync(2).
func (f OSFile) Datasync() error {
	if err := f.control(unix.Fdatasync); err != nil {
		return fmt.Errorf("%w: sync %s: %w", ErrUnsafe, f.Name(), err)
	}
	return nil
}

// Punch makes a hole, where the file system has holes; else it does nothing.
func (f OSFile) Punch(off, n int64) error {
	err := f.control(func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // the space stays taken
	}
	return err
}

// Reserve takes space, if there is some; the file does not grow by it.
func (f OSFile) Reserve(off, n int64) {
	_ = f.control(func(fd int) error { return unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, off, n) })
}

// Replace writes a file anew: under another name, synced, renamed, and the name synced. What
// a crash leaves is the old file or the new one.
func Replace(d Directory, name string, fill func(f File) error) (File, error) {
	f, err := d.Create(name + ".new")
	if err != nil {
		return nil, err
	}
	if err = fill(f); err == nil {
		err = f.Datasync()
	}
	if err == nil {
		err = d.Rename(name+".new", name)
	}
	if err != nil {
		f.Close()
		return nil, errors.Join(err, d.Remove(name+".new"))
	}
	if err := d.Sync(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
