package world

import (
	"net/netip"
	"slices"
	"testing"

	"heliotrope"
	"heliotrope/migration"
)

// Moves of one tenant between the same sites know of each other, and share a seed that no others have.
func TestTogether(t *testing.T) {
	host := func(site heliotrope.SiteID, addr string) heliotrope.Host {
		return heliotrope.Host{Site: site, Address: netip.MustParseAddr(addr)}
	}
	v := &View{Moves: map[heliotrope.MoveID]Move{}, Underway: map[heliotrope.VMID]heliotrope.MoveID{}, Topology: heliotrope.Topology{
		Hosts: map[heliotrope.HostID]heliotrope.Host{"us-1": host("us", "10.0.0.1"), "us-2": host("us", "10.0.0.2"), "us-3": host("us", "10.0.0.3"),
			"eu-1": host("eu", "10.1.0.1"), "eu-2": host("eu", "10.1.0.2"), "asia-1": host("asia", "10.2.0.1")},
		VMs: map[heliotrope.VMID]heliotrope.VM{"red-1": {Tenant: "red"}, "red-2": {Tenant: "red"}, "blue": {Tenant: "blue"}, "a": {}, "b": {}, "c": {}, "d": {}},
	}}
	moves := map[heliotrope.VMID]migration.Move{}
	for vm, way := range map[heliotrope.VMID][2]heliotrope.HostID{
		"a": {"us-1", "eu-1"}, "b": {"us-2", "eu-2"}, "c": {"us-3", "asia-1"}, "d": {"us-1", "us-2"},
		"red-1": {"us-1", "eu-1"}, "red-2": {"us-3", "eu-1"}, "blue": {"us-2", "eu-1"},
	} {
		m := migration.Move{ID: heliotrope.MoveID("m-" + vm), VM: vm, From: way[0], To: way[1]}
		moves[vm], v.Moves[m.ID], v.Underway[vm] = m, Move{Move: m}, m.ID
	}
	seeds := map[uint64]int{}
	for vm, want := range map[heliotrope.VMID][]heliotrope.HostID{
		"a": {"us-2"}, "b": {"us-1"}, "c": nil, "red-1": {"us-3"}, "red-2": {"us-1"}, "blue": nil,
	} {
		got := v.Together(moves[vm])
		var sources []heliotrope.HostID
		for h, addr := range got.Sources {
			if addr != netip.AddrPortFrom(v.Topology.Hosts[h].Address, 7444) {
				t.Errorf("%s: %s is at %v", vm, h, addr)
			}
			sources = append(sources, h)
		}
		if !slices.Equal(sources, want) || got.Site != v.Topology.Hosts[moves[vm].To].Site {
			t.Errorf("%s goes to %s together with moves from %v, want %v", vm, got.Site, sources, want)
		}
		seeds[got.Seed]++
	}
	if got := v.Together(moves["d"]); got != nil {
		t.Errorf("a move within a site: %+v", got)
	}
	if len(seeds) != 4 {
		t.Errorf("%d seeds of four tenants and pairs of sites", len(seeds))
	}
}
