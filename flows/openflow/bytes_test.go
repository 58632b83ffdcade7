package openflow_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"heliotrope"
	"heliotrope/arpproxy"
	"heliotrope/flows"
)

// wire is a switch with flows whose ports' transmissions are recorded.
type wire struct {
	*ovs
	seen map[string]int
}

func newWire(t *testing.T, v flows.View) *wire {
	o := newSwitch(t, portNames...)
	for _, p := range []string{"a", "b", "up", "v"} {
		o.vsctl(t, "set", "Interface", p, "options:tx_pcap="+o.path(p+".pcap"))
	}
	if err := o.dial(t).Bundle(t.Context(), compile(t, v), nil); err != nil {
		t.Fatal(err)
	}
	return &wire{o, map[string]int{}}
}

// send puts a frame into port in and returns the next one that leaves by port out.
func (w *wire) send(t *testing.T, in string, frame []byte, out string) []byte {
	t.Helper()
	w.appctl(t, "netdev-dummy/receive", in, hex.EncodeToString(frame))
	var frames [][]byte
	w.until(t, "a frame leaves by "+out, func() error {
		pcap, err := os.ReadFile(w.path(out + ".pcap"))
		if err != nil {
			return err
		}
		if frames = splitPcap(pcap); len(frames) <= w.seen[out] {
			return fmt.Errorf("%d frames left", len(frames))
		}
		return nil
	})
	w.seen[out]++
	return frames[w.seen[out]-1]
}

// splitPcap returns the whole frames of a capture.
func splitPcap(b []byte) (frames [][]byte) {
	const fileHeader, frameHeader = 24, 16
	for b = b[min(fileHeader, len(b)):]; len(b) >= frameHeader; {
		n := int(binary.NativeEndian.Uint32(b[8:]))
		if n > len(b)-frameHeader {
			break
		}
		frames = append(frames, b[frameHeader:frameHeader+n])
		b = b[frameHeader+n:]
	}
	return frames
}

