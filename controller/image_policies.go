package controller

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/images"
	"heliotrope/controller/world"
	"heliotrope/migration"
)

// imageFollowed is how long an image that follows its VMs stays wanted where one of them was.
const imageFollowed = 7 * 24 * time.Hour

// ImagePolicies are those of the topology, and where VMs of images are, are to be, and were lately.
func (c counted) ImagePolicies() images.Policies {
	v := c.world.View()
	p := images.Policies{Images: map[heliotrope.ImageID]heliotrope.ImagePolicy{}, Uses: imageUses(v, time.Now())}
	maps.Copy(p.Images, v.Topology.Images)
	plans, err := c.pilot.Plans(context.Background())
	if err != nil {
		return p // it is only starting, and knows of none
	}
	for _, plan := range plans {
		if plan.State != api.PlanProposed && plan.State != api.PlanRunning {
			continue
		}
		for _, m := range plan.Plan.Moves {
			p.Uses = append(p.Uses, imageUse(v, m.VM, m.To, "a plan has %s go there"))
		}
	}
	return p
}

// imagesAsked is how long a plan of the topology waits for the image store.
const imagesAsked = 10 * time.Second

// imageWarnings say what changes of images' policies would have come, and cost.
func (c desired) imageWarnings(ctx context.Context, t heliotrope.Topology, changes []api.ObjectChange) []string {
	var changed []heliotrope.ImageID
	for _, ch := range changes {
		if ch.Kind == "image policy" && ch.Op != "delete" {
			changed = append(changed, heliotrope.ImageID(ch.Name))
		}
	}
	if c.images == nil || len(changed) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, imagesAsked)
	defer cancel()
	return c.images.Foretell(ctx, t.Images, changed)
}

func imageUse(v *world.View, vm heliotrope.VMID, host heliotrope.HostID, why string) images.Use {
	image, _, _ := strings.Cut(v.Topology.VMs[vm].Image, "@")
	return images.Use{Image: heliotrope.ImageID(image), Site: v.Topology.Hosts[host].Site, Why: fmt.Sprintf(why, vm)}
}

// imageUses are those by the view: VMs that run come first.
func imageUses(v *world.View, now time.Time) []images.Use {
	var are, will, were []images.Use
	for _, vm := range slices.Sorted(maps.Keys(v.Topology.VMs)) {
		p, placed := v.Placements[vm]
		if !placed {
			will = append(will, imageUse(v, vm, v.Topology.VMs[vm].Host, "%s is to start there"))
			continue
		}
		are = append(are, imageUse(v, vm, p.Host, "%s runs there"))
		if p.Incoming != "" {
			will = append(will, imageUse(v, vm, p.Incoming, "%s moves there"))
		}
	}
	moves := slices.SortedFunc(maps.Values(v.Moves), func(a, b world.Move) int { return cmp.Compare(b.ID, a.ID) })
	for _, m := range moves {
		ended, ok := m.EnteredAt(migration.Succeeded)
		if _, there := v.Topology.VMs[m.VM]; ok && there && now.Sub(ended) < imageFollowed {
			were = append(were, imageUse(v, m.VM, m.From, "%s was there until "+ended.UTC().Format("Mon 15:04")+" UTC"))
		}
	}
	return slices.Concat(are, will, were)
}
