package pages

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/volume"
	"heliotrope/imagesync/volume/present"
)

// content is an image of which the base of a cache is made.
type content []byte

func (c content) Size() int64 { return int64(len(c)) }

func (c content) chunk(i int) []byte {
	b := make([]byte, manifest.ChunkSize)
	copy(b, c[i*manifest.ChunkSize:])
	return b
}

func (c content) Zero(i int) bool { return manifest.IsZeros(c.chunk(i)) }

func (c content) Fetch(_ context.Context, i int, dst []byte) error {
	copy(dst, c.chunk(i))
	return nil
}

// page is page n.
func (c content) page(n uint64) (p [pageBytes]byte) {
	copy(p[:], c[n*pageBytes:])
	return p
}

// random has so many pages: some of zeros, some alike, the others of their own.
func random(seed uint64, pages, tail int) content {
	r := rand.New(rand.NewPCG(seed, 1))
	c := make(content, pages*pageBytes+tail)
	for i := 0; i < len(c); i += pageBytes {
		p := c[i:min(len(c), i+pageBytes)]
		switch r.IntN(6) {
		case 0:
		case 1:
			copy(p, "the same again")
		default:
			for k := range p {
				p[k] = byte(r.Uint32())
			}
		}
		if i%manifest.ChunkSize == 0 && r.IntN(4) == 0 { // all of the chunk is zeros
			i += manifest.ChunkSize - pageBytes
		}
	}
	return c
}

// manifest is what it consists of.
func (c content) manifest() *manifest.Manifest {
	m := manifest.New(c.Size())
	for i := range m.Chunks() {
		m.Set(i, manifest.Name(c.chunk(i)))
	}
	return m
}

type tester interface {
	Helper()
	Fatal(...any)
}

// cached makes the cache of an image in parent, with those chunks.
func cached(t tester, parent string, c content, chunks ...int) (dir string) {
	t.Helper()
	m := c.manifest()
	dir = filepath.Join(parent, m.Root().String())
	cache, err := volume.OpenCache(dir, c, volume.CacheOptions{Identity: m.Root().String()})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range chunks {
		if err := cache.Prefetch(context.Background(), int64(i)*manifest.ChunkSize, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := cache.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, manifest.File), m.Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func all(c content) (chunks []int) {
	for i := range c.manifest().Chunks() {
		chunks = append(chunks, i)
	}
	return chunks
}

func indexOf(t tester, dir string) *Index {
	t.Helper()
	if err := Make(context.Background(), dir); err != nil {
		t.Fatal(err)
	}
	x, err := ReadIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// Whatever parts of an image two hosts have: each page that is at both is found by its content, and what is
// given out for it is that page; no other page is found.
func TestPagesAreFoundAndGivenOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parent, err := os.MkdirTemp("", "pages")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(parent)
		c := random(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 100).Draw(t, "pages"), rapid.IntRange(0, pageBytes-1).Draw(t, "tail"))
		some := rapid.SliceOfDistinct(rapid.IntRange(0, len(all(c))-1), func(i int) int { return i })
		here, there := some.Draw(t, "at the source"), some.Draw(t, "at the destination")
		x := indexOf(t, cached(t, filepath.Join(parent, "here"), c, here...))
		m, err := Open(cached(t, filepath.Join(parent, "there"), c, there...))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := x.Only(m.Here()); err != nil {
			t.Fatal(err)
		}
		has := func(chunks []int, n uint64) bool {
			for _, i := range chunks {
				if i == int(n/chunkPages) {
					return true
				}
			}
			return false
		}
		first := map[[pageBytes]byte]uint64{} // that the source has
		pages := (len(c) + pageBytes - 1) / pageBytes
		for n := range uint64(pages) {
			p := c.page(n)
			if _, twice := first[p]; !twice && has(here, n) {
				first[p] = n
			}
		}
		for _, n := range rapid.SliceOf(rapid.Uint64Range(0, uint64(pages-1))).Draw(t, "asked for") {
			p := c.page(n)
			got, ok := x.Find(&p)
			at, known := first[p]
			if want := known && has(there, at) && p != [pageBytes]byte{}; ok != want {
				t.Fatalf("page %d is found: %t, want %t", n, ok, want)
			}
			if !ok {
				continue
			}
			var back [pageBytes]byte
			if err := m.Page(got, &back); err != nil || back != p {
				t.Fatalf("page %d, found as %d: %v, or another page", n, got, err)
			}
			p[17] ^= 1
			if got, ok := x.Find(&p); ok {
				t.Fatalf("a page that is no part of the image is found as %d", got)
			}
		}
	})
}

