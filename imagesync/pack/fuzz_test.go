package pack

import (
	"bytes"
	"context"
	"testing"

	"heliotrope/imagesync/depot"
	"heliotrope/imagesync/manifest"
)

// one is a depot with one file.
type one struct {
	depot.Depot
	content []byte
}

func (o one) ReadAt(_ context.Context, _ string, p []byte, off int64) error {
	_, err := bytes.NewReader(o.content).ReadAt(p, off)
	return err
}

// Whatever a pack's bytes are: each chunk that its index tells of lies within it, and is either
// what it is called or told to be damaged.
func FuzzPack(f *testing.F) {
	var p Packer
	for seed := range 3 {
		chunk := make([]byte, manifest.ChunkSize) // small as a seed, so that much is tried
		for i := range 100 {
			chunk[i] = byte(i * i * (seed + 3))
		}
		stored, by := Compress(chunk, make([]byte, BufferSize), seed == 1)
		p.Add(manifest.Name(chunk), stored, by)
	}
	_, content, _, _ := p.Seal()
	f.Add(content)
	f.Add(content[:len(content)-1])
	f.Fuzz(func(t *testing.T, content []byte) {
		ids, where, err := ReadIndex(t.Context(), one{content: content}, depot.Info{Name: "packs/x", Size: int64(len(content))})
		if err != nil {
			return
		}
		dst := make([]byte, manifest.ChunkSize)
		for i, at := range where {
			stored := content[at.Off:][:at.Len()]
			if Expand(ids[i], stored, at, dst) == nil && manifest.Name(dst) != ids[i] {
				t.Fatal("a chunk is not what it is called")
			}
		}
	})
}
