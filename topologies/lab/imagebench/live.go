package imagebench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/volume"
	"heliotrope/topologies/lab/claim"
)

// live is "changed in place" for a disk that a VM writes to through us: what it has written
// is known, so that nothing is looked for.
type live struct {
	dir         string
	here, there *imagesync.Store
	given       int64 // bytes that a commit read
	dirty       int64 // bytes of chunks that were written to
}

// bitmap measures it.
func bitmap(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	if err := b.images(ctx); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp(b.Images, "run-")
	if err != nil {
		return nil, nil, err
	}
	l := live{dir: dir}
	u, err := l.measure(ctx, b.Images)
	b.row("changed in place", u)
	return []claim.Claim{
		claim.New("changed in place with a live bitmap: bytes scanned", float64(l.given-l.dirty), "==", 0),
	}, u, errors.Join(err, os.RemoveAll(dir))
}

func openStore(ctx context.Context, dir, name string) (*imagesync.Store, error) {
	d, at, err := depot.Open(ctx, filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	return imagesync.Open(ctx, at, d, imagesync.Options{Keys: keyring.Dir(filepath.Join(dir, "keys"))})
}

// measure has both sites at v1, writes what v2 changes to a volume at one, and brings that to
// the other.
func (l *live) measure(ctx context.Context, images string) (u used, err error) {
	u = used{Tool: "live bitmap"}
	if l.here, err = openStore(ctx, l.dir, "live-here"); err != nil {
		return u, err
	}
	if l.there, err = openStore(ctx, l.dir, "live-there"); err != nil {
		return u, err
	}
	before, after := filepath.Join(images, "v1.raw"), filepath.Join(images, "v2.raw")
	raw, err := imagesync.OpenRaw(before)
	if err != nil {
		return u, err
	}
	defer raw.Close()
	v, _, err := l.here.Import(ctx, "disk", raw, imagesync.ImportOptions{})
	if err != nil {
		return u, err
	}
	if _, _, err := l.there.Pull(ctx, l.here, "disk"); err != nil {
		return u, err
	}
	base, err := l.here.Open(ctx, "disk")
	if err != nil {
		return u, err
	}
	defer base.Close()
	cache, err := volume.OpenCache(filepath.Join(l.dir, "cache"), base, volume.CacheOptions{Identity: v.Root.String()})
	if err != nil {
		return u, err
	}
	defer cache.Close()
	disk, err := volume.Create(filepath.Join(l.dir, "volume"), volume.Options{Base: cache})
	if err != nil {
		return u, err
	}
	defer disk.Close()
	if err := l.write(ctx, disk, before, after); err != nil {
		return u, err
	}
	began, cpu := time.Now(), processTime()
	if err := l.commit(ctx, disk, v); err != nil {
		return u, err
	}
	_, stats, err := l.there.Pull(ctx, l.here, "disk")
	if err != nil {
		return u, err
	}
	u.Wire, u.CPU, u.Wall = stats.Bytes, processTime()-cpu, time.Since(began).Seconds()
	u.detail = fmt.Sprintf("%.1f MB of chunks read, %.1f MB of them dirty", float64(l.given)/1e6, float64(l.dirty)/1e6)
	return u, l.check(ctx, after)
}

// write does what the guest did: every block that differs.
func (l *live) write(ctx context.Context, disk *volume.Volume, before, after string) error {
	was, err := os.Open(before)
	if err != nil {
		return err
	}
	defer was.Close()
	is, err := os.Open(after)
	if err != nil {
		return err
	}
	defer is.Close()
	a, b := make([]byte, manifest.ChunkSize), make([]byte, manifest.ChunkSize)
	for off := int64(0); ; off += manifest.ChunkSize {
		n, err := io.ReadFull(is, b)
		if err == io.EOF {
			return disk.Flush(ctx)
		}
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(was, a); err != nil {
			return err
		}
		dirty := false
		for at := 0; at < n; at += manifest.BlockSize {
			block := b[at:min(at+manifest.BlockSize, n)]
			if bytes.Equal(block, a[at:at+len(block)]) {
				continue
			}
			if err := disk.WriteAt(ctx, block, off+int64(at), false); err != nil {
				return err
			}
			dirty = true
		}
		if dirty {
			l.dirty += manifest.ChunkSize
		}
	}
}

func (l *live) commit(ctx context.Context, disk *volume.Volume, v manifest.Version) error {
	w, err := l.here.Begin(ctx, "disk", imagesync.BeginOptions{Size: v.Size, Base: &v, Only: true})
	if err != nil {
		return err
	}
	defer w.Abort(ctx)
	put := func(ctx context.Context, i int, chunk []byte) error {
		l.given += int64(len(chunk))
		return w.Put(ctx, i, chunk)
	}
	return disk.Commit(ctx, put, func(ctx context.Context) error {
		_, err := w.Commit(ctx)
		return err
	})
}

// check compares what is at the other site with the file.
func (l *live) check(ctx context.Context, file string) error {
	r, err := l.there.Open(ctx, "disk")
	if err != nil {
		return err
	}
	defer r.Close()
	out, err := os.Create(filepath.Join(l.dir, "live.raw"))
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	err = errors.Join(out.Truncate(r.Size()), r.Export(ctx, out, nil), out.Close())
	if err != nil {
		return err
	}
	return compare(ctx, out.Name(), file)
}

// processTime is what this process has used, in seconds.
func processTime() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}
