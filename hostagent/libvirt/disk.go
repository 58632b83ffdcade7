package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirtxml"

	"heliotrope"
	"heliotrope/migration"
)

// A disk with a file of this ending beside it is worth nothing unless its VM is defined
// here: a move has not filled it yet, or has taken the VM away.
const voidMark = ".void"

// diskDirMode lets QEMU pass where it does not run as root; each file is its own user's.
const diskDirMode = 0o711

// makeDisk copies the image's disk for the VM unless it has one already, and returns its
// format: empty where the image has no disk. Whether the VM is defined here decides if a
// disk that is marked as void is the VM's own.
func (s Spec) makeDisk(defined bool) (format string, err error) {
	if s.Volume != nil {
		return "raw", s.makeVolume(defined)
	}
	if ownDisk(s.diskFile(), defined) {
		return "raw", nil
	}
	template, err := os.Open(filepath.Join(s.ImageDir, "disk.img"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", s.mayLackDisk()
	}
	if err != nil {
		return "", err
	}
	defer template.Close()
	if err := os.MkdirAll(s.DiskDir, diskDirMode); err != nil {
		return "", err
	}
	// A half-made copy must never be taken for the VM's disk.
	part, err := os.CreateTemp(s.DiskDir, string(s.VM)+".*.part")
	if err != nil {
		return "", err
	}
	defer os.Remove(part.Name())
	err = errors.Join(copySparse(part, template), part.Sync(), part.Close())
	if err != nil {
		return "", err
	}
	if err := os.Rename(part.Name(), s.diskFile()); err != nil {
		return "", err
	}
	if err := os.Remove(s.diskFile() + voidMark); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return "raw", nil
}

// StoredDisk is the file of an image's directory which says that the disk is an image store's.
const StoredDisk = "disk.store"

// mayLackDisk says why a VM that has no disk may not start.
func (s Spec) mayLackDisk() error {
	if _, err := os.Stat(s.ImageDir); err != nil {
		return fmt.Errorf("image %s is no directory of this host, and it has no image store: %w", s.What.Image, err)
	}
	if _, err := os.Stat(filepath.Join(s.ImageDir, StoredDisk)); err == nil {
		return fmt.Errorf("image %s has its disk in an image store (%s), and this host has none: start its agent with --image-store", s.What.Image, StoredDisk)
	}
	return nil
}

// ownDisk says whether a disk's file is there and the VM's own.
func ownDisk(file string, defined bool) bool {
	_, err := os.Stat(file)
	_, marked := os.Stat(file + voidMark)
	return err == nil && (defined || marked != nil)
}

// copySparse copies all of src and leaves holes where it is zero.
func copySparse(dst, src *os.File) error {
	buf, zero := make([]byte, 1<<16), make([]byte, 1<<16)
	var size int64
	for {
		n, err := io.ReadFull(src, buf)
		if n > 0 && !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := dst.WriteAt(buf[:n], size); err != nil {
				return err
			}
		}
		size += int64(n)
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return dst.Truncate(size)
		default:
			return err
		}
	}
}

// describeDisks lists the disks that a move copies.
func describeDisks(d *libvirtxml.Domain) ([]migration.Disk, error) {
	var disks []migration.Disk
	for i := range d.Devices.Disks {
		disk := &d.Devices.Disks[i]
		file := diskSource(disk)
		if file == "" || disk.Target == nil || disk.Driver == nil || disk.Driver.Type != "raw" {
			return nil, fmt.Errorf("describe disk %d: only raw files can move", i)
		}
		info, err := os.Stat(file)
		if err != nil {
			return nil, fmt.Errorf("describe disk: %w", err)
		}
		disks = append(disks, migration.Disk{Target: disk.Target.Dev, Bytes: info.Size(), Format: disk.Driver.Type})
	}
	return disks, nil
}

// makeEmptyDisks makes the files that the disks of an incoming VM are copied to. What is
// left there from an earlier stay is overwritten.
func makeEmptyDisks(d *libvirtxml.Domain, disks []migration.Disk) error {
	if len(disks) != len(d.Devices.Disks) {
		return fmt.Errorf("make disks: described are %d, the VM has %d", len(disks), len(d.Devices.Disks))
	}
	if err := markDisks(d); err != nil {
		return fmt.Errorf("mark disks: %w", err)
	}
	for i := range d.Devices.Disks {
		have := &d.Devices.Disks[i]
		want := disks[i]
		if have.Target == nil || have.Target.Dev != want.Target || want.Bytes < 0 {
			return fmt.Errorf("make disk %s: the VM has no such disk", want.Target)
		}
		file := diskSource(have)
		f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("make disk %s: %w", want.Target, err)
		}
		if err := errors.Join(f.Truncate(want.Bytes), f.Close()); err != nil {
			return fmt.Errorf("make disk %s: %w", want.Target, err)
		}
	}
	return nil
}

func removeDisks(d *libvirtxml.Domain) error {
	var errs error
	for i := range d.Devices.Disks {
		if file := diskSource(&d.Devices.Disks[i]); file != "" {
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = errors.Join(errs, fmt.Errorf("remove disk: %w", err))
			}
		}
	}
	return errors.Join(errs, unmarkDisks(d)) // last: half a removal must not look like a disk
}

func markDisks(d *libvirtxml.Domain) error {
	for i := range d.Devices.Disks {
		file := diskSource(&d.Devices.Disks[i])
		if err := os.MkdirAll(filepath.Dir(file), diskDirMode); err != nil {
			return err
		}
		if err := os.WriteFile(file+voidMark, nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func unmarkDisks(d *libvirtxml.Domain) error {
	var errs error
	for i := range d.Devices.Disks {
		if err := os.Remove(diskSource(&d.Devices.Disks[i]) + voidMark); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = errors.Join(errs, fmt.Errorf("remove mark of disk: %w", err))
		}
	}
	return errs
}

// Sweep deletes the disks in dir that moves have left half filled or behind, of VMs that
// the host does not have: an agent that was killed could not. Call it when an agent starts.
func (h *Hypervisor) Sweep(ctx context.Context, dir string) error {
	marks, err := filepath.Glob(filepath.Join(dir, "*.img"+voidMark))
	volumes, err2 := filepath.Glob(filepath.Join(dir, "*"+volumeEnding+voidMark))
	if err := errors.Join(err, err2); err != nil {
		return fmt.Errorf("sweep %s: %w", dir, err)
	}
	marks = append(marks, volumes...)
	var errs error
	for _, mark := range marks {
		disk := strings.TrimSuffix(mark, voidMark)
		vm := heliotrope.VMID(strings.TrimSuffix(filepath.Base(disk), filepath.Ext(disk)))
		switch _, err := h.lookup(ctx, vm); {
		case errors.Is(err, ErrAbsent):
			errs = errors.Join(errs, removeIfThere(disk), os.Remove(mark))
		case err != nil:
			errs = errors.Join(errs, err)
		}
	}
	if errs != nil {
		return fmt.Errorf("sweep %s: %w", dir, errs)
	}
	return nil
}

func removeIfThere(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
