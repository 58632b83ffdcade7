package capture

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The rings of all ports share ringsSize bytes, in blocks that the kernel hands over when
// they are full or blockTimeout old.
const (
	blockSize    = 64 << 10
	ringsSize    = 64 << 20
	ringMin      = 256 << 10
	ringMax      = 4 << 20
	blockTimeout = 50 // milliseconds
	frameSize    = 2048
)

// Offsets in struct tpacket_block_desc and struct tpacket3_hdr (linux/if_packet.h).
const (
	blockStatus  = 8
	blockPackets = 12
	blockFirst   = 16

	packetNext    = 0
	packetSeconds = 4
	packetNanos   = 8
	packetSnap    = 12
	packetLength  = 16
	packetMAC     = 24
	packetType    = 48 + 10 // sll_pkttype
	packetHeader  = 48 + 20
)

// ring is a PF_PACKET socket of one device, with a TPACKET_V3 ring that it shares with the
// kernel. gopacket's afpacket has the same ring, but does not tell the packet's type, and
// with it the direction.
type ring struct {
	fd     int
	mem    []byte
	blocks int
	next   int // block
}

// openRing makes a ring that listens to no device yet; size is in bytes.
func openRing(size int, filter []bpf.Instruction) (_ *ring, err error) {
	r := &ring{blocks: max(2, size/blockSize)}
	// No protocol: nothing is received before the filter is in place.
	if r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if err := unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return nil, fmt.Errorf("choose TPACKET_V3: %w", err)
	}
	if err := attachFilter(r.fd, filter); err != nil {
		return nil, err
	}
	request := unix.TpacketReq3{
		Block_size: blockSize, Block_nr: uint32(r.blocks),
		Frame_size: frameSize, Frame_nr: uint32(blockSize / frameSize * r.blocks),
		Retire_blk_tov: blockTimeout,
	}
	if err := unix.SetsockoptTpacketReq3(r.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &request); err != nil {
		return nil, fmt.Errorf("make ring: %w", err)
	}
	if r.mem, err = unix.Mmap(r.fd, 0, r.blocks*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map ring: %w", err)
	}
	return r, nil
}

// listen takes the device's packets, or those of a protocol that is none: then they do not even
// pass by the filter, and what was taken is still to be read. It takes milliseconds. A protocol of
// 0 would be no other than before (packet(7)).
func (r *ring) listen(index int, on bool) error {
	const reserved = 0xffff // RFC 1701
	protocol := uint16(reserved)
	if on {
		protocol = binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	}
	if err := unix.Bind(r.fd, &unix.SockaddrLinklayer{Ifindex: index, Protocol: protocol}); err != nil {
		return fmt.Errorf("bind socket: %w", err)
	}
	return nil
}

func (r *ring) close() {
	if r.mem != nil {
		unix.Munmap(r.mem)
	}
	unix.Close(r.fd)
}

// captured is one packet in a ring, until the block is given back.
type captured struct {
	frame []byte // no more than snapLength
	wire  int    // bytes
	time  int64  // nanoseconds since 1970
	sent  bool   // by the host, to the VM
}

// read calls f for each packet of at most max blocks, and says of how many packets.
func (r *ring) read(max int, f func(captured)) (packets int) {
	for range max {
		block := r.mem[r.next*blockSize : (r.next+1)*blockSize]
		status := (*uint32)(unsafe.Pointer(&block[blockStatus]))
		if atomic.LoadUint32(status)&unix.TP_STATUS_USER == 0 {
			return packets
		}
		n := int(binary.NativeEndian.Uint32(block[blockPackets:]))
		at := int(binary.NativeEndian.Uint32(block[blockFirst:]))
		for range n {
			b := block[at:]
			mac, snap := int(binary.NativeEndian.Uint16(b[packetMAC:])), int(binary.NativeEndian.Uint32(b[packetSnap:]))
			f(captured{
				frame: b[mac : mac+min(snap, snapLength)],
				wire:  int(binary.NativeEndian.Uint32(b[packetLength:])),
				time:  int64(binary.NativeEndian.Uint32(b[packetSeconds:]))*1e9 + int64(binary.NativeEndian.Uint32(b[packetNanos:])),
				sent:  b[packetType] == unix.PACKET_OUTGOING,
			})
			at += int(binary.NativeEndian.Uint32(b[packetNext:]))
		}
		packets += n
		atomic.StoreUint32(status, unix.TP_STATUS_KERNEL)
		r.next = (r.next + 1) % r.blocks
	}
	return packets
}

// dropped says how many packets did not fit since it was last asked.
func (r *ring) dropped() (uint64, error) {
	stats, err := unix.GetsockoptTpacketStatsV3(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, fmt.Errorf("ask for drops: %w", err)
	}
	return uint64(stats.Drops), nil
}
