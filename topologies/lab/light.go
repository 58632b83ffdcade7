package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/ovsdb"
	"heliotrope/topologies/lab/node"
)

// A light VM is a node whose cards are veths with their other ends on its host's br-int,
// named and marked there as libvirt marks a guest's taps. Controller, agent and switch see
// no difference: what a light VM sends passes the flows that a guest's packets pass. The
// host has no hypervisor, so nobody starts, stops or moves it.

// What is behind a stub's port is such a node in every lab, with an echo on port 7 over TCP.
// Its port is plugged in by the controller.

// stub plans what is behind a stub's port.
func (p *planner) stub(id heliotrope.StubID, s heliotrope.Stub) {
	n := p.vm(heliotrope.VMID(id), s.Host)
	n.Daemons = []node.Daemon{{Name: "echo", Argv: []string{p.config.Binary, "lab", "echo", netip.AddrPortFrom(s.Address, echoPort).String()}}}
}

const echoPort = 7 // RFC 862

// vm plans a light VM; nil without a card, since nobody could talk to it.
func (p *planner) vm(id heliotrope.VMID, host heliotrope.HostID) *plan {
	cards := vmCards(p.top, id)
	if len(cards) == 0 {
		return nil
	}
	n := p.add(string(id), KindVM, p.top.Hosts[host].Site, cards[0].Address.Addr())
	n.Host, n.VM = host, id
	for i, c := range cards {
		n.Addresses = append(n.Addresses, node.Address{Device: c.Device, Prefix: c.Address})
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if c.Gateway.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			n.Sysctls["net/ipv6/conf/default/disable_ipv6"] = "0"
			n.Sysctls["net/ipv6/conf/default/accept_ra"] = "0"
		}
		if first := slices.IndexFunc(cards, func(o card) bool { return o.Gateway.Is6() == c.Gateway.Is6() }); first == i {
			n.Routes = append(n.Routes, node.Route{To: all, Via: c.Gateway})
		}
	}
	return n
}

// card is a network card of a light VM.
type card struct {
	Tap     string // its device at the host
	Device  string // in the VM
	ID      string // in Open vSwitch
	MAC     heliotrope.MAC
	Address netip.Prefix
	Gateway netip.Addr
	MTU     int
}

func vmCards(top heliotrope.Topology, vm heliotrope.VMID) []card {
	if s, ok := top.Stubs[heliotrope.StubID(vm)]; ok {
		c := nicCard(top, vm, 0, s.NIC(heliotrope.StubID(vm)))
		c.Tap = s.Port
		return []card{c}
	}
	var all []card
	for i, nic := range top.VMs[vm].NICs {
		all = append(all, nicCard(top, vm, i, nic))
	}
	return all
}

func nicCard(top heliotrope.Topology, vm heliotrope.VMID, i int, nic heliotrope.NIC) card {
	network, id := top.Networks[nic.Network], heliotrope.InterfaceID(vm, i)
	return card{
		Tap:    "tap" + id[:11], // as OpenStack's Neutron names them
		Device: fmt.Sprintf("eth%d", i), ID: id, MAC: nic.MAC, MTU: network.MTU,
		Address: netip.PrefixFrom(nic.Address, network.Subnet.Bits()), Gateway: network.Gateway,
	}
}

// wireVMs makes the light VMs' and stubs' cables. Open vSwitch knows nothing of them yet.
func wireVMs(top heliotrope.Topology, nodes []*handle) error {
	for _, vm := range nodes {
		if vm.plan.Kind != KindVM {
			continue
		}
		i := slices.IndexFunc(nodes, func(n *handle) bool { return n.plan.Kind == KindHost && n.plan.Host == vm.plan.Host })
		if i < 0 {
			return fmt.Errorf("wire VM %s: the lab has no host %q", vm.plan.VM, vm.plan.Host)
		}
		for _, c := range vmCards(top, vm.plan.VM) {
			if err := inNetns(nodes[i].pid, func() error { return c.plug(vm) }); err != nil {
				return fmt.Errorf("wire VM %s: %w", vm.plan.VM, err)
			}
			if err := inNetns(vm.pid, func() error { return startPort(c.Device) }); err != nil {
				return fmt.Errorf("wire VM %s: %w", vm.plan.VM, err)
			}
		}
	}
	return nil
}

// plug makes the cable. Its end at the host has another MAC than the VM's, as a tap has.
func (c card) plug(vm *handle) error {
	here := labMAC(vm.plan.Node, c.Tap)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = c.Tap, net.HardwareAddr(here[:]), c.MTU
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: c.Device, PeerHardwareAddr: c.MAC[:], PeerNamespace: netlink.NsPid(vm.pid), PeerMTU: uint32(c.MTU)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add %s: %w", c.Tap, err)
	}
	return startPort(c.Tap)
}

