// Package recent remembers what the end of a process must not lose, for as long as the machine
// runs: which blocks of a disk were written, and which made zeros, since its journal was last
// brought to the disk.
//
// A disk that loses its power loses with it whoever wrote to it, so it may forget what was not
// flushed. A process that serves a disk to others may die alone: its clients connect to the next
// one and go on, and would flush what is not there any more. What such a process has written is
// in the kernel's cache all the same; only what it knew is gone. So it writes that down as well, a
// byte for each block, and syncs nothing: a file that only the death of the kernel can take back.
//
// The file begins with the kernel's boot. After another one it says nothing. Within a boot the
// last byte of a block is always what the block became last, flushed or not, so nothing has ever
// to be cleared, and it does not matter what of it the journal knows already.
package recent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// State is what became of a block since the boot.
type State byte

// The states of a block.
const (
	Unknown State = iota // what the journal says
	Data
	Zero
)

// File is the name of the file in a disk's directory.
const File = "recent"

// head is where the bytes of blocks begin.
const head = 4096

// Map is the open file. Set may be called from several goroutines, for different blocks.
type Map struct {
	f      *os.File
	blocks int64
	known  bool // it is of this boot
}

// boot names the kernel's life.
func boot() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// Open opens the file in a directory, or makes it. One of an earlier boot, or of a disk of
// another size, is made anew.
func Open(dir string, blocks int64) (*Map, error) {
	id, err := boot()
	if err != nil {
		return nil, fmt.Errorf("open record of writes: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, File), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open record of writes: %w", err)
	}
	m := &Map{f: f, blocks: blocks}
	title := fmt.Appendf(nil, "heliotrope recent 1 %s %d\n", id, blocks)
	have := make([]byte, len(title))
	switch _, err = f.ReadAt(have, 0); {
	case err == nil && bytes.Equal(have, title):
		m.known = true
		return m, nil
	case err == nil || errors.Is(err, io.EOF):
		// The title comes last: a file without it is none.
		if err = f.Truncate(0); err == nil {
			err = f.Truncate(head + blocks)
		}
		if err == nil {
			_, err = f.WriteAt(title, 0)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make record of writes: %w", err), f.Close())
	}
	return m, nil
}

// Forget makes the file say nothing. That is for a disk that may have lost what was written.
func (m *Map) Forget() error {
	m.known = false
	return m.f.Truncate(0)
}

// Close closes the file.
func (m *Map) Close() error { return m.f.Close() }

// page is how much is written or read at once, in blocks.
const page = 64 << 10

var pages = map[State][]byte{Data: bytes.Repeat([]byte{byte(Data)}, page), Zero: bytes.Repeat([]byte{byte(Zero)}, page)}

// Set says that blocks from from on and before to have become data, or zeros.
func (m *Map) Set(from, to int64, s State) error {
	for from < to {
		n := min(to-from, page)
		if _, err := m.f.WriteAt(pages[s][:n], head+from); err != nil {
			return fmt.Errorf("record a write: %w", err)
		}
		from += n
	}
	return nil
}

// Each tells of all runs of blocks that are known of, in order. What a crash of the kernel or
// another program has left there is refused.
func (m *Map) Each(yield func(from, to int64, s State)) error {
	if !m.known {
		return nil
	}
	in := io.NewSectionReader(m.f, head, m.blocks)
	buf := make([]byte, page)
	var from int64
	last := Unknown
	for at := int64(0); at < m.blocks; {
		n, err := io.ReadFull(in, buf[:min(page, m.blocks-at)])
		if err != nil {
			return fmt.Errorf("read record of writes: %w", err)
		}
		for b := buf[:n]; len(b) > 0; {
			s := State(b[0])
			if s > Zero {
				return fmt.Errorf("read record of writes: block %d became %d", at, s)
			}
			run := slices.IndexFunc(b, func(c byte) bool { return c != byte(s) })
			if run < 0 {
				run = len(b)
			}
			if s != last {
				if last != Unknown {
					yield(from, at, last)
				}
				from, last = at, s
			}
			at, b = at+int64(run), b[run:]
		}
	}
	if last != Unknown {
		yield(from, m.blocks, last)
	}
	return nil
}
