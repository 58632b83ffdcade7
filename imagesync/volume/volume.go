// Package volume keeps the disk of a VM on a host: a base that may not be here yet, and over
// it what the VM has written.
//
// The base is an image of the store, a chunk of 64 KiB at a time. A Cache has what has come of
// it, for all the volumes of a host that stand on it: a chunk comes once, by whoever needs it
// first, and a volume can be read before any has come. Making a volume copies nothing.
//
// What the VM writes goes to the overlay: a sparse file in which each block of 4 KiB has the
// place that it has on the disk, and a journal that says which blocks are there, which are
// zeros, and which have changed since the last commit. A block that the journal does not know
// is the base's.
//
//	blocks      the overlay's content
//	journal     frames with checksums, written anew now and then (journal.go)
//	recent      what became of blocks and was not flushed yet (package recent)
//	epoch       whose writes count (package epoch)
//	before      during a commit or snapshot: what its chunks were when it began (package view)
//	lock, epoch.lock
//
// What holds, and how:
//
//   - Once Flush or a write with FUA has returned, what was written before survives the end of
//     the process and of the power: blocks are synced, then the journal's frames that make them
//     visible, then the answer. What the journal says is never ahead of the blocks.
//   - A write that was answered survives the end of the process, flushed or not: a guest goes on
//     with the next process that serves its disk, and flushes there what it wrote here.
//   - Without a flush each block is after a power cut what it was at the last flush, or what a later
//     write made it. It is never another's: a block that is not in the journal is not looked at.
//     This asks of the disk that it writes 4 KiB whole or not at all; then a block that is written
//     over in place is not torn either.
//   - What changed since the last commit is dirty, whatever crashes. A clean block is written
//     over only after the journal has said that it is dirty (thaw): 1 MiB at a time, so one sync
//     more for the first write to a MiB after a commit, and none for any other.
//   - A commit is of one moment. Its chunks are read one by one while the VM writes on; who is
//     about to change one that was not read yet saves it first (before). It reads these chunks
//     and nothing else.
//   - A snapshot is of one moment too, and of all that is not the base's. It is in no journal: what a crash
//     leaves of it is dropped, and the volume is what it would be without.
//   - The guest wins: where there is no room for both it is the snapshot, or commit, that fails.
//   - There is one writer. A volume is opened with an epoch; an older one than the volume knows
//     is refused, a newer one ends the older writer, in this process at once, in another one at
//     its next flush. That other one is not overtaken while it holds the directory's lock.
//   - After a sync that failed nobody knows what is on the disk, so the volume takes no more
//     writes until it is opened again. A full disk is no such failure: the write, or the flush,
//     answers ENOSPC, and what was acknowledged stays.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"heliotrope/imagesync/volume/disk"
	"heliotrope/imagesync/volume/epoch"
	"heliotrope/imagesync/volume/recent"
	"heliotrope/imagesync/volume/trace"
	"heliotrope/imagesync/volume/turns"
	"heliotrope/imagesync/volume/view"
)

// Sizes in bytes. They are part of the files' format.
const (
	BlockSize = 4 << 10  // what the overlay goes by: a page of the guest's
	ChunkSize = 64 << 10 // what the base comes in and commits go by
	MaxSize   = 64 << 40

	chunkBlocks = ChunkSize / BlockSize
)

// Names of files.
const (
	blocksFile  = "blocks"
	journalFile = "journal"
	beforeFile  = "before"
	lockFile    = "lock"
)

// Errors that callers ask for.
var (
	ErrFenced  = epoch.ErrFenced
	ErrInUse   = disk.ErrInUse
	ErrClosed  = errors.New("the volume is closed")
	ErrDamaged = disk.ErrDamaged
)

// Options say what a volume is, and for whom it is opened.
type Options struct {
	// Base is what the volume stands on; nil for a disk that begins as zeros. It must be open as
	// long as the volume is, and be the same whenever the volume is opened.
	Base *Cache
	// Size is the disk's, in bytes. Create: 0 for the base's, and not less than it. Open: 0, or
	// what the volume has.
	Size int64
	// Epoch is the writer's. 0 is an epoch like any other.
	Epoch uint64
	// TraceLimit bounds Trace; chunks, 0 for 16,384.
	TraceLimit int
}

