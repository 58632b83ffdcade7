// Package epoch is whose writes to a disk count: a number in the disk's directory that only grows.
// Who writes for an older one than stands there has been overtaken (ErrFenced).
package epoch

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"heliotrope/imagesync/volume/disk"
)

// File is the name of the file in a disk's directory. Who raises what it says holds a lock beside it.
const (
	File     = "epoch"
	lockFile = "epoch.lock"
)

// ErrFenced is wrapped when there is a newer writer.
var ErrFenced = errors.New("a newer writer has the volume")

// limit is how long the file may be, in bytes.
const limit = 64

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Create writes the first epoch of a disk. Its name is not safe yet.
func Create(d disk.Directory, epoch uint64) error {
	f, err := d.Create(File)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text(epoch)), 0); err != nil {
		return err
	}
	return f.Datasync()
}

// read reads the newest writer's epoch.
func read(d disk.Directory) (uint64, error) {
	f, err := d.Open(File)
	if err != nil {
		return 0, fmt.Errorf("read epoch: %w", err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.NewSectionReader(f, 0, limit))
	if err != nil {
		return 0, fmt.Errorf("read epoch: %w", err)
	}
	var epoch uint64
	var sum uint32
	if n, _ := fmt.Sscanf(string(content), "%d %x\n", &epoch, &sum); n != 2 || string(content) != text(epoch) {
		return 0, fmt.Errorf("%w: the epoch's file says %q", disk.ErrDamaged, content)
	}
	return epoch, nil
}

func text(epoch uint64) string {
	number := fmt.Sprint(epoch)
	return fmt.Sprintf("%s %08x\n", number, crc32.Checksum([]byte(number), castagnoli))
}

func store(d disk.Directory, epoch uint64) error {
	f, err := disk.Replace(d, File, func(f disk.File) error {
		_, err := f.WriteAt([]byte(text(epoch)), 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("store epoch: %w", err)
	}
	return f.Close()
}

// Raise makes epoch the newest one, or fails with ErrFenced if it is not.
func Raise(d disk.Directory, epoch uint64) error {
	lock, err := d.Lock(lockFile, true)
	if err != nil {
		return err
	}
	defer lock.Close()
	newest, err := read(d)
	switch {
	case err != nil:
		return err
	case newest > epoch:
		return fenced(newest, epoch)
	case newest < epoch:
		return store(d, epoch)
	}
	return nil
}

// Check fails with ErrFenced if there is a newer writer than that of epoch.
func Check(d disk.Directory, epoch uint64) error {
	newest, err := read(d)
	if err == nil && newest > epoch {
		err = fenced(newest, epoch)
	}
	return err
}

func fenced(newest, epoch uint64) error {
	return fmt.Errorf("%w: its epoch is %d, and this one's is %d", ErrFenced, newest, epoch)
}
