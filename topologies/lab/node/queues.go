package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The userspace datapath shares its core with everything else in the lab, and is not
// there for some milliseconds now and then. What comes in meanwhile must find room: the
// default socket buffer holds 90 full packets, 2 ms of a 465 Mbit/s link, and a copy over
// a WAN then loses a tenth of what it sends.
const (
	uplinkQueue  = 3000    // packets, from the kernel into br-phy
	packetBuffer = 8 << 20 // bytes, of each socket from which ovs-vswitchd reads a device
)

const (
	uplinkBridge  = "br-phy"
	vswitchdPID   = "/run/openvswitch/ovs-vswitchd.pid"
	queueKey      = "6 queue " + uplinkBridge
	packetsKey    = "7 packet sockets"
	packetColumns = 9 // of /proc/net/packet; the last is the inode
)

func setUplinkQueue() error {
	return onLink(uplinkBridge, func(l netlink.Link) error { return netlink.LinkSetTxQLen(l, uplinkQueue) })
}

// packetSockets calls f with a duplicate of every packet socket of ovs-vswitchd. While that
// does not run there are none.
func packetSockets(f func(fd int) error) error {
	text, err := os.ReadFile(vswitchdPID)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find ovs-vswitchd: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("find ovs-vswitchd: %w", err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open ovs-vswitchd: %w", err)
	}
	defer unix.Close(pidfd)
	inodes, err := packetInodes()
	if err != nil {
		return err
	}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return fmt.Errorf("list descriptors: %w", err)
	}
	for _, path := range fds {
		link, err := os.Readlink(path)
		if err != nil || !inodes[link] {
			continue // closed meanwhile, or something else
		}
		target, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			return fmt.Errorf("list descriptors: %w", err)
		}
		fd, err := unix.PidfdGetfd(pidfd, target, 0)
		if err != nil {
			continue // closed meanwhile
		}
		err = f(fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// packetInodes are the packet sockets of this network namespace, as /proc/PID/fd names them.
func packetInodes() (map[string]bool, error) {
	text, err := os.ReadFile("/proc/net/packet")
	if err != nil {
		return nil, fmt.Errorf("list packet sockets: %w", err)
	}
	inodes := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == packetColumns {
			inodes["socket:["+fields[packetColumns-1]+"]"] = true
		}
	}
	return inodes, nil
}

func growPacketSockets() error {
	return packetSockets(func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, packetBuffer); err != nil {
			return fmt.Errorf("grow packet socket: %w", err)
		}
		return nil
	})
}

// packetSocketsGrown says whether every packet socket is as large as it is to be.
func packetSocketsGrown() (bool, error) {
	grown := true
	err := packetSockets(func(fd int) error {
		n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
		grown = grown && n >= packetBuffer
		return err
	})
	return grown, err
}
