package depot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	neturl "net/url"
	"path/filepath"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"heliotrope/internal/bucket"
)

// Open opens the depot that people write: a directory, or a bucket's URL. At is how it is
// called everywhere.
func Open(ctx context.Context, where string) (d Depot, at string, err error) {
	u, err := bucket.Parse(where)
	if err != nil {
		return nil, "", err
	}
	if u != nil {
		b, err := OpenBucket(ctx, u)
		return b, u.String(), err
	}
	if rest, ok := strings.CutPrefix(where, "file://"); ok {
		if where, err = neturl.PathUnescape(rest); err != nil {
			return nil, "", err
		}
	}
	if where, err = filepath.Abs(where); err != nil {
		return nil, "", err
	}
	dir, err := OpenDir(where)
	return dir, where, err
}

// answerWithin bounds each request; a pack is 32 MiB.
const answerWithin = 2 * time.Minute

// Bucket is a depot in a bucket. Its files may lie below a prefix, so that a bucket can have
// other things as well: s3://NAME?prefix=images/.
type Bucket struct{ bucket bucket.Bucket }

// OpenBucket opens the depot in a bucket, and asks it for its files.
func OpenBucket(ctx context.Context, u *neturl.URL) (*Bucket, error) {
	// Whoever reads checks hashes of his own; S3's client warns of each file that it cannot check.
	if q := u.Query(); u.Scheme == "s3" && !q.Has("response_checksum_validation") {
		checked := *u
		q.Set("response_checksum_validation", "when_required")
		checked.RawQuery = q.Encode()
		u = &checked
	}
	b, err := bucket.Open(ctx, u)
	if err != nil {
		return nil, err
	}
	within, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, _, err := b.ListPage(within, blob.FirstPageToken, 1, nil); err != nil {
		return nil, errors.Join(b.Explain(err), b.Close())
	}
	return &Bucket{b}, nil
}

// Put is Depot's.
func (b *Bucket) Put(ctx context.Context, name string, content io.Reader) error {
	return b.write(ctx, name, content, nil)
}

// Create is Depot's.
func (b *Bucket) Create(ctx context.Context, name string, content []byte) error {
	return b.write(ctx, name, bytes.NewReader(content), &blob.WriterOptions{IfNotExist: true})
}

func (b *Bucket) write(ctx context.Context, name string, content io.Reader, o *blob.WriterOptions) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel() // a writer whose context has ended keeps nothing
	w, err := b.bucket.NewWriter(ctx, name, o)
	if err != nil {
		return b.explain("write", name, err)
	}
	if _, err := io.Copy(w, content); err != nil {
		cancel()
		return errors.Join(b.explain("write", name, err), ignored(w.Close()))
	}
	return b.explain("write", name, w.Close())
}

// ignored is for what must fail.
func ignored(error) error { return nil }

// explain says what is wrong; what is there, or is not, is said as of a directory.
func (b *Bucket) explain(verb, name string, err error) error {
	switch {
	case err == nil:
		return nil
	case gcerrors.Code(err) == gcerrors.NotFound:
		return fmt.Errorf("%s %s: %w", verb, name, fs.ErrNotExist)
	case gcerrors.Code(err) == gcerrors.FailedPrecondition, gcerrors.Code(err) == gcerrors.AlreadyExists:
		return fmt.Errorf("%s %s: %w", verb, name, fs.ErrExist)
	}
	return fmt.Errorf("%s %s: %w", verb, name, b.bucket.Explain(err))
}

// Get is Depot's.
func (b *Bucket) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	r, err := b.bucket.NewReader(ctx, name, nil)
	if err != nil {
		return nil, b.explain("read", name, err)
	}
	defer r.Close()
	return readLimited(name, r, limit)
}

// ReadAt is Depot's.
func (b *Bucket) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	r, err := b.bucket.NewRangeReader(ctx, name, off, int64(len(p)), nil)
	if err != nil {
		return b.explain("read", name, err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, p); err != nil {
		return b.explain("read", name, err)
	}
	return nil
}

// List is Depot's.
func (b *Bucket) List(ctx context.Context, dir string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		list := b.bucket.List(&blob.ListOptions{Prefix: dir + "/"})
		for {
			o, err := b.bucket.Next(ctx, list)
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(Info{}, fmt.Errorf("list %s: %w", dir, err))
				return
			}
			if !yield(Info{o.Key, o.Size, o.ModTime}, nil) {
				return
			}
		}
	}
}

// Delete is Depot's.
func (b *Bucket) Delete(ctx context.Context, name string) error {
	if err := b.bucket.Remove(ctx, name); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// Close is Depot's.
func (b *Bucket) Close() error { return b.bucket.Close() }
