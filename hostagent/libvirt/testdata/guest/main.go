// Command guest is the init of the test's virtual machine. It keeps memory, disk and
// clock busy, counts the numbered frames that reach its network card, and says on the
// console what it has seen whenever a frame asks it to.
package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	etherType = 0x88b5 // IEEE local experimental
	blockSize = 4096
	maxSeq    = 1 << 20
)

var moduleOrder = []string{"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev",
	"virtio_pci", "failover", "net_failover", "virtio_net", "virtio_blk"}

func main() {
	if err := run(); err != nil {
		fmt.Println("GUEST fatal", err)
	}
	for {
		time.Sleep(time.Hour) // init must not end
	}
}

func run() error {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		os.MkdirAll(m.dir, 0o755)
		if err := syscall.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && err != syscall.EBUSY {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	for _, m := range moduleOrder {
		if err := insert("/modules/" + m + ".ko"); err != nil {
			return fmt.Errorf("insert %s: %w", m, err)
		}
	}
	sock, err := listen()
	if err != nil {
		return err
	}
	var ticks, writes atomic.Uint64
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			ticks.Add(1)
		}
	}()
	go dirtyMemory(option("dirty_mib", 8), option("dirty_pages", 200))
	disk, err := waitDisk()
	if err != nil {
		return err
	}
	go writeDisk(disk, &writes)
	fmt.Println("GUEST ready")
	return count(sock, disk, &ticks, &writes)
}

// option reads heliotrope.NAME=number from the kernel's command line.
func option(name string, otherwise int) int {
	cmdline, _ := os.ReadFile("/proc/cmdline")
	for word := range strings.FieldsSeq(string(cmdline)) {
		if v, ok := strings.CutPrefix(word, "heliotrope."+name+"="); ok {
			if n, err := strconv.Atoi(v); err == nil {
				return n
			}
		}
	}
	return otherwise
}

func insert(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	const finitModule = 313
	if _, _, errno := syscall.Syscall(finitModule, f.Fd(), uintptr(unsafe.Pointer(&[]byte{0}[0])), 0); errno != 0 && errno != syscall.EEXIST {
		return errno
	}
	return nil
}

// listen opens the first network card for frames of our type.
func listen() (int, error) {
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		cards, _ := filepath.Glob("/sys/class/net/e*")
		if len(cards) == 0 {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		card, err := net.InterfaceByName(filepath.Base(cards[0]))
		if err != nil {
			return 0, err
		}
		proto := uint16(etherType>>8 | etherType&0xff<<8)
		fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, int(proto))
		if err != nil {
			return 0, err
		}
		req := struct {
			name  [16]byte
			flags uint16
			_     [22]byte
		}{flags: syscall.IFF_UP | syscall.IFF_RUNNING}
		copy(req.name[:], card.Name)
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&req))); errno != 0 {
			return 0, errno
		}
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, 8<<20)
		return fd, syscall.Bind(fd, &syscall.SockaddrLinklayer{Protocol: proto, Ifindex: card.Index})
	}
	return 0, fmt.Errorf("find network card: none")
}

// count notes each numbered frame, and reports when number 2^32-1 asks it to.
func count(sock int, disk *os.File, ticks, writes *atomic.Uint64) error {
	seen := make([]uint8, maxSeq)
	buf := make([]byte, 65536)
	for {
		n, _, err := syscall.Recvfrom(sock, buf, 0)
		if err != nil || n < 18 {
			continue
		}
		seq := binary.BigEndian.Uint32(buf[14:])
		if seq < maxSeq {
			seen[seq]++
		}
		if seq == 0xffffffff {
			report(seen, disk, ticks.Load(), writes.Load())
		}
	}
}

func report(seen []uint8, disk *os.File, ticks, writes uint64) {
	var total, doubled, last int
	for i, n := range seen {
		if n > 0 {
			total, last = total+1, i+1
		}
		if n > 1 {
			doubled++
		}
	}
	var missing []string
	for i := range last {
		if seen[i] == 0 && len(missing) < 10 {
			missing = append(missing, strconv.Itoa(i))
		}
	}
	bad := checkDisk(disk, writes)
	fmt.Printf("\nGUEST report total=%d last=%d doubled=%d missing=[%s] ticks=%d writes=%d badblocks=%d badpages=%d\n",
		total, last, doubled, strings.Join(missing, " "), ticks, writes, bad, badPages.Load())
}

var badPages atomic.Uint64

// dirtyMemory writes pages at a steady rate and checks each before it writes it anew.
func dirtyMemory(mib, pagesPerSecond int) {
	pages := mib * 256
	mem := make([]byte, pages*4096)
	sums := make([]uint32, pages)
	var n uint64
	for i := 0; ; i = (i + 1) % pages {
		page := mem[i*4096 : (i+1)*4096]
		if n >= uint64(pages) && crc32.ChecksumIEEE(page) != sums[i] {
			badPages.Add(1)
		}
		for j := 0; j < 4096; j += 512 {
			binary.LittleEndian.PutUint64(page[j:], n*0x9e3779b97f4a7c15+uint64(j))
		}
		sums[i] = crc32.ChecksumIEEE(page)
		n++
		if burst := max(pagesPerSecond/100, 1); n%uint64(burst) == 0 {
			time.Sleep(time.Second * time.Duration(burst) / time.Duration(pagesPerSecond))
		}
	}
}

func waitDisk() (*os.File, error) {
	for range 12000 {
		if f, err := os.OpenFile("/dev/vda", os.O_RDWR|syscall.O_DIRECT|syscall.O_SYNC, 0); err == nil {
			return f, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, fmt.Errorf("find disk: none")
}

const diskBlocks = 2048 // half of the 16 MiB

func aligned() []byte {
	raw := make([]byte, 2*blockSize)
	off := blockSize - int(uintptr(unsafe.Pointer(&raw[0]))%blockSize)
	return raw[off : off+blockSize]
}

// writeDisk writes the n-th block with the number n, 20 times a second.
func writeDisk(disk *os.File, writes *atomic.Uint64) {
	buf := aligned()
	for range time.Tick(50 * time.Millisecond) {
		n := writes.Load()
		for j := 0; j < blockSize; j += 8 {
			binary.LittleEndian.PutUint64(buf[j:], n+1)
		}
		if _, err := disk.WriteAt(buf, int64(n%diskBlocks)*blockSize); err != nil {
			fmt.Println("GUEST disk", err)
			continue
		}
		writes.Add(1)
	}
}

// checkDisk counts blocks that do not hold what was written last.
func checkDisk(disk *os.File, writes uint64) (bad int) {
	buf := aligned()
	first := uint64(0)
	if writes > diskBlocks-1 {
		first = writes - diskBlocks + 1
	}
	for n := first; n < writes; n++ {
		if _, err := disk.ReadAt(buf, int64(n%diskBlocks)*blockSize); err != nil || binary.LittleEndian.Uint64(buf) != n+1 || binary.LittleEndian.Uint64(buf[blockSize-8:]) != n+1 {
			bad++
		}
	}
	return bad
}
