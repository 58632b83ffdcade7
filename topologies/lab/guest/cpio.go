package guest

import (
	"fmt"
	"io"
	"os"
)

const (
	modeFile      = 0o100000
	modeDirectory = 0o040000
	modeCharacter = 0o020000
)

type device struct{ major, minor int }

// archive writes the cpio format that the kernel unpacks ("newc", its documentation
// driver-api/early-userspace/buffer-format). The first error sticks; end returns it.
type archive struct {
	w     io.Writer
	inode int
	err   error
}

func (a *archive) add(name string, mode int, d device, content []byte) {
	if a.err != nil {
		return
	}
	a.inode++
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(content), 0, 0, d.major, d.minor, len(name)+1, 0, name)
	a.write([]byte(header))
	a.write(content)
}

// write pads to four bytes.
func (a *archive) write(p []byte) {
	for _, part := range [][]byte{p, make([]byte, -len(p)&3)} {
		if a.err == nil {
			_, a.err = a.w.Write(part)
		}
	}
}

func (a *archive) addFile(name string, permissions int, path string) {
	content, err := os.ReadFile(path)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.add(name, modeFile|permissions, device{}, content)
}

func (a *archive) end() error {
	a.add("TRAILER!!!", 0, device{}, nil)
	return a.err
}