// Volume is an open volume. Its methods may be called from several goroutines.
type Volume struct {
	name  string // its directory
	dir   disk.Directory
	lock  io.Closer
	base  *Cache // nil for none
	epoch uint64
	geometry
	blocks disk.File
	recent *recent.Map // nil where the directory is not the host's
	trace  *trace.Trace

	// gate is held for reading by everything that changes blocks, for as long as it takes, and
	// for writing by what needs a moment at which nothing does. Nobody waits for a network with it.
	gate   sync.RWMutex
	ranges turns.Ranges // of chunks: who changes which
	wrote  atomic.Bool  // the overlay has writes that were not synced

	// flushing is held by what takes pending changes to the journal, or ends a commit.
	flushing sync.Mutex
	rounds   turns.Rounds

	// journaling guards the journal. Lock order: gate, flushing, journaling, mu.
	journaling sync.Mutex
	journal    *journal

	commits sync.Mutex // one at a time

	mu     sync.RWMutex // guards what follows; nobody does I/O with it
	state  state
	view   *view.View // of a commit or a snapshot that is under way
	failed error      // why there are no more writes; ErrClosed and ErrFenced: nor reads
	gone   bool       // the files are closed
}

// opened are the volumes of this process by their directories: a newer writer ends an older
// one, which flock could not tell it of.
var opened = struct {
	sync.Mutex
	byName map[string]*Volume
}{byName: make(map[string]*Volume)}

// Create makes a volume in a directory, which it makes as well, and opens it. Nothing is
// copied. What a Create that did not come to its end has left is used again.
func Create(name string, o Options) (*Volume, error) {
	g := geometry{size: o.Size}
	if o.Base != nil {
		g.identity = o.Base.identity
		if g.size == 0 {
			g.size = o.Base.Size()
		}
		if g.size < o.Base.Size() {
			return nil, fmt.Errorf("create volume %s: %d bytes on a base of %d", name, g.size, o.Base.Size())
		}
	}
	if g.size <= 0 || g.size > MaxSize {
		return nil, fmt.Errorf("create volume %s: a disk of %d bytes; it has between 1 and %d", name, g.size, int64(MaxSize))
	}
	if err := os.MkdirAll(name, 0o700); err != nil {
		return nil, fmt.Errorf("create volume: %w", err)
	}
	d := disk.OSDirectory(name)
	if err := create(d, g, o.Epoch); err != nil {
		return nil, fmt.Errorf("create volume %s: %w", name, err)
	}
	if err := disk.OSDirectory(filepath.Dir(filepath.Clean(name))).Sync(); err != nil {
		return nil, fmt.Errorf("create volume %s: %w", name, err)
	}
	return Open(name, o)
}

