//go:build ignore

// Process 1 of the guest that part "boot" boots, until its root is there: it loads the drivers,
// makes the disk the root, and becomes the script that its initial RAM disk has.
package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

func main() {
	err := run()
	fmt.Printf("boot: %v\n", err)
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	if err := begin(0, ""); err != nil {
		return err
	}
	script, err := os.ReadFile("/script")
	if err != nil {
		return err
	}
	err = errors.Join(mount("devtmpfs", "/root/dev"), mount("proc", "/root/proc"), mount("sysfs", "/root/sys"), mount("tmpfs", "/root/run"),
		syscall.Chdir("/root"), syscall.Mount(".", "/", "", syscall.MS_MOVE, ""), syscall.Chroot("."), syscall.Chdir("/"))
	if err != nil {
		return err
	}
	return syscall.Exec("/bin/sh", []string{"sh", "-c", string(script)}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"})
}
