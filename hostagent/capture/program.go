package capture

import (
	"math"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"heliotrope/scheduler/traffic"
)

// Offsets in struct __sk_buff (linux/bpf.h).
const (
	skbLength  = 0
	skbMark    = 8
	skbIfindex = 40
)

// Offsets in kernelKey.
const (
	keySrc      = 0
	keyDst      = 16
	keyIndex    = 32
	keySrcPort  = 36
	keyDstPort  = 38
	keyProtocol = 40
	keyToVM     = 41
	keySampling = 44
	keySize     = 48
)

// Offsets in kernelValue, and in kernelSYN behind its key.
const (
	valuePackets = 0
	valueBytes   = 8
	valueSquares = 16
	valueSize    = 24

	synAt    = keySize
	synFlags = synAt + 8
	synSize  = synFlags + 8
)

// The program's stack, from its top.
const (
	scratch = -8          // what is loaded next, or an index
	parity  = scratch - 8 // of the second
	size    = parity - 8  // of the IPv4 header
	end     = size - 8    // offset of the packet's
	passed  = end - 8     // when it did, by the monotonic clock
	flags   = passed - 8  // of TCP
	value   = flags - valueSize
	key     = value - keySize // kernelKey
	ip      = key - 40 - 8    // IP header; its addresses are aligned
	ports   = ip - 16         // the first bytes of TCP's header
)

const tcxNext = -1 // let the device's other programs see the packet (TCX_NEXT)

// The registers that keep their values over calls.
const (
	skb      = asm.R6
	at       = asm.R7 // offset of the header that is next
	length   = asm.R8 // bytes from the IP header on
	protocol = asm.R9 // EtherType, then IP's
)

// count is the program that counts a device's packets in one direction. It reads what
// header.decode reads, short of TCP's options, into the map of the wall clock's second.
func (k *kernel) count(direction int, sampling uint32) asm.Instructions {
	var p asm.Instructions
	add := func(i ...asm.Instruction) { p = append(p, i...) }
	load := func(offset int32, to, n int16, failed string) {
		add(
			asm.Mov.Reg(asm.R1, skb),
			asm.Mov.Reg(asm.R2, at), asm.Add.Imm(asm.R2, offset),
			asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, int32(to)),
			asm.Mov.Imm(asm.R4, int32(n)),
			asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, failed),
		)
	}
	label := func(name string) { add(asm.Mov.Reg(asm.R0, asm.R0).WithSymbol(name)) }

	add(
		asm.Mov.Reg(skb, asm.R1),
		asm.LoadMem(asm.R0, skb, skbMark, asm.Word),
		asm.JEq.Imm(asm.R0, traffic.InjectMark, "out"),
	)
	if sampling > 1 {
		add(
			asm.FnGetPrandomU32.Call(),
			asm.LoadImm(asm.R1, int64(math.MaxUint32/sampling), asm.DWord),
			asm.JGT.Reg(asm.R0, asm.R1, "out"),
		)
	}
	k.second(add, sampling)
	add(asm.Mov.Imm(at, ethernet-2))
	for _, next := range []string{"tag1", "tag2", "tag3"} { // at is that of the EtherType
		load(0, scratch, 2, "unreadable")
		add(
			asm.LoadMem(protocol, asm.RFP, scratch, asm.Half), asm.HostTo(asm.BE, protocol, asm.Half),
			asm.Add.Imm(at, vlanTag),
			asm.JEq.Imm(protocol, etherVLAN, next),
			asm.JEq.Imm(protocol, etherQinQ, next),
			asm.Sub.Imm(at, vlanTag-2), // its end
			asm.JEq.Imm(protocol, etherIPv4, "ipv4"),
			asm.JEq.Imm(protocol, etherIPv6, "ipv6"),
			asm.Ja.Label("out"),
		)
		label(next)
	}
	add(asm.Ja.Label("out")) // three tags: no IP that we know
	label("ipv4")
	readIPv4(add, load)
	label("ipv6")
	readIPv6(add, load, label)
	label("ports")
	add(asm.JEq.Imm(protocol, traffic.ICMPv6, "icmp"))
	add(
		asm.JEq.Imm(protocol, traffic.UDP, "has ports"),
		asm.JEq.Imm(protocol, traffic.SCTP, "has ports"),
		asm.JNE.Imm(protocol, traffic.TCP, "count"),
		asm.LoadMem(asm.R1, asm.RFP, end, asm.DWord), asm.Sub.Imm(asm.R1, tcpHeader),
		asm.JGT.Reg(at, asm.R1, "has ports"),
	)
	load(0, ports, 14, "count")
	add(
		asm.LoadMem(asm.R0, asm.RFP, ports, asm.Word), asm.StoreMem(asm.RFP, key+keySrcPort, asm.R0, asm.Word),
		asm.LoadMem(asm.R0, asm.RFP, ports+13, asm.Byte), asm.StoreMem(asm.RFP, flags, asm.R0, asm.DWord),
		asm.Ja.Label("count"),
	)
	label("icmp")
	load(0, scratch, 1, "count")
	add(
		asm.LoadMem(asm.R0, asm.RFP, scratch, asm.Byte),
		asm.JLT.Imm(asm.R0, discovery, "count"),
		asm.JLE.Imm(asm.R0, discoveryEnd, "out"),
		asm.Ja.Label("count"),
	)
	label("has ports")
	add(
		asm.LoadMem(asm.R1, asm.RFP, end, asm.DWord), asm.Sub.Imm(asm.R1, 4),
		asm.JGT.Reg(at, asm.R1, "count"), // Ethernet's padding is no header
	)
	load(0, scratch, 4, "count")
	add(
		asm.LoadMem(asm.R0, asm.RFP, scratch, asm.Word),
		asm.StoreMem(asm.RFP, key+keySrcPort, asm.R0, asm.Word), // both, in the network's order
	)
	label("count")
	k.store(add, direction)
	label("unreadable")
	add(
		asm.LoadMem(asm.R1, asm.RFP, parity, asm.DWord), asm.LSh.Imm(asm.R1, 1), asm.Add.Imm(asm.R1, 1),
		asm.Mov.Imm(length, 0),
	)
	k.addTotal(add)
	label("out")
	add(asm.Mov.Imm(asm.R0, tcxNext), asm.Return())
	return p
}