// create makes a volume's files. The journal comes last: with it and the epoch, it is a
// volume. What makes its name safe makes theirs safe too.
func create(d disk.Directory, g geometry, writer uint64) error {
	lock, err := d.Lock(lockFile, false)
	if err != nil {
		return err
	}
	defer lock.Close()
	f, err := d.Open(journalFile)
	if err == nil {
		f.Close()
		if f, err = d.Open(epoch.File); err == nil {
			f.Close()
			return os.ErrExist
		}
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := d.Remove(recent.File); err != nil {
		return err
	}
	if f, err = d.Create(blocksFile); err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(g.blocks() * BlockSize); err != nil {
		return err
	}
	if err := epoch.Create(d, writer); err != nil {
		return err
	}
	j, err := writeJournal(d, 0, g, new(batch))
	if err != nil {
		return err
	}
	return j.f.Close()
}

// Open opens a volume that was created. If a handle of an older epoch has it open, that one
// is fenced; one of another process keeps the volume until its next flush, and the error is
// ErrInUse. If the volume knows a newer epoch, the error is ErrFenced.
func Open(name string, o Options) (*Volume, error) {
	real, err := filepath.EvalSymlinks(name)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return nil, fmt.Errorf("open volume: %w", err)
	}
	opened.Lock()
	defer opened.Unlock()
	v, err := openIn(disk.OSDirectory(real), o, func() {
		if old := opened.byName[real]; old != nil && old.epoch < o.Epoch {
			old.stop(ErrFenced)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", name, err)
	}
	v.name = real
	opened.byName[real] = v
	return v, nil
}

// openIn opens the volume of a directory. fence ends this process's older writer.
func openIn(d disk.Directory, o Options, fence func()) (*Volume, error) {
	if err := epoch.Raise(d, o.Epoch); err != nil {
		return nil, err
	}
	fence()
	lock, err := d.Lock(lockFile, false)
	if err != nil {
		return nil, err
	}
	v := &Volume{dir: d, lock: lock, base: o.Base, epoch: o.Epoch, trace: trace.New(o.TraceLimit)}
	if err := v.load(o); err != nil {
		v.closeFiles()
		return nil, err
	}
	return v, nil
}

// load reads the journal.
func (v *Volume) load(o Options) error {
	f, err := v.dir.Open(journalFile)
	if err != nil {
		return err
	}
	if v.journal, v.geometry, err = openJournal(f, v.state.replay); err != nil {
		f.Close()
		return err
	}
	v.state.recovered()
	identity := ""
	if v.base != nil {
		identity = v.base.identity
	}
	switch {
	case identity != v.identity:
		return fmt.Errorf("it stands on base %q, and is opened on %q", v.identity, identity)
	case o.Size != 0 && o.Size != v.size:
		return fmt.Errorf("it has %d bytes, and is opened as one of %d", v.size, o.Size)
	}
	if v.blocks, err = v.dir.Open(blocksFile); err != nil {
		return err
	}
	if err := v.checkBlocks(); err != nil {
		return err
	}
	if dir, ok := v.dir.(disk.OSDirectory); ok {
		if v.recent, err = recent.Open(string(dir), v.geometry.blocks()); err == nil {
			err = v.recent.Each(v.state.redo)
		}
		if err != nil {
			return err
		}
		v.wrote.Store(true)
	}
	return v.dir.Remove(beforeFile) // of a commit or snapshot that a crash has ended
}

// checkBlocks sees to it that the overlay's file is as long as it was made. A crash may have
// undone that as long as nothing was in it.
func (v *Volume) checkBlocks() error {
	have, err := v.blocks.Size()
	all := v.geometry.blocks()
	if err != nil || have >= all*BlockSize {
		return err
	}
	if v.state.data.Any(have/BlockSize, all) {
		return fmt.Errorf("%w: its blocks have %d bytes of %d", ErrDamaged, have, all*BlockSize)
	}
	return v.blocks.Truncate(all * BlockSize)
}

// closeFiles lets go of everything.
func (v *Volume) closeFiles() error {
	var errs []error
	if v.blocks != nil {
		errs = append(errs, v.blocks.Close())
	}
	if v.journal != nil {
		errs = append(errs, v.journal.f.Close())
	}
	if v.recent != nil {
		errs = append(errs, v.recent.Close())
	}
	return errors.Join(append(errs, v.lock.Close())...)
}

// stop ends the volume: whoever is in the middle of a change ends it before, and whoever
// comes after gets why.
func (v *Volume) stop(why error) error {
	v.gate.Lock()
	defer v.gate.Unlock()
	v.flushing.Lock()
	defer v.flushing.Unlock()
	v.journaling.Lock()
	defer v.journaling.Unlock()
	v.mu.Lock()
	gone := v.gone
	v.gone = true
	if !errors.Is(v.failed, ErrFenced) {
		v.failed = why
	}
	v.mu.Unlock()
	if gone {
		return nil
	}
	if w := v.looking(); w != nil {
		w.Fail(why)
		_ = v.unlook(w)
	}
	return errors.Join(v.journal.f.Datasync(), v.closeFiles()) // for the mark; all else is synced
}

// Close flushes the volume and gives it up. Nobody may be using it any more.
func (v *Volume) Close() error {
	err := v.Flush(context.Background())
	if errors.Is(err, ErrClosed) || errors.Is(err, ErrFenced) {
		err = nil // nothing of this handle's is left to be flushed
	}
	err = errors.Join(err, v.stop(ErrClosed))
	opened.Lock()
	defer opened.Unlock()
	if opened.byName[v.name] == v {
		delete(opened.byName, v.name)
	}
	return err
}

// Size is the disk's, in bytes.
func (v *Volume) Size() int64 { return v.size }

// Epoch is the writer's that the volume was opened for.
func (v *Volume) Epoch() uint64 { return v.epoch }

// usable is why the volume takes no more writes, or nil.
func (v *Volume) usable() error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.failed
}

// checkEpoch fails with ErrFenced if there is a newer writer.
func (v *Volume) checkEpoch() error {
	err := epoch.Check(v.dir, v.epoch)
	if errors.Is(err, ErrFenced) {
		v.fail(err)
	}
	return err
}

// fail makes an error of the disk the last one, if it is such.
func (v *Volume) fail(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.failed == nil && (errors.Is(err, disk.ErrUnsafe) || errors.Is(err, ErrFenced)) {
		v.failed = err
		if v.recent != nil && errors.Is(err, disk.ErrUnsafe) {
			_ = v.recent.Forget() // the blocks may be lost
		}
	}
}

// within checks a range that a caller gives.
func (v *Volume) within(off, n int64) error {
	if off < 0 || n < 0 || off > v.size || n > v.size-off {
		return fmt.Errorf("%d bytes at %d: the disk has %d", n, off, v.size)
	}
	return nil
}

// Stats is what a volume holds.
type Stats struct {
	Data  int64 // bytes in the overlay
	Zero  int64 // bytes that the overlay says are zeros
	Dirty int64 // bytes of blocks that changed since the last commit
	Disk  int64 // bytes that its files take of the disk
}

// Stats counts.
func (v *Volume) Stats() (Stats, error) {
	v.mu.RLock()
	s := Stats{Data: v.state.data.Count() * BlockSize, Zero: v.state.zero.Count() * BlockSize}
	dirty := v.state.dirty.Clone()
	dirty.Union(&v.state.committing)
	v.mu.RUnlock()
	s.Dirty = dirty.Count() * BlockSize
	var err error
	s.Disk, err = v.dir.Used()
	return s, err
}
