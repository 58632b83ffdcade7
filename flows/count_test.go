package flows_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"heliotrope"
	"heliotrope/arpproxy"
	"heliotrope/flows"

	"pgregory.net/rapid"
)

// TestCountingChangesNoFate: with and without counters, every packet leaves the same way.
func TestCountingChangesNoFate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		h := rapid.SampledFrom(w.hosts).Draw(t, "host")
		counting, plain := w.view(h, w.placements), w.view(h, w.placements)
		counting.Counters, plain.Counters = rapid.IntRange(1, 40).Draw(t, "limit"), 0
		with, without := flows.NewSwitch(compileView(t, counting)), flows.NewSwitch(compileView(t, plain))
		for _, a := range w.nics {
			for _, b := range w.nics {
				for _, p := range packets(h, a, b) {
					for _, port := range []uint32{a.Port, uplink, flowTunnel, tunnelPort(0)} {
						got, _ := with.Trace(p, port)
						want, _ := without.Trace(p, port)
						if !slices.Equal(got, want) {
							t.Fatalf("%v by port %d: counted %v, not counted %v", p, port, got, want)
						}
					}
				}
			}
		}
	})
}

// packets are packets of every kind from a to b, those from outside at h.
func packets(h heliotrope.HostID, a, b flows.NIC) []flows.Packet {
	client := address(b.Address.Is6(), 200, 1)
	all := []flows.Packet{route(a, b, true), route(a, b, false), ip(a.MAC, heliotrope.GatewayMAC, a.Address, client),
		ip(routerMAC, heliotrope.PublicMAC(h), client, b.Address), arp(a, b.Address), solicit(a, b.Address)}
	if b.Public.IsValid() {
		all = append(all, ip(routerMAC, heliotrope.PublicMAC(h), client, b.Public), ip(a.MAC, heliotrope.GatewayMAC, a.Address, b.Public))
	}
	for _, tell := range lies {
		p := route(a, b, true)
		tell(&p, a, b)
		all = append(all, p)
	}
	tunnelled := route(a, b, true)
	tunnelled[flows.TunID] = flows.Uint(b.VNI)
	return append(all, tunnelled)
}

// counted are the counters that p meets at host h.
func (w *world) counted(h heliotrope.HostID, port uint32, p flows.Packet) (met []flows.Counter) {
	_, path := w.switches[h].Trace(p, port)
	for _, f := range path {
		if c, ok := flows.CounterOf(f); ok {
			met = append(met, c)
		}
	}
	return met
}

// TestEveryPacketIsCountedOnce, where it comes from, under the right names, whatever the limit.
func TestEveryPacketIsCountedOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		w.counters = rapid.SampledFrom([]int{1, 5, 10, 20, flows.DefaultCounters}).Draw(t, "limit")
		w.programAll(t)
		off := func(n flows.NIC) bool { return w.network(n).Capture == heliotrope.CaptureOff }
		for _, a := range w.nics {
			for _, b := range w.nics {
				if a.NICKey == b.NICKey || a.Address.Is4() != b.Address.Is4() {
					continue
				}
				near := a.Domain == b.Domain
				got := w.counted(w.owner(a), a.Port, route(a, b, a.VNI == b.VNI))
				if off(a) || near && off(b) {
					if len(got) != 0 {
						t.Fatalf("%v to %v is counted: %v", a, b, got)
					}
					continue
				}
				if len(got) != 1 || got[0].Domain != a.Domain || got[0].Src != single(a.Address) {
					t.Fatalf("%v to %v is counted by %v", a, b, got)
				}
				switch dst := got[0].Dst; {
				case !near && dst.Bits() == 0:
				case near && dst == single(b.Address):
				case near && dst == w.network(b).Subnet.Masked() && w.counters != flows.DefaultCounters:
				default:
					t.Fatalf("%v to %v is counted as to %v", a, b, dst)
				}
			}
			w.checkOutsideIsCounted(t, a, off(a))
		}
	})
}

func (w *world) checkOutsideIsCounted(t *rapid.T, n flows.NIC, off bool) {
	if !n.Public.IsValid() {
		return
	}
	client, h := address(n.Address.Is6(), 200, 1), w.owner(n)
	nobody, _ := client.Prefix(0)
	for want, got := range map[flows.Counter][]flows.Counter{
		{Domain: n.Domain, Src: single(n.Address), Dst: nobody}: w.counted(h, n.Port, ip(n.MAC, heliotrope.GatewayMAC, n.Address, client)),
		{Src: nobody, Dst: single(n.Public)}:                    w.counted(h, uplink, ip(routerMAC, heliotrope.PublicMAC(h), client, n.Public)),
	} {
		if off && len(got) != 0 || !off && !slices.Equal(got, []flows.Counter{want}) {
			t.Fatalf("counted by %v, want %v", got, want)
		}
	}
}

