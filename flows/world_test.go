package flows_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"heliotrope"
	"heliotrope/arpproxy"
	"heliotrope/flows"

	"pgregory.net/rapid"
)

const (
	uplink     = 1
	flowTunnel = 2
	ttl        = 64
)

var routerMAC = heliotrope.MAC{2, 0, 0, 0, 0, 0xfe}

// world is a topology with a switch for each host, joined by tunnels.
type world struct {
	topology   heliotrope.Topology
	hosts      []heliotrope.HostID
	shared     bool // one tunnel port for all peers
	nics       []flows.NIC
	ports      map[flows.NICKey]uint32
	switches   map[heliotrope.HostID]*flows.Switch
	placements map[heliotrope.VMID]heliotrope.Placement
	counters   int // in each view
}

// arrival is a packet that came out of a switch.
type arrival struct {
	host   heliotrope.HostID
	port   uint32
	packet flows.Packet
}

// drawWorld makes up a world with up to four hosts, networks and VMs of both families.
func drawWorld(t *rapid.T) *world {
	w := &world{ports: map[flows.NICKey]uint32{}, switches: map[heliotrope.HostID]*flows.Switch{},
		placements: map[heliotrope.VMID]heliotrope.Placement{}, shared: rapid.Bool().Draw(t, "shared tunnel port"),
		counters: rapid.SampledFrom([]int{0, 1, 10, flows.DefaultCounters}).Draw(t, "counters")}
	top := heliotrope.Topology{Hosts: map[heliotrope.HostID]heliotrope.Host{}, Networks: map[heliotrope.NetworkID]heliotrope.Network{},
		VMs: map[heliotrope.VMID]heliotrope.VM{}}
	for i := range rapid.IntRange(1, 4).Draw(t, "hosts") {
		h := heliotrope.HostID(fmt.Sprint("h", i))
		w.hosts = append(w.hosts, h)
		top.Hosts[h] = heliotrope.Host{Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), Public: netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)})}
	}
	networks := rapid.IntRange(1, 4).Draw(t, "networks")
	six := make([]bool, networks)
	for i := range networks {
		six[i] = rapid.Bool().Draw(t, "v6")
		n := heliotrope.Network{VNI: uint32(100 * (networks - i)), Group: rapid.SampledFrom([]string{"", "g1", "g2"}).Draw(t, "group"),
			Capture: rapid.SampledFrom([]string{"", "", heliotrope.CaptureOff}).Draw(t, "capture")}
		n.Gateway = address(six[i], i, 1)
		n.Subnet, _ = n.Gateway.Prefix(map[bool]int{false: 24, true: 64}[six[i]])
		top.Networks[networkID(i)] = n
	}
	for i := range rapid.IntRange(1, 5).Draw(t, "VMs") {
		id := heliotrope.VMID(fmt.Sprint("vm", i))
		var vm heliotrope.VM
		for j := range rapid.IntRange(1, 2).Draw(t, "NICs") {
			in := rapid.IntRange(0, networks-1).Draw(t, "network")
			n := heliotrope.NIC{Network: networkID(in), Address: address(six[in], in, 10+2*i+j)}
			if rapid.Bool().Draw(t, "public") {
				n.Public = address(six[in], 99, 10+2*i+j)
			}
			vm.NICs = append(vm.NICs, n)
			w.ports[flows.NICKey{VM: id, Index: j}] = uint32(10 + 2*i + j)
		}
		top.VMs[id] = vm
		w.placements[id] = heliotrope.Placement{VM: id, Host: rapid.SampledFrom(w.hosts).Draw(t, "host"), Epoch: 1}
	}
	w.topology = top
	w.programAll(t)
	w.nics = w.view(w.hosts[0], w.placements).NICs()
	return w
}

func networkID(i int) heliotrope.NetworkID { return heliotrope.NetworkID(fmt.Sprint("n", i)) }

func address(six bool, network, host int) netip.Addr {
	if six {
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, byte(network), 0, 0, 15: byte(host)})
	}
	return netip.AddrFrom4([4]byte{10, byte(network), 0, byte(host)})
}

func (w *world) view(h heliotrope.HostID, placements map[heliotrope.VMID]heliotrope.Placement) flows.View {
	v := flows.View{Host: h, Topology: w.topology, Placements: placements, GatewayMAC: routerMAC, Counters: w.counters,
		Ports: flows.Ports{NIC: w.ports, Uplink: uplink, Tunnel: map[heliotrope.HostID]uint32{}}}
	if w.shared {
		v.Ports.FlowTunnel = flowTunnel
		return v
	}
	for i, peer := range w.hosts {
		if peer != h {
			v.Ports.Tunnel[peer] = tunnelPort(i)
		}
	}
	return v
}

