package present

import (
	"bytes"
	"maps"
	"os"
	"testing"

	"pgregory.net/rapid"

	"heliotrope/imagesync/volume/bitmap"
	"heliotrope/imagesync/volume/disk"
)

// What was written is read, whatever was written before; a page that is not whole has none.
func TestWriteAndRead(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		of := Of{Chunks: rapid.Int64Range(1, 3*PageBits).Draw(t, "chunks"), Identity: "root"}
		of.Size = of.Chunks << 16
		f, err := of.Create(disk.OSDirectory(dir))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var have bitmap.Set
		for range rapid.IntRange(0, 3).Draw(t, "writes") {
			var changed bitmap.Set
			for range rapid.IntRange(0, 4).Draw(t, "runs") {
				from := rapid.Int64Range(0, of.Chunks-1).Draw(t, "from")
				changed.Add(from, min(of.Chunks, from+rapid.Int64Range(1, 5000).Draw(t, "length")))
			}
			have.Union(&changed)
			if err := of.Write(f, &have, &changed); err != nil {
				t.Fatal(err)
			}
		}
		content, err := os.ReadFile(dir + "/" + File)
		if err != nil {
			t.Fatal(err)
		}
		read := func() map[int64]int64 {
			got, err := of.Read(bytes.NewReader(content), int64(len(content)))
			if err != nil {
				t.Fatal(err)
			}
			return maps.Collect(got.Runs(0, of.Chunks))
		}
		if !maps.Equal(read(), maps.Collect(have.Runs(0, of.Chunks))) {
			t.Fatal("another set is read than was written")
		}
		if len(content) > PageSize {
			content[PageSize+rapid.IntRange(0, PageSize-1).Draw(t, "flipped")] ^= 4
			have.Remove(0, PageBits)
			if !maps.Equal(read(), maps.Collect(have.Runs(0, of.Chunks))) {
				t.Fatal("a page that is not whole is read")
			}
		}
	})
}

func FuzzRead(f *testing.F) {
	of := Of{Size: 5000 << 16, Chunks: 5000, Identity: "root"}
	f.Add(of.header())
	f.Add(append(of.header(), make([]byte, 2*PageSize)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		have, err := of.Read(bytes.NewReader(b), int64(len(b)))
		if err == nil && have.Any(of.Chunks, of.Chunks+PageBits) {
			t.Error("chunks that the image does not have")
		}
	})
}
