// Package flood sends as many packets as it is asked to, past a device's queue: what the cost of
// counting them is measured with.
package flood

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

const (
	flows    = 1000
	size     = 200 // bytes of a frame
	batch    = 64  // frames a system call
	ethernet = 14  // bytes of its header
)

// Frames are UDP datagrams of 200 bytes in 1,000 flows, what the cost of counting is
// measured with. Their IP checksum is wrong: who gets them throws them away at once.
type Frames struct {
	From, To heliotrope.MAC
	Src      netip.Addr                // IPv4
	Dst      func(flow int) netip.Addr // IPv4
}

// Outwards are frames to many addresses that are no VM's.
var Outwards = Frames{From: heliotrope.MAC{2, 0, 0, 0, 0, 1}, To: heliotrope.MAC{2, 0, 0, 0, 0, 9}, Src: netip.AddrFrom4([4]byte{10, 0, 0, 1}),
	Dst: func(flow int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, byte(flow), 1}) }}

// Flood sends the frames from a device at a rate, as fast as one thread can, in batches and
// past the device's queue. It returns how many the device took.
func (frames Frames) Flood(ctx context.Context, device string, pps int, d time.Duration) (sent uint64, err error) {
	card, err := net.InterfaceByName(device)
	if err != nil {
		return sent, fmt.Errorf("find device: %w", err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return sent, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: card.Index}); err != nil {
		return sent, fmt.Errorf("bind socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return sent, fmt.Errorf("pass by the queue: %w", err)
	}
	messages := frames.messages()
	start := time.Now()
	for ctx.Err() == nil {
		passed := time.Since(start)
		if passed >= d {
			return sent, nil
		}
		if ahead := time.Duration(sent) * time.Second / time.Duration(pps); ahead > passed {
			unix.Nanosleep(&unix.Timespec{Nsec: min(int64(ahead-passed), 1e6)}, nil)
			continue
		}
		at := int(sent % uint64(len(messages)))
		some := messages[at:min(at+batch, len(messages))]
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&some[0])), uintptr(len(some)), 0, 0, 0)
		if errno != 0 && errno != unix.ENOBUFS && errno != unix.EINTR {
			return sent, fmt.Errorf("send frames: %w", errno)
		}
		if errno == 0 { // otherwise the other side's backlog is full
			sent += uint64(n)
		}
	}
	return sent, ctx.Err()
}

// message is struct mmsghdr.
type message struct {
	unix.Msghdr
	_ [8]byte // msg_len
}

// messages are the frames as sendmmsg(2) takes them.
func (frames Frames) messages() []message {
	all := make([]message, flows)
	for i, b := range frames.All() {
		all[i].Iov = &unix.Iovec{Base: &b[0], Len: size}
		all[i].Iovlen = 1
	}
	return all
}

// All are the frames, one of each flow.
func (frames Frames) All() [][]byte {
	all := make([][]byte, flows)
	for i := range all {
		b := make([]byte, size)
		copy(b, frames.To[:])
		copy(b[6:], frames.From[:])
		copy(b[12:], []byte{8, 0, 0x45})
		binary.BigEndian.PutUint16(b[ethernet+2:], size-ethernet)
		b[ethernet+8], b[ethernet+9] = 64, traffic.UDP
		src, dst := frames.Src.As4(), frames.Dst(i).As4()
		copy(b[ethernet+12:], src[:])
		copy(b[ethernet+16:], dst[:])
		binary.BigEndian.PutUint16(b[ethernet+20:], uint16(40000+i))
		binary.BigEndian.PutUint16(b[ethernet+22:], uint16(1000+i%20))
		all[i] = b
	}
	return all
}
