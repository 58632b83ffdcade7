package flows

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"heliotrope"
)

// Responder fills the table ARP: arpproxy.Flows.
type Responder func(View) []Flow

// Compile returns the flows of v's host, ordered by table and priority, highest first.
// It fails on a View that contradicts itself and on a flow that breaks its table's
// contract; a port that is not there only leaves out its flows.
func Compile(v View, respond Responder) ([]Flow, error) {
	if err := v.check(); err != nil {
		return nil, fmt.Errorf("compile flows of host %q: %w", v.Host, err)
	}
	c := &compiler{View: v, nics: v.NICs(), segments: v.Segments()}
	c.fixed()
	c.classify()
	c.guard()
	c.flows = append(c.flows, respond(v)...)
	c.count()
	c.route()
	c.output()
	for _, n := range c.nics {
		c.placed(n)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("compile flows of host %q: %w", v.Host, err)
	}
	sortFlows(c.flows)
	return c.flows, nil
}

// Placed returns those of Compile's flows that depend on where vm is, in no order. Where
// two Views differ in the placement of vm alone, Compile's flows differ in these alone; so
// a host follows a move without compiling all other VMs' flows anew. v must be one that
// Compile accepts.
func Placed(v View, vm heliotrope.VMID) ([]Flow, error) {
	c := &compiler{View: v}
	for _, n := range v.nicsOf(vm, v.segmentsByID()) {
		c.placed(n)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("compile flows of VM %q at host %q: %w", vm, v.Host, err)
	}
	return c.flows, nil
}

// placed are the flows that depend on where n's VM is.
func (c *compiler) placed(n NIC) {
	c.enter(n)
	c.guardNIC(n)
	c.public(n)
	c.mobility(n)
	c.leave(n)
}

type compiler struct {
	View
	nics     []NIC
	segments []Segment
	flows    []Flow
}

func (c *compiler) add(t TableID, priority uint16, cat Category, m Match, actions ...Action) {
	c.flows = append(c.flows, Flow{Table: t, Priority: priority, Match: m, Actions: actions, Cookie: Cookie(t, cat)})
}

func (c *compiler) check() error {
	var errs []error
	seen := make(map[string]bool, len(c.flows))
	for _, f := range c.flows {
		if err := Check(f); err != nil {
			errs = append(errs, err)
		}
		key := f.Key()
		if seen[key] {
			errs = append(errs, fmt.Errorf("two flows for %s", key))
		}
		seen[key] = true
	}
	return errors.Join(errs...)
}

// side is the condition that a packet came in by a side.
func side(s uint32) Term { return Is(Side, Uint(s)) }

// multicast is the condition that a frame is for more than one receiver.
func multicast() Term {
	bit := Value{Lo: 1 << 40}
	return Term{EthDst, bit, bit}
}

// fixed are the flows that every switch has. The drops at priority 0 are there to be
// counted: a table miss drops too.
func (c *compiler) fixed() {
	for t := range NumTables {
		if t != Policy && t != Count {
			c.add(t, 0, Fixed, nil)
		}
	}
	c.add(Policy, 0, Fixed, nil, Goto(Count))
	c.add(Count, 0, Fixed, nil, Goto(L2))
	c.add(L2, 200, Fixed, When(side(SideTunnel)), Goto(Mobility))
	c.add(L2, 150, Fixed, When(multicast())) // nobody has such an address; told apart to be counted
	c.add(L2, 100, Fixed, When(side(SideUplink)), Goto(L3))
	c.add(L2, 100, Fixed, When(side(SideVM), Is(EthDst, MACValue(heliotrope.GatewayMAC))), Goto(L3))
	c.add(L2, 50, Fixed, When(side(SideVM)), Goto(Mobility))
	c.add(Mobility, 200, Fixed, When(side(SideTunnel)))
	back := Is(OutPort, Uint(uint32(Back)))
	c.add(Out, 100, Fixed, When(back), Reflect())
	// A switch lets the target's link-layer address be set only where it knows that the
	// packet is an advertisement, which table ARP made it.
	c.add(Out, 300, Fixed, When(back, Is(EthType, Uint(EthIPv6)), Is(IPProto, Uint(ProtoICM6)), Is(ICMP6Type, Uint(136))),
		MoveField(EthSrc, NDTLL), Reflect())
}

// entry is the condition of table Classify. It takes in untagged frames only: a match on
// an EtherType looks behind VLAN tags, and no network of ours has any.
func entry(port uint32) Match { return When(Is(InPort, Uint(port)), Is(VLAN, Value{})) }

// enter takes in what n sends.
func (c *compiler) enter(n NIC) {
	if n.Port != 0 && n.Placement.At(c.Host) {
		c.add(Classify, 100, Local, entry(n.Port),
			SetField(Net, Uint(n.VNI)), SetField(Domain, Uint(n.Domain)), SetField(Side, Uint(SideVM)), Goto(Guard))
	}
}

// classify takes in what other hosts and the world outside send.
func (c *compiler) classify() {
	for _, port := range c.tunnelPorts() {
		c.add(Classify, 100, Peer, entry(port),
			MoveField(TunID, Net), SetField(Side, Uint(SideTunnel)), Goto(L2))
	}
	if c.Ports.Uplink != 0 {
		c.add(Classify, 100, Uplink, entry(c.Ports.Uplink), SetField(Side, Uint(SideUplink)), Goto(Guard))
	}
}

