package world

import (
	"maps"
	"slices"
	"strings"

	"heliotrope"
	"heliotrope/controller/store"
)

// digest works out what an update means, once for the loops of all hosts.
func (v *View) digest(u store.Update, before View) {
	v.Underway = make(map[heliotrope.VMID]heliotrope.MoveID)
	for id, m := range v.Moves {
		if !m.Phase.Ended() {
			v.Underway[m.VM] = id
		}
	}
	concerned := maps.Clone(v.Concerned)
	if concerned == nil {
		concerned = make(map[heliotrope.HostID]int64)
	}
	rewired := u.Reset
	var placed []heliotrope.VMID
	for _, ch := range u.Changes {
		kind, name, _ := strings.Cut(ch.Key, "/")
		switch kind {
		case "topology":
			rewired = true
		case "placements":
			vm := heliotrope.VMID(name)
			placed = append(placed, vm)
			for _, p := range []heliotrope.Placement{before.Placements[vm], v.Placements[vm]} {
				concerned[p.Host], concerned[p.Incoming] = u.Rev, u.Rev
			}
		case "moves":
			if m := v.Moves[heliotrope.MoveID(name)]; before.Underway[m.VM] != v.Underway[m.VM] {
				concerned[m.From], concerned[m.To] = u.Rev, u.Rev
			}
		}
	}
	v.Concerned = concerned
	if rewired {
		v.recent = recently{since: v.Fabric}
	} else {
		v.recent = v.recent.with(placed, v.Fabric)
	}
}

// recently are the newest changes of the fabric for as long as they were of placements
// only, so that a host can follow them one by one.
type recently struct {
	since  uint64 // every change after this fabric is in placed
	placed []placedAt
}

type placedAt struct {
	fabric uint64
	vm     heliotrope.VMID
}

// RecentKept is how many changes a host may be behind without starting anew.
const RecentKept = 128

// with returns r and changes at fabric.
func (r recently) with(vms []heliotrope.VMID, fabric uint64) recently {
	if len(vms) == 0 {
		return r
	}
	placed := slices.Clone(r.placed)
	for _, vm := range vms {
		placed = append(placed, placedAt{fabric, vm})
	}
	if over := len(placed) - RecentKept; over > 0 {
		r.since = placed[over-1].fabric
		placed = placed[over:]
	}
	r.placed = placed
	return r
}

// PlacedSince returns the VMs whose placements changed after fabric; ok is false when more
// than that did, or when it is too long ago.
func (v *View) PlacedSince(fabric uint64) (vms []heliotrope.VMID, ok bool) {
	for _, p := range v.recent.placed {
		if p.fabric > fabric {
			vms = append(vms, p.vm)
		}
	}
	return vms, fabric >= v.recent.since
}
