package pattern

import (
	"math"
	"slices"
)

// Communities returns which VMs belong together, each community's nodes in order, the
// communities by their first node. VMs that belong to none, and what is outside, are left
// out.
//
// A matrix is taken for communities over a background. Two VMs of a community talk with a
// probability that is the community's own, at a rate that is lognormal around its scale and
// over services that are few; all others talk as the background does. So a link is weighed
// by how much likelier it is as an application's than as the background's, in nats, and what
// is measured of the background (how often, how much, whether there is an answer, over
// which service) is worth as much as it tells the two apart in this matrix. A community has
// no least size or density that it must have to be seen: the resolution limit of modularity
// (Fortunato and Barthélemy, PNAS 2007) splits or swallows rings, pipelines and grids.
//
// It takes time about linear in the number of edges.
func Communities(g Graph) [][]int {
	n := newNetwork(g)
	return n.communities()
}

func (n *network) communities() [][]int {
	const rounds = 4
	label, noise := n.skeleton()
	p := newPartition(n, label)
	p.expect(noise)
	for range rounds {
		p.learn()
		moved, split := p.move(), p.split()
		if merged := p.merge(); !moved && !split && !merged {
			break
		}
	}
	var all [][]int
	for _, c := range p.significant() {
		slices.Sort(c.members)
		all = append(all, c.members)
	}
	slices.SortFunc(all, func(a, b []int) int { return a[0] - b[0] })
	return all
}

// community is a set of nodes, and what its application's links are like.
type community struct {
	members  []int
	density  float64         // the probability that two members have one
	absent   float64         // log(1-density)
	mean     float64         // of the log-rates
	sigma    float64         // of the log-rates
	links    float64         // how many there are, as expected
	services map[int]float64 // how many there are of each service
	parts    []*community    // whose services count as well
	settled  bool            // it could not be split, and nothing changed since
}

// What is assumed of a community before its links are seen, and how many links that is
// worth: small communities are not surer than large ones.
const (
	spread  = 0.6  // σ of the log-rates,
	worth   = 4.0  // worth so many links
	odd     = 0.05 // share of its links that are of any rate: tiers differ
	variety = 3.0  // links that have a service of their own: the Dirichlet process' concentration
)

// partition is a network, its communities and the background. Nodes that are alone are
// communities of one.
type partition struct {
	*network
	label []int        // of each node: the index of its community
	group []*community // nil: none has that label
	free  []int        // labels that none has
	fresh []int        // of each label: the round in which it last changed

	// Scratch. Nodes and labels have the same numbers.
	mark    []int     // nodes or labels of interest have the newest mark
	marks   int       // the newest
	seen    []int     // labels
	pulls   []float64 // of labels
	place   []int     // of nodes, in the community that is looked at
	list    []int     // links
	weight  []float64 // of links
	odd     []float64 // of links
	between []half    // links with the label that they lead to
	both    community // what two are together
}

func newPartition(n *network, label []int) *partition {
	p := &partition{network: n, label: label, group: make([]*community, n.nodes)}
	p.mark, p.place, p.pulls = make([]int, n.nodes), make([]int, n.nodes), make([]float64, n.nodes)
	p.fresh = make([]int, n.nodes)
	for i, l := range label {
		if p.group[l] == nil {
			p.group[l] = &community{}
		}
		p.group[l].members = append(p.group[l].members, i)
	}
	for l := range p.group {
		if p.group[l] == nil {
			p.free = append(p.free, l)
		}
	}
	return p
}

// learn fits the background, then every community. There is background within communities
// as well, and where one has all VMs there is no other to learn from.
func (p *partition) learn() {
	stray, pairs := p.strays(func(l link) bool { return p.label[l.a] != p.label[l.b] }), p.strangers(p.label)
	for _, c := range p.group {
		if c == nil || len(c.members) < 2 {
			continue
		}
		if c.services == nil { // it comes from the skeleton
			p.fit(c)
		}
		pairs += float64(len(c.members)*(len(c.members)-1)) / 2
		for _, l := range p.inside(c.members) {
			stray[l] = (1 - c.density) / (1 - c.density + c.density*p.odds(c, l))
			pairs -= 1 - stray[l]
		}
	}
	p.expect(p.background(stray, max(1, pairs)))
	for _, c := range p.group {
		if c != nil {
			p.fit(c)
			c.settled = false
		}
	}
}

// expect says of every link what background returned.
func (p *partition) expect(noise []float64) {
	for i, v := range noise {
		p.links[i].noise, p.links[i].rare = v, math.Exp(-v)
	}
}

