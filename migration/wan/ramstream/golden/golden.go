// Package golden has streams that QEMU made when it migrated guests of 8 or 16 MiB, for the tests
// of those who read them: a BIOS alone, and a boot sector that writes to memory while it is copied.
package golden

import (
	"embed"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

//go:embed *.zst
var files embed.FS

// Stream returns one of qemu10-bios, qemu10-rounds, qemu10-xbzrle and qemu72-rounds, whole.
func Stream(name string) ([]byte, error) {
	packed, err := files.ReadFile(name + ".zst")
	if err != nil {
		return nil, fmt.Errorf("read golden stream: %w", err)
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		return nil, fmt.Errorf("read golden stream: %w", err)
	}
	defer d.Close()
	stream, err := d.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("read golden stream %s: %w", name, err)
	}
	return stream, nil
}
