package libvirt

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"heliotrope/scheduler/traffic"
)

// QueuePackets is the length that Start and Prepare give to the queue of each tap. The
// kernel's default of 1,000 is a pause of 100 ms at 10,000 packets a second.
const QueuePackets = 10_000

// SetTapQueue sets how many packets a tap holds for a guest that does not read them.
// It may be changed while QEMU has the tap open.
func SetTapQueue(tap string, packets int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	var request struct { // struct ifreq
		name   [unix.IFNAMSIZ]byte
		length int32
		_      [20]byte
	}
	if copy(request.name[:unix.IFNAMSIZ-1], tap) != len(tap) {
		return fmt.Errorf("set queue of tap %s: name too long", tap)
	}
	request.length = int32(packets)
	if err := ioctl(fd, unix.SIOCSIFTXQLEN, unsafe.Pointer(&request)); err != nil {
		return fmt.Errorf("set queue of tap %s: %w", tap, err)
	}
	return nil
}

// CaughtPackets takes the frames out of the queue of a tap that a stopped VM's QEMU has
// open, oldest first. They are gone from the queue then: if the VM is to run here again,
// Inject them. It does not return the frame that QEMU itself took after it had stopped;
// Catch.Frames does.
func CaughtPackets(qemuPID int, tap string) ([][]byte, error) {
	files, err := tapFiles(qemuPID, tap)
	if err != nil {
		return nil, fmt.Errorf("find tap %s in process %d: %w", tap, qemuPID, err)
	}
	var frames [][]byte
	for _, fd := range files {
		got, readErr := readTap(fd)
		frames = append(frames, got...)
		err = errors.Join(err, readErr, unix.Close(fd))
	}
	if err != nil {
		return frames, fmt.Errorf("read tap %s: %w", tap, err)
	}
	return frames, nil
}

// tapFiles returns copies of all descriptors that process pid has of tap: one for each queue.
func tapFiles(pid int, tap string) (files []int, err error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fdinfo")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process: %w", err)
	}
	defer unix.Close(process)
	for _, e := range entries {
		info, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil || !hasLine(string(info), "iff:\t"+tap) {
			continue // closed meanwhile, or another thing
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		copied, err := unix.PidfdGetfd(process, fd, 0)
		if err != nil {
			for _, f := range files {
				unix.Close(f)
			}
			return nil, fmt.Errorf("copy descriptor %d: %w", fd, err)
		}
		files = append(files, copied)
	}
	if len(files) == 0 {
		return nil, os.ErrNotExist
	}
	return files, nil
}

func hasLine(text, line string) bool {
	for l := range strings.Lines(text) {
		if strings.TrimRight(l, "\n") == line {
			return true
		}
	}
	return false
}

// readTap reads frames until none is left, without the header that QEMU asked the kernel
// to put before each.
func readTap(fd int) ([][]byte, error) {
	header, err := headerSize(fd)
	if err != nil {
		return nil, err
	}
	var frames [][]byte
	buf := make([]byte, header+65536)
	for len(frames) < 1<<17 { // far above any queue's length
		// The descriptor is shared with QEMU, so its flags are not ours to change.
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(ready, 0); n == 0 || err == unix.EINTR {
			if err == unix.EINTR {
				continue
			}
			return frames, err
		}
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EAGAIN:
			return frames, nil
		case err == unix.EINTR:
			continue
		case err != nil:
			return frames, err
		case n > header:
			frames = append(frames, append([]byte(nil), buf[header:n]...))
		}
	}
	return frames, nil
}

func headerSize(fd int) (int, error) {
	var request [40]byte // struct ifreq: name, then flags
	if err := ioctl(fd, unix.TUNGETIFF, unsafe.Pointer(&request)); err != nil {
		return 0, fmt.Errorf("ask tap for its flags: %w", err)
	}
	flags := *(*uint16)(unsafe.Pointer(&request[unix.IFNAMSIZ]))
	size := 0
	if flags&unix.IFF_NO_PI == 0 {
		size = 4
	}
	if flags&unix.IFF_VNET_HDR != 0 {
		var vnet int32
		if err := ioctl(fd, unix.TUNGETVNETHDRSZ, unsafe.Pointer(&vnet)); err != nil {
			return 0, fmt.Errorf("ask tap for its header size: %w", err)
		}
		if vnet < 0 || vnet > 1024 {
			return 0, fmt.Errorf("tap says its header has %d bytes", vnet)
		}
		size += int(vnet)
	}
	return size, nil
}

func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// Inject puts frames into a tap's queue, towards the guest, in their order. They bear
// traffic.InjectMark, so that they are not counted a second time.
func Inject(tap string, frames [][]byte) error {
	if len(frames) == 0 {
		return nil
	}
	fd, err := packetSocket(tap, 0)
	if err != nil {
		return fmt.Errorf("open packet socket on %s: %w", tap, err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, traffic.InjectMark); err != nil {
		return fmt.Errorf("mark frames for %s: %w", tap, err)
	}
	for i, frame := range frames {
		if err := send(fd, frame); err != nil {
			return fmt.Errorf("inject frame %d of %d into %s: %w", i+1, len(frames), tap, err)
		}
	}
	return nil
}

// send waits for room in a queue that is full: somebody reads it.
func send(fd int, frame []byte) error {
	pause := time.NewTicker(time.Millisecond)
	defer pause.Stop()
	for attempts := 0; ; {
		_, err := unix.Write(fd, frame)
		switch err {
		case unix.EINTR:
		case unix.ENOBUFS, unix.EAGAIN:
			if attempts++; attempts > 1000 {
				return err
			}
			<-pause.C
		default:
			return err
		}
	}
}

// packetSocket opens a raw socket on an interface; protocol is unix.ETH_P_ALL to receive,
// or 0 to send only.
func packetSocket(name string, protocol uint16) (int, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return -1, err
	}
	// Until it is bound the socket has no protocol, or it would get every interface's frames.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	address := &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: link.Index}
	if err := unix.Bind(fd, address); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