// bringVMs plugs the light VMs in and waits until packets pass: from each to its gateways,
// and between hosts.
func (s *supervisor) bringVMs(ctx context.Context) error {
	plugging, plugCtx := errgroup.WithContext(ctx)
	count := 0
	for _, host := range s.nodes {
		var vms []heliotrope.VMID
		for _, n := range s.nodes {
			_, stub := s.config.Topology.Stubs[heliotrope.StubID(n.plan.VM)]
			if n.plan.Kind == KindVM && !stub && host.plan.Kind == KindHost && n.plan.Host == host.plan.Host {
				vms = append(vms, n.plan.VM)
			}
		}
		if count += len(vms); len(vms) > 0 {
			plugging.Go(func() error { return plugAll(plugCtx, host, s.config.Topology, vms) })
		}
	}
	if err := plugging.Wait(); err != nil {
		return err
	}
	reaching, ctx := errgroup.WithContext(ctx)
	for _, w := range s.ways() {
		reaching.Go(func() error {
			if err := reach(ctx, w.from.pid, w.to); err != nil {
				return fmt.Errorf("reach %s from VM %s: %w", w.to, w.from.plan.VM, err)
			}
			return nil
		})
	}
	if err := reaching.Wait(); err != nil {
		return err
	}
	if count > 0 {
		s.progress("%d light VMs are connected", count)
	}
	return nil
}

// plugAll gives the VMs of a host to its switch, once the controller has made br-int.
func plugAll(ctx context.Context, host *handle, top heliotrope.Topology, vms []heliotrope.VMID) error {
	argv := []string{"ovs-vsctl", "--timeout=10"}
	for _, vm := range vms {
		for _, c := range vmCards(top, vm) {
			argv = append(argv, "--", "--may-exist", "add-port", ovsdb.IntBridge, c.Tap, "--", "set", "Interface", c.Tap,
				"external_ids:iface-id="+c.ID, "external_ids:iface-status=active", "external_ids:vm-id="+heliotrope.VMUUID(vm),
				fmt.Sprintf("external_ids:attached-mac=%q", c.MAC))
		}
	}
	var said bytes.Buffer
	var code int
	var err error
	polled := poll(ctx, 50*time.Millisecond, func(time.Duration) bool {
		said.Reset()
		code, err = Enter(ctx, host.pid, argv, Stdio{Out: &said, Err: &said})
		return code == 0
	})
	if err = errors.Join(polled, err); err != nil {
		return fmt.Errorf("plug VMs in at %s: %w: %s", host.plan.Host, err, strings.TrimSpace(said.String()))
	}
	return nil
}

// way is one that packets must take before the lab is up.
type way struct {
	from *handle
	to   netip.Addr
}

// ways are those from each light VM and stub to its gateways and, where the sites are
// connected, from one VM of each host to one of each other host in the same address space.
func (s *supervisor) ways() []way {
	top, hops := s.config.Topology, nextHops(s.config.Topology)
	type place struct {
		host   heliotrope.HostID
		domain string
	}
	var all []way
	first := map[place]way{}
	for _, n := range s.nodes {
		for i, c := range vmCards(top, n.plan.VM) {
			all = append(all, way{n, c.Gateway})
			if _, stub := top.Stubs[heliotrope.StubID(n.plan.VM)]; stub {
				continue // whom it may reach is its own matter
			}
			network := top.VMs[n.plan.VM].NICs[i].Network
			domain := "network " + string(network)
			if g := top.Networks[network].Group; g != "" {
				domain = "group " + g
			}
			if at := (place{n.plan.Host, domain}); i == 0 && first[at].from == nil {
				first[at] = way{n, c.Address.Addr()}
			}
		}
	}
	for a, from := range first {
		for b, to := range first {
			fromSite, toSite := from.from.plan.Site, to.from.plan.Site
			_, linked := hops[fromSite][toSite]
			if a.domain == b.domain && a.host != b.host && from.to.Is4() == to.to.Is4() && (linked || fromSite == toSite) {
				all = append(all, way{from.from, to.to})
			}
		}
	}
	return all
}

const (
	echoPause = 100 * time.Millisecond // between two echo requests
	echoMark  = 0x6c616221             // tells our replies from others'
)

// reach pings an address from within the namespace of process pid until it answers.
func reach(ctx context.Context, pid int, to netip.Addr) error {
	network, local, protocol := "ip4:icmp", "0.0.0.0", ipv4.ICMPTypeEcho.Protocol()
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if to.Is6() {
		network, local, protocol = "ip6:ipv6-icmp", "::", ipv6.ICMPTypeEchoRequest.Protocol()
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	var conn *icmp.PacketConn
	err := inNetns(pid, func() (err error) {
		conn, err = icmp.ListenPacket(network, local)
		return err
	})
	if err != nil {
		return fmt.Errorf("open ICMP socket: %w", err)
	}
	defer conn.Close()
	mark := binary.BigEndian.AppendUint32(nil, echoMark)
	packet, err := (&icmp.Message{Type: request, Body: &icmp.Echo{ID: pid & 0xffff, Data: mark}}).Marshal(nil)
	if err != nil {
		return fmt.Errorf("encode echo request: %w", err)
	}
	buf := make([]byte, 1500)
	answered := func() bool {
		conn.WriteTo(packet, &net.IPAddr{IP: to.AsSlice()}) // one that cannot go yet is like one that was lost
		conn.SetReadDeadline(time.Now().Add(echoPause))
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return false
			}
			m, err := icmp.ParseMessage(protocol, buf[:n])
			if err != nil || m.Type != reply {
				continue
			}
			if e, ok := m.Body.(*icmp.Echo); ok && e.ID == pid&0xffff && bytes.Equal(e.Data, mark) {
				return true
			}
		}
	}
	for !answered() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}
