package openflow_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"heliotrope"
	"heliotrope/arpproxy"
	"heliotrope/flows"
	"heliotrope/flows/openflow"
	"heliotrope/internal/reconcile"
)

// Ports of the test switch, in the order of portNames.
const (
	portA = iota + 1 // VM a, here
	portB            // VM b, here
	portC            // VM c, incoming
	portTunnel2
	portTunnel3
	portUplink
	portV6 // VM v, here, IPv6
)

var portNames = []string{"a", "b", "c", "vx2", "vx3", "up", "v"}

// testView is a host with a VM of each kind that there is: here, elsewhere, coming, gone.
func testView() flows.View {
	addr := netip.MustParseAddr
	vm := func(net heliotrope.NetworkID, address, public string) heliotrope.VM {
		n := heliotrope.NIC{Network: net, Address: addr(address)}
		if public != "" {
			n.Public = addr(public)
		}
		return heliotrope.VM{NICs: []heliotrope.NIC{n}}
	}
	return flows.View{
		Host: "h1",
		Topology: heliotrope.Topology{
			Hosts: map[heliotrope.HostID]heliotrope.Host{
				"h1": {Address: addr("192.0.2.1"), Public: addr("198.51.100.1")},
				"h2": {Address: addr("192.0.2.4"), Public: addr("198.51.100.2")},
				"h3": {Address: addr("192.0.2.5"), Public: addr("198.51.100.3")},
				"h4": {Address: addr("192.0.2.44"), Public: addr("198.51.100.4")},
				"h5": {Address: addr("2001:db8::5"), Public: addr("198.51.100.5")},
			},
			Networks: map[heliotrope.NetworkID]heliotrope.Network{
				"web":   {VNI: 100, Subnet: netip.MustParsePrefix("10.1.0.0/24"), Gateway: addr("10.1.0.1"), Group: "shop"},
				"db":    {VNI: 200, Subnet: netip.MustParsePrefix("10.2.0.0/24"), Gateway: addr("10.2.0.1"), Group: "shop"},
				"other": {VNI: 300, Subnet: netip.MustParsePrefix("10.3.0.0/24"), Gateway: addr("10.3.0.1")},
				"six":   {VNI: 600, Subnet: netip.MustParsePrefix("2001:db8:6::/64"), Gateway: addr("2001:db8:6::1"), Group: "shop"},
			},
			VMs: map[heliotrope.VMID]heliotrope.VM{
				"a": vm("web", "10.1.0.10", "203.0.113.10"), "b": vm("db", "10.2.0.10", ""), "c": vm("web", "10.1.0.11", "203.0.113.11"),
				"far": vm("web", "10.1.0.12", "203.0.113.12"), "gone": vm("web", "10.1.0.13", ""), "flow": vm("db", "10.2.0.13", ""),
				"flow6": vm("db", "10.2.0.14", ""), "v": vm("six", "2001:db8:6::10", "2001:db8:ffff::10"), "w": vm("six", "2001:db8:6::11", ""),
				"x": vm("other", "10.3.0.10", "203.0.113.30"),
			},
		},
		Placements: map[heliotrope.VMID]heliotrope.Placement{
			"a": {Host: "h1"}, "b": {Host: "h1"}, "c": {Host: "h2", Incoming: "h1", Opened: true}, "far": {Host: "h2"},
			"gone": {Host: "h3", Previous: []heliotrope.HostID{"h1"}}, "flow": {Host: "h4"}, "flow6": {Host: "h5"},
			"v": {Host: "h1"}, "w": {Host: "h2", Previous: []heliotrope.HostID{"h1"}}, "x": {Host: "h2"},
		},
		Ports: flows.Ports{
			NIC:    map[flows.NICKey]uint32{{VM: "a"}: portA, {VM: "b"}: portB, {VM: "c"}: portC, {VM: "v"}: portV6},
			Tunnel: map[heliotrope.HostID]uint32{"h2": portTunnel2, "h3": portTunnel3}, FlowTunnel: 40, Uplink: portUplink,
		},
		GatewayMAC: heliotrope.MAC{2, 0, 0, 0, 0, 0xfe},
		Counters:   flows.DefaultCounters,
	}
}