// second finds out which of the two maps is the wall clock's: even seconds have the first.
func (k *kernel) second(add func(...asm.Instruction), sampling uint32) {
	add(
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.RFP, passed, asm.R0, asm.DWord),
		asm.StoreImm(asm.RFP, scratch, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, scratch),
		asm.LoadMapPtr(asm.R1, k.clock.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R0, asm.R0, 0, asm.DWord),
		asm.LoadMem(asm.R1, asm.RFP, passed, asm.DWord), asm.Add.Reg(asm.R0, asm.R1),
		asm.Div.Imm(asm.R0, 1e9),
		asm.And.Imm(asm.R0, 1),
		asm.StoreMem(asm.RFP, parity, asm.R0, asm.DWord),
		asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.RFP, flags, asm.R1, asm.DWord),
	)
	for at := int16(0); at < keySampling; at += 4 {
		add(asm.StoreImm(asm.RFP, key+at, 0, asm.Word))
	}
	add(asm.StoreImm(asm.RFP, key+keySampling, int64(sampling), asm.Word))
}

// readLength sees to it that length is no more than was on the wire.
func readLength(add func(...asm.Instruction), name string) {
	add(
		asm.LoadMem(asm.R1, skb, skbLength, asm.Word), asm.Sub.Reg(asm.R1, at),
		asm.JEq.Imm(length, 0, name+" wire"),
		asm.JLE.Reg(length, asm.R1, name+" fits"),
		asm.Mov.Reg(length, asm.R1).WithSymbol(name+" wire"),
		asm.Mov.Reg(asm.R1, at).WithSymbol(name+" fits"), asm.Add.Reg(asm.R1, length),
		asm.StoreMem(asm.RFP, end, asm.R1, asm.DWord),
	)
}

