package delta

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"heliotrope/imagesync/manifest"
)

func imageOf(content []byte) Image {
	m, s := manifest.New(int64(len(content))), NewSketch(int64(len(content)))
	chunk := make([]byte, manifest.ChunkSize)
	for i := range m.Chunks() {
		clear(chunk[copy(chunk, content[i*manifest.ChunkSize:]):])
		if id := manifest.Name(chunk); !id.IsZero() {
			m.Set(i, id)
			s.Set(i, DigestsOf(chunk))
		}
	}
	return Image{Root: m.Root(), Manifest: m, Sketch: s}
}

// made is a sink that holds all that was put.
type made []byte

func (m made) Put(i int, id manifest.ID, chunk []byte) error {
	if manifest.Name(chunk) != id {
		return fmt.Errorf("chunk %d is not what it is called", i)
	}
	copy(m[i*manifest.ChunkSize:], chunk)
	return nil
}

func (m made) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

// apply makes the image of a delta, as a receiver with these bases.
func apply(wire io.Reader, target Image, bases ...[]byte) ([]byte, error) {
	out := make(made, target.Manifest.Size())
	if len(bases) > 0 {
		copy(out, bases[0])
	}
	have := func(root manifest.ID) (Base, error) {
		for _, b := range bases {
			if im := imageOf(b); im.Root == root {
				return Base{im, bytes.NewReader(b)}, nil
			}
		}
		return Base{}, errors.New("not here")
	}
	got, err := Apply(wire, target.Root, target.Manifest.Size(), have, out)
	if err != nil {
		return nil, err
	}
	// What did not change was not put, and what became zeros neither.
	for i := range got.Manifest.Chunks() {
		if got.Manifest.At(i).IsZero() {
			end := min((i+1)*manifest.ChunkSize, len(out))
			clear(out[i*manifest.ChunkSize : end])
		}
	}
	if again := imageOf(out); again.Root != target.Root || !bytes.Equal(got.Sketch.Encode(), again.Sketch.Encode()) {
		return nil, errors.New("the manifest or the sketch is not that of what was made")
	}
	return out, nil
}

// mixture draws an image of pieces of a base, of itself, of zeros and of what is new.
func mixture(t *rapid.T, label string, bases ...[]byte) []byte {
	var out []byte
	for range rapid.IntRange(0, 12).Draw(t, label+" pieces") {
		n := rapid.IntRange(1, 40).Draw(t, "blocks") * manifest.BlockSize
		from := out
		switch kind := rapid.IntRange(0, 4).Draw(t, "kind"); {
		case kind == 0:
			out = append(out, make([]byte, n)...)
			continue
		case kind == 1 && len(bases) > 0:
			from = bases[rapid.IntRange(0, len(bases)-1).Draw(t, "base")]
		case kind == 2 && len(bases) > 0 && len(bases[0]) > len(out):
			from = bases[0][len(out):] // the same place
			out = append(out, from[:min(n, len(from))]...)
			continue
		case kind == 3:
			piece := make([]byte, n)
			rand.NewChaCha8([32]byte{byte(rapid.IntRange(0, 20).Draw(t, "seed"))}).Read(piece)
			out = append(out, piece...)
			continue
		}
		if len(from) > 0 {
			at := rapid.IntRange(0, len(from)-1).Draw(t, "at") &^ (manifest.BlockSize - 1)
			out = append(out, from[at:][:min(n, len(from)-at)]...)
		}
	}
	return out[:max(0, len(out)-rapid.IntRange(0, 5000).Draw(t, label+" cut"))]
}

func TestAnyImageFromAnyBases(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var bases [][]byte
		var images []Image
		for range rapid.IntRange(0, 3).Draw(t, "bases") {
			b := mixture(t, "base", bases...)
			if im := imageOf(b); !slices.ContainsFunc(images, func(o Image) bool { return o.Root == im.Root }) {
				bases, images = append(bases, b), append(images, im)
			}
		}
		content := mixture(t, "target", bases...)
		target := imageOf(content)
		var wire bytes.Buffer
		stats, err := Encode(&wire, target, bytes.NewReader(content), images, zstd.SpeedDefault)
		if err != nil {
			t.Fatal(err)
		}
		if stats.Bytes != int64(wire.Len()) {
			t.Fatalf("%d bytes, %+v", wire.Len(), stats)
		}
		got, err := apply(&wire, target, bases...)
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("not what was sent: %v", err)
		}
	})
}

// Whatever arrives, a receiver neither panics nor keeps what is not the target.
func FuzzApply(f *testing.F) {
	base, content := make([]byte, 3*manifest.ChunkSize), make([]byte, 5*manifest.ChunkSize+100)
	rand.NewChaCha8([32]byte{1}).Read(base)
	rand.NewChaCha8([32]byte{2}).Read(content)
	copy(content[2*manifest.ChunkSize:], base[8192:])
	copy(content[4*manifest.ChunkSize:], content[:20000])
	target := imageOf(content)
	for _, bases := range [][]Image{nil, {imageOf(base)}} {
		var wire bytes.Buffer
		if _, err := Encode(&wire, target, bytes.NewReader(content), bases, zstd.SpeedDefault); err != nil {
			f.Fatal(err)
		}
		z, err := zstd.NewReader(&wire)
		if err != nil {
			f.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(plain)
	}
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, plain []byte) {
		got, err := apply(bytes.NewReader(encoder.EncodeAll(plain, nil)), target, base)
		if err == nil && !bytes.Equal(got, content) {
			t.Fatal("something else was made")
		}
	})
}

func FuzzDecodeSketch(f *testing.F) {
	content := make([]byte, 3*manifest.ChunkSize)
	rand.NewChaCha8([32]byte{1}).Read(content)
	f.Add(imageOf(content).Sketch.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := DecodeSketch(b, 3*manifest.ChunkSize); err == nil && !bytes.Equal(s.Encode(), b) {
			t.Fatal("it does not encode to what it was decoded from")
		}
	})
}
