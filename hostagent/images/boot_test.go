package images

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"heliotrope/hostagent/libvirt"
)

// bootCode reads the second sector by the BIOS, writes its first byte to the serial line, and tells
// QEMU's debug-exit device 0x10: QEMU then exits with 2*0x10+1.
var bootCode = []byte{
	0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, // ds = es = 0
	0xb8, 0x01, 0x02, 0xb9, 0x02, 0x00, 0xba, 0x80, 0x00, 0xbb, 0x00, 0x7e, // read 1 sector, the second, of disk 0x80, to 0x7e00
	0xcd, 0x13, // int 0x13
	0xa0, 0x00, 0x7e, 0xba, 0xf8, 0x03, 0xee, // out 0x3f8, [0x7e00]
	0xb0, 0x10, 0xe6, 0xf4, 0xf4, // out 0xf4, 0x10; hlt
}

// An image of a store is a disk that boots by itself, before anything of it is here.
func TestDiskBoots(t *testing.T) {
	h := newHost(t)
	h.content = make([]byte, 4<<20)
	copy(h.content, bootCode)
	h.content[510], h.content[511], h.content[512] = 0x55, 0xaa, '!'
	h.image("boots", 0, 0)
	c, _ := h.serve()
	h.put(c, "web", wanted{Image: "boots"})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-m", "64", "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04",
		"-drive", "file.driver=nbd,file.server.type=unix,file.server.path="+libvirt.VolumeSocket(h.c.DiskDir)+",file.export="+
			libvirt.VolumeExport(h.c.DiskDir, "web")+",file.reconnect-delay=600,format=raw,if=virtio")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatal("there is no qemu-system-x86_64: run make deps")
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2*0x10+1 || !bytes.Contains(out.Bytes(), []byte("!")) {
		t.Errorf("QEMU: %v: %s", err, out.Bytes())
	}
}