func readIPv4(add func(...asm.Instruction), load func(int32, int16, int16, string)) {
	load(0, ip, ipv4Header, "unreadable")
	add(
		asm.LoadMem(asm.R0, asm.RFP, ip, asm.Byte),
		asm.Mov.Reg(asm.R1, asm.R0), asm.RSh.Imm(asm.R1, 4), asm.JNE.Imm(asm.R1, 4, "unreadable"),
		asm.And.Imm(asm.R0, 15), asm.LSh.Imm(asm.R0, 2), asm.JLT.Imm(asm.R0, ipv4Header, "unreadable"),
		asm.StoreMem(asm.RFP, size, asm.R0, asm.DWord),
		asm.LoadMem(asm.R1, skb, skbLength, asm.Word), asm.Sub.Reg(asm.R1, at), asm.JGT.Reg(asm.R0, asm.R1, "unreadable"),
		asm.LoadMem(length, asm.RFP, ip+2, asm.Half), asm.HostTo(asm.BE, length, asm.Half),
	)
	readLength(add, "ipv4")
	for i, address := range []int16{key + keySrc, key + keyDst} {
		add(
			asm.StoreImm(asm.RFP, address+10, 0xffff, asm.Half),
			asm.LoadMem(asm.R0, asm.RFP, ip+12+4*int16(i), asm.Word),
			asm.StoreMem(asm.RFP, address+12, asm.R0, asm.Word),
		)
	}
	add(
		asm.LoadMem(protocol, asm.RFP, ip+9, asm.Byte),
		asm.LoadMem(asm.R0, asm.RFP, size, asm.DWord), asm.Add.Reg(at, asm.R0),
		asm.LoadMem(asm.R0, asm.RFP, ip+6, asm.Half), asm.HostTo(asm.BE, asm.R0, asm.Half),
		asm.And.Imm(asm.R0, 0x1fff), asm.JNE.Imm(asm.R0, 0, "count"),
		asm.Ja.Label("ports"),
	)
}

func readIPv6(add func(...asm.Instruction), load func(int32, int16, int16, string), label func(string)) {
	load(0, ip, ipv6Header, "unreadable")
	add(
		asm.LoadMem(asm.R0, asm.RFP, ip, asm.Byte), asm.RSh.Imm(asm.R0, 4), asm.JNE.Imm(asm.R0, 6, "unreadable"),
		asm.LoadMem(length, asm.RFP, ip+4, asm.Half), asm.HostTo(asm.BE, length, asm.Half),
		asm.JEq.Imm(length, 0, "jumbo"),
		asm.Add.Imm(length, ipv6Header),
	)
	label("jumbo")
	readLength(add, "ipv6")
	for i := int16(0); i < 32; i += 8 {
		add(asm.LoadMem(asm.R0, asm.RFP, ip+8+i, asm.DWord), asm.StoreMem(asm.RFP, key+keySrc+i, asm.R0, asm.DWord))
	}
	add(asm.LoadMem(protocol, asm.RFP, ip+6, asm.Byte), asm.Add.Imm(at, ipv6Header))
	for i := range extensions {
		name := string(rune('a' + i))
		for _, header := range []int32{hopByHop, routing, destOptions, mobility, authHeader, fragment} {
			add(asm.JEq.Imm(protocol, header, "extension "+name))
		}
		add(asm.Ja.Label("ports"))
		label("extension " + name)
		load(0, scratch, 8, "count")
		add(
			asm.LoadMem(asm.R1, asm.RFP, scratch+1, asm.Byte), asm.LSh.Imm(asm.R1, 3), asm.Add.Imm(asm.R1, 8),
			asm.JNE.Imm(protocol, authHeader, "no auth "+name),
			asm.LoadMem(asm.R1, asm.RFP, scratch+1, asm.Byte), asm.LSh.Imm(asm.R1, 2), asm.Add.Imm(asm.R1, 8),
		)
		label("no auth " + name)
		add(
			asm.Mov.Reg(asm.R2, protocol),
			asm.LoadMem(protocol, asm.RFP, scratch, asm.Byte),
			asm.JNE.Imm(asm.R2, fragment, "next "+name),
			asm.LoadMem(asm.R0, asm.RFP, scratch+2, asm.Half), asm.HostTo(asm.BE, asm.R0, asm.Half),
			asm.And.Imm(asm.R0, 0xfff8), asm.JNE.Imm(asm.R0, 0, "count"),
			asm.Mov.Imm(asm.R1, 8),
		)
		label("next " + name)
		add(asm.Add.Reg(at, asm.R1))
	}
	add(asm.Ja.Label("count"))
}