// A bit that the disk has flipped: the page is not given out, and its chunk gets into no index. What has been dropped
// is not given out either.
func TestDamagedAndDroppedChunks(t *testing.T) {
	c := random(7, 64, 0)
	for i := range c { // no zeros, and no two alike
		c[i] |= 1
	}
	for i := range uint64(64) {
		c[i*pageBytes] = byte(2*i + 1)
	}
	dir := cached(t, t.TempDir(), c, all(c)...)
	file := filepath.Join(dir, volume.ChunksFile)
	flip := func(at int64) {
		t.Helper()
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var b [1]byte
		if _, err := f.ReadAt(b[:], at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 64
		if _, err := f.WriteAt(b[:], at); err != nil {
			t.Fatal(err)
		}
	}
	m, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	flip(20 * pageBytes)
	x := indexOf(t, dir)
	if err := x.Only(m.Here()); err != nil {
		t.Fatal(err)
	}
	for n := range uint64(64) {
		p := c.page(n)
		_, ok := x.Find(&p)
		var got [pageBytes]byte
		err := m.Page(n, &got)
		if whole := n/chunkPages != 1; ok != whole || whole != (err == nil) || whole && got != p {
			t.Errorf("page %d: found %t, read %v", n, ok, err)
		}
	}
	if err := os.Truncate(file, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, int64(len(c))); err != nil {
		t.Fatal(err)
	}
	var got [pageBytes]byte
	for _, n := range []uint64{0, 33, 20, 64, 1 << 60} {
		if err := m.Page(n, &got); err == nil {
			t.Errorf("page %d is read of a cache that was dropped", n)
		}
	}
}

// An index is made once, again when more has come, and never of less.
func TestIndexIsMadeAgain(t *testing.T) {
	parent := t.TempDir()
	c := random(3, 96, 0)
	dir := cached(t, parent, c, 0, 1)
	read := func() []byte {
		t.Helper()
		indexOf(t, dir)
		b, err := os.ReadFile(filepath.Join(dir, File))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first := read()
	if !bytes.Equal(first, read()) {
		t.Error("it is made twice")
	}
	cached(t, parent, c, 4, 5)
	second := read()
	if bytes.Equal(first, second) || len(second) < len(first) {
		t.Errorf("it has %d bytes, and %d once more has come", len(first), len(second))
	}
	if err := os.Remove(filepath.Join(dir, present.File)); err != nil {
		t.Fatal(err)
	}
	cached(t, parent, c, 2)
	if !bytes.Equal(second, read()) {
		t.Error("it is made of less")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	big := random(4, 32*chunkPages*restEvery, 0)
	whole := cached(t, parent, big, all(big)...)
	if err := Make(ctx, whole); err == nil || Indexed(whole) != 0 {
		t.Errorf("an index whose making was ended: %v, %d pages", err, Indexed(whole))
	}
	if got := Indexed(dir); got == 0 {
		t.Error("an index has no pages")
	}
}

// What is not whole, or another image's, is neither used nor left.
func TestIndexThatIsNotWhole(t *testing.T) {
	parent := t.TempDir()
	c, other := random(3, 96, 0), random(4, 96, 0)
	dir, otherDir := cached(t, parent, c, all(c)...), cached(t, parent, other, all(other)...)
	indexOf(t, dir)
	indexOf(t, otherDir)
	file := filepath.Join(dir, File)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(filepath.Join(otherDir, File))
	if err != nil {
		t.Fatal(err)
	}
	wrong := map[string][]byte{"cut": good[:len(good)-1], "longer": append(bytes.Clone(good), 0), "foreign": foreign, "empty": {}}
	for _, at := range []int{0, len(magic), headBytes - 9, headBytes - 1, headBytes + 3, len(good) - 20, len(good) - 1} {
		b := bytes.Clone(good)
		b[at] ^= 1
		wrong[string(rune('a'+at%26))+" flipped"] = b
	}
	for name, b := range wrong {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if x, err := ReadIndex(dir); err == nil {
			t.Errorf("%s: %d pages are read", name, len(x.pages))
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s: it is left", name)
		}
		indexOf(t, dir) // which makes it again
	}
	if _, err := ReadIndex(filepath.Join(parent, "none")); err == nil {
		t.Error("an index is read that is not there")
	}
	if _, err := Open(filepath.Join(parent, "none")); err == nil {
		t.Error("pages are read of no image")
	}
	if err := os.WriteFile(filepath.Join(dir, manifest.File), other.manifest().Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil {
		t.Error("pages are read by the manifest of another image")
	}
}

func FuzzReadIndex(f *testing.F) {
	c := random(3, 20, 0)
	dir := cached(f, f.TempDir(), c, all(c)...)
	indexOf(f, dir)
	file := filepath.Join(dir, File)
	good, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:headBytes])
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if x, err := ReadIndex(dir); err == nil {
			p := c.page(3)
			x.Find(&p)
		}
	})
}

func FuzzOnly(f *testing.F) {
	f.Add([]byte{0, 5, 3, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var x Index
		if x.Only(b) == nil && x.there.Count() > MaxSize/manifest.ChunkSize {
			t.Error("more chunks than an image has")
		}
	})
}

func BenchmarkFind(b *testing.B) {
	c := random(5, 4096, 0)
	dir := cached(b, b.TempDir(), c, all(c)...)
	x := indexOf(b, dir)
	m, err := Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	if err := x.Only(m.Here()); err != nil {
		b.Fatal(err)
	}
	b.Run("find", func(b *testing.B) {
		b.SetBytes(pageBytes)
		for i := range b.N {
			x.Find((*[pageBytes]byte)(c[i%4096*pageBytes:]))
		}
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(pageBytes)
		var p [pageBytes]byte
		for i := range b.N {
			_ = m.Page(uint64(i%4096), &p)
		}
	})
}
