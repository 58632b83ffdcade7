package site

import (
	"context"
	"fmt"
	"syscall"

	"heliotrope/imagesync/nbd"
	"heliotrope/imagesync/volume"
)

// device is a volume as one client of NBD has it.
type device struct {
	*volume.Volume
	of     *Disk
	client int // its process; 0: not known
}

// Extents implements nbd.Device. The client that copies the volume to a place that has some of it
// is told what that is (Disk.Tell).
func (d device) Extents(ctx context.Context, off, n int64, yield func(nbd.Extent) bool) error {
	return d.ExtentsBut(ctx, d.of.told(d.client), off, n, func(e volume.Extent) bool { return yield(nbd.Extent(e)) })
}

// fixed is a version as NBD has it.
type fixed struct {
	*volume.Cache
	base volume.Base
}

var errFixed = fmt.Errorf("a version does not change: %w", syscall.EPERM)

// WriteAt implements nbd.Device, as do those that follow.
func (fixed) WriteAt(context.Context, []byte, int64, bool) error { return errFixed }
func (fixed) Flush(context.Context) error                        { return nil }
func (fixed) Trim(context.Context, int64, int64) error           { return errFixed }
func (fixed) Zero(context.Context, int64, int64, bool) error     { return errFixed }
func (f fixed) Extents(_ context.Context, off, n int64, yield func(nbd.Extent) bool) error {
	var last nbd.Extent
	for end := off + n; off < end; {
		k := min(volume.ChunkSize-off%volume.ChunkSize, end-off)
		zero := f.base.Zero(int(off / volume.ChunkSize))
		if last.Length > 0 && last.Zero != zero {
			if !yield(last) {
				return nil
			}
			last = nbd.Extent{}
		}
		last = nbd.Extent{Length: last.Length + k, Hole: zero, Zero: zero}
		off += k
	}
	yield(last)
	return nil
}
