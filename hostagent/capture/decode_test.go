package capture

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"heliotrope/scheduler/traffic"
)

var (
	alice4, bob4 = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	alice6, bob6 = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
)

// frame is what gopacket makes of layers, with lengths and checksums.
func frame(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, l...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func eth(kind layers.EthernetType) *layers.Ethernet {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	return &layers.Ethernet{SrcMAC: mac, DstMAC: mac, EthernetType: kind}
}

func tag(id uint16, kind layers.EthernetType) *layers.Dot1Q {
	return &layers.Dot1Q{VLANIdentifier: id, Type: kind}
}

func v4(protocol layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: protocol, SrcIP: alice4.AsSlice(), DstIP: bob4.AsSlice()}
}

func v6(next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: alice6.AsSlice(), DstIP: bob6.AsSlice()}
}

func udp() *layers.UDP { return &layers.UDP{SrcPort: 40000, DstPort: 53} }

func tcp() *layers.TCP {
	stamps := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 7), 9)
	return &layers.TCP{SrcPort: 40000, DstPort: 5432, ACK: true, PSH: true, Options: []layers.TCPOption{
		{OptionType: layers.TCPOptionKindNop}, {OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 180}},
		{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: stamps},
	}}
}

func payload(n int) gopacket.Payload { return bytes.Repeat([]byte{0xaa}, n) }

// extension is an IPv6 extension header of 16 bytes.
func extension(next uint8) gopacket.Payload {
	return append([]byte{next, 1, 1, 12}, make([]byte, 12)...)
}

func ends(h header, src, dst netip.Addr) header {
	h.src, h.dst = src.As16(), dst.As16()
	return h
}

