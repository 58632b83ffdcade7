package flows

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"
	"strings"

	"heliotrope"
)

// Field is one header or pipeline field of a packet. Its order is the order in which a
// match is written.
type Field uint8

// The fields that the pipeline knows. The four registers are zero when a packet enters.
const (
	InPort  Field = iota
	TunID         // VNI of a tunnelled packet
	TunDst        // underlay address to tunnel to, where the port does not say it
	TunDst6       // the same for an IPv6 underlay
	Net           // reg0: VNI of the network that the packet is in
	Domain        // reg1: networks that are routed to each other share one; 0 outside of VMs
	Side          // reg2: where the packet came from: SideVM, SideTunnel or SideUplink
	OutPort       // reg3: the port that the output table sends to
	EthSrc
	EthDst
	VLAN // 0: no tag
	EthType
	IPProto
	TTL
	IPSrc
	IPDst
	IP6Src
	IP6Dst
	ICMPType
	ICMP6Type
	ARPOp
	ARPSPA
	ARPTPA
	ARPSHA
	ARPTHA
	NDTarget
	NDSLL
	NDTLL
	NDReserved // R, S and O bits of a neighbour advertisement, from the top
	NDOption   // type of the neighbour message's first option
	NumFields
)

// Values of Side.
const (
	SideVM     = 1
	SideTunnel = 2
	SideUplink = 3
)

// Back is the value of OutPort that sends a packet to where it came from.
const Back = 0xfffffff8

// EtherTypes and IP protocols that the pipeline tells apart.
const (
	EthIPv4   = 0x0800
	EthARP    = 0x0806
	EthIPv6   = 0x86dd
	ProtoICMP = 1
	ProtoICM6 = 58
)

type format uint8

const (
	decimal format = iota
	hexadecimal
	macAddr
	ipv4Addr
	ipv6Addr
)

// need is a prerequisite: the field exists only in packets where Field is one of values.
type need struct {
	field  Field
	values []uint64
}

type fieldInfo struct {
	name  string // as ovs-ofctl writes it
	move  string // as ovs-ofctl's move action writes it
	bits  int
	show  format
	needs []need
}

var (
	needIP   = need{EthType, []uint64{EthIPv4, EthIPv6}}
	needIPv4 = need{EthType, []uint64{EthIPv4}}
	needIPv6 = need{EthType, []uint64{EthIPv6}}
	needARP  = need{EthType, []uint64{EthARP}}
	needICMP = need{IPProto, []uint64{ProtoICMP}}
	needICM6 = need{IPProto, []uint64{ProtoICM6}}
	needND   = need{ICMP6Type, []uint64{135, 136}}
	needNS   = need{ICMP6Type, []uint64{135}}
	needNA   = need{ICMP6Type, []uint64{136}}
)

var fieldInfos = [NumFields]fieldInfo{
	InPort:     {"in_port", "NXM_OF_IN_PORT", 32, decimal, nil},
	TunID:      {"tun_id", "NXM_NX_TUN_ID", 64, hexadecimal, nil},
	TunDst:     {"tun_dst", "NXM_NX_TUN_IPV4_DST", 32, ipv4Addr, nil},
	TunDst6:    {"tun_ipv6_dst", "NXM_NX_TUN_IPV6_DST", 128, ipv6Addr, nil},
	Net:        {"reg0", "NXM_NX_REG0", 32, hexadecimal, nil},
	Domain:     {"reg1", "NXM_NX_REG1", 32, hexadecimal, nil},
	Side:       {"reg2", "NXM_NX_REG2", 32, hexadecimal, nil},
	OutPort:    {"reg3", "NXM_NX_REG3", 32, hexadecimal, nil},
	EthSrc:     {"eth_src", "NXM_OF_ETH_SRC", 48, macAddr, nil},
	EthDst:     {"eth_dst", "NXM_OF_ETH_DST", 48, macAddr, nil},
	VLAN:       {"vlan_vid", "", 16, decimal, nil},
	EthType:    {"eth_type", "NXM_OF_ETH_TYPE", 16, hexadecimal, nil},
	IPProto:    {"nw_proto", "NXM_OF_IP_PROTO", 8, decimal, []need{needIP}},
	TTL:        {"nw_ttl", "NXM_NX_IP_TTL", 8, decimal, []need{needIP}},
	IPSrc:      {"ip_src", "NXM_OF_IP_SRC", 32, ipv4Addr, []need{needIPv4}},
	IPDst:      {"ip_dst", "NXM_OF_IP_DST", 32, ipv4Addr, []need{needIPv4}},
	IP6Src:     {"ipv6_src", "NXM_NX_IPV6_SRC", 128, ipv6Addr, []need{needIPv6}},
	IP6Dst:     {"ipv6_dst", "NXM_NX_IPV6_DST", 128, ipv6Addr, []need{needIPv6}},
	ICMPType:   {"icmp_type", "NXM_OF_ICMP_TYPE", 8, decimal, []need{needIPv4, needICMP}},
	ICMP6Type:  {"icmpv6_type", "NXM_NX_ICMPV6_TYPE", 8, decimal, []need{needIPv6, needICM6}},
	ARPOp:      {"arp_op", "NXM_OF_ARP_OP", 16, decimal, []need{needARP}},
	ARPSPA:     {"arp_spa", "NXM_OF_ARP_SPA", 32, ipv4Addr, []need{needARP}},
	ARPTPA:     {"arp_tpa", "NXM_OF_ARP_TPA", 32, ipv4Addr, []need{needARP}},
	ARPSHA:     {"arp_sha", "NXM_NX_ARP_SHA", 48, macAddr, []need{needARP}},
	ARPTHA:     {"arp_tha", "NXM_NX_ARP_THA", 48, macAddr, []need{needARP}},
	NDTarget:   {"nd_target", "NXM_NX_ND_TARGET", 128, ipv6Addr, []need{needIPv6, needICM6, needND}},
	NDSLL:      {"nd_sll", "NXM_NX_ND_SLL", 48, macAddr, []need{needIPv6, needICM6, needNS}},
	NDTLL:      {"nd_tll", "NXM_NX_ND_TLL", 48, macAddr, []need{needIPv6, needICM6, needNA}},
	NDReserved: {"nd_reserved", "ERICOXM_OF_ICMPV6_ND_RESERVED", 32, decimal, []need{needIPv6, needICM6, needND}},
	NDOption:   {"nd_options_type", "ERICOXM_OF_ICMPV6_ND_OPTIONS_TYPE", 8, decimal, []need{needIPv6, needICM6, needND}},
}

