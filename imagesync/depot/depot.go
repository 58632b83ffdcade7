// Package depot is where a store's files lie: a directory, or a bucket of any cloud.
//
// What it promises is little, so that both can keep it: a file appears whole or not at all and
// is on the disk when Put returns; Create makes a file only if there is none of that name, which
// is how writers that race find out who was first; a file that is not there is fs.ErrNotExist.
// Names are slash-separated paths of letters, digits, and the signs - _ . @.
package depot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Info is what a list says of a file.
type Info struct {
	Name    string
	Size    int64 // bytes
	ModTime time.Time
}

// Depot is a directory or a bucket.
type Depot interface {
	// Put writes a file, over one that is there.
	Put(ctx context.Context, name string, content io.Reader) error
	// Create writes a file; it is fs.ErrExist if there is one.
	Create(ctx context.Context, name string, content []byte) error
	// Get reads a file of at most limit bytes.
	Get(ctx context.Context, name string, limit int64) ([]byte, error)
	// ReadAt reads all of p from the offset on.
	ReadAt(ctx context.Context, name string, p []byte, off int64) error
	// List lists the files of a directory and those below it.
	List(ctx context.Context, dir string) iter.Seq2[Info, error]
	// Delete deletes a file; that there is none is no error.
	Delete(ctx context.Context, name string) error
	Close() error
}

// Dir is a depot in a directory.
type Dir struct {
	path   string
	urgent []string // directories whose files may take the reserve
}

// OpenDir opens the depot in a directory, which the first file makes if it is not there.
func OpenDir(dir string) (*Dir, error) {
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return nil, fmt.Errorf("open image store: %s is no directory", dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	return &Dir{path: dir}, nil
}

// partPrefix is how files begin that are not whole yet.
const partPrefix = ".part-"

// stale is the age at which what a writer left behind is swept.
const stale = 24 * time.Hour

func (d *Dir) file(name string) (string, error) {
	if !filepath.IsLocal(name) || path.Clean(name) != name || strings.HasPrefix(path.Base(name), partPrefix) {
		return "", fmt.Errorf("%q is no name of a file in a store", name)
	}
	return filepath.Join(d.path, filepath.FromSlash(name)), nil
}

// Put is Depot's.
func (d *Dir) Put(_ context.Context, name string, content io.Reader) error {
	return d.write(name, content, os.Rename)
}

// Create is Depot's.
func (d *Dir) Create(_ context.Context, name string, content []byte) error {
	return d.write(name, strings.NewReader(string(content)), os.Link)
}

// reserveName is a file that takes room on the disk for what is written to a disk that is full,
// so that there is room again: to free something, a store has to note what it frees.
const (
	reserveName = ".reserve"
	reserveSize = 1 << 20
)

// Reserve takes room on the disk, if there is some, for small files in some directories: those
// that are written though the disk is full.
func (d *Dir) Reserve(dirs ...string) {
	d.urgent = dirs
	file := filepath.Join(d.path, reserveName)
	if _, err := os.Stat(file); err == nil {
		return
	}
	part, err := os.CreateTemp(d.path, partPrefix)
	if err != nil {
		return // there is no room, or this user may not
	}
	defer os.Remove(part.Name())
	_, err = part.Write(make([]byte, reserveSize))
	if errors.Join(err, part.Close()) == nil {
		_ = os.Link(part.Name(), file) // or somebody else has made it
	}
}

// write is writeOnce, with the reserve's room if there is no other and the file is worth that.
func (d *Dir) write(name string, content io.Reader, publish func(from, to string) error) error {
	err := d.writeOnce(name, content, publish)
	again, ok := content.(io.Seeker)
	if !errors.Is(err, ErrFull) || !ok || !slices.Contains(d.urgent, first(name)) {
		return err
	}
	if os.Remove(filepath.Join(d.path, reserveName)) != nil {
		return err
	}
	if _, err := again.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return d.writeOnce(name, content, publish)
}

// first is the first directory of a file's name.
func first(name string) string {
	dir, _, _ := strings.Cut(name, "/")
	return dir
}

// writeOnce makes a file that is not seen before it is whole and on the disk; publish gives it its
// name.
func (d *Dir) writeOnce(name string, content io.Reader, publish func(from, to string) error) (err error) {
	file, err := d.file(name)
	if err != nil {
		return err
	}
	dir := filepath.Dir(file)
	if err := d.makeDir(dir); err != nil {
		return err
	}
	part, err := os.CreateTemp(dir, partPrefix)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, full(err))
	}
	defer os.Remove(part.Name())
	_, err = io.Copy(part, content)
	if err = errors.Join(err, part.Sync(), part.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, full(err))
	}
	if err := publish(part.Name(), file); err != nil {
		return fmt.Errorf("write %s: %w", name, full(err))
	}
	return syncDir(dir)
}

// ErrFull is that of a directory whose file system has no room left.
var ErrFull = errors.New("the disk of the image store is full: free some of it, or remove versions and run gc")

// full says what a user can do, where the disk is full.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w (%w)", ErrFull, err)
	}
	return err
}

// makeDir makes a directory of the store, durably.
func (d *Dir) makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("make directory: %w", full(err))
	}
	for ; ; dir = filepath.Dir(dir) {
		if err := syncDir(filepath.Dir(dir)); err != nil || dir == d.path {
			return err
		}
	}
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

// Get is Depot's.
func (d *Dir) Get(_ context.Context, name string, limit int64) ([]byte, error) {
	file, err := d.file(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	return readLimited(name, f, limit)
}

func readLimited(name string, r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read %s: it has more than %d bytes", name, limit)
	}
	return b, nil
}

// ReadAt is Depot's.
func (d *Dir) ReadAt(_ context.Context, name string, p []byte, off int64) error {
	file, err := d.file(name)
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	if _, err := f.ReadAt(p, off); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// List is Depot's. What a writer left behind a day ago is deleted on the way.
func (d *Dir) List(_ context.Context, dir string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		root, err := d.file(dir)
		if err != nil {
			yield(Info{}, err)
			return
		}
		err = filepath.WalkDir(root, func(file string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || e.IsDir() {
				return err
			}
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if strings.HasPrefix(e.Name(), partPrefix) {
				if time.Since(info.ModTime()) > stale {
					os.Remove(file)
				}
				return nil
			}
			name, err := filepath.Rel(d.path, file)
			if err == nil && !yield(Info{filepath.ToSlash(name), info.Size(), info.ModTime()}, nil) {
				return fs.SkipAll
			}
			return err
		})
		if err != nil {
			yield(Info{}, fmt.Errorf("list %s: %w", dir, err))
		}
	}
}

// Delete is Depot's.
func (d *Dir) Delete(_ context.Context, name string) error {
	file, err := d.file(name)
	if err != nil {
		return err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// Close is Depot's.
func (d *Dir) Close() error { return nil }

// Strangers are the first few names in the directory that are no work of a depot's: something
// else is kept there. What a writer left behind, and what a file system makes at its root, are none.
func (d *Dir) Strangers() ([]string, error) {
	const few = 3
	f, err := os.Open(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look into image store: %w", err)
	}
	defer f.Close()
	var names []string
	for len(names) < few {
		some, err := f.Readdirnames(100)
		for _, name := range some {
			if name != "lost+found" && name != reserveName && !strings.HasPrefix(name, partPrefix) && len(names) < few {
				names = append(names, name)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("look into image store: %w", err)
		}
	}
	return names, nil
}