func (w *world) network(n flows.NIC) heliotrope.Network {
	return w.topology.Networks[w.topology.VMs[n.VM].NICs[n.Index].Network]
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// shopView is three networks of one group, with so many VMs each, the first few of each here.
func shopView(here int, sizes map[heliotrope.NetworkID]int) flows.View {
	v := flows.View{Host: "here", Counters: flows.DefaultCounters, Placements: map[heliotrope.VMID]heliotrope.Placement{},
		Ports: flows.Ports{NIC: map[flows.NICKey]uint32{}, FlowTunnel: 1},
		Topology: heliotrope.Topology{Networks: map[heliotrope.NetworkID]heliotrope.Network{}, VMs: map[heliotrope.VMID]heliotrope.VM{},
			Hosts: map[heliotrope.HostID]heliotrope.Host{"here": {Address: netip.MustParseAddr("192.0.2.1")}, "there": {Address: netip.MustParseAddr("192.0.2.2")}}}}
	for i, id := range []heliotrope.NetworkID{"a", "b", "c"} {
		gateway := netip.AddrFrom4([4]byte{10, byte(i), 255, 254})
		subnet, _ := gateway.Prefix(16)
		v.Topology.Networks[id] = heliotrope.Network{VNI: uint32(i + 1), Subnet: subnet, Gateway: gateway, Group: "shop"}
		for j := range sizes[id] {
			vm := heliotrope.VMID(fmt.Sprint(id, "-", j))
			v.Topology.VMs[vm] = heliotrope.VM{NICs: []heliotrope.NIC{{Network: id, Address: netip.AddrFrom4([4]byte{10, byte(i), byte(j >> 8), byte(j)})}}}
			v.Placements[vm] = heliotrope.Placement{VM: vm, Host: "there"}
			if j < here {
				v.Ports.NIC[flows.NICKey{VM: vm}] = uint32(1000*(i+1) + j)
				v.Placements[vm] = heliotrope.Placement{VM: vm, Host: "here"}
			}
		}
	}
	return v
}

// counters are v's counters by how many bits of the other end they tell.
func counters(t testing.TB, v flows.View) map[int]int {
	by := map[int]int{}
	for _, f := range compileView(t, v) {
		if c, ok := flows.CounterOf(f); ok {
			by[c.Dst.Bits()]++
		}
	}
	return by
}

// TestLargestNetworksAreCountedWhole where a host has too many pairs.
func TestLargestNetworksAreCountedWhole(t *testing.T) {
	v := shopView(2, map[heliotrope.NetworkID]int{"a": 10, "b": 50, "c": 20}) // 6 VMs here
	for limit, want := range map[int]map[int]int{
		0:                                   {},
		1:                                   {0: 6, 16: 18}, // never less: totals must be right
		6 + 6*10 - 2 + 6 + 6 - 1:            {0: 6, 16: 18},
		6 + 6*10 - 2 + 6 + 6:                {0: 6, 16: 12, 32: 6*10 - 2},
		6 + 6*10 - 2 + 6*20 - 2 + 6:         {0: 6, 16: 6, 32: 6*30 - 4},
		6 + 6*10 - 2 + 6*20 - 2 + 6*50 - 3:  {0: 6, 16: 6, 32: 6*30 - 4},
		6 + 6*10 - 2 + 6*20 - 2 + 6*50 - 2:  {0: 6, 32: 6*80 - 6},
		flows.DefaultCounters:               {0: 6, 32: 6*80 - 6},
		6 + 6*10 - 2 + 6*20 - 2 + 6*50 + 99: {0: 6, 32: 6*80 - 6},
	} {
		v.Counters = limit
		if got := counters(t, v); !reflect.DeepEqual(got, want) {
			t.Errorf("limit %d: counters by bits of the other end %v, want %v", limit, got, want)
		}
	}
}

// TestCountersGoWithThePort, and with nothing else: a VM that moves away is counted until
// its port is gone, and others' counters stay as they are.
func TestCountersGoWithThePort(t *testing.T) {
	v := shopView(1, map[heliotrope.NetworkID]int{"a": 4, "b": 4})
	want := counters(t, v)
	for _, p := range stages(v.Placements["a-0"], "there", false) {
		v.Placements = with(v.Placements, p)
		if got := counters(t, v); !reflect.DeepEqual(got, want) {
			t.Errorf("at %+v: counters %v, want %v", p, got, want)
		}
	}
	delete(v.Ports.NIC, flows.NICKey{VM: "a-0"})
	if got, want := counters(t, v), (map[int]int{0: 1, 32: 7}); !reflect.DeepEqual(got, want) {
		t.Errorf("without the port: counters %v, want %v", got, want)
	}
}

// BenchmarkCount compiles a host with 20 of 200 VMs, with and without counters.
func BenchmarkCount(b *testing.B) {
	for _, limit := range []int{0, flows.DefaultCounters} {
		b.Run(fmt.Sprint("limit=", limit), func(b *testing.B) {
			v := shopView(10, map[heliotrope.NetworkID]int{"a": 100, "b": 100})
			v.Counters = limit
			n := 0
			for b.Loop() {
				all, err := flows.Compile(v, arpproxy.Flows)
				if err != nil {
					b.Fatal(err)
				}
				n = len(all)
			}
			b.ReportMetric(float64(n), "flows")
		})
	}
}
