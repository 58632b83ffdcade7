package wan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"heliotrope"
)

// queueLength is how many frames a TAP device keeps for us while our thread waits for a
// core. All that leaves a site passes this queue, whereto ever, so what overflows it is
// also traffic whose link is idle: it holds the 32 MiB that one TCP connection of a copy
// may have under way. (With 10,000 frames, 12 of 40 copies over 180 ms of round trip lost a
// client up to 100 ms of its packets on other links.)
const queueLength = 32768

// OpenTap makes the TAP device name with the address mac in the network namespace at the
// path netns (/proc/PID/ns/net, /run/netns/NAME or /proc/self/fd/N), brings it up, and
// returns its other end for AddPort. The device lives until that file is closed or the
// namespace ends; it does not keep the namespace alive. IP addresses are the router's affair.
func OpenTap(netns, name string, mac heliotrope.MAC) (*os.File, error) {
	target, err := os.Open(netns)
	if err != nil {
		return nil, fmt.Errorf("open tap %s: %w", name, err)
	}
	defer target.Close()
	// The file of a TAP device pins the namespace that it was opened in. So it is opened in
	// an empty one, and the device then moved: the router's own namespace can end.
	fd := -1
	err = elsewhere(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		if fd, err = makeTap(name, mac); err != nil {
			return err
		}
		return moveDevice(name, target)
	})
	if err == nil {
		err = inNamespace(netns, func() error { return configure(name, unix.SIOCSIFFLAGS, native16(unix.IFF_UP)) })
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open tap %s in %s: %w", name, netns, err)
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun:"+name), nil
}

// inNamespace runs do on a thread that is in the network namespace at path.
func inNamespace(path string, do func() error) error {
	return elsewhere(func() error {
		there, err := os.Open(path)
		if err != nil {
			return err
		}
		defer there.Close()
		return unix.Setns(int(there.Fd()), unix.CLONE_NEWNET)
	}, do)
}

// elsewhere runs do on a thread of its own after enter has changed its network namespace.
func elsewhere(enter, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err, back := visit(enter, do)
		if back {
			runtime.UnlockOSThread()
		} // else the thread is spoilt and ends with this goroutine
		done <- err
	}()
	return <-done
}

func visit(enter, do func() error) (err error, back bool) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err, true
	}
	defer home.Close()
	if err := enter(); err != nil {
		return fmt.Errorf("enter namespace: %w", err), true
	}
	err = do()
	if e := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); e != nil {
		return errors.Join(err, fmt.Errorf("leave namespace: %w", e)), false
	}
	return err, true
}

// makeTap makes the device in the thread's namespace. Its descriptor is valid even when an
// error came later, -1 when there is none.
func makeTap(name string, mac heliotrope.MAC) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fd, fmt.Errorf("name %q: %w", name, err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fd, fmt.Errorf("make device: %w", err)
	}
	if err := configure(name, unix.SIOCSIFHWADDR, append(native16(unix.ARPHRD_ETHER), mac[:]...)); err != nil {
		return fd, fmt.Errorf("set address: %w", err)
	}
	if err := configure(name, unix.SIOCSIFTXQLEN, native32(queueLength)); err != nil {
		return fd, fmt.Errorf("set queue length: %w", err)
	}
	return fd, nil
}

// configure makes one SIOCSIF… request for the device name.
func configure(name string, request uintptr, value []byte) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(s)
	var ifreq [40]byte // struct ifreq: the name in 16 bytes, then the value
	copy(ifreq[:unix.IFNAMSIZ-1], name)
	copy(ifreq[unix.IFNAMSIZ:], value)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(s), request, uintptr(unsafe.Pointer(&ifreq))); e != 0 {
		return e
	}
	return nil
}

// moveDevice moves the device name from the thread's namespace to target, by rtnetlink.
func moveDevice(name string, target *os.File) error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer unix.Close(s)
	request := make([]byte, 0, 64)
	request = append(request, native32(0)...)                                 // length, below
	request = append(request, native16(unix.RTM_SETLINK)...)                  // type
	request = append(request, native16(unix.NLM_F_REQUEST|unix.NLM_F_ACK)...) // flags
	request = append(request, make([]byte, 8+unix.SizeofIfInfomsg)...)        // sequence, port, ifinfomsg
	request = append(request, attribute(unix.IFLA_IFNAME, append([]byte(name), 0))...)
	request = append(request, attribute(unix.IFLA_NET_NS_FD, native32(uint32(target.Fd())))...)
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	if err := unix.Sendto(s, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("move device: %w", err)
	}
	reply := make([]byte, 4096)
	n, err := unix.Read(s, reply)
	if err != nil {
		return fmt.Errorf("move device: %w", err)
	}
	if n < unix.SizeofNlMsghdr+4 {
		return errors.New("move device: the kernel's answer is too short")
	}
	if code := int32(binary.NativeEndian.Uint32(reply[unix.SizeofNlMsghdr:])); code != 0 {
		return fmt.Errorf("move device: %w", unix.Errno(-code))
	}
	return nil
}

// attribute is a netlink attribute, padded to four bytes.
func attribute(kind uint16, value []byte) []byte {
	a := append(native16(uint16(4+len(value))), native16(kind)...)
	a = append(a, value...)
	return append(a, make([]byte, -len(a)&3)...)
}

func native16(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }
func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// takeOver returns a descriptor of f that Go's poller knows nothing of, and closes f: else
// the runtime would be woken by every frame.
func takeOver(f *os.File) (int, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("read descriptor: %w", err)
	}
	fd := -1
	var failed error
	if err := conn.Control(func(old uintptr) {
		fd, failed = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return -1, fmt.Errorf("read descriptor: %w", err)
	}
	if failed != nil {
		return -1, fmt.Errorf("copy descriptor: %w", failed)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make non-blocking: %w", err)
	}
	return fd, f.Close()
}
