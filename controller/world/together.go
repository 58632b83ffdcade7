package world

import (
	"hash/maphash"
	"net/netip"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/migration"
)

// secret is of this process: moves that two controllers have ordered one after the other have nothing in common.
var secret = maphash.MakeSeed()

// corridor is the way of a tenant's VMs from one site to another.
type corridor struct {
	tenant   heliotrope.TenantID
	from, to heliotrope.SiteID
}

func (v *View) corridor(m migration.Move) corridor {
	return corridor{v.Topology.VMs[m.VM].Tenant, v.Topology.Hosts[m.From].Site, v.Topology.Hosts[m.To].Site}
}

// Together says what moves that are under way have to do with one between sites; nil of another.
func (v *View) Together(m migration.Move) *agentapi.Together {
	way := v.corridor(m)
	if way.from == way.to || way.to == "" {
		return nil
	}
	t := &agentapi.Together{Site: way.to, Seed: maphash.Comparable(secret, way), Sources: map[heliotrope.HostID]netip.AddrPort{}}
	for _, id := range v.Underway {
		if other := v.Moves[id].Move; other.From != m.From && v.corridor(other) == way {
			t.Sources[other.From] = netip.AddrPortFrom(v.Topology.Hosts[other.From].Address, agentapi.RelayPort)
		}
	}
	return t
}