// sum is the Internet checksum over parts, each of even length but the last.
func sum(parts ...[]byte) uint16 {
	var s uint32
	for _, p := range parts {
		for i, x := range p {
			s += uint32(x) << (8 * (1 - i%2))
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// ipv4 is a frame with an IPv4 packet whose payload's checksum is at offset at.
func ipv4(eth, from heliotrope.MAC, src, dst netip.Addr, proto byte, payload []byte, at int) []byte {
	ip := []byte{0x45, 0, 0, byte(20 + len(payload)), 0, 1, 0, 0, 64, proto, 0, 0}
	ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], sum(ip))
	payload = bytes.Clone(payload)
	binary.BigEndian.PutUint16(payload[at:], sum(pseudo(ip, payload), payload))
	frame := append(append(bytes.Clone(eth[:]), from[:]...), 8, 0)
	return append(append(frame, ip...), payload...)
}

// pseudo is what a checksum covers before the payload: nothing for ICMP.
func pseudo(ip, payload []byte) []byte {
	if ip[9] == 1 {
		return nil
	}
	return append(bytes.Clone(ip[12:20]), 0, ip[9], 0, byte(len(payload)))
}

// checkSums fails unless the frame's IPv4 header and payload sum up.
func checkSums(t *testing.T, frame []byte) {
	t.Helper()
	ip, payload := frame[14:34], frame[34:14+binary.BigEndian.Uint16(frame[16:])]
	if sum(ip) != 0 || sum(pseudo(ip, payload), payload) != 0 {
		t.Errorf("checksums are wrong in %x", frame)
	}
}

// TestAnswersByteForByte holds what the switch sends against arpproxy.Answer.
func TestAnswersByteForByte(t *testing.T) {
	v := testView()
	w := newWire(t, v)
	a, six := nic(v, "a"), nic(v, "v")
	addr := netip.MustParseAddr
	arp := append(append([]byte{255, 255, 255, 255, 255, 255}, a.MAC[:]...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	arp = append(append(arp, a.MAC[:]...), a.Address.AsSlice()...)
	arp = append(arp, 0, 0, 0, 0, 0, 0, 10, 1, 0, 12)
	b := arpproxy.Book{MAC: a.MAC, Address: a.Address, Known: map[netip.Addr]arpproxy.Entry{addr("10.1.0.12"): {MAC: nic(v, "far").MAC}}}
	if want, ok := arpproxy.Answer(arp, b); !ok || !bytes.Equal(w.send(t, "a", arp, "a")[:len(want)], want) {
		t.Errorf("answer is not\n%x", want)
	}
	for target, e := range map[netip.Addr]arpproxy.Entry{six.Address.Next(): {MAC: nic(v, "w").MAC}, addr("2001:db8:6::1"): {MAC: heliotrope.GatewayMAC, Router: true}} {
		ns := solicitationFrame(six, target)
		b := arpproxy.Book{MAC: six.MAC, Address: six.Address, Known: map[netip.Addr]arpproxy.Entry{target: e}}
		want, ok := arpproxy.Answer(ns, b)
		if got := w.send(t, "v", ns, "v"); !ok || !bytes.Equal(got, want) {
			t.Errorf("answer for %v is\n%x, want\n%x", target, got, want)
		}
	}
}

func solicitationFrame(n flows.NIC, target netip.Addr) []byte {
	dst := netip.MustParseAddr("ff02::1:ff00:0").As16()
	tail := target.As16()
	copy(dst[13:], tail[13:])
	icmp := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, tail[:]...)
	icmp = append(append(icmp, 1, 1), n.MAC[:]...)
	addresses := append(n.Address.AsSlice(), dst[:]...)
	binary.BigEndian.PutUint16(icmp[2:], sum(addresses, []byte{0, 0, 0, byte(len(icmp)), 0, 0, 0, 58}, icmp))
	frame := append([]byte{0x33, 0x33, dst[12], dst[13], dst[14], dst[15]}, n.MAC[:]...)
	frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255)
	return append(append(frame, addresses...), icmp...)
}

// TestRewrittenPacketsAreWhole sends a ping to the gateway and TCP out and in through a
// public address, and looks at every checksum.
func TestRewrittenPacketsAreWhole(t *testing.T) {
	v := testView()
	w := newWire(t, v)
	a, client, gateway := nic(v, "a"), netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("10.1.0.1")
	public := heliotrope.PublicMAC("h1")

	ping := []byte{8, 0, 0, 0, 0x12, 0x34, 0, 1, 'h', 'e', 'l', 'i'}
	reply := w.send(t, "a", ipv4(heliotrope.GatewayMAC, a.MAC, a.Address, gateway, 1, ping, 2), "a")
	checkSums(t, reply)
	if want := ipv4(a.MAC, heliotrope.GatewayMAC, gateway, a.Address, 1, append([]byte{0}, ping[1:]...), 2); !bytes.Equal(reply[:len(want)], want) {
		t.Errorf("echo reply is\n%x, want\n%x", reply, want)
	}

	tcp := []byte{0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0, 'h', 'i'}
	out := w.send(t, "a", ipv4(heliotrope.GatewayMAC, a.MAC, a.Address, client, 6, tcp, 16), "up")
	checkSums(t, out)
	if heliotrope.MAC(out[0:6]) != v.GatewayMAC || heliotrope.MAC(out[6:12]) != public || netip.AddrFrom4([4]byte(out[26:30])) != a.Public || out[22] != 63 {
		t.Errorf("packet left as %x", out)
	}

	in := w.send(t, "up", ipv4(public, v.GatewayMAC, client, a.Public, 6, tcp, 16), "a")
	checkSums(t, in)
	if heliotrope.MAC(in[0:6]) != a.MAC || heliotrope.MAC(in[6:12]) != heliotrope.GatewayMAC || netip.AddrFrom4([4]byte(in[30:34])) != a.Address || in[22] != 63 {
		t.Errorf("packet arrived as %x", in)
	}
}
