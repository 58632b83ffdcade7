package topologies

import (
	"maps"
	"slices"
	"time"

	"heliotrope"
)

// Ways are the links that packets of a site cross to each other one, in order: the link between them, or else the way
// of least delay, as far as a site that has a link to the other. A site that no links lead to is not in it.
func Ways(t heliotrope.Topology, from heliotrope.SiteID) map[heliotrope.SiteID][]heliotrope.LinkID {
	type hop struct {
		to   heliotrope.SiteID
		link heliotrope.LinkID
		far  time.Duration
	}
	next := map[heliotrope.SiteID][]hop{}
	for _, id := range slices.Sorted(maps.Keys(t.Links)) {
		a, b := t.Links[id].Between[0], t.Links[id].Between[1]
		// A hop costs a little of its own, so that links without delay make no detours.
		far := time.Duration(t.Links[id].Delay) + time.Microsecond
		next[a], next[b] = append(next[a], hop{b, id, far}), append(next[b], hop{a, id, far})
	}
	dist, last := map[heliotrope.SiteID]time.Duration{from: 0}, map[heliotrope.SiteID]hop{} // last: of the quickest way, where it comes from
	for done := map[heliotrope.SiteID]bool{}; ; {
		at, found := from, false
		for _, s := range slices.Sorted(maps.Keys(dist)) {
			if !done[s] && (!found || dist[s] < dist[at]) {
				at, found = s, true
			}
		}
		if !found {
			break
		}
		done[at] = true
		for _, h := range next[at] {
			if d, known := dist[h.to]; !known || dist[at]+h.far < d {
				dist[h.to], last[h.to] = dist[at]+h.far, hop{at, h.link, h.far}
			}
		}
	}
	ways := map[heliotrope.SiteID][]heliotrope.LinkID{}
	for to := range last {
		// back from the end, for the first site on the way that has a link there
		way := []heliotrope.LinkID{last[to].link}
		for at := last[to].to; at != from; at = last[at].to {
			way = append(way, last[at].link)
		}
		slices.Reverse(way)
		at := from
		for k := range way {
			if i := slices.IndexFunc(next[at], func(h hop) bool { return h.to == to }); i >= 0 {
				way = append(way[:k], next[at][i].link)
				break
			}
			i := slices.IndexFunc(next[at], func(h hop) bool { return h.link == way[k] })
			at = next[at][i].to
		}
		ways[to] = way
	}
	return ways
}
