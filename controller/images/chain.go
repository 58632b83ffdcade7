package images

import (
	"slices"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
)

const (
	// lenders is how many hosts of a site that have all of a version are asked to pass it on, though it is
	// not for them.
	lenders = 2
	// byHand is how long a push that somebody ordered is let be by policies.
	byHand = 24 * time.Hour
)

// chains are, by site, the hosts along which a version comes to these hosts, in order: each gets it from the one
// before it, and the first, unless it has all of it, from the store. Those that have all of it stand
// first, then all by name: so of two chains that are in force for a while no two hosts wait for each
// other. A site of which a host would get it from the store anyway has none.
func (s snapshot) chains(i api.Image, to []Host) map[heliotrope.SiteID][]Host {
	chains, whole := map[heliotrope.SiteID][]Host{}, map[heliotrope.SiteID]int{}
	for _, h := range s.hosts {
		if h.Agent == nil || h.Images == nil || !h.Relay.IsValid() {
			continue
		}
		if place(h, i).State != api.PlaceHere && !fits(h, i, i.ContentBytes) {
			continue
		}
		_, told := s.ordered[order{h.ID, i.Ref()}]
		use := told || slices.ContainsFunc(to, h.is)
		if place(h, i).State == api.PlaceHere {
			whole[h.Site]++
			use = use || whole[h.Site] <= lenders
		}
		if use {
			chains[h.Site] = append(chains[h.Site], h)
		}
	}
	for site, chain := range chains {
		lacks := func(h Host) bool { return place(h, i).State != api.PlaceHere }
		if len(chain) < 2 || !slices.ContainsFunc(chain, lacks) {
			delete(chains, site)
			continue
		}
		slices.SortStableFunc(chain, func(a, b Host) int {
			switch la, lb := lacks(a), lacks(b); {
			case la == lb:
				return 0
			case la:
				return 1
			}
			return -1
		})
	}
	return chains
}

// peersOf is a chain as its hosts are told of it.
func peersOf(chain []Host) (all []agentapi.ImagePeer) {
	for _, h := range chain {
		all = append(all, agentapi.ImagePeer{Host: h.ID, Relay: h.Relay})
	}
	return all
}

// carrier is who brings a version to a host's site, other than the host itself; empty: nobody.
func carrier(chains map[heliotrope.SiteID][]Host, h Host) heliotrope.HostID {
	chain := chains[h.Site]
	at := slices.IndexFunc(chain, h.is)
	if at < 1 {
		return ""
	}
	return chain[at-1].ID
}
