package arpproxy_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"

	"heliotrope"
	"heliotrope/arpproxy"
	"heliotrope/flows"
)

const (
	port4  = 11
	port6  = 12
	uplink = 31
)

// view is a host with a VM that has a v4 and a v6 NIC, and another VM elsewhere.
func view() flows.View {
	addr := netip.MustParseAddr
	nics := func(last string) heliotrope.VM {
		return heliotrope.VM{NICs: []heliotrope.NIC{{Network: "four", Address: addr("10.1.0." + last)}, {Network: "six", Address: addr("2001:db8::" + last)}}}
	}
	return flows.View{
		Host: "here",
		Topology: heliotrope.Topology{
			Hosts: map[heliotrope.HostID]heliotrope.Host{
				"here":  {Address: addr("192.0.2.1"), Public: addr("198.51.100.1")},
				"there": {Address: addr("192.0.2.2"), Public: addr("198.51.100.2")}},
			Networks: map[heliotrope.NetworkID]heliotrope.Network{
				"four": {VNI: 100, Subnet: netip.MustParsePrefix("10.1.0.0/24"), Gateway: addr("10.1.0.1")},
				"six":  {VNI: 600, Subnet: netip.MustParsePrefix("2001:db8::/64"), Gateway: addr("2001:db8::1")}},
			VMs: map[heliotrope.VMID]heliotrope.VM{"a": nics("10"), "b": nics("11")},
		},
		Placements: map[heliotrope.VMID]heliotrope.Placement{"a": {Host: "here"}, "b": {Host: "there"}},
		Ports:      flows.Ports{NIC: map[flows.NICKey]uint32{{VM: "a"}: port4, {VM: "a", Index: 1}: port6}, Uplink: uplink},
	}
}

// books are what the switch of view knows at each port.
func books(v flows.View) map[uint32]arpproxy.Book {
	all := map[uint32]arpproxy.Book{uplink: {Known: map[netip.Addr]arpproxy.Entry{
		netip.MustParseAddr("198.51.100.1"): {MAC: heliotrope.PublicMAC("here"), Router: true}}}}
	for _, me := range v.NICs() {
		if me.Port == 0 {
			continue
		}
		b := arpproxy.Book{MAC: me.MAC, Address: me.Address, Known: map[netip.Addr]arpproxy.Entry{}}
		for _, s := range v.Segments() {
			if s.VNI == me.VNI {
				b.Known[s.Gateway] = arpproxy.Entry{MAC: heliotrope.GatewayMAC, Router: true}
			}
		}
		for _, n := range v.NICs() {
			if n.VNI == me.VNI {
				b.Known[n.Address] = arpproxy.Entry{MAC: n.MAC}
			}
		}
		all[me.Port] = b
	}
	return all
}

// question is an ARP request or a neighbour solicitation as bytes.
type question struct {
	eth, sender heliotrope.MAC // Ethernet source; link-layer address in the message
	src, target netip.Addr
}

func (q question) frame() []byte {
	if q.target.Is6() {
		return q.solicitation()
	}
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, q.eth[:]...)
	b = append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, q.sender[:]...), q.src.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), q.target.AsSlice()...)
}

func (q question) solicitation() []byte {
	target := q.target.As16()
	dst := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(dst[13:], target[13:])
	b := append([]byte{0x33, 0x33, 0xff, target[13], target[14], target[15]}, q.eth[:]...)
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255)
	b = append(append(b, q.src.AsSlice()...), dst[:]...)
	b = append(append(b, 135, 0, 0, 0, 0, 0, 0, 0), target[:]...)
	return append(append(b, 1, 1), q.sender[:]...)
}

