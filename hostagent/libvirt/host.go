package libvirt

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Host is what the hypervisor's machine can give.
type Host struct {
	QEMU      string // version, 10.0.2
	Libvirt   string // version, 11.3.0
	CPUs      int
	MemoryMiB int
	KVM       bool // guests boot under it, and soon
}

// Host asks for the versions and the size of the machine, and probes KVM.
func (h *Hypervisor) Host(ctx context.Context) (Host, error) {
	host, err := do(ctx, h, func() (host Host, err error) {
		version, err := h.control.ConnectGetVersion()
		if err != nil {
			return host, err
		}
		host.QEMU = dotted(version)
		if version, err = h.control.ConnectGetLibVersion(); err != nil {
			return host, err
		}
		host.Libvirt = dotted(version)
		_, _, cpus, _, _, _, _, _, err := h.control.NodeGetInfo()
		host.CPUs = int(cpus)
		return host, err
	})
	// libvirt's own count of memory leaves out what was added after boot.
	var machine unix.Sysinfo_t
	if err == nil {
		err = unix.Sysinfo(&machine)
		host.MemoryMiB = int(machine.Totalram * uint64(machine.Unit) >> 20)
	}
	if err != nil {
		return Host{}, fmt.Errorf("describe host: %w", err)
	}
	host.KVM = ProbeKVM(ctx)
	return host, nil
}

// dotted writes libvirt's version numbers, 10000002, as 10.0.2.
func dotted(v uint64) string { return fmt.Sprintf("%d.%d.%d", v/1e6, v/1000%1000, v%1000) }

// bootSector enters 32-bit protected mode as a kernel would, writes through it, and
// tells QEMU's debug-exit device 0x10: QEMU then exits with 2*0x10+1.
var bootSector = []byte{
	0xfa,                   // cli
	0x31, 0xc0, 0x8e, 0xd8, //       ds = 0
	0x0f, 0x01, 0x16, 0x3c, 0x7c, // lgdt [0x7c3c]
	0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, // cr0 |= protected
	0xea, 0x17, 0x7c, 0x08, 0x00, // jmp 8:0x7c17
	// 0x17: 32 bits
	0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, // ds = 0x10
	0xb9, 0x00, 0x00, 0x10, 0x00, //       ecx = 1 MiB
	0xc6, 0x81, 0x00, 0x00, 0x20, 0x00, 0x5a, // mov byte [ecx+2 MiB], 0x5a
	0xe2, 0xf7, //                         loop
	0xb0, 0x10, 0xe6, 0xf4, //             out 0xf4, 0x10
	0xf4, //                               hlt
}

// descriptors are the null, code and data segments, each of 4 GiB from 0.
var descriptors = []byte{
	0, 0, 0, 0, 0, 0, 0, 0,
	0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0,
	0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0,
}

const (
	bootedExit = 2*0x10 + 1
	probeLimit = 3 * time.Second
)

// ProbeKVM says whether guests are better off under KVM here, by booting one: firmware, a boot sector, protected mode. /dev/kvm
// alone proves nothing; on some clouds it opens, and guests hang, fail, or boot in ten times what emulation takes. It takes 6 s at most.
func ProbeKVM(ctx context.Context) bool {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return false
	}
	return soon(ctx, boots)
}

// soon says whether a guest boots under KVM within a second, or twice what it takes under emulation on the same busy cores.
func soon(ctx context.Context, boots func(context.Context, string) error) bool {
	begun, limit := time.Now(), probeLimit
	if boots(ctx, "tcg") == nil { // some builds of QEMU have none
		limit = max(time.Second, 2*time.Since(begun))
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return boots(ctx, "kvm") == nil
}

// boots boots the boot sector under a QEMU accelerator.
func boots(ctx context.Context, accelerator string) error {
	dir, err := os.MkdirTemp("", "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	sector := append(make([]byte, 0, 512), bootSector...)[:512]
	copy(sector[0x3c:], []byte{byte(len(descriptors) - 1), 0, 0x42, 0x7c, 0, 0}) // the table is at 0x7c42
	copy(sector[0x42:], descriptors)
	sector[510], sector[511] = 0x55, 0xaa
	image := filepath.Join(dir, "boot.img")
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	if err := os.WriteFile(image, sector, 0o600); err != nil {
		return err
	}
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", accelerator, "-machine", "pc", "-m", "32",
		"-nodefaults", "-display", "none", "-no-reboot",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=0x04",
		"-drive", "file="+image+",format=raw,if=ide,snapshot=on")
	qemu.WaitDelay = time.Second
	if err = qemu.Run(); qemu.ProcessState != nil && qemu.ProcessState.ExitCode() == bootedExit {
		return nil
	}
	return fmt.Errorf("boot probe under %s: %w", accelerator, err)
}
