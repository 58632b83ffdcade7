package site

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
	"heliotrope/imagesync/nbd"
	"heliotrope/imagesync/volume"
)

// A volume that left is as it was until somebody opens it; what another one became since the move
// that took it there is known, from the moment on when that move had ended.
func TestMoves(t *testing.T) {
	ctx, here, there := t.Context(), t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	open := func(dir string) (*Site, *Disk) {
		t.Helper()
		s, err := Open(dir, some, ones(some.Size), Options{NoPrefetch: true})
		must(err)
		d, err := s.Open("web")
		must(err)
		return s, d
	}
	block := bytes.Repeat([]byte{7}, volume.BlockSize)
	const size = 4 * volume.ChunkSize
	tell := func(d *Disk, move string, has Has, want int64) {
		t.Helper()
		spared, end, err := d.Tell(move, has, 42)
		if want < 0 {
			if err == nil {
				t.Errorf("it is told that %s is there, %d bytes", has, spared)
			}
			return
		}
		must(err)
		for client, holes := range map[int]int64{42: want, 43: 0, 0: 0} {
			var n int64
			must(d.Export(&Site{Version: some}, client).Device.Extents(ctx, 0, size, func(e nbd.Extent) bool {
				if e.Hole && !e.Zero {
					n += e.Length
				}
				return true
			}))
			if n != holes || spared != want {
				t.Errorf("client %d is told of %d bytes, %d are spared; want %d", client, n, spared, holes)
			}
		}
		end()
		if d.told(42) != volume.NoCopy {
			t.Error("it is told when that has ended")
		}
	}
	s, d := open(here)
	must(d.WriteAt(ctx, block, 0, false))
	move, came, err := d.Leave()
	must(err)
	if came != "" {
		t.Errorf("it came by %s", came)
	}
	tell(d, move, HasBase, size-volume.BlockSize)
	tell(d, move, HasLeft, -1)
	tell(d, "another", HasBase, -1)
	must(d.Stay())
	tell(d, move, HasBase, -1)
	move, _, err = d.Leave()
	must(err)
	must(s.Close())
	for range 2 {
		if kept, err := Keep(here, "web"); err != nil {
			t.Error(kept, err)
		}
	}
	if o, err := ReadOrigin(here, "web"); err != nil || o.Moves != (Moves{Left: move}) {
		t.Errorf("%+v, %v", o, err)
	}

	s, d = open(there)
	must(d.Come(move))
	must(d.WriteAt(ctx, block, 0, false)) // by the move
	back, came, err := d.Leave()
	must(err)
	if came != "" {
		t.Error("it knows what changed since it came, and it has not come")
	}
	tell(d, back, HasLeft, -1)
	for range 2 {
		must(d.Arrive(ctx))
		must(d.WriteAt(ctx, block, volume.ChunkSize, false))
	}
	must(s.Close())
	s, d = open(there)
	back, came, err = d.Leave()
	must(err)
	if came != move {
		t.Errorf("it came by %q, and not %q", came, move)
	}
	tell(d, back, HasLeft, size-volume.BlockSize)
	tell(d, back, HasBase, size-2*volume.BlockSize)
	must(s.Close())

	s, d = open(here)
	if d.Origin.Moves != (Moves{}) {
		t.Errorf("whoever opens it finds %+v", d.Origin.Moves)
	}
	if stats, err := d.Stats(); err != nil || stats.Dirty != volume.BlockSize {
		t.Errorf("%+v, %v", stats, err)
	}
	must(s.Close())
}

// A version that is made of a volume which has moved has all that was written to it, and not what
// was written since it came.
func TestCommitAfterMove(t *testing.T) {
	ctx, dir, where := t.Context(), t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at, err := depot.OpenDir(where)
	must(err)
	store, err := imagesync.Open(ctx, where, at, imagesync.Options{Keys: keyring.Dir(t.TempDir())})
	must(err)
	defer store.Close()
	content := bytes.Repeat([]byte("base"), volume.ChunkSize)
	raw := filepath.Join(t.TempDir(), "raw")
	must(os.WriteFile(raw, content, 0o600))
	src, err := imagesync.OpenRaw(raw)
	must(err)
	defer src.Close()
	v, _, err := store.Import(ctx, "debian", src, imagesync.ImportOptions{})
	must(err)
	source := &Source{Dial: func(context.Context) (*imagesync.Store, error) { return store, nil }}
	base, err := source.Base(ctx, dir, v)
	must(err)
	s, err := Open(dir, v, base, Options{NoPrefetch: true})
	must(err)
	d, err := s.Open("web")
	must(err)
	write := func(off int64, what byte) {
		block := bytes.Repeat([]byte{what}, volume.BlockSize)
		must(d.WriteAt(ctx, block, off, false))
		copy(content[off:], block)
	}
	must(d.Come("move"))
	write(0, 1)
	must(d.Arrive(ctx))
	write(2*volume.ChunkSize, 2)
	made, _, err := s.Commit(ctx, store, "web", "")
	must(err)
	must(s.Close())
	m, err := store.Manifest(ctx, made.Root)
	must(err)
	chunk := make([]byte, volume.ChunkSize)
	for i := range 4 {
		must(store.ReadChunk(ctx, m.At(i), chunk))
		if !bytes.Equal(chunk, content[i*volume.ChunkSize:][:volume.ChunkSize]) {
			t.Errorf("chunk %d of the version is not what was written", i)
		}
	}
}
