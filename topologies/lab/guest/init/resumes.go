package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// resumes counts how often the guest was resumed elsewhere. A guest cannot see that by its
// clocks, which stood still with it; but QEMU then asks the NIC's driver to announce itself,
// and the kernel tells that on rtnetlink.
type resumes struct{ seen atomic.Int64 }

// sameResume holds the announcements that belong together: QEMU asks five times within 1.4 s.
const sameResume = 3 * time.Second

func (r *resumes) run() error {
	socket, err := openRoute(unix.RTMGRP_LINK)
	if err != nil {
		return err
	}
	defer socket.close()
	buffer := make([]byte, 64<<10)
	var last time.Time
	for {
		n, err := unix.Read(socket.fd, buffer)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read netlink: %w", err)
		}
		if !announces(buffer[:n]) {
			continue
		}
		if last.IsZero() || time.Since(last) > sameResume {
			r.seen.Add(1)
		}
		last = time.Now()
	}
}

// announces says whether a batch of rtnetlink messages tells of an announcement.
func announces(batch []byte) bool {
	for len(batch) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(batch))
		if size < unix.SizeofNlMsghdr || size > len(batch) {
			return false
		}
		if binary.NativeEndian.Uint16(batch[4:]) == unix.RTM_NEWLINK && size >= unix.SizeofNlMsghdr+unix.SizeofIfInfomsg {
			if linkAnnounces(batch[unix.SizeofNlMsghdr+unix.SizeofIfInfomsg : size]) {
				return true
			}
		}
		batch = batch[min((size+3)&^3, len(batch)):]
	}
	return false
}

func linkAnnounces(attributes []byte) bool {
	for len(attributes) >= 4 {
		size := int(binary.NativeEndian.Uint16(attributes))
		if size < 4 || size > len(attributes) {
			return false
		}
		if binary.NativeEndian.Uint16(attributes[2:]) == unix.IFLA_EVENT && size >= 8 {
			return binary.NativeEndian.Uint32(attributes[4:]) == unix.IFLA_EVENT_NOTIFY_PEERS
		}
		attributes = attributes[min((size+3)&^3, len(attributes)):]
	}
	return false
}
