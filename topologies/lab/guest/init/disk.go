package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope/topologies/lab/guest/record"
)

const (
	maxSlots  = 64 << 20 / pageSize
	readSlots = 256
	keptSlots = 512
)

// disk writes records round and round over a block device, past every cache (O_DIRECT), and
// remembers in memory which record is the newest, so that a block that a move lost, tore or
// brought back is seen. A record is one page: block number record.Disk, version its sequence
// number. Records of an earlier boot are found again.
type disk struct {
	mu     sync.Mutex
	fd     int
	slots  uint64
	last   uint64 // sequence number of the newest record; the first is 1
	found  uint64 // what last was at boot
	rate   int
	errors uint64
	failed error
	buffer []byte
	reads  *os.File // through the kernel's cache
}

// diskReport is the answer of /disk.
type diskReport struct {
	Records uint64 `json:"records"` // on the disk now, all verified
	Bad     uint64 `json:"bad"`     // of them
	LastSeq uint64 `json:"last_seq"`
	Found   uint64 `json:"found"` // last_seq at boot: records of an earlier boot
	Rate    int    `json:"rate"`  // records a second
	Errors  uint64 `json:"errors"`
	Error   string `json:"error,omitempty"` // the latest
}

func (d *disk) open(path string, rate int) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	size, err := unix.Seek(fd, 0, unix.SEEK_END)
	if err != nil {
		unix.Close(fd)
		return &os.PathError{Op: "size", Path: path, Err: err}
	}
	buffer, err := unix.Mmap(-1, 0, readSlots*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("make buffer: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fd, d.slots, d.rate, d.buffer = fd, min(uint64(size)/pageSize, maxSlots), rate, buffer
	if d.slots == 0 {
		d.rate = 0
		return errors.New("the disk is smaller than one record")
	}
	if rate == 0 {
		return nil // reading the disk would only make the boot longer
	}
	return errors.Join(d.recover(), d.keepRead(path))
}

// keepRead reads the first pages of the disk as programs do, and not past every cache: what a guest has read of
// its image is in its memory. They stay there as long as the file is open.
func (d *disk) keepRead(path string) (err error) {
	if d.reads, err = os.Open(path); err != nil {
		return err
	}
	if _, err := d.reads.ReadAt(make([]byte, min(d.slots, keptSlots)*pageSize), 0); err != nil {
		return fmt.Errorf("read the disk through the cache: %w", err)
	}
	return nil
}

// recover finds the newest record that an earlier boot wrote.
func (d *disk) recover() error {
	err := d.each(func(slot uint64, p []byte) {
		if seq := record.Version(p); seq%d.slots == slot && seq > d.last && record.Intact(p, record.Disk, seq) {
			d.last = seq
		}
	})
	d.found = d.last
	return err
}

// each reads every slot.
func (d *disk) each(see func(slot uint64, p []byte)) error {
	for first := uint64(0); first < d.slots; first += readSlots {
		n := min(readSlots, d.slots-first)
		chunk := d.buffer[:n*pageSize]
		if got, err := unix.Pread(d.fd, chunk, int64(first*pageSize)); err != nil || got != len(chunk) {
			return fmt.Errorf("read %d slots from %d: %d bytes: %w", n, first, got, err)
		}
		for i := range n {
			see(first+i, chunk[i*pageSize:(i+1)*pageSize])
		}
	}
	return nil
}

func (d *disk) run() error {
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	var writes pace
	for now := range ticker.C {
		for range writes.due(now, d.rate) {
			d.write()
		}
	}
	return nil
}

// write appends one record. A record that was not written is tried again as the next.
func (d *disk) write() {
	d.mu.Lock()
	defer d.mu.Unlock()
	seq := d.last + 1
	p := d.buffer[:pageSize]
	record.Fill(p, record.Disk, seq)
	n, err := unix.Pwrite(d.fd, p, int64(seq%d.slots*pageSize))
	if err == nil && n != pageSize {
		err = fmt.Errorf("wrote %d of %d bytes", n, pageSize)
	}
	if err != nil {
		d.fail(err)
		return
	}
	d.last = seq
}

func (d *disk) fail(err error) {
	d.errors++
	d.failed = err
}

// verify reads the whole disk and compares every record; writing waits meanwhile.
func (d *disk) verify() diskReport {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := diskReport{LastSeq: d.last, Found: d.found, Rate: d.rate}
	if d.last > 0 {
		err := d.each(func(slot uint64, p []byte) {
			seq := newest(d.last, slot, d.slots)
			if seq == 0 {
				return
			}
			r.Records++
			if !record.Intact(p, record.Disk, seq) {
				r.Bad++
			}
		})
		if err != nil {
			d.fail(err)
		}
	}
	r.Errors = d.errors
	if d.failed != nil {
		r.Error = d.failed.Error()
	}
	return r
}

// newest is the sequence number of the latest record up to last that belongs into slot of
// slots, 0 where there is none yet.
func newest(last, slot, slots uint64) uint64 {
	if slot <= last%slots {
		return last - last%slots + slot
	}
	if last < slots {
		return 0
	}
	return last - last%slots - slots + slot
}
