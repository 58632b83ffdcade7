//go:build lab

package imagesync

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"heliotrope/imagesync/depot"
)

// small is a stand on a file system of so many bytes. ballast takes room of it, and gives it back.
func small(t *testing.T, size int) (s *stand, ballast func(n int64) (free func())) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mount tmpfs (run as root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s = newStand(t)
	s.dir = filepath.Join(dir, "store")
	s.Store = s.open(t)
	return s, func(n int64) func() {
		file := filepath.Join(dir, "ballast")
		if err := os.WriteFile(file, make([]byte, n), 0o600); err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		return func() {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A disk that is full at any moment of an import loses none of the versions that there were, makes
// none by half, and says that it is full; once there is room all goes on.
func TestImportOntoAFullDisk(t *testing.T) {
	failed := 0
	for left := int64(0); left < 6<<20; left += 300 << 10 {
		s, ballast := small(t, 16<<20)
		first, second := random(1, 2<<20), random(2, 5<<20)
		mustImport(t, s.Store, "debian", first)
		var st unix.Statfs_t
		if err := unix.Statfs(s.dir, &st); err != nil {
			t.Fatal(err)
		}
		free := ballast(int64(st.Bavail)*int64(st.Bsize) - left)
		_, _, err := s.Import(t.Context(), "debian", second, ImportOptions{})
		if err != nil {
			failed++
			if !errors.Is(err, depot.ErrFull) {
				t.Fatalf("%d bytes left: %v", left, err)
			}
		}
		again := s.open(t)
		wantContent(t, again, "debian@1", first)
		if r, err := again.Verify(t.Context(), true, nil); err != nil || len(r.Findings) > 0 {
			t.Fatalf("%d bytes left: %v, %v", left, r.Findings, err)
		}
		free()
		if err != nil {
			mustImport(t, again, "debian", second)
		}
		wantContent(t, again, "debian@2", second)
		if _, err := again.GC(t.Context(), GCOptions{}); err != nil {
			t.Fatal(err)
		}
		wantContent(t, again, "debian@1", first)
		wantContent(t, again, "debian@2", second)
	}
	if failed < 5 {
		t.Errorf("%d imports found the disk full", failed)
	}
}

// A collection has to write before it frees. On a disk that is full to its last byte versions can be
// read and removed, what needs no room is freed, and then there is room for the rest.
func TestGCOnAFullDisk(t *testing.T) {
	s, ballast := small(t, 24<<20)
	base, gone := random(1, 4<<20), random(2, 3<<20)
	mustImport(t, s.Store, "gone", gone)
	mustImport(t, s.Store, "debian", base)
	for i := range 3 { // each pack has little that the last version needs
		copy(base[i<<20:], random(uint64(10+i), 900<<10))
		mustImport(t, s.Store, "debian", base)
	}
	ballast(24 << 20)
	again := s.open(t)
	for _, ref := range []string{"debian@1", "debian@2", "debian@3", "gone"} {
		if _, err := again.Remove(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	wantContent(t, again, "debian", base)
	var freed int64
	fulls := 0
	for range 4 {
		r, err := again.GC(t.Context(), GCOptions{Dense: 0.99})
		if err != nil {
			t.Fatal(err)
		}
		if freed += r.Bytes; r.Full {
			fulls++
		}
		again = s.open(t)
		wantContent(t, again, "debian", base)
	}
	if freed < 3<<20 || fulls == 0 || fulls == 4 {
		t.Errorf("%d bytes were freed, and %d of 4 collections had no room", freed, fulls)
	}
	mustImport(t, again, "gone", gone)
}