// addTotal adds a packet to the totals with the index in R1. Nothing else runs on this
// processor's part of a map meanwhile: both hooks run with bottom halves off.
func (k *kernel) addTotal(add func(...asm.Instruction)) {
	add(
		asm.StoreMem(asm.RFP, scratch, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, scratch),
		asm.LoadMapPtr(asm.R1, k.totals.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
	)
	addTo(add)
}

// addTo adds a packet to the value at R0.
func addTo(add func(...asm.Instruction)) {
	plus := func(offset int16, by asm.Instruction) {
		add(asm.LoadMem(asm.R1, asm.R0, offset, asm.DWord), by, asm.StoreMem(asm.R0, offset, asm.R1, asm.DWord))
	}
	plus(valuePackets, asm.Add.Imm(asm.R1, 1))
	plus(valueBytes, asm.Add.Reg(asm.R1, length))
	add(asm.Mov.Reg(asm.R2, length), asm.Mul.Reg(asm.R2, length))
	plus(valueSquares, asm.Add.Reg(asm.R1, asm.R2))
}

// store counts the packet in its flow.
func (k *kernel) store(add func(...asm.Instruction), direction int) {
	which := func(name string) { // R1: the second's map
		add(
			asm.LoadMem(asm.R2, asm.RFP, parity, asm.DWord),
			asm.LoadMapPtr(asm.R1, k.flows[0].FD()),
			asm.JEq.Imm(asm.R2, 0, name),
			asm.LoadMapPtr(asm.R1, k.flows[1].FD()),
			asm.Mov.Reg(asm.R2, asm.RFP).WithSymbol(name), asm.Add.Imm(asm.R2, key),
		)
	}
	add(
		asm.StoreMem(asm.RFP, key+keyProtocol, protocol, asm.Byte),
		asm.StoreImm(asm.RFP, key+keyToVM, int64(direction), asm.Byte),
		asm.LoadMem(asm.R0, skb, skbIfindex, asm.Word), asm.StoreMem(asm.RFP, key+keyIndex, asm.R0, asm.Word),
		asm.LoadMem(asm.R1, asm.RFP, flags, asm.DWord), asm.And.Imm(asm.R1, syn), asm.JEq.Imm(asm.R1, 0, "no SYN"),
	)
	k.tell(add)
	add(asm.LoadMem(asm.R1, asm.RFP, parity, asm.DWord).WithSymbol("no SYN"), asm.LSh.Imm(asm.R1, 1))
	k.addTotal(add)
	which("look up")
	add(asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, "new"))
	addTo(add)
	add(
		asm.Ja.Label("out"),
		asm.Mov.Reg(asm.R0, asm.RFP).WithSymbol("new"), asm.Add.Imm(asm.R0, value),
	)
	for at := int16(0); at < valueSize; at += 4 {
		add(asm.StoreImm(asm.RFP, value+at, 0, asm.Word))
	}
	addTo(add)
	which("insert")
	add(
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, value),
		asm.Mov.Imm(asm.R4, int32(ebpf.UpdateAny)),
		asm.FnMapUpdateElem.Call(),
		asm.Ja.Label("out"),
	)
}

// tell puts the packet, which is a SYN, into the ring. Where that is full it is not told: it is
// counted all the same.
func (k *kernel) tell(add func(...asm.Instruction)) {
	add(
		asm.LoadMapPtr(asm.R1, k.syns.FD()), asm.Mov.Imm(asm.R2, synSize), asm.Mov.Imm(asm.R3, 0),
		asm.FnRingbufReserve.Call(),
		asm.JEq.Imm(asm.R0, 0, "no SYN"),
	)
	for at := int16(0); at < keySize; at += 8 {
		add(asm.LoadMem(asm.R1, asm.RFP, key+at, asm.DWord), asm.StoreMem(asm.R0, at, asm.R1, asm.DWord))
	}
	add(
		asm.LoadMem(asm.R1, asm.RFP, passed, asm.DWord), asm.StoreMem(asm.R0, synAt, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.RFP, flags, asm.DWord), asm.StoreMem(asm.R0, synFlags, asm.R1, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R0), asm.Mov.Imm(asm.R2, 0),
		asm.FnRingbufSubmit.Call(),
	)
}
