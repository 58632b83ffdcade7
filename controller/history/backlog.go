package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// A window that is over is a file in the journal's directory until the bucket has it. A
// bucket that is away costs disk, no memory, and of disk no more than Options.Backlog: then
// the oldest files are shed, and counted.

// Waiting are the files that the bucket does not have yet, their bytes, and how many files
// were shed since Open.
func (h *History) Waiting() (files int, size int64, shed int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.waiting {
		size += f.size
	}
	return len(h.waiting), size, h.shed
}

// file makes the file of a window that is over. From then on its journal only tells bins
// that come again; a kill before that makes the file anew.
func (h *History) file(w *window) error {
	var size int64
	if len(w.counts) > 0 {
		var buf bytes.Buffer
		if err := encode(&buf, w.records(), h.Controller); err != nil {
			return err
		}
		if err := writeFile(h.waits(w.name), buf.Bytes()); err != nil {
			return err
		}
		size = int64(buf.Len())
	}
	if err := os.Rename(h.journal(w.name), h.done(w.name)); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dones[w.name] = w.from
	h.over = slices.DeleteFunc(h.over, func(o *window) bool { return o == w })
	if size > 0 {
		h.waiting = append(h.waiting, stored{name: w.name, key: key(w.name, w.from), from: w.from, size: size})
	}
	return w.journal.Close()
}

// writeFile writes a file that is whole or not there, whatever fails: its journal goes.
func writeFile(name string, data []byte) error {
	f, err := os.Create(name + ".tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(name+".tmp", name)
}

// deliver writes what waits to the bucket, till one fails: the bucket is away then. That
// one goes to the end, so that a file that the bucket will not have keeps no other.
func (h *History) deliver(ctx context.Context) error {
	h.mu.Lock()
	all := slices.Clone(h.waiting)
	h.mu.Unlock()
	for _, f := range all {
		err := h.upload(ctx, f)
		h.mu.Lock()
		h.waiting = slices.DeleteFunc(h.waiting, func(o stored) bool { return o.name == f.name })
		if err != nil {
			h.waiting = append(h.waiting, f)
		}
		h.mu.Unlock()
		if err != nil {
			full := func(_ stored, size int64) bool { return size > h.Backlog }
			return errors.Join(fmt.Errorf("write %s: %w", f.key, err), h.drop(full))
		}
	}
	return nil
}

func (h *History) upload(ctx context.Context, f stored) error {
	data, err := os.ReadFile(h.waits(f.name))
	if err != nil {
		return err
	}
	if err := h.bucket.Put(ctx, f.key, data); err != nil {
		return err
	}
	return os.Remove(h.waits(f.name))
}

// wait takes a file in that waited when the process ended. A journal of its name makes it
// anew.
func (h *History) wait(name string, from time.Time) error {
	if _, err := os.Stat(h.journal(name)); err == nil {
		return nil
	}
	about, err := os.Stat(h.waits(name))
	if err != nil {
		return fmt.Errorf("read what waits: %w", err)
	}
	h.waiting = append(h.waiting, stored{name, key(name, from), from, about.Size()})
	return nil
}

// drop sheds the oldest of what waits, one after the other, while much says so of it and of
// the bytes that wait. It is for who holds h.cutting: no file is on its way then.
func (h *History) drop(much func(oldest stored, size int64) bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var size int64
	for _, f := range h.waiting {
		size += f.size
	}
	for len(h.waiting) > 0 {
		oldest := slices.MinFunc(h.waiting, func(a, b stored) int { return a.from.Compare(b.from) })
		if !much(oldest, size) {
			break
		}
		if err := os.Remove(h.waits(oldest.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("shed %s: %w", oldest.name, err)
		}
		h.waiting = slices.DeleteFunc(h.waiting, func(o stored) bool { return o.name == oldest.name })
		h.shed++
		size -= oldest.size
		h.Log.Warn("traffic history is shed: its bucket was away too long", "file", oldest.name, "bytes", oldest.size)
	}
	return nil
}
