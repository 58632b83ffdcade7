package controller

import (
	"maps"
	"slices"
	"strings"

	"heliotrope"
	"heliotrope/controller/store"
)

// digest works out what an update means, once for the loops of all hosts.
func (v *view) digest(u store.Update, before view) {
	v.underway = make(map[heliotrope.VMID]heliotrope.MoveID)
	for id, m := range v.moves {
		if !m.Phase.Ended() {
			v.underway[m.VM] = id
		}
	}
	concerned := maps.Clone(v.concerned)
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
			for _, p := range []heliotrope.Placement{before.placements[vm], v.placements[vm]} {
				concerned[p.Host], concerned[p.Incoming] = u.Rev, u.Rev
			}
		case "moves":
			if m := v.moves[heliotrope.MoveID(name)]; before.underway[m.VM] != v.underway[m.VM] {
				concerned[m.From], concerned[m.To] = u.Rev, u.Rev
			}
		}
	}
	v.concerned = concerned
	if rewired {
		v.recent = recently{since: v.fabric}
	} else {
		v.recent = v.recent.with(placed, v.fabric)
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

// recentKept is how many changes a host may be behind without starting anew.
const recentKept = 128

// with returns r and changes at fabric.
func (r recently) with(vms []heliotrope.VMID, fabric uint64) recently {
	if len(vms) == 0 {
		return r
	}
	placed := slices.Clone(r.placed)
	for _, vm := range vms {
		placed = append(placed, placedAt{fabric, vm})
	}
	if over := len(placed) - recentKept; over > 0 {
		r.since = placed[over-1].fabric
		placed = placed[over:]
	}
	r.placed = placed
	return r
}

// after returns the VMs whose placements changed after fabric; ok is false when more than
// that did, or when it is too long ago.
func (r recently) after(fabric uint64) (vms []heliotrope.VMID, ok bool) {
	for _, p := range r.placed {
		if p.fabric > fabric {
			vms = append(vms, p.vm)
		}
	}
	return vms, fabric >= r.since
}
