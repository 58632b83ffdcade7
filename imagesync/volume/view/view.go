// Package view keeps what chunks of a volume were at one moment, while their guest writes on.
//
// Nothing is copied when a View begins. Its reader takes chunk after chunk; who is about to change one
// that was not taken yet saves it first, in a file beside the overlay, and then goes on. So a first
// write to a chunk costs a copy of what the overlay had of it, which is nothing where that was nothing,
// and every other write a look into a table. What becomes zeros is not copied: its content stays where it is in
// the overlay until its space is given back, or it is written to.
//
// What holds:
//
//   - Who changes a chunk, or takes it, holds the chunk's range of the volume; so a chunk is saved, taken or
//     as it was, and never between.
//   - The guest wins. If a chunk cannot be saved it is the View that fails, and what it has saved is freed at once.
//   - It is this process's alone: what a crash leaves of it is a file that is worth nothing.
package view

import (
	"errors"
	"fmt"
	"sync"

	"heliotrope/imagesync/volume/bitmap"
	"heliotrope/imagesync/volume/disk"
)

// Sizes in bytes: package volume's.
const (
	blockSize   = 4 << 10
	chunkSize   = 64 << 10
	chunkBlocks = chunkSize / blockSize
)

// Masks say what the blocks of a chunk are, a bit each. One that is in neither is the base's.
type Masks struct{ Data, Zero uint16 }

// Runs calls f for each run of set bits of a mask.
func Runs(mask uint16, f func(from, to int64) error) error {
	for b := int64(0); b < chunkBlocks; b++ {
		if mask>>b&1 == 0 {
			continue
		}
		from := b
		for b < chunkBlocks && mask>>b&1 != 0 {
			b++
		}
		if err := f(from, b); err != nil {
			return err
		}
	}
	return nil
}

// Volume is what a View is of.
type Volume struct {
	Dir    disk.Directory
	Blocks disk.File               // of the overlay, each in its place
	Masks  func(chunk int64) Masks // what the overlay has now
}

// View is some chunks at one moment.
type View struct {
	of     Volume
	name   string     // of the file of what is saved
	blocks bitmap.Set // whose chunks it has; it does not change
	last   int64      // behind the last of all chunks

	making sync.Mutex // held while the file is made

	mu     sync.Mutex // guards what follows; nobody does I/O with it but to free room
	next   int64      // chunks before this one were taken
	saved  map[int64]saved
	file   disk.File // nil: there is none yet
	gone   bool
	failed error
	ended  chan struct{} // closed with failed
}

// saved is a chunk that has changed since.
type saved struct {
	Masks
	inPlace bool // its content is still in the overlay: it became zeros
}

// New begins a View of all chunks that have one of some blocks, of a volume with fewer chunks than last; the set is the View's
// from now on. What is saved goes to a file of that name. Nobody may be changing chunks.
func New(of Volume, name string, blocks bitmap.Set, last int64) *View {
	return &View{of: of, name: name, blocks: blocks, last: last, saved: make(map[int64]saved), ended: make(chan struct{})}
}

// Chunks is how many there are. That is counted, which takes longer than to begin a View.
func (w *View) Chunks() (n int64) {
	for i, ok := w.Next(0); ok; i, ok = w.Next(i + 1) {
		n++
	}
	return n
}

// Next is the first chunk from i on; ok is false if there is none.
func (w *View) Next(i int64) (chunk int64, ok bool) { return w.within(i, w.last) }

// within is the first chunk from from on and before to.
func (w *View) within(from, to int64) (chunk int64, ok bool) {
	to *= chunkBlocks
	b := w.blocks.Find(from*chunkBlocks, to, true)
	return b / chunkBlocks, b < to
}

// Failed is closed when the View has failed.
func (w *View) Failed() <-chan struct{} { return w.ended }

// Err is why the View has failed; nil: it has not.
func (w *View) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// Fail ends the View: what it has saved is freed, nobody saves any more, and who reads it gets why.
func (w *View) Fail(why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail(why)
}

// Yield is Fail for who needs room, where there is some to be had.
func (w *View) Yield(why error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil || len(w.saved) == 0 {
		return false
	}
	w.fail(why)
	return true
}

