package imagesync

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
	var p packer
	for seed := range 3 {
		chunk := make([]byte, manifest.ChunkSize) // small as a seed, so that much is tried
		copy(chunk, random(uint64(seed), 100))
		stored, by := compress(chunk, make([]byte, bufferSize), seed == 1)
		p.add(manifest.Name(chunk), stored, by)
	}
	_, content, _, _ := p.seal()
	f.Add(content)
	f.Add(content[:len(content)-1])
	f.Fuzz(func(t *testing.T, content []byte) {
		ids, where, err := readPackIndex(t.Context(), one{content: content}, depot.Info{Name: "packs/x", Size: int64(len(content))})
		if err != nil {
			return
		}
		dst := make([]byte, manifest.ChunkSize)
		for i, at := range where {
			stored := content[at.off:][:at.length()]
			if expand(ids[i], stored, at, dst) == nil && manifest.Name(dst) != ids[i] {
				t.Fatal("a chunk is not what it is called")
			}
		}
	})
}