// packet is a frame as a switch sees it; only whole ARP and ND frames of ours.
func packet(b []byte) (p flows.Packet) {
	num := func(at, n int) flows.Value {
		var all [16]byte
		copy(all[16-n:], b[at:at+n])
		return flows.Value{Hi: binary.BigEndian.Uint64(all[:8]), Lo: binary.BigEndian.Uint64(all[8:])}
	}
	p[flows.EthDst], p[flows.EthSrc], p[flows.EthType] = num(0, 6), num(6, 6), num(12, 2)
	if p[flows.EthType].Lo == flows.EthARP {
		p[flows.ARPOp], p[flows.ARPSHA], p[flows.ARPSPA] = num(20, 2), num(22, 6), num(28, 4)
		p[flows.ARPTHA], p[flows.ARPTPA] = num(32, 6), num(38, 4)
		return p
	}
	p[flows.IPProto], p[flows.TTL], p[flows.IP6Src], p[flows.IP6Dst] = num(20, 1), num(21, 1), num(22, 16), num(38, 16)
	p[flows.ICMP6Type], p[flows.NDReserved], p[flows.NDTarget], p[flows.NDOption] = num(54, 1), num(58, 4), num(62, 16), num(78, 1)
	p[map[uint64]flows.Field{1: flows.NDSLL, 2: flows.NDTLL}[p[flows.NDOption].Lo]] = num(80, 6)
	return p
}

