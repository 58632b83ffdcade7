// Package arpproxy answers ARP and IPv6 neighbour solicitations in the switch itself.
//
// Every address of a network is known, so that no question needs to reach anybody: the
// port that asks gets the answer back at once, and no broadcast leaves it. One MAC is the
// gateway's everywhere, so that a guest's neighbour table stays right when it moves. On
// the uplink the switch answers for the host's public address, and for nothing else.
//
// A VM that asks for its own address, to find out whether another has it, hears nothing:
// the table Guard of package flows drops that question before it comes here.
//
// Flows compiles the answers into flows. Answer says the same about bytes; it is the
// meaning that the flows are tested against.
package arpproxy

import (
	"heliotrope"
	"heliotrope/flows"
	"net/netip"
)

// R, S and O bits of a neighbour advertisement: a solicited answer that overrides what the
// asker had, from a host or from a router.
const (
	naHost   = 0x60000000
	naRouter = 0xe0000000
)

const priority = 100

// Flows is the content of table ARP for v's host. It is a flows.Responder.
func Flows(v flows.View) []flows.Flow {
	var all []flows.Flow
	for _, s := range v.Segments() {
		all = append(all, answer(inNetwork(s.VNI), s.Gateway, heliotrope.GatewayMAC, naRouter))
	}
	for _, n := range v.NICs() {
		all = append(all, answer(inNetwork(n.VNI), n.Address, n.MAC, naHost))
	}
	public := v.Topology.Hosts[v.Host].Public
	if v.Ports.Uplink != 0 && public.IsValid() {
		uplink := flows.Is(flows.Side, flows.Uint(flows.SideUplink))
		all = append(all, answer(uplink, public, heliotrope.PublicMAC(v.Host), naRouter))
	}
	return all
}

func inNetwork(vni uint32) flows.Term { return flows.Is(flows.Net, flows.Uint(vni)) }

// answer is the flow that says, to those who meet where, that addr is at mac.
func answer(where flows.Term, addr netip.Addr, mac heliotrope.MAC, bits uint32) flows.Flow {
	f := flows.Flow{Table: flows.ARP, Priority: priority, Cookie: flows.Cookie(flows.ARP, flows.Answer)}
	if addr.Is4() {
		f.Match, f.Actions = answerARP(where, flows.AddrValue(addr), flows.MACValue(mac))
	} else {
		f.Match, f.Actions = answerND(where, flows.AddrValue(addr), flows.MACValue(mac), bits)
	}
	return f
}

func answerARP(where flows.Term, addr, mac flows.Value) (flows.Match, []flows.Action) {
	match := flows.When(where,
		flows.Is(flows.EthType, flows.Uint(flows.EthARP)),
		flows.Is(flows.ARPOp, flows.Uint(1)),
		flows.Is(flows.ARPTPA, addr))
	return match, append([]flows.Action{
		flows.MoveField(flows.EthSrc, flows.EthDst), flows.SetField(flows.EthSrc, mac),
		flows.SetField(flows.ARPOp, flows.Uint(2)),
		flows.MoveField(flows.ARPSHA, flows.ARPTHA), flows.SetField(flows.ARPSHA, mac),
		flows.MoveField(flows.ARPSPA, flows.ARPTPA), flows.SetField(flows.ARPSPA, addr),
	}, flows.SendBack()...)
}

func answerND(where flows.Term, addr, mac flows.Value, bits uint32) (flows.Match, []flows.Action) {
	match := flows.When(where,
		flows.Is(flows.EthType, flows.Uint(flows.EthIPv6)),
		flows.Is(flows.IPProto, flows.Uint(flows.ProtoICM6)),
		flows.Is(flows.ICMP6Type, flows.Uint(135)),
		flows.Is(flows.NDTarget, addr))
	return match, append([]flows.Action{
		flows.MoveField(flows.EthSrc, flows.EthDst), flows.SetField(flows.EthSrc, mac),
		flows.MoveField(flows.IP6Src, flows.IP6Dst), flows.SetField(flows.IP6Src, addr),
		flows.SetField(flows.ICMP6Type, flows.Uint(136)),
		flows.SetField(flows.NDReserved, flows.Uint(bits)),
		flows.SetField(flows.NDOption, flows.Uint(2)), // Out writes mac into the option
	}, flows.SendBack()...)
}