func (f Field) String() string {
	if f >= NumFields {
		return fmt.Sprintf("field %d", uint8(f))
	}
	return fieldInfos[f].name
}

// Bits is the field's width; 0 for an unknown field.
func (f Field) Bits() int {
	if f >= NumFields {
		return 0
	}
	return fieldInfos[f].bits
}

// Ones is the mask that makes a match on the field exact.
func (f Field) Ones() Value {
	switch n := f.Bits(); {
	case n == 128:
		return Value{^uint64(0), ^uint64(0)}
	case n == 64:
		return Value{0, ^uint64(0)}
	default:
		return Value{0, 1<<n - 1}
	}
}

// FieldSet is a set of fields.
type FieldSet uint64

func fieldSet(fields ...Field) (s FieldSet) {
	for _, f := range fields {
		s |= 1 << f
	}
	return s
}

// Has says whether f is in the set.
func (s FieldSet) Has(f Field) bool { return s&(1<<f) != 0 }

// Value is what a field holds: an unsigned number of up to 128 bits.
type Value struct{ Hi, Lo uint64 }

// Uint is a number as a Value.
func Uint[T ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~int](n T) Value { return Value{Lo: uint64(n)} }

// MACValue is a MAC address as a Value.
func MACValue(m heliotrope.MAC) Value {
	var b [8]byte
	copy(b[2:], m[:])
	return Value{Lo: binary.BigEndian.Uint64(b[:])}
}

// AddrValue is an IP address as a Value; the zero Addr is 0.
func AddrValue(a netip.Addr) Value {
	switch {
	case a.Is4():
		b := a.As4()
		return Value{Lo: uint64(binary.BigEndian.Uint32(b[:]))}
	case a.Is6():
		b := a.As16()
		return Value{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
	}
	return Value{}
}

// MAC is the MAC address that the Value holds.
func (v Value) MAC() heliotrope.MAC {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v.Lo)
	return heliotrope.MAC(b[2:])
}

func (v Value) addr4() netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(v.Lo))
	return netip.AddrFrom4(b)
}

func (v Value) addr6() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], v.Hi)
	binary.BigEndian.PutUint64(b[8:], v.Lo)
	return netip.AddrFrom16(b)
}

// ones is how many bits are set.
func (v Value) ones() int { return bits.OnesCount64(v.Hi) + bits.OnesCount64(v.Lo) }

// And is the bitwise and of two Values.
func (v Value) And(m Value) Value { return Value{v.Hi & m.Hi, v.Lo & m.Lo} }

// prefixMask is the mask of the first n bits of an address field f.
func prefixMask(f Field, n int) Value {
	if f.Bits() == 32 {
		return Value{Lo: uint64(uint32(0xffffffff) << (32 - n))}
	}
	if n <= 64 {
		return Value{Hi: ^uint64(0) << (64 - n)}
	}
	return Value{^uint64(0), ^uint64(0) << (128 - n)}
}

// appendValue writes v as ovs-ofctl writes the field.
func (f Field) appendValue(b []byte, v Value) []byte {
	if f >= NumFields {
		return fmt.Appendf(b, "%x", v)
	}
	switch fieldInfos[f].show {
	case hexadecimal:
		return strconv.AppendUint(append(b, "0x"...), v.Lo, 16)
	case macAddr:
		return appendMAC(b, v.MAC())
	case ipv4Addr:
		return v.addr4().AppendTo(b)
	case ipv6Addr:
		return v.addr6().AppendTo(b)
	}
	return strconv.AppendUint(b, v.Lo, 10)
}

// appendMask writes a mask as ovs-ofctl does, an address's as a prefix length if it is one.
func (f Field) appendMask(b []byte, m Value) []byte {
	n := m.ones()
	if f < NumFields && (fieldInfos[f].show == ipv4Addr || fieldInfos[f].show == ipv6Addr) && m == prefixMask(f, n) {
		return strconv.AppendInt(b, int64(n), 10)
	}
	return f.appendValue(b, m)
}

func appendMAC(b []byte, m heliotrope.MAC) []byte {
	const digits = "0123456789abcdef"
	for i, x := range m {
		if i > 0 {
			b = append(b, ':')
		}
		b = append(b, digits[x>>4], digits[x&15])
	}
	return b
}

// Names lists the fields of the set as ovs-ofctl names them.
func (s FieldSet) Names() string {
	var names []string
	for f := range NumFields {
		if s.Has(f) {
			names = append(names, f.String())
		}
	}
	return strings.Join(names, ", ")
}