// tunnelPorts are the ports to and from other hosts, in order.
func (c *compiler) tunnelPorts() []uint32 {
	ports := slices.Collect(maps.Values(c.Ports.Tunnel))
	ports = append(ports, c.Ports.FlowTunnel)
	slices.Sort(ports)
	return slices.DeleteFunc(ports, func(p uint32) bool { return p == 0 })
}

// guardNIC lets a VM's packets through only if they come from its own addresses, and only
// where the VM may run.
func (c *compiler) guardNIC(n NIC) {
	p := n.Placement
	mayRun := p.Host == c.Host || p.Incoming == c.Host && p.Opened
	switch {
	case n.Port == 0 || !mayRun:
	case n.Address.Is4():
		c.guard4(n)
	default:
		c.guard6(n)
	}
}

// guard drops what neither a VM nor the world outside may say.
func (c *compiler) guard() {
	if slices.ContainsFunc(c.segments, func(s Segment) bool { return s.Subnet.Addr().Is6() }) {
		c.guardND()
	}
	c.guardUplink()
}

func (c *compiler) guard4(n NIC) {
	port, mac, addr := Is(InPort, Uint(n.Port)), Is(EthSrc, MACValue(n.MAC)), AddrValue(n.Address)
	arp := Is(EthType, Uint(EthARP))
	sha := Is(ARPSHA, MACValue(n.MAC))
	c.add(Guard, 210, Local, When(port, arp, Is(ARPTPA, addr))) // a VM that asks for its own address must hear nothing
	c.add(Guard, 200, Local, When(port, mac, arp, sha, Is(ARPSPA, addr)), Goto(ARP))
	c.add(Guard, 200, Local, When(port, mac, arp, sha, Is(ARPSPA, Value{})), Goto(ARP))
	c.add(Guard, 100, Local, When(port, mac, Is(EthType, Uint(EthIPv4)), Is(IPSrc, addr)), Goto(Policy))
}

var linkLocal = netip.MustParsePrefix("fe80::/10")

func (c *compiler) guard6(n NIC) {
	port, mac, addr := Is(InPort, Uint(n.Port)), Is(EthSrc, MACValue(n.MAC)), AddrValue(n.Address)
	ip, icmp, solicit := Is(EthType, Uint(EthIPv6)), Is(IPProto, Uint(ProtoICM6)), Is(ICMP6Type, Uint(135))
	c.add(Guard, 210, Local, When(port, ip, icmp, solicit, Is(NDTarget, addr)))
	c.add(Guard, 200, Local, When(port, mac, ip, icmp, solicit, Is(IP6Src, addr)), Goto(ARP))
	c.add(Guard, 200, Local, When(port, mac, ip, icmp, solicit, Within(IP6Src, linkLocal)), Goto(ARP))
	c.add(Guard, 100, Local, When(port, mac, ip, Is(IP6Src, addr)), Goto(Policy))
}

// guardND drops what could tell a neighbour lies: router and neighbour messages other
// than solicitations, and solicitations that guard6 did not let through.
func (c *compiler) guardND() {
	for _, typ := range []int{133, 134, 135, 136, 137} {
		c.add(Guard, 150, Fixed, When(Is(EthType, Uint(EthIPv6)), Is(IPProto, Uint(ProtoICM6)), Is(ICMP6Type, Uint(typ))))
	}
}

// guardUplink takes from outside only packets for this host's public address on the
// link, and none that claim to come from inside.
func (c *compiler) guardUplink() {
	public := c.Topology.Hosts[c.Host].Public
	if c.Ports.Uplink == 0 || !public.IsValid() {
		return
	}
	up := Is(InPort, Uint(c.Ports.Uplink))
	mac := Is(EthDst, MACValue(heliotrope.PublicMAC(c.Host)))
	for _, s := range c.segments {
		et, src := family(s.Subnet.Addr(), IPSrc, IP6Src)
		c.add(Guard, 140, Uplink, When(up, et, Within(src, s.Subnet)))
	}
	c.add(Guard, 100, Uplink, When(up, mac, Is(EthType, Uint(EthIPv4))), Goto(Policy))
	c.add(Guard, 100, Uplink, When(up, mac, Is(EthType, Uint(EthIPv6))), Goto(Policy))
	if public.Is4() {
		c.add(Guard, 200, Uplink, When(up, Is(EthType, Uint(EthARP)), Is(ARPOp, Uint(1)), Is(ARPTPA, AddrValue(public))), Goto(ARP))
	} else {
		c.add(Guard, 200, Uplink, When(up, Is(EthType, Uint(EthIPv6)), Is(IPProto, Uint(ProtoICM6)), Is(ICMP6Type, Uint(135)), Is(NDTarget, AddrValue(public))), Goto(ARP))
	}
}

// family picks the field for a's family, with the EtherType that it needs.
func family(a netip.Addr, v4, v6 Field) (Term, Field) {
	if a.Is4() {
		return Is(EthType, Uint(EthIPv4)), v4
	}
	return Is(EthType, Uint(EthIPv6)), v6
}
