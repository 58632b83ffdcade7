package guest

import (
	"bufio"
	"errors"
	"fmt"
	"os"

	"heliotrope/topologies/lab/guest/record"
)

const (
	// StoredBytes is the size of the disk that WriteDisk makes.
	StoredBytes = 32 << 20
	// StoredRecords is how many records it has: half of it.
	StoredRecords = StoredBytes / record.PageSize / 2
)

// WriteDisk makes the disk of an image that goes to an image store: with records as a guest leaves
// them which ran before, so that a guest whose disk stands on the image finds them, checks them
// with its own (/disk), and goes on behind them.
func WriteDisk(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("make guest's disk: %w", err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	page := make([]byte, record.PageSize)
	_, err = w.Write(page) // where no record is: their numbers begin with 1
	for seq := uint64(1); seq <= StoredRecords && err == nil; seq++ {
		record.Fill(page, record.Disk, seq)
		_, err = w.Write(page)
	}
	if err = errors.Join(err, w.Flush(), f.Truncate(StoredBytes), f.Close()); err != nil {
		return fmt.Errorf("make guest's disk: %w", err)
	}
	return nil
}
