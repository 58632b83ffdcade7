package volume

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"heliotrope/imagesync/volume/bitmap"
)

func benchVolume(b *testing.B) *Volume {
	b.Helper()
	dir := b.TempDir()
	c, err := OpenCache(filepath.Join(dir, "base"), newMemoryBase(64<<20, 1), CacheOptions{})
	check(b, err)
	check(b, c.Fill(context.Background(), nil, nil))
	v, err := Create(filepath.Join(dir, "v"), Options{Base: c, Size: 1 << 40})
	check(b, err)
	b.Cleanup(func() { check(b, v.Close()); check(b, c.Close()) })
	return v
}

func BenchmarkRead(b *testing.B) {
	v, p := benchVolume(b), make([]byte, BlockSize)
	rng := rand.New(rand.NewPCG(1, 1))
	b.SetBytes(BlockSize)
	for b.Loop() {
		if !v.ReadNow(p, rng.Int64N(16<<10)*BlockSize) {
			b.Fatal("not at once")
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	v, p := benchVolume(b), make([]byte, BlockSize)
	rng := rand.New(rand.NewPCG(1, 1))
	b.SetBytes(BlockSize)
	for b.Loop() {
		check(b, v.WriteAt(context.Background(), p, rng.Int64N(16<<10)*BlockSize, false))
	}
}

// A write of a block and a flush: what a database's commit costs.
func BenchmarkWriteFUA(b *testing.B) {
	v, p := benchVolume(b), make([]byte, BlockSize)
	rng := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		check(b, v.WriteAt(context.Background(), p, rng.Int64N(16<<10)*BlockSize, true))
	}
}

// The first write to each MiB after a commit.
func BenchmarkWriteThaw(b *testing.B) {
	v, p := benchVolume(b), make([]byte, BlockSize)
	ctx := context.Background()
	for i := range int64(1024) {
		check(b, v.WriteAt(ctx, p, i<<20, false))
	}
	commit := func() {
		check(b, v.Commit(ctx, func(context.Context, int, []byte) error { return nil }, nil))
	}
	commit()
	for i := int64(0); b.Loop(); i++ {
		if i%1024 == 0 {
			b.StopTimer()
			commit()
			b.StartTimer()
		}
		check(b, v.WriteAt(ctx, p, i%1024<<20, false))
	}
}

func BenchmarkCreate(b *testing.B) {
	dir := b.TempDir()
	c, err := OpenCache(filepath.Join(dir, "base"), newMemoryBase(64<<20, 1), CacheOptions{})
	check(b, err)
	for i := 0; b.Loop(); i++ {
		v, err := Create(filepath.Join(dir, fmt.Sprint(i)), Options{Base: c})
		check(b, err)
		check(b, v.Close())
	}
	check(b, c.Close())
}

// BenchmarkWriteOver is what a write of 4 KiB to each chunk costs, which the overlay has: at any time, and while there is a
// snapshot that nobody has read yet, the first time and the next. An operation is 4,096 writes, to 256 MiB.
func BenchmarkWriteOver(b *testing.B) {
	const chunks = 4096
	v, err := Create(filepath.Join(b.TempDir(), "v"), Options{Size: chunks * ChunkSize})
	check(b, err)
	b.Cleanup(func() { check(b, v.Close()) })
	ctx, chunk := context.Background(), bytes.Repeat([]byte{1}, ChunkSize)
	for i := range int64(chunks) {
		check(b, v.WriteAt(ctx, chunk, i*ChunkSize, false))
	}
	check(b, v.Flush(ctx))
	over := func() {
		for i := range int64(chunks) {
			check(b, v.WriteAt(ctx, chunk[:BlockSize], i*ChunkSize+BlockSize, false))
		}
	}
	b.Run("plain", func(b *testing.B) {
		for b.Loop() {
			over()
		}
	})
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			s, err := v.Snapshot()
			check(b, err)
			over()
			check(b, s.Close())
		}
	})
	b.Run("again", func(b *testing.B) {
		s, err := v.Snapshot()
		check(b, err)
		over()
		for b.Loop() {
			over()
		}
		check(b, s.Close())
	})
}

// BenchmarkSnapshot is what taking one costs, of a disk of 1 TiB with 4 GiB in the overlay, every other block of 8 GiB.
func BenchmarkSnapshot(b *testing.B) {
	v, err := Create(filepath.Join(b.TempDir(), "v"), Options{Size: 1 << 40})
	check(b, err)
	b.Cleanup(func() { check(b, v.Close()) })
	for i := range int64(1 << 20) {
		v.state.data.Add(2*i, 2*i+1)
	}
	for b.Loop() {
		s, err := v.Snapshot()
		check(b, err)
		check(b, s.Close())
	}
	v.state.data = bitmap.Set{}
}