// choose marks nodes, and no others.
func (p *partition) choose(nodes []int) {
	p.marks++
	for _, i := range nodes {
		p.mark[i] = p.marks
	}
}

func (p *partition) chosen(i int) bool { return p.mark[i] == p.marks }

// inside returns the links among nodes, by number. The next call overwrites them.
func (p *partition) inside(nodes []int) []int {
	p.choose(nodes)
	links := p.list[:0]
	for _, i := range nodes {
		for _, h := range p.at[i] {
			if h.to > i && p.chosen(h.to) {
				links = append(links, h.link)
			}
		}
	}
	p.list = links
	return links
}

// fit finds what a community's links are like, by expectation-maximisation: which of the
// links inside are its application's, and what those are like, in turn.
func (p *partition) fit(c *community) {
	const rounds, standing = 5, 6.0 // standing is in nats
	links := p.inside(c.members)
	pairs := float64(len(c.members)*(len(c.members)-1)) / 2
	c.density, c.mean, c.sigma, c.links, c.absent, c.services = 0, 0, spread, 0, 0, nil
	if len(links) == 0 {
		return
	}
	c.services = make(map[int]float64, 4)
	weight := slices.Grow(p.weight[:0], len(links))[:len(links)]
	p.weight = weight
	for i, l := range links { // at first, what stands out from the background is taken for its
		weight[i] = 1 / (1 + math.Exp(p.links[l].noise+standing))
	}
	for range rounds {
		sum, mean, square := 0.0, 0.0, 0.0
		for i, l := range links {
			sum += weight[i]
			mean += weight[i] * p.links[l].x
		}
		mean /= sum
		for i, l := range links {
			square += weight[i] * (p.links[l].x - mean) * (p.links[l].x - mean)
		}
		c.mean, c.links = mean, sum
		c.sigma = math.Sqrt((square + worth*spread*spread) / (sum + worth))
		c.density = min(sum+0.5, pairs+0.5) / (pairs + 1)
		for i, l := range links {
			r := c.density * p.odds(c, l)
			weight[i] = r / (1 - c.density + r)
		}
		clear(c.services)
		for i, l := range links {
			c.services[p.links[l].service] += weight[i]
		}
	}
	c.absent = math.Log(1 - c.density)
}

// pool makes both what the links of c and d together are like.
func pool(both, c, d *community) {
	*both = community{links: c.links + d.links, sigma: spread, parts: append(both.parts[:0], c, d)}
	if both.links == 0 {
		return
	}
	both.mean = (c.links*c.mean + d.links*d.mean) / both.links
	square := worth * spread * spread
	for _, x := range [2]*community{c, d} {
		square += x.sigma*x.sigma*(x.links+worth) - worth*spread*spread + x.links*(x.mean-both.mean)*(x.mean-both.mean)
	}
	both.sigma = math.Sqrt(square / (both.links + worth))
}

// odds is how much likelier link l's rate is of c's application, if it is of one, than a
// link of that rate is in the background.
func (p *partition) odds(c *community, l int) float64 {
	k := &p.links[l]
	z := (k.x - c.mean) / c.sigma
	like := (1-odd)*math.Exp(-z*z/2)/(c.sigma*math.Sqrt(2*math.Pi)) + odd/span
	return like * k.rare * p.kin(c, k)
}

// kin is how much likelier a link's service is in c than anywhere. An application's links
// have few services; which is a Dirichlet process with the services of all links as its
// base. The link itself does not count.
func (p *partition) kin(c *community, l *link) float64 {
	s := l.service
	same, links := c.services[s], c.links
	for _, d := range c.parts {
		same += d.services[s]
	}
	if p.label[l.a] == p.label[l.b] {
		own := min(1, same)
		same -= own
		links = max(0, links-own)
	}
	return (same/p.share[s] + variety) / (links + variety)
}

// pull is how much more link l speaks for its ends being in c than no link would, in nats.
func (p *partition) pull(c *community, l int) float64 {
	return math.Log(1-c.density+c.density*p.odds(c, l)) - c.absent
}

// evidence is how much likelier it makes what is and is not between two sets of nodes that
// they are parts of one application like c than that they are strangers, in nats. How
// densely the two are tied does not matter: the parts of a ring have two links.
func evidence(odds []float64, pairs float64) float64 {
	density := (float64(len(odds)) + 0.5) / (pairs + 1)
	for range 4 {
		sum := 0.0
		for _, o := range odds {
			sum += density * o / (1 - density + density*o)
		}
		density = (sum + 0.01) / (pairs + 0.02)
	}
	nats := (pairs - float64(len(odds))) * math.Log(1-density)
	for _, o := range odds {
		nats += math.Log(1 - density + density*o)
	}
	return nats
}
