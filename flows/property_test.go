package flows_test

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"heliotrope"
	"heliotrope/flows"

	"pgregory.net/rapid"
)

// route is a packet from NIC a to NIC b, by the gateway or, if direct, on the network.
func route(a, b flows.NIC, direct bool) flows.Packet {
	to := heliotrope.GatewayMAC
	if direct {
		to = b.MAC
	}
	return ip(a.MAC, to, a.Address, b.Address)
}

func TestGroupIsReachedAndNobodyElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		for _, a := range w.nics {
			for _, b := range w.nics {
				if a.NICKey != b.NICKey {
					w.checkPair(t, a, b, true)
					w.checkPair(t, a, b, false)
				}
			}
		}
	})
}

func (w *world) checkPair(t *rapid.T, a, b flows.NIC, direct bool) {
	got := w.send(t, w.owner(a), a.Port, route(a, b, direct))
	sameFamily := a.Address.Is4() == b.Address.Is4()
	if !sameFamily || a.VNI != b.VNI && (a.Domain != b.Domain || direct) {
		if n := len(got) - len(outside(got)); n != 0 {
			t.Fatalf("%v of domain %d reached %v", a, a.Domain, got)
		}
		return
	}
	if len(got) != 1 || len(at(got, b)) != 1 || got[0].host != w.owner(b) {
		t.Fatalf("packet for %v on %s arrived %v", b.NICKey, w.owner(b), got)
	}
	p, hops := got[0].packet, uint64(1)
	if direct {
		hops = 0
	}
	if p[flows.EthDst] != flows.MACValue(b.MAC) || p[flows.TTL].Lo != ttl-hops {
		t.Fatalf("arrived as %v", p)
	}
}

// lies are ways in which a's packet to b can claim to be from somebody else, or be no
// packet that a VM may send.
var lies = map[string]func(p *flows.Packet, a, b flows.NIC){
	"MAC":             func(p *flows.Packet, a, b flows.NIC) { p[flows.EthSrc] = flows.MACValue(heliotrope.NICMAC("other", 0)) },
	"neighbour's MAC": func(p *flows.Packet, a, b flows.NIC) { p[flows.EthSrc] = flows.MACValue(b.MAC) },
	"IP": func(p *flows.Packet, a, b flows.NIC) {
		src, _ := ipFields(b.Address)
		p[src] = flows.AddrValue(address(b.Address.Is6(), 77, 7))
	},
	"ARP sender's MAC": func(p *flows.Packet, a, b flows.NIC) {
		*p = arp(a, b.Address)
		p[flows.ARPSHA] = flows.MACValue(b.MAC)
	},
	"ARP sender's IP": func(p *flows.Packet, a, b flows.NIC) {
		*p = arp(a, b.Address)
		p[flows.ARPSPA] = flows.Uint(0x0a636363)
	},
	"VLAN":                 func(p *flows.Packet, a, b flows.NIC) { p[flows.VLAN] = flows.Uint(0x1064) },
	"EtherType":            func(p *flows.Packet, a, b flows.NIC) { p[flows.EthType] = flows.Uint(0x8035) },
	"router advertisement": func(p *flows.Packet, a, b flows.NIC) { neighbour(p, a, 134) },
	"advertisement":        func(p *flows.Packet, a, b flows.NIC) { neighbour(p, a, 136) },
	"redirect":             func(p *flows.Packet, a, b flows.NIC) { neighbour(p, a, 137) },
	"broadcast":            func(p *flows.Packet, a, b flows.NIC) { p[flows.EthDst] = flows.EthDst.Ones() },
}

func neighbour(p *flows.Packet, a flows.NIC, typ int) {
	p[flows.EthType], p[flows.IPProto] = flows.Uint(flows.EthIPv6), flows.Uint(flows.ProtoICM6)
	p[flows.IP6Src], p[flows.ICMP6Type] = flows.AddrValue(a.Address), flows.Uint(typ)
}

