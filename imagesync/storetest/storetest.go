// Package storetest fills image stores for the tests of those who use them.
package storetest

import (
	"os"
	"path/filepath"
	"testing"

	"heliotrope/imagesync"
	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/keyring"
)

// Import makes content the next version of an image in the store at dir, which it makes if there
// is none; keys is the directory of its keys.
func Import(t testing.TB, dir, keys, image string, content []byte) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "disk.raw")
	must(os.WriteFile(file, content, 0o600))
	d, err := depot.OpenDir(dir)
	must(err)
	s, err := imagesync.Open(t.Context(), dir, d, imagesync.Options{Keys: keyring.Dir(keys)})
	must(err)
	defer s.Close()
	raw, err := imagesync.OpenRaw(file)
	must(err)
	defer raw.Close()
	_, _, err = s.Import(t.Context(), image, raw, imagesync.ImportOptions{From: "test"})
	must(err)
}
