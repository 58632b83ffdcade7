package flows

import (
	"net/netip"

	"heliotrope"
)

// nobody are destinations that a router does not forward.
var nobody = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/3"), netip.MustParsePrefix("ff00::/8"), linkLocal}

// route are the flows of L3 between the networks of a domain.
func (c *compiler) route() {
	for _, p := range nobody {
		et, dst := family(p.Addr(), IPDst, IP6Dst)
		c.add(L3, 160, Fixed, When(side(SideVM), et, Within(dst, p)))
	}
	for _, s := range c.segments {
		et, dst := family(s.Subnet.Addr(), IPDst, IP6Dst)
		domain := Is(Domain, Uint(s.Domain))
		// An address of the domain that no VM has is nobody's, not somebody's outside.
		c.add(L3, 150, Route, When(domain, et, Within(dst, s.Subnet)))
		if s.Gateway.Is4() {
			c.echo(s)
		}
	}
	for _, n := range c.nics {
		et, dst := family(n.Address, IPDst, IP6Dst)
		c.add(L3, 200, Route, When(Is(Domain, Uint(n.Domain)), et, Is(dst, AddrValue(n.Address))), c.toVM(n)...)
	}
}

// echo answers a ping of the gateway.
func (c *compiler) echo(s Segment) {
	gateway := AddrValue(s.Gateway)
	c.add(L3, 210, Answer, When(Is(Domain, Uint(s.Domain)), Is(EthType, Uint(EthIPv4)), Is(IPProto, Uint(ProtoICMP)),
		Is(IPDst, gateway), Is(ICMPType, Uint(8))),
		append([]Action{MoveField(EthSrc, EthDst), SetField(EthSrc, MACValue(heliotrope.GatewayMAC)),
			MoveField(IPSrc, IPDst), SetField(IPSrc, gateway),
			SetField(ICMPType, Uint(0)), SetField(TTL, Uint(64))}, SendBack()...)...)
}

// toVM puts a routed packet into n's network, addressed to n.
func (c *compiler) toVM(n NIC) []Action {
	return []Action{DecTTL(), SetField(EthSrc, MACValue(heliotrope.GatewayMAC)), SetField(EthDst, MACValue(n.MAC)),
		SetField(Net, Uint(n.VNI)), Goto(Mobility)}
}

// public are the flows of L3 to and from n's public address. What comes in goes to the VM
// wherever it is; what goes out leaves at the VM's own host.
func (c *compiler) public(n NIC) {
	if c.Ports.Uplink == 0 || !n.Public.IsValid() {
		return
	}
	et, dst := family(n.Public, IPDst, IP6Dst)
	c.add(L3, 300, Public, When(side(SideUplink), et, Is(dst, AddrValue(n.Public))),
		append([]Action{SetField(dst, AddrValue(n.Address))}, c.toVM(n)...)...)
	if n.Port == 0 || !n.Placement.At(c.Host) || c.GatewayMAC.IsZero() {
		return
	}
	_, src := family(n.Public, IPSrc, IP6Src)
	c.add(L3, 100, Public, When(Is(Net, Uint(n.VNI)), side(SideVM), et, Is(src, AddrValue(n.Address))),
		DecTTL(), SetField(src, AddrValue(n.Public)),
		SetField(EthSrc, MACValue(heliotrope.PublicMAC(c.Host))), SetField(EthDst, MACValue(c.GatewayMAC)),
		SetField(OutPort, Uint(c.Ports.Uplink)), Goto(Out))
}

// mobility are the flows that know where n's VM is.
func (c *compiler) mobility(n NIC) {
	p := n.Placement
	to := []Term{Is(Net, Uint(n.VNI)), Is(EthDst, MACValue(n.MAC))}
	from := append([]Term{side(SideTunnel)}, to...)
	switch {
	case p.Host == "" || c.Topology.Withheld(n.VM, c.Host): // dropped, and counted
	case p.Host == c.Host:
		if n.Port != 0 {
			c.add(Mobility, 300, Local, When(to...), deliver(n)...)
		}
	case c.takesStragglers(p):
		c.elsewhere(n, 300, append(from, ethType(n)), DecTTL())
		c.elsewhere(n, 100, to)
	case p.Incoming == c.Host:
		if n.Port != 0 {
			c.add(Mobility, 300, Local, When(from...), deliver(n)...)
		}
		c.elsewhere(n, 100, to)
	default:
		c.elsewhere(n, 100, to)
	}
}

// takesStragglers says whether packets that come here by tunnel for a VM elsewhere are
// passed on. A host that the VM left and now comes back to does so until the VM has
// stopped at the other end; from then on they wait in its port.
func (c *compiler) takesStragglers(p heliotrope.Placement) bool {
	return p.WasAt(c.Host) && (p.Incoming != c.Host || !p.Opened)
}

func deliver(n NIC) []Action {
	return []Action{SetField(OutPort, Uint(n.Port)), Goto(Out)}
}

func ethType(n NIC) Term {
	et, _ := family(n.Address, IPDst, IP6Dst)
	return et
}

// elsewhere sends packets for n to its owner's host, if there is a tunnel to it.
func (c *compiler) elsewhere(n NIC, priority uint16, when []Term, first ...Action) {
	host := n.Placement.Host
	actions := append(first, SetField(TunID, Uint(n.VNI)))
	port := c.Ports.Tunnel[host]
	if port == 0 {
		address := c.Topology.Hosts[host].Address
		if c.Ports.FlowTunnel == 0 || !address.IsValid() {
			return
		}
		port = c.Ports.FlowTunnel
		field := TunDst
		if address.Is6() {
			field = TunDst6
		}
		actions = append(actions, SetField(field, AddrValue(address)))
	}
	actions = append(actions, SetField(OutPort, Uint(port)), Goto(Out))
	c.add(Mobility, priority, Forward, When(when...), actions...)
}

// leave is the flow to n's port.
func (c *compiler) leave(n NIC) {
	if n.Port != 0 && n.Placement.At(c.Host) {
		c.add(Out, 100, Local, When(Is(OutPort, Uint(n.Port))), OutputTo(n.Port))
	}
}

// output are the flows to other hosts and outside. A switch does not send a packet back
// to where it came from unless told so, and a straggler's sender may be the very host that
// it must go to.
func (c *compiler) output() {
	for _, port := range c.tunnelPorts() {
		c.add(Out, 200, Peer, When(Is(InPort, Uint(port)), Is(OutPort, Uint(port))), Reflect())
		c.add(Out, 100, Peer, When(Is(OutPort, Uint(port))), OutputTo(port))
	}
	if port := c.Ports.Uplink; port != 0 {
		c.add(Out, 100, Uplink, When(Is(OutPort, Uint(port))), OutputTo(port))
	}
}