func compile(t testing.TB, v flows.View) []flows.Flow {
	t.Helper()
	fs, err := flows.Compile(v, arpproxy.Flows)
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// manyFlows returns n flows of the mobility table.
func manyFlows(n int) []flows.Flow {
	all := make([]flows.Flow, n)
	for i := range all {
		mac := heliotrope.MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}
		all[i] = flows.Flow{Table: flows.Mobility, Priority: 100, Cookie: flows.Cookie(flows.Mobility, flows.Forward),
			Match: flows.When(flows.Is(flows.Net, flows.Uint(100)), flows.Is(flows.EthDst, flows.MACValue(mac))),
			Actions: []flows.Action{flows.SetField(flows.TunID, flows.Uint(100)), flows.SetField(flows.OutPort, flows.Uint(portTunnel2)),
				flows.Goto(flows.Out)}}
	}
	return all
}

func byKey(fs []flows.Flow) map[string]flows.Flow {
	m := make(map[string]flows.Flow, len(fs))
	for _, f := range fs {
		m[f.Key()] = f
	}
	return m
}

// compare fails unless both sets of flows are the same.
func compare(t testing.TB, want, have []flows.Flow) {
	t.Helper()
	if len(want) != len(have) {
		t.Errorf("%d flows, want %d", len(have), len(want))
	}
	for _, c := range reconcile.Diff(byKey(want), byKey(have), flows.Flow.Equal) {
		t.Errorf("%v:\n want %v\n have %v", c.Op, c.Want, c.Have)
	}
}

func TestDumpIsWhatWasCompiled(t *testing.T) {
	o := newSwitch(t, portNames...)
	c := o.dial(t)
	want := compile(t, testView())
	if err := c.Bundle(t.Context(), want, nil); err != nil {
		t.Fatal(err)
	}
	have, foreign, err := c.DumpFlows(t.Context())
	if err != nil || foreign != 0 {
		t.Fatalf("DumpFlows: %d foreign, %v", foreign, err)
	}
	compare(t, want, have)
}

