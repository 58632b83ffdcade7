package controller

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"heliotrope"
	"heliotrope/controller/store"
	"heliotrope/controller/world"
	"heliotrope/flows"
	"heliotrope/ovsdb"

	"pgregory.net/rapid"
)

// stored is one record as the store's watch tells it.
func stored(t *rapid.T, rev int64, key string, value any) store.Change {
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return store.Change{Key: key, Value: data, Rev: rev}
}

// ring is a topology of hosts with two VMs each.
func ring(hosts int) heliotrope.Topology {
	t := heliotrope.Topology{Hosts: map[heliotrope.HostID]heliotrope.Host{}, VMs: map[heliotrope.VMID]heliotrope.VM{},
		Networks: map[heliotrope.NetworkID]heliotrope.Network{"n": {VNI: 100, Subnet: netip.MustParsePrefix("10.1.0.0/16"), Gateway: netip.MustParseAddr("10.1.0.1")}}}
	for i := range hosts {
		t.Hosts[hostID(i)] = heliotrope.Host{Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), Public: netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)})}
		for j := range 2 {
			t.VMs[vmID(2*i+j)] = heliotrope.VM{Host: hostID(i), NICs: []heliotrope.NIC{{Network: "n", Address: netip.AddrFrom4([4]byte{10, 1, 1, byte(2*i + j)}),
				Public: netip.AddrFrom4([4]byte{203, 0, 113, byte(2*i + j)})}}}
		}
	}
	return t
}

func hostID(i int) heliotrope.HostID { return heliotrope.HostID(fmt.Sprint("h", i)) }
func vmID(i int) heliotrope.VMID     { return heliotrope.VMID(fmt.Sprint("vm", i)) }

// A pipeline that follows changes has what one that starts anew would have, whatever
// changes and however many changes it misses, and says which flows changed.
func TestPipelineFollows(t *testing.T) {
	const hosts = 3
	rapid.Check(t, func(t *rapid.T) {
		rev := int64(1)
		v := &world.View{Hosts: map[heliotrope.HostID]world.Host{}}
		update := func(reset bool, changes ...store.Change) {
			if err := v.Absorb(store.Update{Rev: rev, Reset: reset, Changes: changes}); err != nil {
				t.Fatal(err)
			}
			rev++
		}
		all := []store.Change{stored(t, rev, "topology", store.Applied{Topology: ring(hosts)})}
		for id, spec := range ring(hosts).VMs {
			all = append(all, stored(t, rev, store.PlacementKey(id), heliotrope.Placement{VM: id, Host: spec.Host, Epoch: 1}))
		}
		update(true, all...)
		h := hostID(0)
		ports := []ovsdb.Port{{Name: ovsdb.Uplink, Bridge: ovsdb.IntBridge, Ofport: 1}, {Name: "vx-h1", Bridge: ovsdb.IntBridge, Peer: "h1", Ofport: 2},
			{Name: "vnet0", Bridge: ovsdb.IntBridge, Ofport: 3, IfaceID: heliotrope.InterfaceID(vmID(0), 0)}}
		v.Hosts[h] = world.Host{OVSDB: true, Ports: ports, PortsGen: 1}

		pipe := &pipeline{host: h}
		var before map[string]flows.Flow
		for range rapid.IntRange(1, 20).Draw(t, "rounds") {
			for range rapid.SampledFrom([]int{0, 1, 2, world.RecentKept + 1}).Draw(t, "changes") {
				vm := vmID(rapid.IntRange(0, 2*hosts-1).Draw(t, "VM"))
				to := hostID(rapid.IntRange(0, hosts-1).Draw(t, "to"))
				update(false, stored(t, rev, store.PlacementKey(vm), heliotrope.Placement{VM: vm, Host: to, Epoch: uint64(rev),
					Previous: []heliotrope.HostID{v.Placements[vm].Host}}))
			}
			switch rapid.IntRange(0, 5).Draw(t, "what else") {
			case 0:
				update(false, stored(t, rev, "topology", store.Applied{Topology: ring(rapid.IntRange(1, hosts).Draw(t, "hosts"))}))
			case 1:
				ports = append(ports[:2:2], ovsdb.Port{Name: "vx-h2", Bridge: ovsdb.IntBridge, Peer: "h2", Ofport: 4})
				f := v.Hosts[h]
				f.Ports, f.PortsGen = ports, f.PortsGen+1
				v.Hosts[h] = f
			}
			got, err := pipe.at(v)
			if err != nil {
				t.Fatal(err)
			}
			want, err := flowsWanted(v, h)
			if err != nil {
				t.Fatal(err)
			}
			if !maps.EqualFunc(got, want, flows.Flow.Equal) {
				t.Fatalf("got  %v\nwant %v", got, want)
			}
			if pipe.touched != nil {
				for key := range want {
					if f, ok := before[key]; !pipe.touched[key] && (!ok || !f.Equal(want[key])) {
						t.Fatalf("flow %s changed and is not told of", key)
					}
				}
			}
			before = want
		}
	})
}