func TestSpoofedPacketsNeverLeave(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		for _, a := range w.nics {
			for _, b := range w.nics {
				if a.NICKey == b.NICKey {
					continue
				}
				for lie, tell := range lies {
					p := route(a, b, a.VNI == b.VNI)
					tell(&p, a, b)
					if got := w.send(t, w.owner(a), a.Port, p); len(got) != 0 {
						t.Fatalf("packet with a false %s arrived: %v", lie, got)
					}
				}
				for _, h := range w.hosts {
					if got := w.send(t, h, a.Port, route(a, b, true)); h != w.owner(a) && len(got) != 0 {
						t.Fatalf("packet of a VM that is elsewhere arrived: %v", got)
					}
				}
			}
		}
	})
}

// TestTunnelsBringOnlyWhatIsHere: a packet that comes by tunnel for a VM that neither is
// nor was here is nobody's.
func TestTunnelsBringOnlyWhatIsHere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		for _, n := range w.nics {
			for i, h := range w.hosts {
				p := ip(heliotrope.GatewayMAC, n.MAC, address(n.Address.Is6(), 200, 1), n.Address)
				p[flows.TunID] = flows.Uint(n.VNI)
				port := tunnelPort((i + 1) % len(w.hosts))
				if w.shared {
					port = flowTunnel
				} else if len(w.hosts) == 1 {
					continue
				}
				got := w.send(t, h, port, p)
				if here := h == w.owner(n); here != (len(at(got, n)) == 1) || !here && len(got) != 0 {
					t.Fatalf("packet by tunnel to %s for %v on %s arrived %v", h, n.NICKey, w.owner(n), got)
				}
			}
		}
	})
}

// TestStragglersOfAnEarlierMove come to a host that the VM left and is now coming back to.
func TestStragglersOfAnEarlierMove(t *testing.T) {
	v := smallView()
	w := &world{topology: v.Topology, hosts: []heliotrope.HostID{"paris", "tokyo"}, ports: v.Ports.NIC, switches: map[heliotrope.HostID]*flows.Switch{}}
	tool := v.NICs()[2]
	for opened, want := range map[bool]heliotrope.HostID{false: "tokyo", true: "paris"} {
		w.placements = map[heliotrope.VMID]heliotrope.Placement{"tool": {VM: "tool", Host: "tokyo", Incoming: "paris", Opened: opened, Previous: []heliotrope.HostID{"paris"}}}
		w.programAll(t)
		p := ip(heliotrope.GatewayMAC, tool.MAC, netip.MustParseAddr("10.1.0.10"), tool.Address)
		p[flows.TunID] = flows.Uint(tool.VNI)
		if got := w.send(t, "paris", tunnelPort(1), p); len(got) != 1 || got[0].host != want || got[0].port != tool.Port {
			t.Errorf("opened %v: straggler arrived %v, want at %s", opened, got, want)
		}
	}
}

// arp is a's question for target.
func arp(a flows.NIC, target netip.Addr) (p flows.Packet) {
	p[flows.EthSrc], p[flows.EthDst], p[flows.EthType] = flows.MACValue(a.MAC), flows.Uint(uint64(0xffffffffffff)), flows.Uint(flows.EthARP)
	p[flows.ARPOp], p[flows.ARPSHA], p[flows.ARPSPA], p[flows.ARPTPA] = flows.Uint(1), flows.MACValue(a.MAC), flows.AddrValue(a.Address), flows.AddrValue(target)
	return p
}

