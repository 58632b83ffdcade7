//go:build lab

package libvirt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"heliotrope"
)

// A QEMU that does not run as root must get at its disk.
func TestDiskDirLetsQEMUPass(t *testing.T) {
	image, disks := t.TempDir(), filepath.Join(t.TempDir(), "disks")
	if err := os.WriteFile(filepath.Join(image, "disk.img"), make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := Spec{VM: testVM, ImageDir: image, DiskDir: disks}
	if _, err := spec.makeDisk(false); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Stat(disks)
	if err != nil {
		t.Fatal(err)
	}
	if dir.Mode().Perm() != 0o711 {
		t.Errorf("mode %v of the disks' directory, want 0711", dir.Mode().Perm())
	}
	disk, err := os.Stat(spec.diskFile())
	if err != nil {
		t.Fatal(err)
	}
	if disk.Mode().Perm()&0o077 != 0 {
		t.Errorf("mode %v of a disk: others may read it", disk.Mode().Perm())
	}
}

// A VM without a disk starts only if its image is meant so.
func TestVMWithoutADisk(t *testing.T) {
	image := t.TempDir()
	spec := Spec{VM: testVM, What: heliotrope.VM{Image: "nix"}, ImageDir: image, DiskDir: filepath.Join(t.TempDir(), "disks")}
	if format, err := spec.makeDisk(false); err != nil || format != "" {
		t.Errorf("an image that is a kernel: %q, %v", format, err)
	}
	if err := os.WriteFile(filepath.Join(image, StoredDisk), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := spec.makeDisk(false); err == nil || !strings.Contains(err.Error(), "--image-store") {
		t.Errorf("an image whose disk is in a store that is not there: %v", err)
	}
	spec.ImageDir = filepath.Join(image, "none")
	if _, err := spec.makeDisk(false); err == nil || !strings.Contains(err.Error(), "nix is no directory") {
		t.Errorf("an image that is not there: %v", err)
	}
}

// counts wants a node's QEMU to have counted what the guest does, which writes with O_SYNC.
func (n *node) counts() {
	n.t.Helper()
	var c DiskCounters
	timed(n.t, "read disk counters", func() { n.call("DiskCounters", testVM, &c) })
	if c.Writes == 0 || c.Flushes == 0 || c.WriteTime <= 0 || c.FlushTime <= 0 {
		n.t.Errorf("counted is %+v", c)
	}
}
