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
	"strings"
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
type Dir struct{ path string }

// OpenDir opens the depot in a directory, and makes the directory if it is not there.
func OpenDir(dir string) (*Dir, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make image store: %w", err)
	}
	return &Dir{dir}, nil
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

// write makes a file that is not seen before it is whole and on the disk; publish gives it its
// name.
func (d *Dir) write(name string, content io.Reader, publish func(from, to string) error) (err error) {
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
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer os.Remove(part.Name())
	_, err = io.Copy(part, content)
	if err = errors.Join(err, part.Sync(), part.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := publish(part.Name(), file); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return syncDir(dir)
}

// makeDir makes a directory of the store, durably.
func (d *Dir) makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil || dir == d.path {
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	for ; dir != d.path; dir = filepath.Dir(dir) {
		if err := syncDir(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	return nil
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