// TestFlowsAnswerAsAnswerDoes compares the compiled flows' answers with Answer's.
func TestFlowsAnswerAsAnswerDoes(t *testing.T) {
	v := view()
	fs, err := flows.Compile(v, arpproxy.Flows)
	if err != nil {
		t.Fatal(err)
	}
	known := books(v)
	addresses := []netip.Addr{netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.10"),
		netip.MustParseAddr("10.1.0.11"), netip.MustParseAddr("10.1.0.99"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")}
	six := []netip.Addr{netip.MustParseAddr("fe80::10"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::10"), netip.MustParseAddr("2001:db8::11"), netip.MustParseAddr("::")}
	macs := []heliotrope.MAC{heliotrope.NICMAC("a", 0), heliotrope.NICMAC("a", 1), heliotrope.NICMAC("b", 0), heliotrope.GatewayMAC}
	answered := 0
	for port, book := range known {
		for _, from := range [][]netip.Addr{addresses, six} {
			for _, src := range from {
				for _, target := range from {
					for _, eth := range macs {
						for _, sender := range macs {
							if checkAnswer(t, fs, port, book, question{eth, sender, src, target}) {
								answered++
							}
						}
					}
				}
			}
		}
	}
	if answered < 50 {
		t.Errorf("only %d questions were answered", answered)
	}
}

// checkAnswer compares both answers to q and says whether there are any.
func checkAnswer(t *testing.T, fs []flows.Flow, port uint32, book arpproxy.Book, q question) bool {
	t.Helper()
	got := flows.Eval(fs, packet(q.frame()), port)
	want, ok := arpproxy.Answer(q.frame(), book)
	if !ok {
		if len(got) != 0 {
			t.Errorf("flows answer %+v at port %d with %v, want nothing", q, port, got)
		}
		return false
	}
	if len(got) != 1 || got[0].Port != port {
		t.Errorf("flows answer %+v at port %d with %v, want one answer", q, port, got)
		return true
	}
	wantPacket := packet(want)
	for f := flows.EthSrc; f < flows.NumFields; f++ {
		if f != flows.NDSLL && got[0].Packet[f] != wantPacket[f] { // the option was SLL and is TLL
			t.Errorf("flows answer %+v with %v, want %v", q, got[0].Packet, wantPacket)
			break
		}
	}
	return true
}

func TestAnswer(t *testing.T) {
	known := books(view())
	a0, b0 := heliotrope.NICMAC("a", 0), heliotrope.NICMAC("b", 0)
	addr := netip.MustParseAddr
	for name, c := range map[string]struct {
		port uint32
		q    question
		want heliotrope.MAC // zero: no answer
	}{
		"neighbour":           {port4, question{a0, a0, addr("10.1.0.10"), addr("10.1.0.11")}, b0},
		"gateway":             {port4, question{a0, a0, addr("10.1.0.10"), addr("10.1.0.1")}, heliotrope.GatewayMAC},
		"probe of another's":  {port4, question{a0, a0, addr("0.0.0.0"), addr("10.1.0.11")}, b0},
		"probe of one's own":  {port4, question{a0, a0, addr("0.0.0.0"), addr("10.1.0.10")}, heliotrope.MAC{}},
		"announcement":        {port4, question{a0, a0, addr("10.1.0.10"), addr("10.1.0.10")}, heliotrope.MAC{}},
		"nobody":              {port4, question{a0, a0, addr("10.1.0.10"), addr("10.1.0.99")}, heliotrope.MAC{}},
		"false sender":        {port4, question{a0, b0, addr("10.1.0.10"), addr("10.1.0.11")}, heliotrope.MAC{}},
		"false source":        {port4, question{a0, a0, addr("10.1.0.11"), addr("10.1.0.11")}, heliotrope.MAC{}},
		"router asks":         {uplink, question{b0, b0, addr("198.51.100.254"), addr("198.51.100.1")}, heliotrope.PublicMAC("here")},
		"router asks another": {uplink, question{b0, b0, addr("198.51.100.254"), addr("198.51.100.2")}, heliotrope.MAC{}},
	} {
		reply, ok := arpproxy.Answer(c.q.frame(), known[c.port])
		if ok == c.want.IsZero() {
			t.Errorf("%s: answered: %v", name, ok)
		} else if ok && (heliotrope.MAC(reply[22:28]) != c.want || heliotrope.MAC(reply[0:6]) != c.q.eth || reply[21] != 2) {
			t.Errorf("%s: answer %x, want %v", name, reply, c.want)
		}
	}
}

// TestAdvertisementBytes holds an answer to a solicitation against one written out by hand.
func TestAdvertisementBytes(t *testing.T) {
	a := heliotrope.MAC{2, 0, 0, 0, 0, 0xa}
	b := arpproxy.Book{MAC: a, Address: netip.MustParseAddr("2001:db8::10"), Known: map[netip.Addr]arpproxy.Entry{
		netip.MustParseAddr("2001:db8::1"): {MAC: heliotrope.MAC{2, 0, 0, 0, 0, 1}, Router: true}}}
	q := question{a, a, netip.MustParseAddr("2001:db8::10"), netip.MustParseAddr("2001:db8::1")}
	got, ok := arpproxy.Answer(q.frame(), b)
	const want = "02000000000a" + "020000000001" + "86dd" + "60000000" + "0020" + "3aff" +
		"20010db8000000000000000000000001" + "20010db8000000000000000000000010" +
		"8800" + "0a65" + "e0000000" + "20010db8000000000000000000000001" + "0201020000000001"
	if !ok || hex.EncodeToString(got) != want {
		t.Errorf("answer is\n%x, want\n%s", got, want)
	}
}

func FuzzAnswer(f *testing.F) {
	known := books(view())
	a0, a1 := heliotrope.NICMAC("a", 0), heliotrope.NICMAC("a", 1)
	for _, q := range []question{
		{a0, a0, netip.MustParseAddr("10.1.0.10"), netip.MustParseAddr("10.1.0.11")},
		{a0, a0, netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("10.1.0.1")},
		{a1, a1, netip.MustParseAddr("2001:db8::10"), netip.MustParseAddr("2001:db8::1")},
		{a1, a1, netip.MustParseAddr("fe80::1"), netip.MustParseAddr("2001:db8::11")},
	} {
		frame := q.frame()
		f.Add(frame, uint32(port4))
		f.Add(frame, uint32(port6))
		f.Add(frame[:20], uint32(uplink))
		f.Add(append(bytes.Clone(frame), 0, 0, 0), uint32(port6))
		tagged := append(bytes.Clone(frame[:12]), 0x81, 0, 0, 100)
		f.Add(append(tagged, frame[12:]...), uint32(port4))
	}
	f.Fuzz(func(t *testing.T, frame []byte, port uint32) {
		b := known[port]
		before := bytes.Clone(frame)
		reply, ok := arpproxy.Answer(frame, b)
		if !bytes.Equal(frame, before) {
			t.Fatal("Answer wrote to the question")
		}
		if !ok {
			return
		}
		if len(reply) > len(frame) {
			t.Fatalf("an answer of %d bytes to a question of %d", len(reply), len(frame))
		}
		if again, ok := arpproxy.Answer(reply, b); ok {
			t.Fatalf("an answer is answered: %x", again)
		}
	})
}
