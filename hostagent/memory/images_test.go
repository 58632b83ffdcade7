package memory

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"heliotrope/imagesync/manifest"
	"heliotrope/imagesync/pages"
	"heliotrope/imagesync/volume"
)

// noise is an image of a few chunks without a page that is like another.
type noise []byte

func (n noise) Size() int64   { return int64(len(n)) }
func (n noise) Zero(int) bool { return false }
func (n noise) Fetch(_ context.Context, i int, dst []byte) error {
	copy(dst, n[i*manifest.ChunkSize:])
	return nil
}

// Images of the host are found by their roots, and by no other name; one that is given up is not used.
func TestImages(t *testing.T) {
	content := make(noise, 4*manifest.ChunkSize)
	rand.NewChaCha8([32]byte{9}).Read(content)
	m := manifest.New(content.Size())
	for i := range m.Chunks() {
		m.Set(i, manifest.Name(content[i*manifest.ChunkSize:][:manifest.ChunkSize]))
	}
	root, dir := m.Root().String(), t.TempDir()
	at := filepath.Join(dir, root)
	c, err := volume.OpenCache(at, content, volume.CacheOptions{Identity: root})
	if err == nil {
		err = c.Fill(t.Context(), nil, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() // it stays open: another process has it
	if err := os.WriteFile(filepath.Join(at, manifest.File), m.Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	images := NewImages(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if n := images.Indexed(root); n != 0 {
		t.Errorf("an index that was not made takes %d bytes", n)
	}
	if err := pages.Make(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	if n := images.Indexed(root); n != pages.Bytes(64) {
		t.Errorf("the index takes %d bytes, not those of 64 pages", n)
	}
	x, err := images.Index(root)
	if err != nil {
		t.Fatal(err)
	}
	p, err := images.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := x.Only(p.Here()); err != nil {
		t.Fatal(err)
	}
	page := [4096]byte(content[37*4096:])
	n, ok := x.Find(&page)
	var got [4096]byte
	if err := p.Page(n, &got); !ok || n != 37 || err != nil || !bytes.Equal(got[:], page[:]) {
		t.Errorf("page 37 is found as %d, %t, and read: %v", n, ok, err)
	}
	nothing := func(root string) {
		t.Helper()
		if images.Indexed(root) != 0 {
			t.Errorf("%q is indexed", root)
		}
		if _, err := images.Index(root); err == nil {
			t.Errorf("the index of %q is read", root)
		}
		if _, err := images.Open(root); err == nil {
			t.Errorf("%q is opened", root)
		}
	}
	for _, wrong := range []string{"", "..", "../" + root, root + "/", root[1:], manifest.ID{1}.String()} {
		nothing(wrong)
	}
	images.Spoil(root)
	nothing(root)
}