// fail is Fail; the lock is held.
func (w *View) fail(why error) {
	if w.failed != nil {
		return
	}
	w.failed = why
	close(w.ended)
	if w.file != nil {
		_ = w.file.Truncate(0) // Close removes it
	}
}

// Preserve saves the chunks from from on and before to that were not taken yet. They are about to be
// changed, and the caller holds their range. zeros says that they are not written to.
func (w *View) Preserve(from, to int64, zeros bool) {
	for i, ok := w.within(from, to); ok; i, ok = w.within(i+1, to) {
		s, need := w.needs(i, zeros)
		if !need {
			continue
		}
		if err := w.copy(i, s.Masks); err != nil {
			w.Fail(fmt.Errorf("save chunk %d, which is written to: %w", i, err))
			return
		}
	}
}

// needs says whether the content of a chunk is to be copied before it changes. Where it need not be, what
// there is to be noted is.
func (w *View) needs(i int64, zeros bool) (s saved, need bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, was := w.saved[i]
	if i < w.next || w.failed != nil || was && (!s.inPlace || zeros) {
		return s, false
	}
	if !was {
		s.Masks = w.of.Masks(i)
	}
	s.inPlace = zeros && s.Data != 0
	if zeros || s.Data == 0 {
		w.saved[i] = s
		return s, false
	}
	return s, true
}

// chunks are buffers: a guest's writes are many.
var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// copy saves the content of a chunk.
func (w *View) copy(i int64, m Masks) error {
	buf := chunks.Get().(*[chunkSize]byte)[:]
	defer chunks.Put((*[chunkSize]byte)(buf))
	if err := m.read(w.of.Blocks, i, buf); err != nil {
		return err
	}
	f, err := w.open()
	if err != nil {
		return err
	}
	err = Runs(m.Data, func(from, to int64) error {
		_, err := f.WriteAt(buf[from*blockSize:to*blockSize], i*chunkSize+from*blockSize)
		return err
	})
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.saved[i] = saved{Masks: m}
	return nil
}

var errClosed = errors.New("the view is closed")

// open makes the file, for the first who needs it.
func (w *View) open() (disk.File, error) {
	w.making.Lock()
	defer w.making.Unlock()
	w.mu.Lock()
	f, gone := w.file, w.gone
	w.mu.Unlock()
	if gone {
		return nil, errClosed
	}
	if f != nil {
		return f, nil
	}
	f, err := w.of.Dir.Create(w.name)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.file = f
	return f, nil
}

// read reads a chunk's data blocks from where they are, in their places.
func (m Masks) read(f disk.File, chunk int64, p []byte) error {
	return Runs(m.Data, func(from, to int64) error {
		_, err := f.ReadAt(p[from*blockSize:to*blockSize], chunk*chunkSize+from*blockSize)
		return err
	})
}

// Take fills in what the overlay had of a chunk, and says which blocks that is. The caller holds its range, and
// takes chunks in order. It need not be saved any more.
func (w *View) Take(i int64, chunk []byte) (Masks, error) {
	w.mu.Lock()
	s, was := w.saved[i]
	from := w.file
	if !was {
		s.Masks = w.of.Masks(i)
	}
	failed := w.failed
	w.mu.Unlock()
	if failed != nil {
		return s.Masks, failed
	}
	if !was || s.inPlace {
		from = w.of.Blocks
	}
	err := s.read(from, i, chunk)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil { // and what was read may have been freed
		return s.Masks, w.failed
	}
	if err != nil {
		return s.Masks, err
	}
	w.next = i + 1
	delete(w.saved, i)
	return s.Masks, nil
}

// Keeps says whether the space of zeros in the chunks from from on and before to is still needed. The caller
// holds their range.
func (w *View) Keeps(from, to int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil || len(w.saved) == 0 {
		return false
	}
	for i, ok := w.within(max(from, w.next), to); ok; i, ok = w.within(i+1, to) {
		if w.saved[i].inPlace {
			return true
		}
	}
	return false
}

// Close ends the View and removes its file. Nobody is in Preserve or Take; a second time does nothing.
func (w *View) Close() error {
	w.Fail(errClosed)
	w.mu.Lock()
	defer w.mu.Unlock()
	f, gone := w.file, w.gone
	w.file, w.gone = nil, true
	if f == nil || gone {
		return nil
	}
	return errors.Join(f.Close(), w.of.Dir.Remove(w.name))
}
