package spread

import (
	"fmt"
	"slices"

	"heliotrope"
)

// Host is one that the content is to be brought to, or its source.
type Host struct {
	ID   heliotrope.HostID
	Site heliotrope.SiteID
	Rate float64 // bytes a second of its own link, 0: not known
}

// Hop is whom a host gets the content from: the first of From that lives.
type Hop struct {
	Host heliotrope.HostID `json:"host"`
	Site heliotrope.SiteID `json:"site"`
	From []Feeder          `json:"from"`
}

const (
	slowShare = 0.5 // of its site's median rate: what a host must have to stay in its place
	spares    = 2   // hosts of each other site that are asked when there is no source
)

// Plan says which host gets the content from which. The first host of each site, its head,
// gets it from the source; each other from the host before it at its site. The order is that of
// hosts, but that a host whose known rate is below half of its site's median goes to the end. After
// the source, a list has a few hosts of the sites planned before.
//
// All heads at the source share its uplink. Feeds may therefore say that a site is fed by another
// one instead of by the source's; its head then gets the content from the last host there, whose uplink
// is free, so that with a chain of sites no host sends more than once. It may be nil.
//
// The Hops are in an order in which each host's feeders precede it, those of the source's site first. The same
// arguments give the same plan. A host that is the source, or named twice, is an error; so are
// sites that feed each other in a ring.
func Plan(source Host, hosts []Host, feeds map[heliotrope.SiteID]heliotrope.SiteID) ([]Hop, error) {
	p := planner{source: source, feeds: feeds, chains: map[heliotrope.SiteID][]Host{}, tails: map[heliotrope.SiteID][]Host{}}
	seen := map[heliotrope.HostID]bool{source.ID: true}
	sites := []heliotrope.SiteID{source.Site}
	for _, h := range hosts {
		if seen[h.ID] {
			return nil, fmt.Errorf("plan spread: host %s is there twice", h.ID)
		}
		seen[h.ID] = true
		p.chains[h.Site] = append(p.chains[h.Site], h)
		sites = append(sites, h.Site)
	}
	for site, chain := range p.chains {
		p.chains[site] = slowLast(chain)
	}
	for _, site := range sites {
		if _, err := p.chain(site, nil); err != nil {
			return nil, err
		}
	}
	return p.hops, nil
}

// planner is a plan on its way.
type planner struct {
	source Host
	feeds  map[heliotrope.SiteID]heliotrope.SiteID
	chains map[heliotrope.SiteID][]Host
	tails  map[heliotrope.SiteID][]Host // of planned sites: from the last host up to the source
	spare  []Host                       // of planned sites
	hops   []Hop
}

// chain plans a site, and before it the site that feeds it. It returns the site's hosts and all
// above them, the last one first. Asking are the sites that wait for it.
func (p *planner) chain(site heliotrope.SiteID, asking []heliotrope.SiteID) ([]Host, error) {
	if tail, ok := p.tails[site]; ok {
		return tail, nil
	}
	if slices.Contains(asking, site) {
		return nil, fmt.Errorf("plan spread: sites feed each other in a ring: %v", append(asking, site))
	}
	above := []Host{p.source}
	if feeder, ok := p.feeds[site]; ok && feeder != site {
		var err error
		if above, err = p.chain(feeder, append(asking, site)); err != nil {
			return nil, err
		}
	}
	spare := slices.DeleteFunc(slices.Clone(p.spare), func(h Host) bool { return slices.Contains(above, h) })
	for _, h := range p.chains[site] {
		hop := Hop{Host: h.ID, Site: site}
		for _, f := range slices.Concat(above, spare) {
			hop.From = append(hop.From, Feeder{Host: f.ID, Remote: f.Site != site})
		}
		p.hops = append(p.hops, hop)
		above = append([]Host{h}, above...)
	}
	p.tails[site] = above
	p.spare = append(p.spare, p.chains[site][:min(spares, len(p.chains[site]))]...)
	return above, nil
}

// slowLast puts hosts that are known to be slow at the end.
func slowLast(chain []Host) []Host {
	var rates []float64
	for _, h := range chain {
		if h.Rate > 0 {
			rates = append(rates, h.Rate)
		}
	}
	if len(rates) == 0 {
		return chain
	}
	slices.Sort(rates)
	least := slowShare * rates[len(rates)/2]
	slow := func(h Host) int {
		if h.Rate > 0 && h.Rate < least {
			return 1
		}
		return 0
	}
	sorted := slices.Clone(chain)
	slices.SortStableFunc(sorted, func(a, b Host) int { return slow(a) - slow(b) })
	return sorted
}
