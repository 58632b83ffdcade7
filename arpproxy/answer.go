package arpproxy

import (
	"encoding/binary"
	"heliotrope"
	"net/netip"
)

// Book is what the switch knows at one port.
type Book struct {
	MAC     heliotrope.MAC // of the VM at the port; zero on the uplink, where anybody may ask
	Address netip.Addr     // of that VM
	Known   map[netip.Addr]Entry
}

// Entry is the owner of an address.
type Entry struct {
	MAC    heliotrope.MAC
	Router bool // says so in neighbour advertisements
}

const (
	ethLen = 14
	arpLen = 28
	ip6Len = 40
	nsLen  = 24 // ICMPv6 type, code, checksum, reserved, target
)

// Answer returns the frame that answers the question in req. It returns false where
// there is nothing to say: no well-formed question, an unknown address, a VM that does
// not ask as itself, or asks for its own address.
func Answer(req []byte, b Book) ([]byte, bool) {
	if len(req) < ethLen {
		return nil, false
	}
	if src := heliotrope.MAC(req[6:12]); !b.MAC.IsZero() && src != b.MAC {
		return nil, false
	}
	switch binary.BigEndian.Uint16(req[12:]) {
	case 0x0806:
		return b.answerARP(req)
	case 0x86dd:
		return b.answerND(req)
	}
	return nil, false
}

func (b Book) answerARP(req []byte) ([]byte, bool) {
	if len(req) < ethLen+arpLen {
		return nil, false
	}
	arp := req[ethLen : ethLen+arpLen]
	if [8]byte(arp) != [8]byte{0, 1, 8, 0, 6, 4, 0, 1} { // Ethernet, IPv4, request
		return nil, false
	}
	sha, spa, tpa := heliotrope.MAC(arp[8:14]), netip.AddrFrom4([4]byte(arp[14:18])), netip.AddrFrom4([4]byte(arp[24:28]))
	asItself := sha == b.MAC && (spa == b.Address || spa.IsUnspecified())
	e, known := b.Known[tpa]
	if !known || !b.MAC.IsZero() && (!asItself || tpa == b.Address) {
		return nil, false
	}
	out := append([]byte(nil), req...)
	copy(out[0:6], req[6:12])
	copy(out[6:12], e.MAC[:])
	reply := out[ethLen:]
	reply[7] = 2
	copy(reply[8:14], e.MAC[:])
	copy(reply[14:18], arp[24:28])
	copy(reply[18:28], arp[8:18])
	return out, true
}

func (b Book) answerND(req []byte) ([]byte, bool) {
	if len(req) < ethLen+ip6Len+nsLen {
		return nil, false
	}
	ip := req[ethLen : ethLen+ip6Len]
	end := ethLen + ip6Len + int(binary.BigEndian.Uint16(ip[4:]))
	if ip[0]>>4 != 6 || ip[6] != 58 || end > len(req) || end < ethLen+ip6Len+nsLen {
		return nil, false
	}
	icmp := req[ethLen+ip6Len : end]
	src, target := netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(icmp[8:24]))
	e, known := b.Known[target]
	asItself := src == b.Address || src.IsLinkLocalUnicast()
	if icmp[0] != 135 || icmp[1] != 0 || !known || !b.MAC.IsZero() && (!asItself || target == b.Address) {
		return nil, false
	}
	out := append([]byte(nil), req[:end]...)
	copy(out[0:6], req[6:12])
	copy(out[6:12], e.MAC[:])
	reply := out[ethLen+ip6Len:]
	copy(out[ethLen+24:], ip[8:24])
	copy(out[ethLen+8:], icmp[8:24])
	bits := uint32(naHost)
	if e.Router {
		bits = naRouter
	}
	reply[0] = 136
	binary.BigEndian.PutUint32(reply[4:], bits)
	if len(reply) >= nsLen+8 && reply[nsLen] == 1 && reply[nsLen+1] == 1 { // the asker's link-layer address becomes the target's
		reply[nsLen] = 2
		copy(reply[nsLen+2:nsLen+8], e.MAC[:])
	}
	binary.BigEndian.PutUint16(reply[2:], 0)
	binary.BigEndian.PutUint16(reply[2:], checksum(out[ethLen+8:ethLen+ip6Len], reply))
	return out, true
}

// checksum is ICMPv6's, over both addresses and the message.
func checksum(addresses, message []byte) uint16 {
	sum := uint32(len(message)) + 58
	for _, b := range [][]byte{addresses, message} {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	if len(message)%2 == 1 {
		sum += uint32(message[len(message)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
