// Init is the whole user space of the lab's guest: process 1 of a tiny virtual machine that
// boots in seconds under plain emulation and proves what a move did to it.
//
// It mounts what the kernel needs, loads the virtio drivers, and reads its configuration from
// the kernel's command line:
//
//	heliotrope.nic=<mac>,<address>/<length>,<gateway>,<mtu>   one per NIC; gateway and mtu may be empty
//	heliotrope.hostname=NAME
//	heliotrope.workingset_mib=N heliotrope.dirty_pages_per_s=N   the memory workload
//	heliotrope.disk_writes_per_s=N                               the disk workload, on /dev/vda
//	heliotrope.peer=HOST:PORT[,HOST:PORT]                        connections to other guests' echo
//
// Then it serves TCP and UDP echo on port 7 and HTTP on port 80: / says hello, /ticks shows
// that time and memory went on, /checksum and /disk verify every page and every block, /peer
// shows the connections to others, ?add=HOST:PORT begins one and ?drop=HOST:PORT ends it,
// /workload?pages=N&rate=N changes the memory workload.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this is the guest's process 1 and does nothing elsewhere")
		os.Exit(2)
	}
	err := run()
	fmt.Printf("heliotrope guest: %v\n", err)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// run returns only when something that the guest cannot do without is missing.
func run() error {
	if err := mountAll(); err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("read command line: %w", err)
	}
	c, err := parseCommandLine(string(text))
	if err != nil {
		return fmt.Errorf("read command line: %w", err)
	}
	if err := unix.Sethostname([]byte(c.hostname)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	if err := bringUp(c.nics); err != nil {
		return err
	}
	return serve(c)
}

func mountAll() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

// modules are the drivers of a Debian cloud kernel, each after those it needs.
var modules = []string{
	"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
	"failover", "net_failover", "virtio_net", "virtio_blk",
}

// loadModules loads what is in dir. A module that is not there is taken to be built in.
func loadModules(dir string) error {
	for _, name := range modules {
		f, err := os.Open(filepath.Join(dir, name+".ko"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("load module: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

// services runs each in a goroutine of its own; the first that ends, which none should, ends
// the guest.
type services chan error

func (s services) start(what string, run func() error) {
	go func() {
		err := run()
		s <- fmt.Errorf("%s: %w", what, err)
	}()
}

// serve starts everything, says that the guest is up once all of it listens, and waits.
func serve(c config) error {
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	g := &guest{name: c.hostname, bootID: strings.TrimSpace(string(bootID)), started: time.Now()}
	s := make(services, 1)
	g.work(c, s)
	if err := g.listen(c, s); err != nil {
		return err
	}
	fmt.Printf("heliotrope guest %s is up %s after %.2f s\n", c.hostname, c.addresses(), uptime().Seconds())
	return <-s
}

// work starts the workloads. One that cannot run is no reason to be off the network.
func (g *guest) work(c config, s services) {
	if err := g.memory.resize(c.workingSetPages, c.dirtyRate); err != nil {
		fmt.Printf("heliotrope guest: no memory workload: %v\n", err)
	}
	if err := g.disk.open("/dev/vda", c.diskRate); err != nil {
		fmt.Printf("heliotrope guest: no disk workload: %v\n", err)
	} else {
		s.start("disk workload", g.disk.run)
	}
	for _, address := range c.peers {
		g.call(address)
	}
	s.start("ticks", g.ticks.run)
	s.start("memory workload", g.memory.run)
	s.start("announcements", g.resumes.run)
}

func (g *guest) listen(c config, s services) error {
	for _, a := range c.addresses() {
		conn, err := listenUDP(a)
		if err != nil {
			return err
		}
		s.start("UDP echo", func() error { return echoUDP(conn) })
	}
	echo, err := net.Listen("tcp", fmt.Sprintf(":%d", echoPort))
	if err != nil {
		return err
	}
	web, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	s.start("TCP echo", func() error { return acceptEcho(echo) })
	s.start("HTTP", func() error { return g.serveHTTP(web) })
	return nil
}

// uptime is the time since the kernel started.
func uptime() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return time.Duration(t.Nano())
}
