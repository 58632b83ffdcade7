//go:build lab

package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A disk that fills up while a guest writes: what does not fit is ENOSPC, what was answered stays,
// the guest can give space back, and all goes on once there is some.
func TestDiskFillsUp(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatalf("mount tmpfs (run as root): %v", err)
	}
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	const size = 128 * ChunkSize // twice what there is room for
	base := newMemoryBase(size, 6)
	cacheDir := t.TempDir() // what comes of the base is elsewhere
	ctx, rng := context.Background(), rand.New(rand.NewPCG(3, 3))
	want := bytes.Clone(base.data)
	full := 0
	for round := range 6 {
		c, err := OpenCache(filepath.Join(cacheDir, "base"), base, CacheOptions{Identity: "b"})
		check(t, err)
		open := Open
		if round == 0 {
			open = Create
		}
		v, err := open(filepath.Join(dir, "v"), Options{Base: c})
		check(t, err)
		got := make([]byte, size)
		check(t, v.ReadAt(ctx, got, 0))
		for b := 0; b < size; b += BlockSize {
			if !bytes.Equal(got[b:b+BlockSize], want[b:b+BlockSize]) {
				t.Fatalf("round %d: block %d is not what was written", round, b/BlockSize)
			}
		}
		for i := range 400 {
			off := rng.Int64N(size/BlockSize-4) * BlockSize
			p := bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, int(1+rng.Int64N(4))*BlockSize)
			err := v.WriteAt(ctx, p, off, rng.IntN(4) == 0)
			switch {
			case err == nil:
				copy(want[off:], p)
			case errors.Is(err, syscall.ENOSPC):
				// Each block is what it was or what was to be written.
				full++
				now := make([]byte, len(p))
				check(t, v.ReadAt(ctx, now, off))
				for b := 0; b < len(p); b += BlockSize {
					if was := want[off:][b : b+BlockSize]; !bytes.Equal(now[b:b+BlockSize], was) && !bytes.Equal(now[b:b+BlockSize], p[b:b+BlockSize]) {
						t.Fatalf("round %d: a block of a write that failed is neither", round)
					}
				}
				copy(want[off:], now)
			default:
				t.Fatalf("round %d, write %d: %v", round, i, err)
			}
		}
		if round%2 == 1 { // the guest makes room
			check(t, v.Trim(ctx, 0, size/2))
			clear(want[:size/2])
			if err := v.Flush(ctx); err != nil && !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		}
		if err := v.Close(); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		check(t, c.Close())
	}
	if full == 0 {
		t.Error("the disk was never full")
	}
	// The cache, too: who waits for a chunk has it though there is no room for it.
	check(t, os.WriteFile(filepath.Join(dir, "ballast"), nil, 0o600))
	f, err := os.OpenFile(filepath.Join(dir, "ballast"), os.O_WRONLY, 0)
	check(t, err)
	c, err := OpenCache(filepath.Join(dir, "cache"), base, CacheOptions{Identity: "b"})
	check(t, err)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	check(t, f.Close())
	got := make([]byte, size)
	check(t, c.ReadAt(ctx, got, 0))
	if !bytes.Equal(got, base.data) {
		t.Error("what came onto a full disk is wrong")
	}
	if err := c.Fill(ctx, nil, nil); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("filling a full disk says %v", err)
	}
	check(t, os.Remove(filepath.Join(dir, "ballast")))
	_ = c.Close()
}

// A disk that fills up while there is a snapshot: what the guest writes has the room, and the snapshot fails.
func TestSnapshotYields(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatalf("mount tmpfs (run as root): %v", err)
	}
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	const size = 128 * ChunkSize
	for name, next := range map[string]int64{"over what is there": 0, "where nothing is": 32 * ChunkSize} {
		t.Run(name, func(t *testing.T) {
			v, err := Create(filepath.Join(dir, fmt.Sprint(next)), Options{Size: size})
			check(t, err)
			ctx, content := context.Background(), bytes.Repeat([]byte{7}, 32*ChunkSize) // half of the room
			check(t, v.WriteAt(ctx, content, 0, true))
			s, err := v.Snapshot()
			check(t, err)
			for off := int64(0); off < int64(len(content))*7/8; off += ChunkSize { // each saves what was there
				check(t, v.WriteAt(ctx, content[:ChunkSize], off, false))
			}
			for i := range int64(24) {
				if err := v.WriteAt(ctx, bytes.Repeat([]byte{8}, ChunkSize), next+i*ChunkSize, true); err != nil {
					t.Fatalf("the guest has no room: %v", err)
				}
			}
			err = s.Read(ctx, func(context.Context, int, []byte) error { return nil })
			if next > 0 && (!errors.Is(err, syscall.ENOSPC) || !errors.Is(err, ErrNoRoom)) {
				t.Errorf("the snapshot: %v", err)
			}
			check(t, s.Close())
			got := make([]byte, 24*ChunkSize)
			check(t, v.ReadAt(ctx, got, next))
			if !bytes.Equal(got, bytes.Repeat([]byte{8}, len(got))) {
				t.Error("what was written is not there")
			}
			check(t, v.Close())
			check(t, os.RemoveAll(filepath.Join(dir, fmt.Sprint(next))))
		})
	}
}