func TestStringIsWhatOfctlReads(t *testing.T) {
	o := newSwitch(t, portNames...)
	want := compile(t, testView())
	o.addFlows(t, want)
	have, _, err := o.dial(t).DumpFlows(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	compare(t, want, have)
}

// addFlows lets ovs-ofctl add flows from their strings.
func (o *ovs) addFlows(t testing.TB, fs []flows.Flow) {
	t.Helper()
	var b strings.Builder
	for _, f := range fs {
		fmt.Fprintln(&b, f)
	}
	if err := os.WriteFile(o.path("flows"), []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	o.ofctl(t, "add-flows", o.path("flows"), "--bundle")
}

func TestTargetIsPutRight(t *testing.T) {
	o := newSwitch(t, portNames...)
	target := openflow.NewTarget(o.dial(t))
	want := byKey(compile(t, testView()))
	loop := reconcile.New(target, func(context.Context) (map[string]flows.Flow, error) { return want, nil }, flows.Flow.Equal, reconcile.Options{})
	round := func(changes int) {
		t.Helper()
		n, err := loop.Round(t.Context())
		if err != nil || n != changes {
			t.Fatalf("round made %d changes (%v), want %d", n, err, changes)
		}
	}
	round(len(want))
	round(0)
	o.ofctl(t, "add-flow", "table=0,priority=7,in_port=9 actions=drop")                                 // foreign
	o.ofctl(t, "add-flow", "cookie=0x48454c4900000001,table=0,priority=8,tcp,tp_dst=80 actions=NORMAL") // ours, of another version
	o.ofctl(t, "add-flow", "cookie=0x48454c4900000001,table=0,priority=9,in_port=9 actions=drop")       // ours, stale
	o.ofctl(t, "del-flows", "table=7,priority=0", "--strict")
	o.ofctl(t, "mod-flows", "table=3 actions=drop")
	round(4)
	round(0)
	if target.Foreign() != 1 {
		t.Errorf("%d foreign flows, want 1", target.Foreign())
	}
	if out := o.ofctl(t, "dump-flows", "table=0"); !strings.Contains(out, "in_port=9") || strings.Contains(out, "tp_dst=80") {
		t.Errorf("table 0 is now\n%s", out)
	}
	want = nil
	if _, err := loop.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := o.ofctl(t, "dump-flows"); strings.Count(out, "table=")+strings.Count(out, "cookie=") > 2 {
		t.Errorf("left over:\n%s", out)
	}
}

func TestBundleIsAtomic(t *testing.T) {
	o := newSwitch(t, portNames...)
	c := o.dial(t)
	bad := func(name string, f flows.Flow) {
		t.Run(name, func(t *testing.T) {
			all := manyFlows(1000)
			f.Cookie = flows.Owner
			all = slices.Insert(all, 500, f)
			err := c.Bundle(t.Context(), all, nil)
			var refused *openflow.BundleError
			if !errors.As(err, &refused) || len(refused.Refusals) != 1 || !refused.Refusals[0].Flow.Equal(f) {
				t.Fatalf("Bundle said %v", err)
			}
			have, foreign, err := c.DumpFlows(t.Context())
			if err != nil || len(have)+foreign != 0 {
				t.Fatalf("%d flows after a refused bundle, %v", len(have), err)
			}
		})
	}
	bad("unreadable", flows.Flow{Match: flows.When(flows.Is(flows.ARPTPA, flows.Uint(1)))}) // lacks its EtherType
	bad("goto backwards", flows.Flow{Table: 5, Actions: []flows.Action{flows.Goto(2)}})
	bad("no such table", flows.Flow{Table: 255})
	if err := c.Bundle(t.Context(), manyFlows(1000), nil); err != nil {
		t.Fatal(err)
	}
}

func TestTwentyThousandFlows(t *testing.T) {
	o := newSwitch(t, portNames...)
	c := o.dial(t)
	want := manyFlows(20_000)
	if err := c.Bundle(t.Context(), want, nil); err != nil {
		t.Fatal(err)
	}
	have, _, err := c.DumpFlows(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	compare(t, want, have)
	if err := c.Bundle(t.Context(), nil, want[:19_999]); err != nil {
		t.Fatal(err)
	}
	if have, _, err = c.DumpFlows(t.Context()); err != nil {
		t.Fatal(err)
	}
	compare(t, want[19_999:], have)
}

func TestRole(t *testing.T) {
	o := newSwitch(t)
	old, young := o.dial(t), o.dial(t)
	if err := old.Role(t.Context(), openflow.Primary, 7); err != nil {
		t.Fatal(err)
	}
	if err := young.Role(t.Context(), openflow.Primary, 8); err != nil {
		t.Fatal(err)
	}
	if err := old.Role(t.Context(), openflow.Primary, 7); !errors.Is(err, openflow.ErrStale) {
		t.Errorf("role with an old generation: %v, want ErrStale", err)
	}
	err := old.Bundle(t.Context(), manyFlows(10), nil)
	if err == nil {
		t.Error("a deposed controller changed flows")
	}
	if have, _, err := young.DumpFlows(t.Context()); err != nil || len(have) != 0 {
		t.Errorf("%d flows, %v", len(have), err)
	}
	if err := young.Bundle(t.Context(), manyFlows(10), nil); err != nil {
		t.Error(err)
	}
}

func TestPortsAndStats(t *testing.T) {
	o := newSwitch(t, portNames...)
	c := o.dial(t)
	if err := c.Bundle(t.Context(), compile(t, testView()), nil); err != nil {
		t.Fatal(err)
	}
	ports, err := c.Ports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	names := map[uint32]string{}
	for _, p := range ports {
		names[p.Number] = p.Name
	}
	for i, want := range portNames {
		if names[uint32(i+1)] != want {
			t.Errorf("port %d is %q, want %q", i+1, names[uint32(i+1)], want)
		}
	}
	o.appctl(t, "netdev-dummy/receive", "a", "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x1234)")
	o.until(t, "the packet is counted", func() error {
		s, err := c.Stats(t.Context())
		if err != nil {
			return err
		}
		if s.Ports[portA].Rx.Packets != 1 || s.Flows[flows.Cookie(flows.Guard, flows.Fixed)].Packets != 1 {
			return fmt.Errorf("counters are %+v", s)
		}
		return nil
	})
}