func TestPublicAddresses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		n, h := w.drawNIC(t, "NIC"), rapid.SampledFrom(w.hosts).Draw(t, "host")
		client := address(n.Address.Is6(), 200, 1)
		src, dst := ipFields(client)
		if !n.Public.IsValid() {
			if got := w.send(t, w.owner(n), n.Port, ip(n.MAC, heliotrope.GatewayMAC, n.Address, client)); len(got) != 0 {
				t.Fatalf("a VM without a public address sent %v", got)
			}
			return
		}
		got := w.send(t, h, uplink, ip(routerMAC, heliotrope.PublicMAC(h), client, n.Public))
		if len(got) != 1 || len(at(got, n)) != 1 || got[0].host != w.owner(n) ||
			got[0].packet[dst] != flows.AddrValue(n.Address) || got[0].packet[src] != flows.AddrValue(client) || got[0].packet[flows.EthDst] != flows.MACValue(n.MAC) {
			t.Fatalf("packet for %v arrived as %v", n.Public, got)
		}
		got = w.send(t, w.owner(n), n.Port, ip(n.MAC, heliotrope.GatewayMAC, n.Address, client))
		if len(got) != 1 || len(outside(got)) != 1 || got[0].host != w.owner(n) || got[0].packet[src] != flows.AddrValue(n.Public) ||
			got[0].packet[flows.EthDst] != flows.MACValue(routerMAC) || got[0].packet[flows.EthSrc] != flows.MACValue(heliotrope.PublicMAC(w.owner(n))) {
			t.Fatalf("packet to %v left as %v", client, got)
		}
		inside := address(n.Address.Is6(), 0, 33)
		if w.topology.Networks["n0"].Subnet.Contains(inside) {
			if got := w.send(t, h, uplink, ip(routerMAC, heliotrope.PublicMAC(h), inside, n.Public)); len(got) != 0 {
				t.Fatalf("packet from outside with an inside address arrived: %v", got)
			}
		}
	})
}

// stages are a VM's placements during a move, and during one that is rolled back.
func stages(p heliotrope.Placement, dst heliotrope.HostID, rollBack bool) []heliotrope.Placement {
	incoming, opened := p, p
	incoming.Incoming = dst
	opened.Incoming, opened.Opened = dst, true
	moved := heliotrope.Placement{VM: p.VM, Host: dst, Epoch: p.Epoch + 1, Previous: append(slices.Clone(p.Previous), p.Host)}
	if rollBack {
		return []heliotrope.Placement{p, incoming, opened, p}
	}
	done := moved
	done.Previous = nil
	return []heliotrope.Placement{p, incoming, opened, moved, done}
}

// TestMoveLosesAndDoublesNothing updates hosts from one stage of a move to the next in any
// order, but the source first where the owner changes, and sends packets all the while.
// What arrives at the source once its QEMU has stopped waits there to be drained.
func TestMoveLosesAndDoublesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		n := w.drawNIC(t, "moving NIC")
		before := w.placements[n.VM]
		dst := rapid.SampledFrom(w.hosts).Draw(t, "destination")
		if dst == before.Host {
			return
		}
		before.Previous = rapid.SliceOfDistinct(rapid.SampledFrom(w.hosts), func(h heliotrope.HostID) heliotrope.HostID { return h }).Draw(t, "previous")
		w.placements = with(w.placements, before)
		w.programAll(t)
		all := stages(before, dst, rapid.Bool().Draw(t, "rolled back"))
		for i, stage := range all[1:] {
			order := rapid.Permutation(w.hosts).Draw(t, "order")
			if stage.Host != all[i].Host {
				order = slices.DeleteFunc(order, func(h heliotrope.HostID) bool { return h == before.Host })
				order = slices.Insert(order, 0, before.Host)
			}
			for _, h := range order {
				w.program(t, h, with(w.placements, stage))
				w.checkReaches(t, n, stage.Host)
			}
			w.placements = with(w.placements, stage)
		}
	})
}

// checkReaches sends packets to n from everywhere; they must arrive once, at host.
func (w *world) checkReaches(t *rapid.T, n flows.NIC, host heliotrope.HostID) {
	check := func(what string, got []arrival) {
		if len(got) != 1 || len(at(got, n)) != 1 || got[0].host != host {
			t.Fatalf("%s: arrived %v, want once at %v on %s", what, got, n.NICKey, host)
		}
	}
	for _, a := range w.nics {
		if a.VM != n.VM && a.Domain == n.Domain && a.Address.Is4() == n.Address.Is4() {
			check("from "+a.String(), w.send(t, w.owner(a), a.Port, route(a, n, a.VNI == n.VNI)))
		}
	}
	if !n.Public.IsValid() {
		return
	}
	for _, h := range w.hosts {
		client := address(n.Address.Is6(), 200, 1)
		check("from outside at "+string(h), w.send(t, h, uplink, ip(routerMAC, heliotrope.PublicMAC(h), client, n.Public)))
	}
}