func TestDecode(t *testing.T) {
	const (
		ip4  = layers.EthernetTypeIPv4
		ip6  = layers.EthernetTypeIPv6
		vlan = layers.EthernetTypeDot1Q
		qinq = layers.EthernetTypeQinQ
	)
	dns := header{protocol: traffic.UDP, srcPort: 40000, dstPort: 53}
	sql := header{protocol: traffic.TCP, srcPort: 40000, dstPort: 5432, flags: ack | 8, carries: true, stamped: true, tsVal: 7, tsEcr: 9}
	of := func(h header, length uint32) header { h.length = length; return h }
	fragment6 := func(offset uint16, next uint8) gopacket.Payload {
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16([]byte{next, 0}, offset<<3|1), 5)
	}
	options := v4(layers.IPProtocolUDP)
	options.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
	first, later := v4(layers.IPProtocolUDP), v4(layers.IPProtocolUDP)
	first.Flags, later.FragOffset = layers.IPv4MoreFragments, 100
	padded := append(frame(t, eth(ip4), v4(layers.IPProtocolUDP), udp()), make([]byte, 18)...)
	offloaded := frame(t, eth(ip4), v4(layers.IPProtocolTCP), tcp(), payload(10))
	copy(offloaded[16:], []byte{0, 0})
	neighbour := frame(t, eth(ip6), v6(layers.IPProtocolICMPv6), gopacket.Payload{135, 0, 0, 0, 0, 0, 0, 0})
	for _, c := range []struct {
		name    string
		frame   []byte
		wire    int // 0: the frame's length
		want    header
		verdict verdict
	}{
		{"IPv4", frame(t, eth(ip4), v4(layers.IPProtocolUDP), udp(), payload(100)), 0, ends(of(dns, 128), alice4, bob4), readable},
		{"IPv4 with options", frame(t, eth(ip4), options, udp(), payload(100)), 0, ends(of(dns, 132), alice4, bob4), readable},
		{"padded to Ethernet's least", padded, 0, ends(of(dns, 28), alice4, bob4), readable},
		{"tag", frame(t, eth(vlan), tag(7, ip4), v4(layers.IPProtocolUDP), udp()), 0, ends(of(dns, 28), alice4, bob4), readable},
		{"two tags", frame(t, eth(qinq), tag(7, vlan), tag(8, ip6), v6(layers.IPProtocolUDP), udp()), 0, ends(of(dns, 48), alice6, bob6), readable},
		{"three tags", frame(t, eth(qinq), tag(7, qinq), tag(8, vlan), tag(9, ip4), v4(layers.IPProtocolUDP), udp()), 0, header{}, foreign},
		{"TCP", frame(t, eth(ip4), v4(layers.IPProtocolTCP), tcp(), payload(10)), 0, ends(of(sql, 66), alice4, bob4), readable},
		{"TCP cut off at the snap length", frame(t, eth(ip6), v6(layers.IPProtocolTCP), tcp(), payload(1000))[:snapLength], 1090, ends(of(sql, 1076), alice6, bob6), readable},
		{"total length 0: BIG TCP", offloaded[:80], 100_014, ends(of(sql, 100_000), alice4, bob4), readable},
		{"first fragment", frame(t, eth(ip4), first, udp(), payload(8)), 0, ends(of(dns, 36), alice4, bob4), readable},
		{"later fragment", frame(t, eth(ip4), later, payload(8)), 0, ends(header{protocol: traffic.UDP, length: 28}, alice4, bob4), readable},
		{"extension headers", frame(t, eth(ip6), v6(layers.IPProtocolIPv6HopByHop), extension(routing), extension(destOptions), extension(traffic.UDP), udp()), 0, ends(of(dns, 96), alice6, bob6), readable},
		{"first IPv6 fragment", frame(t, eth(ip6), v6(layers.IPProtocolIPv6Fragment), fragment6(0, traffic.UDP), udp()), 0, ends(of(dns, 56), alice6, bob6), readable},
		{"later IPv6 fragment", frame(t, eth(ip6), v6(layers.IPProtocolIPv6Fragment), fragment6(9, traffic.UDP), payload(8)), 0, ends(header{protocol: traffic.UDP, length: 56}, alice6, bob6), readable},
		{"ICMP", frame(t, eth(ip4), v4(layers.IPProtocolICMPv4), payload(8)), 0, ends(header{protocol: traffic.ICMP, length: 28}, alice4, bob4), readable},
		{"no room for ports", frame(t, eth(ip4), v4(layers.IPProtocolUDP), payload(3)), 0, ends(header{protocol: traffic.UDP, length: 23}, alice4, bob4), readable},
		{"neighbour discovery", neighbour, 0, header{}, foreign},
		{"ARP", frame(t, eth(layers.EthernetTypeARP), payload(28)), 0, header{}, foreign},
		{"no Ethernet", []byte{1, 2, 3}, 0, header{}, unreadable},
		{"cut off in the tag", frame(t, eth(vlan), payload(2))[:16], 0, header{}, unreadable},
		{"cut off in IPv4", frame(t, eth(ip4), v4(layers.IPProtocolUDP))[:30], 0, header{}, unreadable},
		{"cut off in IPv6", frame(t, eth(ip6), v6(layers.IPProtocolUDP))[:50], 0, header{}, unreadable},
		{"a version that is none", frame(t, eth(ip4), v6(layers.IPProtocolUDP), udp()), 0, header{}, unreadable},
	} {
		var got header
		wire := c.wire
		if wire == 0 {
			wire = len(c.frame)
		}
		if verdict := got.decode(c.frame, wire); verdict != c.verdict || verdict == readable && got != c.want {
			t.Errorf("%s: got %d, %+v\nwant %d, %+v", c.name, verdict, got, c.verdict, c.want)
		}
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	b := frame(t, eth(layers.EthernetTypeIPv4), v4(layers.IPProtocolTCP), tcp(), payload(10))
	var h header
	if n := testing.AllocsPerRun(1000, func() { h.decode(b, len(b)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever comes, decode reads no byte that is not there, and says nothing that cannot be.
func FuzzDecode(f *testing.F) {
	f.Add(frame(f, eth(layers.EthernetTypeIPv4), v4(layers.IPProtocolTCP), tcp(), payload(10)), 100)
	f.Add(frame(f, eth(layers.EthernetTypeIPv6), v6(layers.IPProtocolIPv6HopByHop), extension(routing), extension(traffic.UDP), udp()), 0)
	f.Add(frame(f, eth(layers.EthernetTypeQinQ), tag(7, layers.EthernetTypeDot1Q), tag(8, layers.EthernetTypeIPv6), v6(layers.IPProtocolUDP), udp()), 1)
	f.Fuzz(func(t *testing.T, b []byte, more int) {
		wire := len(b) + max(0, more%(1<<20))
		var h, again header
		verdict := h.decode(b, wire)
		if int(h.length) > wire {
			t.Errorf("length %d of %d on the wire", h.length, wire)
		}
		hasPorts := h.protocol == traffic.TCP || h.protocol == traffic.UDP || h.protocol == traffic.SCTP
		if !hasPorts && (h.srcPort != 0 || h.dstPort != 0) || h.protocol != traffic.TCP && (h.flags != 0 || h.stamped || h.carries) {
			t.Errorf("protocol %d: %+v", h.protocol, h)
		}
		// What follows the snap length changes nothing but what was cut off.
		if len(b) > snapLength && again.decode(b[:snapLength], wire) == readable && verdict == readable && (again.src != h.src || again.dst != h.dst || again.length != h.length) {
			t.Errorf("cut off: %+v, whole: %+v", again, h)
		}
	})
}

// The service is what the side that answers has as its port.
func TestService(t *testing.T) {
	for _, c := range []struct {
		src, dst, server uint16
		port             uint16
		reply            bool
	}{
		{40000, 443, 0, 443, false},
		{443, 40000, 0, 443, true},
		{8080, 443, 0, 443, false},
		{40000, 50051, 0, 50051, false}, // a well-known one among the ephemeral ones
		{50051, 40000, 0, 50051, true},
		{40000, 45000, 0, 0, false}, // neither tells
		{45000, 40000, 0, 0, false},
		{40000, 45000, 45000, 45000, false}, // a SYN told
		{45000, 40000, 45000, 45000, true},
		{443, 8080, 8080, 8080, false}, // and knows better than the lower port
		{123, 123, 0, 123, false},      // both answer
		{0, 0, 0, 0, false},
	} {
		s, reply := service(traffic.TCP, c.src, c.dst, c.server)
		if want := (traffic.Service{Protocol: traffic.TCP, Port: c.port}); s != want || reply != c.reply {
			t.Errorf("%d to %d, server %d: got %s, reply %t, want %s, %t", c.src, c.dst, c.server, s, reply, want, c.reply)
		}
	}
}

func TestBook(t *testing.T) {
	b := newBook(traffic.Orders{Grain4: 16, Grain6: 48, Book: []traffic.Address{
		{Domain: "blue", Address: alice4, VM: "blue-vm", Counted: true},
		{Domain: "red", Address: alice4, VM: "red-vm"},
		{Address: netip.MustParseAddr("192.0.2.1"), VM: "web", Counted: true},
		{Domain: "blue", Address: netip.MustParseAddr("192.0.2.1"), VM: "private"},
		{Address: netip.Addr{}, VM: "nobody"},
	}})
	for _, c := range []struct {
		domain, address, want string
		counted               bool
	}{
		{"blue", "10.0.0.1", "blue-vm", true},
		{"red", "10.0.0.1", "red-vm", false},
		{"green", "10.0.0.1", "10.0.0.0/16", false}, // another's address space
		{"", "10.0.0.1", "10.0.0.0/16", false},
		{"red", "192.0.2.1", "web", true}, // public
		{"blue", "192.0.2.1", "private", false},
		{"blue", "2001:db8:1:2::3", "2001:db8:1::/48", false},
		{"blue", "239.1.2.3", "224.0.0.0/4", false},
		{"blue", "ff02::1:ff00:1", "ff00::/8", false},
		{"blue", "255.255.255.255", "255.255.255.255/32", false},
	} {
		got := b.who(c.domain, netip.MustParseAddr(c.address).As16())
		if got.end.String() != c.want || got.counted != c.counted {
			t.Errorf("%s in %q: got %s, %t, want %s, %t", c.address, c.domain, got.end, got.counted, c.want, c.counted)
		}
	}
}
