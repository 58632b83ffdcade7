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

// nobody lets no packet pass.
func nobody() []bpf.Instruction { return []bpf.Instruction{bpf.RetConstant{}} }

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
