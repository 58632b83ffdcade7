package traffic

import (
	"maps"
	"slices"
	"time"

	"heliotrope"
)

// Way is how packets go from one site to another: over the links with the least delay in
// all.
type Way struct {
	Delay      time.Duration      // one way
	PricePerGB float64            // USD per 10^9 bytes
	Rate       heliotrope.BitRate // of the narrowest link; 0: no link has a limit
}

// Ways are those between every two sites that have one. They are the same in both directions.
func Ways(t heliotrope.Topology) map[[2]heliotrope.SiteID]Way {
	ways := map[[2]heliotrope.SiteID]Way{}
	for _, id := range slices.Sorted(maps.Keys(t.Links)) {
		l := t.Links[id]
		w := Way{time.Duration(l.Delay), l.PricePerGB, l.Rate}
		ways[l.Between], ways[[2]heliotrope.SiteID{l.Between[1], l.Between[0]}] = w, w
	}
	sites := slices.Sorted(maps.Keys(t.Sites))
	for _, over := range sites { // Floyd and Warshall
		for _, a := range sites {
			for _, z := range sites {
				x, ok1 := ways[[2]heliotrope.SiteID{a, over}]
				y, ok2 := ways[[2]heliotrope.SiteID{over, z}]
				now, ok := ways[[2]heliotrope.SiteID{a, z}]
				if a != z && ok1 && ok2 && (!ok || x.Delay+y.Delay < now.Delay) {
					ways[[2]heliotrope.SiteID{a, z}] = Way{x.Delay + y.Delay, x.PricePerGB + y.PricePerGB, narrower(x.Rate, y.Rate)}
				}
			}
		}
	}
	return ways
}

func narrower(a, b heliotrope.BitRate) heliotrope.BitRate {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
