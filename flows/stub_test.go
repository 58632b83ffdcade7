package flows_test

import (
	"net/netip"
	"strings"
	"testing"

	"heliotrope"
	"heliotrope/flows"
)

// A stub is reached like a VM at its host. One of access local is answered for everywhere,
// and has no way from hosts of other sites.
func TestStubs(t *testing.T) {
	addr := netip.MustParseAddr
	for _, access := range []string{"", heliotrope.AccessProxy, heliotrope.AccessLocal} {
		top := smallView().Topology
		top.Hosts = map[heliotrope.HostID]heliotrope.Host{
			"paris": {Site: "eu", Address: addr("192.0.2.1"), Public: addr("198.51.100.1")},
			"tokyo": {Site: "asia", Address: addr("192.0.2.2"), Public: addr("198.51.100.2")},
			"kyoto": {Site: "asia", Address: addr("192.0.2.3"), Public: addr("198.51.100.3")},
		}
		stub := heliotrope.Stub{Host: "tokyo", Port: "scan0", Network: "web", Address: addr("10.1.0.200"), Access: access}
		top.Stubs = map[heliotrope.StubID]heliotrope.Stub{"scanner": stub}
		ends, placements := top.Ends(map[heliotrope.VMID]heliotrope.Placement{"shop": {Host: "paris"}, "tool": {Host: "kyoto"}})
		if len(top.VMs) != 2 || len(ends.VMs) != 3 {
			t.Fatalf("%d VMs became %d", len(top.VMs), len(ends.VMs))
		}
		mac := stub.NIC("scanner").MAC.String()
		for host, ways := range map[heliotrope.HostID]int{"paris": 1, "kyoto": 1, "tokyo": 1} {
			if access == heliotrope.AccessLocal && host == "paris" {
				ways = 0
			}
			v := flows.View{Host: host, Topology: ends, Placements: placements, GatewayMAC: routerMAC, Ports: flows.Ports{FlowTunnel: 21, Uplink: 31, NIC: map[flows.NICKey]uint32{}}}
			if host == "tokyo" {
				v.Ports.NIC[flows.NICKey{VM: "scanner"}] = 11
			}
			ways -= count(compileView(t, v), "mobility", mac)
			if ways != 0 {
				t.Errorf("access %q at %s: %d ways are missing", access, host, ways)
			}
			if count(compileView(t, v), "arp", "10.1.0.200") == 0 {
				t.Errorf("access %q at %s: nobody answers for it", access, host)
			}
			if guarded := count(compileView(t, v), "guard", "10.1.0.200"); (guarded > 0) != (host == "tokyo") {
				t.Errorf("access %q at %s: %d flows let it send", access, host, guarded)
			}
		}
	}
}

func count(list []flows.Flow, table, text string) int {
	n := 0
	for _, f := range list {
		if f.Table.String() == table && strings.Contains(f.String(), text) {
			n++
		}
	}
	return n
}