func tunnelPort(host int) uint32 { return uint32(100 + host) }

// program gives host h the flows for placements.
func (w *world) program(t rapid.TB, h heliotrope.HostID, placements map[heliotrope.VMID]heliotrope.Placement) {
	fs, err := flows.Compile(w.view(h, placements), arpproxy.Flows)
	if err != nil {
		t.Fatal(err)
	}
	w.switches[h] = flows.NewSwitch(fs)
}

func (w *world) programAll(t rapid.TB) {
	for _, h := range w.hosts {
		w.program(t, h, w.placements)
	}
}

// send puts p into port of h and returns what reaches a VM's port or an uplink.
func (w *world) send(t rapid.TB, h heliotrope.HostID, port uint32, p flows.Packet) (arrived []arrival) {
	todo := []arrival{{h, port, p}}
	for hops := 0; len(todo) > 0; hops++ {
		if hops > 4*ttl {
			t.Fatalf("packet %v from %s port %d never ends", p, h, port)
		}
		in := todo[0]
		todo = todo[1:]
		outputs, _ := w.switches[in.host].Trace(in.packet, in.port)
		for _, o := range outputs {
			if peer, back, ok := w.tunnel(t, in.host, o); ok {
				todo = append(todo, arrival{peer, back, received(o.Packet)})
			} else {
				arrived = append(arrived, arrival{in.host, o.Port, o.Packet})
			}
		}
	}
	return arrived
}

// tunnel says where a packet comes in that h sends into a tunnel.
func (w *world) tunnel(t rapid.TB, h heliotrope.HostID, o flows.Output) (peer heliotrope.HostID, port uint32, ok bool) {
	if o.Port == flowTunnel {
		for id, host := range w.topology.Hosts {
			if flows.AddrValue(host.Address) == o.Packet[flows.TunDst] {
				return id, flowTunnel, true
			}
		}
		t.Fatalf("packet %v into a tunnel to nobody", o.Packet)
	}
	if o.Port < tunnelPort(0) {
		return "", 0, false
	}
	return w.hosts[o.Port-tunnelPort(0)], tunnelPort(slices.Index(w.hosts, h)), true
}

// received is a packet as the switch at a tunnel's other end sees it.
func received(p flows.Packet) flows.Packet {
	for _, f := range []flows.Field{flows.TunDst, flows.TunDst6, flows.Net, flows.Domain, flows.Side, flows.OutPort} {
		p[f] = flows.Value{}
	}
	return p
}

// ip is an IP packet between two addresses of one family.
func ip(ethSrc, ethDst heliotrope.MAC, src, dst netip.Addr) (p flows.Packet) {
	p[flows.EthSrc], p[flows.EthDst] = flows.MACValue(ethSrc), flows.MACValue(ethDst)
	p[flows.TTL], p[flows.IPProto] = flows.Uint(ttl), flows.Uint(17)
	s, d := ipFields(dst)
	p[s], p[d] = flows.AddrValue(src), flows.AddrValue(dst)
	p[flows.EthType] = flows.Uint(flows.EthIPv4)
	if dst.Is6() {
		p[flows.EthType] = flows.Uint(flows.EthIPv6)
	}
	return p
}

func ipFields(a netip.Addr) (src, dst flows.Field) {
	if a.Is4() {
		return flows.IPSrc, flows.IPDst
	}
	return flows.IP6Src, flows.IP6Dst
}

// owner is the host of n's VM.
func (w *world) owner(n flows.NIC) heliotrope.HostID { return w.placements[n.VM].Host }

func (w *world) drawNIC(t *rapid.T, label string) flows.NIC {
	return rapid.SampledFrom(w.nics).Draw(t, label)
}

// at keeps what arrived at n's port, wherever; outside keeps what left by an uplink.
func at(all []arrival, n flows.NIC) []arrival {
	return slices.DeleteFunc(slices.Clone(all), func(a arrival) bool { return a.port != n.Port })
}

func outside(all []arrival) []arrival {
	return slices.DeleteFunc(slices.Clone(all), func(a arrival) bool { return a.port != uplink })
}

// with is placements with that of one VM changed.
func with(placements map[heliotrope.VMID]heliotrope.Placement, p heliotrope.Placement) map[heliotrope.VMID]heliotrope.Placement {
	m := maps.Clone(placements)
	m[p.VM] = p
	return m
}
