package qcow2

import (
	"path/filepath"
	"testing"
)

func BenchmarkReadAt(b *testing.B) {
	dir := b.TempDir()
	source := plausible(b, filepath.Join(dir, "source"), 32<<20)
	for _, options := range [][]string{{}, {"-c", "-o", "compression_type=zlib"}, {"-c", "-o", "compression_type=zstd"}} {
		name := plain("stored")
		if len(options) > 0 {
			name = plain(options[2])
		}
		b.Run(name, func(b *testing.B) {
			image := filepath.Join(dir, name)
			run(b, "qemu-img", append(append([]string{"convert", "-q", "-f", "raw", "-O", "qcow2"}, options...), source, image)...)
			im, p := openFile(b, image), make([]byte, 1<<20)
			b.SetBytes(int64(len(p)))
			for off := int64(0); b.Loop(); off = (off + 1<<20) % (32 << 20) {
				if _, err := im.ReadAt(p, off); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Check reads the tables of 8 GiB.
func BenchmarkCheck(b *testing.B) {
	image := create(b, filepath.Join(b.TempDir(), "a"), "8G", "preallocation=metadata")
	for b.Loop() {
		if err := openFile(b, image).Check(); err != nil {
			b.Fatal(err)
		}
	}
}