// TestOnlyThePermittedSideSends is the guard's part of a move.
func TestOnlyThePermittedSideSends(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		n := w.drawNIC(t, "moving NIC")
		src, dst := w.owner(n), rapid.SampledFrom(w.hosts).Draw(t, "destination")
		if src == dst {
			return
		}
		gateway := w.topology.Networks[w.topology.VMs[n.VM].NICs[n.Index].Network].Gateway
		for i, stage := range stages(w.placements[n.VM], dst, false) {
			w.placements = with(w.placements, stage)
			w.programAll(t)
			question := arp(n, gateway)
			if gateway.Is6() {
				question = solicit(n, gateway)
			}
			for h, want := range map[heliotrope.HostID]bool{src: i <= 2, dst: i >= 2} {
				if got := w.send(t, h, n.Port, question); (len(got) == 1) != want {
					t.Fatalf("stage %d: VM asking at %s got %v, want an answer: %v", i, h, got, want)
				}
			}
		}
	})
}

// solicit is n's neighbour solicitation for target.
func solicit(n flows.NIC, target netip.Addr) flows.Packet {
	p := ip(n.MAC, heliotrope.MAC{0x33, 0x33, 0xff, 0, 0, 1}, n.Address, target)
	p[flows.IP6Dst], p[flows.TTL] = flows.AddrValue(netip.MustParseAddr("ff02::1:ff00:1")), flows.Uint(255)
	p[flows.IPProto], p[flows.ICMP6Type] = flows.Uint(flows.ProtoICM6), flows.Uint(135)
	p[flows.NDTarget], p[flows.NDSLL], p[flows.NDOption] = flows.AddrValue(target), flows.MACValue(n.MAC), flows.Uint(1)
	return p
}

// TestNoTwoFlowsContend: of two flows of one priority, no packet meets both.
func TestNoTwoFlowsContend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		n := w.drawNIC(t, "moving NIC")
		all := stages(w.placements[n.VM], rapid.SampledFrom(w.hosts).Draw(t, "destination"), false)
		h := rapid.SampledFrom(w.hosts).Draw(t, "host")
		fs := compileView(t, w.view(h, with(w.placements, rapid.SampledFrom(all).Draw(t, "stage"))))
		for i, f := range fs {
			for _, g := range fs[i+1:] {
				if f.Table == g.Table && f.Priority == g.Priority && !disjoint(f.Match, g.Match) {
					t.Fatalf("a packet can meet both\n%v\n%v", f, g)
				}
			}
		}
	})
}

// disjoint says whether two matches ask different things of one field.
func disjoint(a, b flows.Match) bool {
	for _, x := range a {
		for _, y := range b {
			common := x.Mask.And(y.Mask)
			if x.Field == y.Field && x.Value.And(common) != y.Value.And(common) {
				return true
			}
		}
	}
	return false
}

// Whatever changes of one VM's placement, the flows that Placed names are all that change.
func TestPlacedIsAllThatAMoveChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		vm := rapid.SampledFrom(slices.Sorted(maps.Keys(w.placements))).Draw(t, "VM")
		dst := rapid.SampledFrom(w.hosts).Draw(t, "to")
		before := w.placements
		for _, p := range append(stages(before[vm], dst, rapid.Bool().Draw(t, "roll back")), heliotrope.Placement{VM: vm}) {
			after := maps.Clone(before)
			after[vm] = p
			for _, h := range w.hosts {
				patched := byKey(compileView(t, w.view(h, before)))
				for key := range byKey(placed(t, w.view(h, before), vm)) {
					delete(patched, key)
				}
				maps.Copy(patched, byKey(placed(t, w.view(h, after), vm)))
				if want := byKey(compileView(t, w.view(h, after))); !maps.EqualFunc(patched, want, flows.Flow.Equal) {
					t.Fatalf("at %s, %+v:\ngot  %v\nwant %v", h, p, patched, want)
				}
			}
			before = after
		}
	})
}

func placed(t rapid.TB, v flows.View, vm heliotrope.VMID) []flows.Flow {
	fs, err := flows.Placed(v, vm)
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func byKey(fs []flows.Flow) map[string]flows.Flow {
	m := make(map[string]flows.Flow, len(fs))
	for _, f := range fs {
		m[f.Key()] = f
	}
	return m
}
