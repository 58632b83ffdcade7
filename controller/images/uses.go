package images

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"heliotrope"
	"heliotrope/controller/world"
	"heliotrope/migration"
)

// followed is how long an image that follows its VMs stays wanted where one of them was.
const followed = 7 * 24 * time.Hour

// UseAt is that a VM is, was or is to be at a host; why has a place for its name.
func UseAt(v *world.View, vm heliotrope.VMID, host heliotrope.HostID, why string) Use {
	image, _, _ := strings.Cut(v.Topology.VMs[vm].Image, "@")
	return Use{Image: heliotrope.ImageID(image), Site: v.Topology.Hosts[host].Site, Why: fmt.Sprintf(why, vm)}
}

// UsesOf are the images that VMs are at which site for: those that run come first, then those that are to, then
// those that did lately.
func UsesOf(v *world.View, now time.Time) []Use {
	var are, will, were []Use
	for _, vm := range slices.Sorted(maps.Keys(v.Topology.VMs)) {
		p, placed := v.Placements[vm]
		if !placed {
			will = append(will, UseAt(v, vm, v.Topology.VMs[vm].Host, "%s is to start there"))
			continue
		}
		are = append(are, UseAt(v, vm, p.Host, "%s runs there"))
		if p.Incoming != "" {
			will = append(will, UseAt(v, vm, p.Incoming, "%s moves there"))
		}
	}
	moves := slices.SortedFunc(maps.Values(v.Moves), func(a, b world.Move) int { return cmp.Compare(b.ID, a.ID) })
	for _, m := range moves {
		ended, ok := m.EnteredAt(migration.Succeeded)
		if _, there := v.Topology.VMs[m.VM]; ok && there && now.Sub(ended) < followed {
			were = append(were, UseAt(v, m.VM, m.From, "%s was there until "+ended.UTC().Format("Mon 15:04")+" UTC"))
		}
	}
	return slices.Concat(are, will, were)
}
