package flows_test

import (
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"

	"heliotrope"
	"heliotrope/arpproxy"
	"heliotrope/flows"

	"pgregory.net/rapid"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

func compileView(t rapid.TB, v flows.View) []flows.Flow {
	t.Helper()
	fs, err := flows.Compile(v, arpproxy.Flows)
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// smallView is a host with one VM of two; the other one is on its way here.
func smallView() flows.View {
	addr := netip.MustParseAddr
	return flows.View{
		Host: "paris",
		Topology: heliotrope.Topology{
			Hosts: map[heliotrope.HostID]heliotrope.Host{
				"paris": {Address: addr("192.0.2.1"), Public: addr("198.51.100.1")},
				"tokyo": {Address: addr("192.0.2.2"), Public: addr("198.51.100.2")},
			},
			Networks: map[heliotrope.NetworkID]heliotrope.Network{
				"web": {VNI: 100, Subnet: netip.MustParsePrefix("10.1.0.0/24"), Gateway: addr("10.1.0.1"), Group: "shop"},
				"db":  {VNI: 200, Subnet: netip.MustParsePrefix("fd00:2::/64"), Gateway: addr("fd00:2::1"), Group: "shop"},
			},
			VMs: map[heliotrope.VMID]heliotrope.VM{
				"shop": {NICs: []heliotrope.NIC{{Network: "web", Address: addr("10.1.0.10"), Public: addr("203.0.113.10")}, {Network: "db", Address: addr("fd00:2::10")}}},
				"tool": {NICs: []heliotrope.NIC{{Network: "web", Address: addr("10.1.0.11")}}},
			},
		},
		Placements: map[heliotrope.VMID]heliotrope.Placement{"shop": {Host: "paris"}, "tool": {Host: "tokyo", Incoming: "paris"}},
		Ports: flows.Ports{
			NIC:    map[flows.NICKey]uint32{{VM: "shop"}: 11, {VM: "shop", Index: 1}: 12, {VM: "tool"}: 13},
			Tunnel: map[heliotrope.HostID]uint32{"tokyo": 21}, Uplink: 31},
		GatewayMAC: routerMAC,
		Counters:   flows.DefaultCounters,
	}
}

func TestCompileGolden(t *testing.T) {
	var b strings.Builder
	for _, f := range compileView(t, smallView()) {
		b.WriteString(f.String() + "\n")
	}
	const path = "testdata/paris.golden"
	if *rewrite {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("flows differ from %s (read the difference, then run with -rewrite); have\n%s", path, b.String())
	}
}

// TestCompileDependsOnNothingElse: the same View gives the same flows in the same order.
func TestCompileDependsOnNothingElse(t *testing.T) {
	first := compileView(t, smallView())
	for range 20 {
		for i, f := range compileView(t, smallView()) {
			if !f.Equal(first[i]) {
				t.Fatalf("flow %d is %v, was %v", i, f, first[i])
			}
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	vm := func(v *flows.View, n heliotrope.NIC) {
		v.Topology.VMs["x"] = heliotrope.VM{NICs: []heliotrope.NIC{n}}
	}
	addr := netip.MustParseAddr
	for want, spoil := range map[string]func(*flows.View){
		"is not in the topology":    func(v *flows.View) { v.Host = "rome" },
		"10.1.0.10 is also that of": func(v *flows.View) { vm(v, heliotrope.NIC{Network: "web", Address: addr("10.1.0.10")}) },
		"10.1.0.1 is also that of":  func(v *flows.View) { vm(v, heliotrope.NIC{Network: "web", Address: addr("10.1.0.1")}) },
		"is also that of": func(v *flows.View) {
			vm(v, heliotrope.NIC{Network: "web", Address: addr("10.1.0.99"), MAC: heliotrope.NICMAC("shop", 0)})
		},
		"203.0.113.10 is also": func(v *flows.View) {
			vm(v, heliotrope.NIC{Network: "web", Address: addr("10.1.0.99"), Public: addr("203.0.113.10")})
		},
		"two families": func(v *flows.View) {
			vm(v, heliotrope.NIC{Network: "db", Address: addr("fd00:2::9"), Public: addr("203.0.113.11")})
		},
		`not in network "nowhere"`: func(v *flows.View) { vm(v, heliotrope.NIC{Network: "nowhere", Address: addr("10.1.0.9")}) },
		"VNI 200": func(v *flows.View) {
			v.Topology.Networks["more"] = heliotrope.Network{VNI: 200, Subnet: netip.MustParsePrefix("10.9.0.0/24"), Gateway: addr("10.9.0.1")}
		},
		"port 21 is both": func(v *flows.View) { v.Ports.Uplink = 21 },
	} {
		v := smallView()
		spoil(&v)
		if _, err := flows.Compile(v, arpproxy.Flows); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Compile said %v, want %q", err, want)
		}
	}
}

func TestCheckHoldsTablesToTheirContract(t *testing.T) {
	ipv4 := flows.Is(flows.EthType, flows.Uint(flows.EthIPv4))
	for want, f := range map[string]flows.Flow{
		"the table matches only": {Table: flows.L2, Match: flows.When(ipv4)},
		"the table may set only": {Table: flows.Guard, Actions: []flows.Action{flows.SetField(flows.EthSrc, flows.Uint(1))}},
		"may not go to classify": {Table: flows.L3, Actions: []flows.Action{flows.Goto(flows.Classify)}},
		"may not output there":   {Table: flows.L3, Actions: []flows.Action{flows.OutputTo(1)}},
		"needs eth_type":         {Table: flows.L3, Match: flows.When(flows.Is(flows.IPDst, flows.Uint(1)))},
		"needs nw_proto":         {Table: flows.L3, Match: flows.When(ipv4), Actions: []flows.Action{flows.SetField(flows.ICMPType, flows.Uint(0))}},
		"out of order or twice":  {Table: flows.L3, Match: flows.When(ipv4, ipv4)},
		"value and mask":         {Table: flows.L2, Match: flows.Match{{Field: flows.EthDst, Value: flows.Uint(3), Mask: flows.Uint(1)}}},
		"wider than the field":   {Table: flows.Classify, Actions: []flows.Action{flows.SetField(flows.Net, flows.Uint(uint64(1)<<40))}},
		"goto is not the last":   {Table: flows.L2, Actions: []flows.Action{flows.Goto(flows.L3), flows.Goto(flows.L3)}},
		"no such table":          {Table: flows.NumTables},
		"unknown":                {Table: flows.L2, Match: flows.Match{{Field: flows.NumFields}}},
		"unknown kind":           {Table: flows.L2, Actions: []flows.Action{{}}},
		"cookie is not ours":     {Table: flows.L2, Cookie: 1},
	} {
		if f.Cookie == 0 {
			f.Cookie = flows.Cookie(f.Table, flows.Fixed)
		}
		if err := flows.Check(f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check said %v, want %q", err, want)
		}
	}
}

// TestLoopEnds: two hosts that disagree for ever about where a VM is lose its packets, and
// do not send them round for ever.
func TestLoopEnds(t *testing.T) {
	v := smallView()
	w := &world{topology: v.Topology, hosts: []heliotrope.HostID{"paris", "tokyo"}, ports: v.Ports.NIC, switches: map[heliotrope.HostID]*flows.Switch{}}
	for h, other := range map[heliotrope.HostID]heliotrope.HostID{"paris": "tokyo", "tokyo": "paris"} {
		w.program(t, h, map[heliotrope.VMID]heliotrope.Placement{"shop": {Host: "paris"}, "tool": {Host: other, Previous: []heliotrope.HostID{h}}})
	}
	var shop, tool flows.NIC
	for _, n := range v.NICs() {
		switch n.Port {
		case 11:
			shop = n
		case 13:
			tool = n
		}
	}
	if got := w.send(t, "paris", shop.Port, route(shop, tool, true)); len(got) != 0 {
		t.Errorf("arrived: %v", got)
	}
}

func TestGatewayAnswersPing(t *testing.T) {
	v := smallView()
	p := ip(heliotrope.NICMAC("shop", 0), heliotrope.GatewayMAC, netip.MustParseAddr("10.1.0.10"), netip.MustParseAddr("10.1.0.1"))
	p[flows.IPProto], p[flows.ICMPType] = flows.Uint(flows.ProtoICMP), flows.Uint(8)
	got := flows.Eval(compileView(t, v), p, 11)
	if len(got) != 1 || got[0].Port != 11 || got[0].Packet[flows.ICMPType].Lo != 0 || got[0].Packet[flows.IPDst] != p[flows.IPSrc] ||
		got[0].Packet[flows.IPSrc] != p[flows.IPDst] || got[0].Packet[flows.EthDst] != p[flows.EthSrc] {
		t.Errorf("ping of the gateway gave %v", got)
	}
}

func BenchmarkCompile(b *testing.B) {
	v := smallView()
	v.Topology.Networks["big"] = heliotrope.Network{VNI: 900, Subnet: netip.MustParsePrefix("10.64.0.0/16"), Gateway: netip.MustParseAddr("10.64.255.254")}
	for i := range 10_000 {
		id := heliotrope.VMID("vm" + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676)))
		v.Topology.VMs[id] = heliotrope.VM{NICs: []heliotrope.NIC{{Network: "big", Address: netip.AddrFrom4([4]byte{10, 64, byte(i >> 8), byte(i)})}}}
		v.Placements[id] = heliotrope.Placement{VM: id, Host: "tokyo"}
	}
	var n int
	for b.Loop() {
		n = len(compileView(b, v))
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "flows/s")
}
