package capture

import (
	"fmt"
	"math"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"heliotrope/scheduler/traffic"
)

// snapLength holds Ethernet, two tags, IPv6 and TCP with all its options.
const snapLength = 128

// everyone lets one of sampling packets pass; the kernel throws its dice before it copies.
func everyone(sampling uint32) []bpf.Instruction {
	filter := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtMark},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: traffic.InjectMark, SkipTrue: 1},
		bpf.RetConstant{},
	}
	if sampling > 1 {
		filter = append(filter,
			bpf.LoadExtension{Num: bpf.ExtRand},
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: math.MaxUint32/sampling + 1, SkipTrue: 1},
			bpf.RetConstant{},
		)
	}
	return append(filter, bpf.RetConstant{Val: snapLength})
}

// handshakes lets only SYN and SYN-ACK pass, of packets without a tag inside the frame and
// without extension headers.
func handshakes() []bpf.Instruction {
	const flags, dropAt = 13, 17
	skip := func(at int) uint8 { return uint8(dropAt - at - 1) }
	return []bpf.Instruction{
		0:  bpf.LoadExtension{Num: bpf.ExtMark},
		1:  bpf.JumpIf{Cond: bpf.JumpEqual, Val: traffic.InjectMark, SkipTrue: skip(1)},
		2:  bpf.LoadExtension{Num: bpf.ExtProto},
		3:  bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv6, SkipTrue: 7},
		4:  bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherIPv4, SkipTrue: skip(4)},
		5:  bpf.LoadAbsolute{Off: ethernet + 9, Size: 1},
		6:  bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: traffic.TCP, SkipTrue: skip(6)},
		7:  bpf.LoadAbsolute{Off: ethernet + 6, Size: 2},
		8:  bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: skip(8)},
		9:  bpf.LoadMemShift{Off: ethernet},
		10: bpf.Jump{Skip: 3},
		11: bpf.LoadAbsolute{Off: ethernet + 6, Size: 1},
		12: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: traffic.TCP, SkipTrue: skip(12)},
		13: bpf.LoadConstant{Dst: bpf.RegX, Val: ipv6Header},
		14: bpf.LoadIndirect{Off: ethernet + flags, Size: 1},
		15: bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: syn, SkipFalse: 1},
		16: bpf.RetConstant{Val: snapLength},
		17: bpf.RetConstant{},
	}
}

// attachFilter puts filter in place of the socket's own.
func attachFilter(fd int, filter []bpf.Instruction) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(raw)), Filter: (*unix.SockFilter)(unsafe.Pointer(&raw[0]))}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return nil
}
