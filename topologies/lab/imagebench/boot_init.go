//go:build ignore

// Process 1 of the guest that part "boot" boots, until its root is there: it loads the drivers,
// makes the disk the root, and becomes the script that its initial RAM disk has.
package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	err := run()
	fmt.Printf("boot: %v\n", err)
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	if err := errors.Join(mount("devtmpfs", "/dev"), mount("proc", "/proc")); err != nil {
		return err
	}
	for _, name := range []string{"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk"} {
		if err := load("/modules/" + name + ".ko"); err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	script, err := os.ReadFile("/script")
	if err != nil {
		return err
	}
	for range 500 {
		if err = syscall.Mount("/dev/vda", "/root", "ext4", 0, ""); !errors.Is(err, syscall.ENOENT) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	err = errors.Join(mount("devtmpfs", "/root/dev"), mount("proc", "/root/proc"), mount("sysfs", "/root/sys"), mount("tmpfs", "/root/run"),
		syscall.Chdir("/root"), syscall.Mount(".", "/", "", syscall.MS_MOVE, ""), syscall.Chroot("."), syscall.Chdir("/"))
	if err != nil {
		return err
	}
	return syscall.Exec("/bin/sh", []string{"sh", "-c", string(script)}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"})
}

func mount(kind, at string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount(kind, at, kind, 0, ""); err != nil && !errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("mount %s: %w", at, err)
	}
	return nil
}

// load is finit_module, which package syscall does not have.
func load(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	const finitModule = 313
	none := [1]byte{}
	if _, _, errno := syscall.Syscall(finitModule, f.Fd(), uintptr(unsafe.Pointer(&none[0])), 0); errno != 0 && errno != syscall.EEXIST {
		return errno
	}
	return nil
}
