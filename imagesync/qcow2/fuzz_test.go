package qcow2

import (
	"bytes"
	"io"
	"runtime"
	"testing"
)

// counted refuses to be read more than a multiple of its size: a reader that does would not
// come to an end with a file as large as files are.
type counted struct {
	io.ReaderAt
	left int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.left -= int64(len(p))
	return c.ReaderAt.ReadAt(p, off)
}

// FuzzImage: whatever the bytes, an importer's use of them ends, in bounded memory and
// reading, and two readings agree.
func FuzzImage(f *testing.F) {
	images := patients(f)
	for _, image := range images {
		f.Add(image)
	}
	for _, c := range tableRefusals {
		p := &patient{bytes.Clone(images[c.image])}
		c.do(p)
		f.Add(p.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 256<<10 {
			return
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r := &counted{bytes.NewReader(b), 1 << 30}
		sum, err := digest(r, int64(len(b)), true)
		runtime.ReadMemStats(&after)
		if spent := after.TotalAlloc - before.TotalAlloc; spent > 96<<20 {
			t.Errorf("%d bytes of memory for a file of %d", spent, len(b))
		}
		if r.left < 0 {
			t.Errorf("%d bytes were read of a file of %d", 1<<30-r.left, len(b))
		}
		if err != nil {
			return
		}
		if again, err := digest(r, int64(len(b)), false); err != nil || again != sum {
			t.Errorf("read again: %v, %d and not %d", err, again, sum)
		}
	})
}

// digest reads an image by its extents, whole ones or in small pieces; no more than a part
// of those that are large.
func digest(r io.ReaderAt, size int64, whole bool) (sum uint64, err error) {
	backing := func(string, string) (io.ReaderAt, int64, error) { return r, size, nil }
	im, err := Open(r, size, Options{MaxSize: 1 << 40, Backing: backing})
	if err != nil {
		return 0, err
	}
	var failed error
	budget := int64(4 << 20)
	buf := make([]byte, 64<<10)
	err = im.Extents(func(off, n int64, zero bool) bool {
		sum = sum*31 + uint64(off)
		if zero || budget <= 0 {
			return true
		}
		n = min(n, budget)
		budget -= n
		for n > 0 && failed == nil {
			step := min(n, int64(len(buf)))
			if !whole {
				step = min(n, 1000)
			}
			_, failed = im.ReadAt(buf[:step], off)
			for _, c := range buf[:step] {
				sum = sum*31 + uint64(c)
			}
			off, n = off+step, n-step
		}
		return failed == nil
	})
	if failed != nil {
		err = failed
	}
	return sum, err
}
