package volume

import (
	"fmt"
	"hash/crc32"
	"io"

	"heliotrope/imagesync/volume/disk"
)

// epochLimit is how long an epoch's file may be, in bytes.
const epochLimit = 64

// readEpoch reads the newest writer's epoch.
func readEpoch(d disk.Directory) (uint64, error) {
	f, err := d.Open(epochFile)
	if err != nil {
		return 0, fmt.Errorf("read epoch: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, 0, epochLimit))
	if err != nil {
		return 0, fmt.Errorf("read epoch: %w", err)
	}
	var epoch uint64
	var sum uint32
	if n, _ := fmt.Sscanf(string(text), "%d %x\n", &epoch, &sum); n != 2 || string(text) != epochText(epoch) {
		return 0, fmt.Errorf("%w: the epoch's file says %q", ErrDamaged, text)
	}
	return epoch, nil
}

func epochText(epoch uint64) string {
	number := fmt.Sprint(epoch)
	return fmt.Sprintf("%s %08x\n", number, crc32.Checksum([]byte(number), castagnoli))
}

func storeEpoch(d disk.Directory, epoch uint64) error {
	f, err := disk.Replace(d, epochFile, func(f disk.File) error {
		_, err := f.WriteAt([]byte(epochText(epoch)), 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("store epoch: %w", err)
	}
	return f.Close()
}

// raiseEpoch makes epoch the newest one, or fails with ErrFenced if it is not.
func raiseEpoch(d disk.Directory, epoch uint64) error {
	lock, err := d.Lock(epochLock, true)
	if err != nil {
		return err
	}
	defer lock.Close()
	newest, err := readEpoch(d)
	switch {
	case err != nil:
		return err
	case newest > epoch:
		return fmt.Errorf("%w: its epoch is %d, and this one's is %d", ErrFenced, newest, epoch)
	case newest < epoch:
		return storeEpoch(d, epoch)
	}
	return nil
}

// checkEpoch fails with ErrFenced if there is a newer writer.
func (v *Volume) checkEpoch() error {
	newest, err := readEpoch(v.dir)
	if err == nil && newest > v.epoch {
		err = fmt.Errorf("%w: its epoch is %d, and this one's is %d", ErrFenced, newest, v.epoch)
		v.fail(err)
	}
	return err
}
