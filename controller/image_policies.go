package controller

import (
	"context"
	"maps"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/images"
)

// ImagePolicies are those of the topology, and where VMs of images are, are to be, and were lately.
func (c counted) ImagePolicies() images.Policies {
	v := c.world.View()
	p := images.Policies{Images: map[heliotrope.ImageID]heliotrope.ImagePolicy{}, Uses: images.UsesOf(v, time.Now())}
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
			p.Uses = append(p.Uses, images.UseAt(v, m.VM, m.To, "a plan has %s go there"))
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
