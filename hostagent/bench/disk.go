package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope/scheduler/perf"
)

const (
	diskBlock = 1 << 20
	diskPage  = 4 << 10
	diskSyncs = 24
	diskReads = 64
	diskSpare = 8 // times the file's size must be free
	diskLimit = 8 * time.Second
)

// disk measures the file system of the directory, in a file that has no name: whatever
// happens, nothing of it stays.
func (j *job) disk(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, diskLimit)
	defer cancel()
	var fs unix.Statfs_t
	if err := unix.Statfs(j.dir, &fs); err != nil {
		return fmt.Errorf("look at file system: %w", err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < diskSpare*j.budget.Disk {
		return errMissing(fmt.Sprintf("the disk has %d MiB left, and %d must be", free>>20, diskSpare*j.budget.Disk>>20))
	}
	f, err := nameless(j.dir)
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	defer f.Close()
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	_, refused := unix.FcntlInt(f.Fd(), unix.F_SETFL, flags|unix.O_DIRECT)
	block, err := unix.Mmap(-1, 0, diskBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned, as O_DIRECT wants it
	if err != nil {
		return fmt.Errorf("map memory: %w", err)
	}
	defer unix.Munmap(block)
	for i := 0; i < len(block); i += 8 { // nothing that can be made smaller
		binary.LittleEndian.PutUint64(block[i:], rand.Uint64())
	}
	blocks := max(j.budget.Disk/diskBlock, 1)
	if err := errors.Join(j.writes(ctx, f, block, blocks), j.syncs(ctx, f, block[:diskPage], blocks)); err != nil {
		return err
	}
	if refused != nil {
		return errMissing("the file system has no O_DIRECT: its cache would be measured")
	}
	return j.reads(ctx, f, block, blocks)
}

// nameless makes a file without a name, or takes its name away at once.
func nameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir), nil
	}
	f, err := os.CreateTemp(dir, ".bench-")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// writes fills the file in order, and waits until all is on the disk.
func (j *job) writes(ctx context.Context, f *os.File, block []byte, blocks int64) error {
	begun := time.Now()
	for i := range blocks {
		if ctx.Err() != nil {
			return nil
		}
		if _, err := f.WriteAt(block, i*diskBlock); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		j.result.DiskBytes += diskBlock
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	j.result.Values[perf.DiskWrite] = float64(blocks*diskBlock) / time.Since(begun).Seconds()
	return nil
}

// syncs writes pages here and there, each until it is on the disk.
func (j *job) syncs(ctx context.Context, f *os.File, page []byte, blocks int64) error {
	var took []float64
	for range diskSyncs {
		if ctx.Err() != nil {
			break
		}
		begun := time.Now()
		_, err := f.WriteAt(page, rand.Int64N(blocks*diskBlock/diskPage)*diskPage)
		if err == nil {
			err = unix.Fdatasync(int(f.Fd()))
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		took = append(took, time.Since(begun).Seconds())
		j.result.DiskBytes += diskPage
	}
	j.found(perf.DiskSync, took)
	return nil
}

// reads reads the file in order, and then pages here and there.
func (j *job) reads(ctx context.Context, f *os.File, block []byte, blocks int64) error {
	if ctx.Err() != nil {
		return nil
	}
	var rates []float64
	for i := range blocks {
		begun := time.Now()
		if _, err := f.ReadAt(block, i*diskBlock); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		rates = append(rates, diskBlock/time.Since(begun).Seconds())
		j.result.DiskBytes += diskBlock
		if ctx.Err() != nil {
			break
		}
	}
	j.found(perf.DiskRead, rates)
	rates = nil
	for range diskReads {
		if ctx.Err() != nil {
			break
		}
		begun := time.Now()
		if _, err := f.ReadAt(block[:diskPage], rand.Int64N(blocks*diskBlock/diskPage)*diskPage); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		rates = append(rates, 1/time.Since(begun).Seconds())
		j.result.DiskBytes += diskPage
	}
	j.found(perf.DiskRandomRead, rates)
	return nil
}
