package collector

import (
	"net/netip"
	"reflect"
	"testing"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func fabric() Fabric {
	nic := func(network heliotrope.NetworkID, a string) heliotrope.NIC {
		return heliotrope.NIC{Network: network, Address: addr(a)}
	}
	web := nic("front", "10.1.0.10")
	web.Public = addr("203.0.113.10")
	return Fabric{
		Topology: heliotrope.Topology{
			Networks: map[heliotrope.NetworkID]heliotrope.Network{"front": {Group: "shop"}, "back": {Group: "shop"}, "secret": {Capture: heliotrope.CaptureOff}},
			VMs: map[heliotrope.VMID]heliotrope.VM{
				"web":   {NICs: []heliotrope.NIC{web}},
				"db":    {NICs: []heliotrope.NIC{nic("back", "10.2.0.10"), nic("secret", "10.3.0.10")}},
				"other": {NICs: []heliotrope.NIC{nic("back", "10.2.0.11")}},
			},
		},
		Placements: map[heliotrope.VMID]heliotrope.Placement{"web": {Host: "us-1"}, "db": {Host: "us-1"}, "other": {Host: "eu-1"}},
		Counting:   map[heliotrope.HostID]bool{"us-1": true},
	}
}

func TestOrders(t *testing.T) {
	devices := map[string]string{heliotrope.InterfaceID("web", 0): "vnet0", heliotrope.InterfaceID("db", 0): "vnet1", heliotrope.InterfaceID("db", 1): "vnet2", "foreign": "eth9"}
	got := Orders(fabric(), devices)
	want := traffic.Orders{Budget: 0.05, MaxKeys: maxKeys, Grain4: 24, Grain6: 48,
		Ports: []traffic.Port{{Device: "vnet1", VM: "db", Domain: "group/shop"}, {Device: "vnet0", VM: "web", Domain: "group/shop"}},
		Book: []traffic.Address{
			{Domain: "group/shop", Address: addr("10.2.0.10"), VM: "db", Counted: true},
			{Domain: "network/secret", Address: addr("10.3.0.10"), VM: "db", Counted: true, Off: true},
			{Domain: "group/shop", Address: addr("10.2.0.11"), VM: "other"}, // eu-1 does not count: who gets it does
			{Domain: "group/shop", Address: addr("10.1.0.10"), VM: "web", Counted: true},
			{Address: addr("203.0.113.10"), VM: "web", Counted: true},
		}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for _, source := range []string{heliotrope.CaptureOff, "counters"} {
		f := fabric()
		f.Topology.Capture.Source = source
		if o := Orders(f, devices); len(o.Ports)+len(o.Book) != 0 {
			t.Errorf("source %s: %+v, want nothing to count", source, o)
		}
	}
}
