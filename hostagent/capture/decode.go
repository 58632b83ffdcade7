package capture

import (
	"encoding/binary"
	"net/netip"

	"heliotrope/scheduler/traffic"
)

// An address is an IPv6 address, or an IPv4 one mapped into IPv6 (RFC 4291, 2.5.5.2).
type address [16]byte

func (a address) netip() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// header is all that is taken of a packet.
type header struct {
	src, dst         address
	protocol         uint8  // of the first header that is no IPv6 extension
	flags            uint8  // TCP's
	srcPort, dstPort uint16 // 0 where the protocol has none, and in all but the first fragment
	length           uint32 // bytes, from the IP header on
	carries          bool   // TCP with a payload
	stamped          bool   // TCP with timestamps (RFC 7323)
	tsVal, tsEcr     uint32
}

type verdict uint8

const (
	readable verdict = iota
	unreadable
	foreign // ARP, neighbour discovery and whatever is no IP: no application's traffic
)

// TCP's flags (RFC 9293, 3.1).
const (
	fin = 1 << 0
	syn = 1 << 1
	rst = 1 << 2
	ack = 1 << 4
)

// EtherTypes, and IPv6's extension headers (IANA).
const (
	etherIPv4  = 0x0800
	etherIPv6  = 0x86dd
	etherVLAN  = 0x8100
	etherQinQ  = 0x88a8
	ethernet   = 14 // bytes of its header
	vlanTag    = 4
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20

	hopByHop    = 0
	routing     = 43
	fragment    = 44
	authHeader  = 51
	destOptions = 60
	mobility    = 135
	extensions  = 8 // that are followed

	discovery, discoveryEnd = 133, 137 // ICMPv6's types of neighbour discovery (RFC 4861)
)

// decode reads the headers of an Ethernet frame of which the first bytes are at hand; wire
// is the frame's whole length. It allocates nothing and keeps nothing of frame. What comes
// after a readable IP header and cannot be read leaves the ports 0.
func (h *header) decode(frame []byte, wire int) verdict {
	*h = header{}
	if len(frame) < ethernet {
		return unreadable
	}
	kind, at := binary.BigEndian.Uint16(frame[12:]), ethernet
	for range 2 {
		if kind != etherVLAN && kind != etherQinQ {
			break
		}
		if len(frame) < at+vlanTag {
			return unreadable
		}
		kind = binary.BigEndian.Uint16(frame[at+2:])
		at += vlanTag
	}
	switch kind {
	case etherIPv4:
		return h.decodeIPv4(frame[at:], wire-at)
	case etherIPv6:
		return h.decodeIPv6(frame[at:], wire-at)
	}
	return foreign
}

// total is what the IP header says of the length, or what was on the wire where a
// segmentation offload left the field 0 or it does not fit (Linux BIG TCP).
func total(said, wire int) uint32 {
	if said == 0 || said > wire {
		said = max(wire, 0)
	}
	return uint32(said)
}

func (h *header) decodeIPv4(b []byte, wire int) verdict {
	if len(b) < ipv4Header || b[0]>>4 != 4 {
		return unreadable
	}
	size := int(b[0]&15) * 4
	if size < ipv4Header || size > wire {
		return unreadable
	}
	h.length = total(int(binary.BigEndian.Uint16(b[2:])), wire)
	h.protocol = b[9]
	h.src[10], h.src[11], h.dst[10], h.dst[11] = 255, 255, 255, 255
	copy(h.src[12:], b[12:16])
	copy(h.dst[12:], b[16:20])
	if later := binary.BigEndian.Uint16(b[6:])&0x1fff != 0; !later && len(b) > size {
		h.decodePorts(b[size:], int(h.length)-size)
	}
	return readable
}

func (h *header) decodeIPv6(b []byte, wire int) verdict {
	if len(b) < ipv6Header || b[0]>>4 != 6 {
		return unreadable
	}
	said := int(binary.BigEndian.Uint16(b[4:]))
	if said != 0 {
		said += ipv6Header
	}
	h.length = total(said, wire)
	h.protocol = b[6]
	copy(h.src[:], b[8:24])
	copy(h.dst[:], b[24:40])
	at := ipv6Header
	for range extensions {
		if len(b) < at+8 {
			return readable
		}
		size := int(b[at+1])*8 + 8
		switch h.protocol {
		case hopByHop, routing, destOptions, mobility:
		case authHeader:
			size = int(b[at+1])*4 + 8
		case fragment:
			if binary.BigEndian.Uint16(b[at+2:])&^7 != 0 {
				h.protocol = b[at]
				return readable
			}
			size = 8
		default:
			if h.protocol == traffic.ICMPv6 && discovery <= b[at] && b[at] <= discoveryEnd {
				return foreign
			}
			h.decodePorts(b[at:], int(h.length)-at)
			return readable
		}
		h.protocol = b[at]
		at += size
	}
	return readable
}

// decodePorts reads what follows IP; length is what there was of it on the wire.
func (h *header) decodePorts(b []byte, length int) {
	switch h.protocol {
	case traffic.TCP, traffic.UDP, traffic.SCTP:
	default:
		return
	}
	if b = b[:min(len(b), max(length, 0))]; len(b) < 4 { // Ethernet's padding is no header
		return
	}
	h.srcPort, h.dstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if h.protocol != traffic.TCP || len(b) < tcpHeader {
		return
	}
	h.flags = b[13]
	size := int(b[12]>>4) * 4
	h.carries = length > size
	if size >= tcpHeader {
		h.decodeOptions(b[tcpHeader:max(tcpHeader, min(size, len(b)))])
	}
}

// decodeOptions looks for TCP's timestamps.
func (h *header) decodeOptions(b []byte) {
	const end, nop, timestamps, timestampsSize = 0, 1, 8, 10
	for len(b) >= 2 {
		switch {
		case b[0] == end:
			return
		case b[0] == nop:
			b = b[1:]
			continue
		case b[1] < 2 || int(b[1]) > len(b):
			return
		case b[0] == timestamps && b[1] == timestampsSize:
			h.stamped = true
			h.tsVal, h.tsEcr = binary.BigEndian.Uint32(b[2:]), binary.BigEndian.Uint32(b[6:])
			return
		}
		b = b[b[1]:]
	}
}
