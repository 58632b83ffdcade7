package openflow_test

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"heliotrope"
	"heliotrope/flows"
)

// probe is one kind of packet that meets the pipeline.
type probe struct {
	name string
	port uint32
	set  map[flows.Field]flows.Value
}

func nic(v flows.View, id heliotrope.VMID) flows.NIC {
	for _, n := range v.NICs() {
		if n.VM == id {
			return n
		}
	}
	panic("no VM " + id)
}

// probes are packets of every kind, with and without a fate.
func probes(v flows.View) []probe {
	router, client := v.GatewayMAC, netip.MustParseAddr("172.16.0.1")
	public := heliotrope.PublicMAC("h1")
	from := func(id heliotrope.VMID, to heliotrope.MAC, dst netip.Addr) map[flows.Field]flows.Value {
		n := nic(v, id)
		return udp(n.MAC, to, n.Address, dst)
	}
	tunnelled := func(id heliotrope.VMID, m map[flows.Field]flows.Value) map[flows.Field]flows.Value {
		m[flows.TunID] = flows.Uint(nic(v, id).VNI)
		return m
	}
	addr := func(id heliotrope.VMID) netip.Addr { return nic(v, id).Address }
	mac := func(id heliotrope.VMID) heliotrope.MAC { return nic(v, id).MAC }
	lastHop := from("a", heliotrope.GatewayMAC, addr("b"))
	lastHop[flows.TTL] = flows.Uint(1)
	ping := from("a", heliotrope.GatewayMAC, netip.MustParseAddr("10.1.0.1"))
	ping[flows.IPProto], ping[flows.ICMPType] = flows.Uint(flows.ProtoICMP), flows.Uint(8)
	straggler := func(id, src heliotrope.VMID) map[flows.Field]flows.Value {
		return tunnelled(id, udp(mac(src), mac(id), addr(src), addr(id)))
	}
	return []probe{
		{"to the gateway's network", portA, from("a", heliotrope.GatewayMAC, addr("b"))},
		{"to a VM elsewhere", portA, from("a", mac("far"), addr("far"))},
		{"routed to a VM elsewhere", portB, from("b", heliotrope.GatewayMAC, addr("far"))},
		{"to a VM by the shared tunnel port", portA, from("a", heliotrope.GatewayMAC, addr("flow"))},
		{"to a VM by the shared tunnel port, IPv6 underlay", portA, from("a", heliotrope.GatewayMAC, addr("flow6"))},
		{"to a VM on its way here", portA, from("a", mac("c"), addr("c"))},
		{"to a VM that left", portA, from("a", mac("gone"), addr("gone"))},
		{"to oneself", portA, from("a", mac("a"), addr("a"))},
		{"to another group", portA, from("a", heliotrope.GatewayMAC, addr("x"))},
		{"to another group's VM directly", portA, from("a", mac("x"), addr("x"))},
		{"to nobody", portA, from("a", heliotrope.GatewayMAC, netip.MustParseAddr("10.2.0.99"))},
		{"to a multicast group", portA, from("a", heliotrope.GatewayMAC, netip.MustParseAddr("224.0.0.5"))},
		{"broadcast", portA, from("a", heliotrope.MAC{255, 255, 255, 255, 255, 255}, netip.MustParseAddr("10.1.0.255"))},
		{"on its last hop", portA, lastHop},
		{"outside", portA, from("a", heliotrope.GatewayMAC, client)},
		{"outside, no public address", portB, from("b", heliotrope.GatewayMAC, client)},
		{"outside, VM on its way here", portC, from("c", heliotrope.GatewayMAC, client)},
		{"outside, IPv6", portV6, from("v", heliotrope.GatewayMAC, netip.MustParseAddr("2001:db8:1::1"))},
		{"false address", portA, from("b", heliotrope.GatewayMAC, client)},
		{"ping of the gateway", portA, ping},
		{"from outside to a VM here", portUplink, udp(router, public, client, netip.MustParseAddr("203.0.113.10"))},
		{"from outside to a VM on its way here", portUplink, udp(router, public, client, netip.MustParseAddr("203.0.113.11"))},
		{"from outside to a VM elsewhere", portUplink, udp(router, public, client, netip.MustParseAddr("203.0.113.12"))},
		{"from outside to nobody", portUplink, udp(router, public, client, netip.MustParseAddr("203.0.113.99"))},
		{"from outside, inside address", portUplink, udp(router, public, addr("b"), netip.MustParseAddr("203.0.113.10"))},
		{"from outside, flooded", portUplink, udp(router, heliotrope.PublicMAC("h2"), client, netip.MustParseAddr("203.0.113.10"))},
		{"from outside, IPv6", portUplink, udp(router, public, netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:ffff::10"))},
		{"by tunnel to a VM here", portTunnel2, straggler("a", "far")},
		{"by tunnel to a VM on its way here", portTunnel2, straggler("c", "far")},
		{"by tunnel to a VM that left", portTunnel2, straggler("gone", "far")},
		{"by tunnel to a VM that left, back to the sender", portTunnel3, straggler("gone", "far")},
		{"by tunnel to a VM elsewhere", portTunnel3, straggler("far", "gone")},
		{"by tunnel in a network that is not there", portTunnel2, tunnelled("x", from("far", mac("a"), addr("a")))},
		{"by tunnel to an IPv6 VM here", portTunnel2, straggler("v", "w")},
		{"by tunnel to an IPv6 VM that left", portTunnel3, straggler("w", "v")},
		{"ARP for the gateway", portA, request(nic(v, "a"), netip.MustParseAddr("10.1.0.1"))},
		{"ARP for a VM", portA, request(nic(v, "a"), addr("far"))},
		{"ARP for oneself", portA, request(nic(v, "a"), addr("a"))},
		{"ARP for another network's VM", portA, request(nic(v, "a"), addr("b"))},
		{"ARP from outside", portUplink, request(flows.NIC{MAC: router, Address: client}, netip.MustParseAddr("198.51.100.1"))},
		{"ARP from outside for another host", portUplink, request(flows.NIC{MAC: router, Address: client}, netip.MustParseAddr("198.51.100.2"))},
		{"ND for the gateway", portV6, solicitation(nic(v, "v"), netip.MustParseAddr("2001:db8:6::1"))},
		{"ND for a VM", portV6, solicitation(nic(v, "v"), addr("w"))},
		{"ND for oneself", portV6, solicitation(nic(v, "v"), addr("v"))},
	}
}

func udp(ethSrc, ethDst heliotrope.MAC, src, dst netip.Addr) map[flows.Field]flows.Value {
	m := map[flows.Field]flows.Value{flows.EthSrc: flows.MACValue(ethSrc), flows.EthDst: flows.MACValue(ethDst), flows.IPProto: flows.Uint(17), flows.TTL: flows.Uint(64)}
	if dst.Is4() {
		m[flows.EthType], m[flows.IPSrc], m[flows.IPDst] = flows.Uint(flows.EthIPv4), flows.AddrValue(src), flows.AddrValue(dst)
	} else {
		m[flows.EthType], m[flows.IP6Src], m[flows.IP6Dst] = flows.Uint(flows.EthIPv6), flows.AddrValue(src), flows.AddrValue(dst)
	}
	return m
}

func request(n flows.NIC, target netip.Addr) map[flows.Field]flows.Value {
	return map[flows.Field]flows.Value{flows.EthSrc: flows.MACValue(n.MAC), flows.EthDst: flows.Uint(uint64(0xffffffffffff)), flows.EthType: flows.Uint(flows.EthARP),
		flows.ARPOp: flows.Uint(1), flows.ARPSHA: flows.MACValue(n.MAC), flows.ARPSPA: flows.AddrValue(n.Address), flows.ARPTPA: flows.AddrValue(target)}
}

func solicitation(n flows.NIC, target netip.Addr) map[flows.Field]flows.Value {
	m := udp(n.MAC, heliotrope.MAC{0x33, 0x33, 0xff, 0, 0, 1}, n.Address, netip.MustParseAddr("ff02::1:ff00:1"))
	m[flows.IPProto], m[flows.TTL], m[flows.ICMP6Type] = flows.Uint(flows.ProtoICM6), flows.Uint(255), flows.Uint(135)
	m[flows.NDTarget], m[flows.NDSLL], m[flows.NDOption] = flows.AddrValue(target), flows.MACValue(n.MAC), flows.Uint(1)
	return m
}

// TestSwitchDoesWhatEvalSays sends every kind of packet through ofproto/trace and Eval.
func TestSwitchDoesWhatEvalSays(t *testing.T) {
	o := newSwitch(t, append(portNames, "vxflow")...)
	o.vsctl(t, "set", "Interface", "vxflow", "ofport_request=40", "options:remote_ip=flow")
	v := testView()
	o.until(t, "port 40 is there", func() error {
		if out := o.run(t, "ovs-vsctl", "--db=unix:"+o.path("db.sock"), "get", "Interface", "vxflow", "ofport"); strings.TrimSpace(out) != "40" {
			return fmt.Errorf("ofport is %s", out)
		}
		return nil
	})
	fs := compile(t, v)
	if err := o.dial(t).Bundle(t.Context(), fs, nil); err != nil {
		t.Fatal(err)
	}
	for _, p := range probes(v) {
		t.Run(p.name, func(t *testing.T) {
			var packet flows.Packet
			for f, value := range p.set {
				packet[f] = value
			}
			out := o.appctl(t, "ofproto/trace", "br", fmt.Sprintf("in_port=%d,%s", p.port, packet))
			traced := parseTrace(t, out, p.port)
			evaluated := flows.Eval(fs, packet, p.port)
			if len(evaluated) != len(traced.ports) {
				t.Fatalf("Eval says %v, the switch %v:\n%s", evaluated, traced.ports, out)
			}
			for i, e := range evaluated {
				if e.Port != traced.ports[i] {
					t.Errorf("Eval sends to port %d, the switch to %d", e.Port, traced.ports[i])
				}
				traced.compare(t, packet, e.Packet, out)
			}
		})
	}
}

// traced is what ofproto/trace said: ports in order, and the packet at the end.
type traced struct {
	ports []uint32
	final map[string]string
}

var (
	outputLine = regexp.MustCompile(`(?m)^ +output:(\d+)$`)
	inPortLine = regexp.MustCompile(`(?m)^ +IN_PORT$`)
	skipped    = regexp.MustCompile(`skipping output to input port`)
	finalLine  = regexp.MustCompile(`(?m)^Final flow: (.*)$`)
)

func parseTrace(t *testing.T, out string, inPort uint32) traced {
	r := traced{final: map[string]string{}}
	for _, m := range outputLine.FindAllStringSubmatch(out, -1) {
		var port uint32
		if _, err := fmt.Sscan(m[1], &port); err != nil {
			t.Fatal(err)
		}
		if !skipped.MatchString(out) {
			r.ports = append(r.ports, port)
		}
	}
	for range inPortLine.FindAllString(out, -1) {
		r.ports = append(r.ports, inPort)
	}
	m := finalLine.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no final flow in\n%s", out)
	}
	for field := range strings.SplitSeq(m[1], ",") {
		k, v, _ := strings.Cut(field, "=")
		r.final[k] = v
	}
	return r
}

// printed are fields that ofproto/trace calls by another name than we do.
var printed = map[flows.Field]string{flows.EthSrc: "dl_src", flows.EthDst: "dl_dst", flows.IPSrc: "nw_src", flows.IPDst: "nw_dst", flows.ICMP6Type: "icmp_type"}

// unprinted are fields that ofproto/trace does not tell at the end. TestAnswersByteForByte
// looks at the neighbour's.
var unprinted = map[flows.Field]bool{flows.InPort: true, flows.EthType: true, flows.IPProto: true, flows.VLAN: true,
	flows.NDSLL: true, flows.NDReserved: true, flows.NDOption: true}

// compare holds the fields of a packet that Eval sends against the switch's.
func (r traced) compare(t *testing.T, before, after flows.Packet, out string) {
	for f := range flows.NumFields {
		name := f.String()
		if n, ok := printed[f]; ok {
			name = n
		}
		have, told := r.final[name]
		switch {
		case unprinted[f], !told && after[f] == before[f]:
			continue
		case f == flows.TTL && before[flows.EthType].Lo == flows.EthARP, f == flows.ICMPType && before[flows.EthType].Lo == flows.EthIPv6:
			continue // the same name means something else there
		case f == flows.TunID && !told && strings.Contains(out, "->tun_id"):
			continue // left out where the tunnel's destination is told
		}
		want := strings.TrimPrefix(flows.When(flows.Is(f, after[f])).String(), ","+f.String()+"=")
		if have != want && !(after[f] == flows.Value{} && !told) {
			t.Errorf("%s is %q in the switch and %q in Eval:\n%s", name, have, want, out)
		}
	}
}
