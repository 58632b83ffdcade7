package pattern

import (
	"cmp"
	"math"
	"slices"
)

// What speaks for a step, in nats. Parts are joined on clear evidence only, as there are
// many to try, and parted on next to none.
const (
	joinAt  = 3.0
	partAt  = 1.0
	aloneAt = -1.0 // a VM's communities must be less plausible than this for it to be in none
)

// move gives every node to the community that its links speak for most, until none moves.
// A node all of whose communities are as they were when it was last asked stays.
func (p *partition) move() (moved bool) {
	const rounds = 5
	clear(p.fresh)
	for round := range rounds {
		touched := map[int]bool{}
		for i := range p.at {
			if len(p.at[i]) == 0 || round > 0 && !p.stirred(i, round) {
				continue
			}
			if from, to := p.label[i], p.best(i); to != from {
				p.put(i, to)
				touched[from], touched[p.label[i]] = true, true
				p.fresh[from], p.fresh[p.label[i]] = round+1, round+1
			}
		}
		if len(touched) == 0 {
			break
		}
		moved = true
		for l := range touched {
			if c := p.group[l]; c != nil {
				p.fit(c)
				c.settled = false
			}
		}
	}
	return moved
}

// stirred says whether node i's community or one of its peers' changed since the round before.
func (p *partition) stirred(i, round int) bool {
	if p.fresh[p.label[i]] >= round {
		return true
	}
	for _, h := range p.at[i] {
		if p.fresh[p.label[h.to]] >= round {
			return true
		}
	}
	return false
}

// best returns the label that suits node i best; -1: a new one.
func (p *partition) best(i int) int {
	own := p.label[i]
	p.choose([]int{own})
	p.seen = append(p.seen[:0], own)
	p.pulls[own] = 0
	for _, h := range p.at[i] {
		l := p.label[h.to]
		if !p.chosen(l) {
			p.mark[l] = p.marks
			p.seen = append(p.seen, l)
			p.pulls[l] = 0
		}
		if p.group[l].density > 0 {
			p.pulls[l] += p.pull(p.group[l], h.link)
		}
	}
	best, most := own, math.Inf(-1)
	for _, l := range p.seen {
		others := len(p.group[l].members)
		if l == own {
			others--
		}
		worth := aloneAt
		if others > 0 {
			worth = p.pulls[l] + float64(others)*p.group[l].absent
		}
		if worth > most { // its own comes first, so it stays where nothing is better
			best, most = l, worth
		}
	}
	if aloneAt > most {
		return -1
	}
	return best
}

// put moves node i to the community of that label; -1: to a new one.
func (p *partition) put(i, label int) {
	c := p.group[p.label[i]]
	k := slices.Index(c.members, i)
	c.members = slices.Delete(c.members, k, k+1)
	if len(c.members) == 0 {
		p.drop(p.label[i])
	}
	if label < 0 {
		p.add(&community{members: []int{i}})
		return
	}
	p.group[label].members = append(p.group[label].members, i)
	p.label[i] = label
}

func (p *partition) drop(label int) {
	p.group[label] = nil
	p.free = append(p.free, label)
}

func (p *partition) add(c *community) {
	label := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	p.group[label] = c
	for _, i := range c.members {
		p.label[i] = label
	}
}

// merge joins communities where what is between them speaks for it, the best first. One
// that grew is tried with all others again, when it was its turn or is theirs.
func (p *partition) merge() bool {
	changed := false
	for l := range p.group {
		least := l // those before it have had their turn, with this one as it is
		for p.group[l] != nil && p.mergeOne(l, least) {
			changed, least = true, 0
		}
	}
	return changed
}

// mergeOne joins a community with the best of those that have labels of at least least.
func (p *partition) mergeOne(label, least int) bool {
	c := p.group[label]
	between := p.between[:0]
	for _, i := range c.members {
		for _, h := range p.at[i] {
			if o := p.label[h.to]; o != label && o >= least {
				between = append(between, half{o, h.link})
			}
		}
	}
	p.between = between
	slices.SortFunc(between, func(x, y half) int { return cmp.Or(x.to-y.to, x.link-y.link) })
	with, most := -1, joinAt
	for len(between) > 0 {
		o, n := between[0].to, 1
		for n < len(between) && between[n].to == o {
			n++
		}
		if e := p.bond(c, p.group[o], between[:n]); e > most {
			with, most = o, e
		}
		between = between[n:]
	}
	if with < 0 {
		return false
	}
	both := &community{members: slices.Concat(c.members, p.group[with].members)}
	for _, i := range p.group[with].members {
		p.label[i] = label
	}
	p.drop(with)
	p.group[label] = both
	p.fit(both)
	return true
}

// bond is the evidence that c and d, which have those links between them, are one.
func (p *partition) bond(c, d *community, between []half) float64 {
	both := &p.both
	pool(both, c, d)
	if both.links == 0 { // two VMs
		both.mean = p.links[between[0].link].x
	}
	p.odd = p.odd[:0]
	speaks := false
	for _, h := range between {
		o := p.odds(both, h.link)
		p.odd = append(p.odd, o)
		speaks = speaks || o > 1
	}
	if !speaks {
		return 0
	}
	return evidence(p.odd, float64(len(c.members)*len(d.members)))
}

// split parts communities where next to nothing holds them together.
func (p *partition) split() bool {
	changed := false
	for l := 0; l < len(p.group); l++ {
		for c := p.group[l]; c != nil && !c.settled; c = p.group[l] {
			a, b := p.parts(c)
			if b == nil {
				c.settled = true
				break
			}
			changed = true
			p.group[l] = &community{members: a}
			p.fit(p.group[l])
			rest := &community{members: b}
			p.fit(rest)
			p.add(rest)
		}
	}
	return changed
}

// parts returns the two parts of c that are least tied, of those that a link of its
// strongest spanning tree joins; nil: none are loose enough.
func (p *partition) parts(c *community) (a, b []int) {
	if len(c.members) < 3 {
		return nil, nil
	}
	links := slices.Clone(p.inside(c.members))
	odds := make([]float64, len(links))
	order := make([]int, len(links))
	for i, l := range links {
		odds[i], order[i] = p.odds(c, l), i
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Or(cmp.Compare(odds[j], odds[i]), i-j) })
	for k, i := range c.members {
		p.place[i] = k
	}
	tree := newForest(len(c.members))
	var branches []int // the links of the tree
	for _, i := range order {
		if tree.join(p.ends(links[i])) {
			branches = append(branches, links[i])
		}
	}
	if len(branches) < len(c.members)-1 {
		return c.divide(func(k int) bool { return tree.root(k) == tree.root(0) })
	}
	turn := p.walk(len(c.members), branches)
	ends := make([][2]int32, len(links))
	for i, l := range links {
		a, b := p.ends(l)
		ends[i] = [2]int32{turn[a].from, turn[b].from}
	}
	least := partAt
	var loosest *subtree
	for _, cut := range branches {
		below := turn.below(p.ends(cut))
		if e, loose := c.tie(below, ends, odds); loose && e < least {
			least, loosest = e, &below
		}
	}
	if loosest == nil {
		return nil, nil
	}
	return c.divide(func(k int) bool { return !loosest.holds(turn[k].from) })
}

// ends returns the places of link l's ends in the community that places were last given in.
func (p *partition) ends(l int) (a, b int) { return p.place[p.links[l].a], p.place[p.links[l].b] }

// subtree is the turns of a tree's node and of all under it, in a walk down from the root: so
// a link leads out of that subtree if one of its ends has its turn in there.
type subtree struct{ from, to int32 }

func (s subtree) holds(turn int32) bool { return s.from <= turn && turn < s.to }

// walk gives the members' turns in the tree of those links, from the first member.
func (p *partition) walk(members int, branches []int) turns {
	near := make([][]int, members)
	for _, l := range branches {
		a, b := p.ends(l)
		near[a], near[b] = append(near[a], b), append(near[b], a)
	}
	t := make(turns, members)
	next := int32(0)
	var down func(k, from int)
	down = func(k, from int) {
		t[k].from = next
		next++
		for _, o := range near[k] {
			if o != from {
				down(o, k)
			}
		}
		t[k].to = next
	}
	down(0, -1)
	return t
}

// turns are of the members of a community, by place.
type turns []subtree

// below is the part of the tree that the link between a and b cuts off from the root.
func (t turns) below(a, b int) subtree {
	if t[a].holds(t[b].from) {
		return t[b]
	}
	return t[a]
}

// tie is the evidence that c's two parts, the members below and the others, belong together;
// false: there is plainly enough. Ends are the turns of each link's.
func (c *community) tie(below subtree, ends [][2]int32, odds []float64) (nats float64, loose bool) {
	const enough = 4
	var between []float64
	strong := 0
	for i, e := range ends {
		if below.holds(e[0]) == below.holds(e[1]) {
			continue
		}
		between = append(between, odds[i])
		if c.density*odds[i] > 10 {
			if strong++; strong == enough {
				return 0, false
			}
		}
	}
	some := int(below.to - below.from)
	return evidence(between, float64(some*(len(c.members)-some))), true
}

// divide returns the members that are at first places, and the others.
func (c *community) divide(first func(place int) bool) (a, b []int) {
	for k, i := range c.members {
		if first(k) {
			a = append(a, i)
		} else {
			b = append(b, i)
		}
	}
	return a, b
}

// significant returns the communities that are more than chance.
func (p *partition) significant() []*community {
	var all []*community
	for _, c := range p.group {
		if c != nil && len(c.members) > 1 && p.surprises(c) {
			all = append(all, c)
		}
	}
	p.expect(p.background(p.strays(func(link) bool { return true }), p.strangers(nil)))
	return slices.DeleteFunc(all, func(c *community) bool { return !p.standsOut(c) })
}

// surprises says whether a community is better than the best of the many that can be picked
// from the background.
func (p *partition) surprises(c *community) bool {
	const margin = 1.0 // nats
	k := float64(len(c.members))
	ways, _ := math.Lgamma(k + 1)
	return p.hold(c)+margin > k*math.Log(p.talkers())-ways
}

// standsOut says whether a community stands out from a background of all links there are, or
// its links are at least alike: what is said to be of no application must not become one by
// being taken out of the background.
func (p *partition) standsOut(c *community) bool {
	const least = 0.15 // nats a member
	var xs []float64
	for _, l := range p.inside(c.members) {
		xs = append(xs, p.links[l].x)
	}
	if ofOneKind(xs) {
		return true
	}
	p.fit(c)
	return p.hold(c) > least*float64(len(c.members))
}

// ofOneKind says whether log-rates are those of one application's links, or plainly of two
// kinds, the louder of which is: then the other one is the background under it.
func ofOneKind(xs []float64) bool {
	const (
		widest   = 1.0 // σ of the log-rates
		narrow   = 0.3
		evidence = 3.0  // nats, beyond what three more parameters cost (Schwarz 1978)
		flat     = 0.05 // and nats a link: rates that are spread evenly have two kinds by chance
	)
	slices.Sort(xs)
	n := float64(len(xs))
	sum, square := make([]float64, len(xs)+1), make([]float64, len(xs)+1)
	for i, x := range xs {
		sum[i+1], square[i+1] = sum[i]+x, square[i]+x*x
	}
	sigma := func(from, to int) float64 {
		n := float64(to - from)
		mean := (sum[to] - sum[from]) / n
		return math.Sqrt(max(0, (square[to]-square[from])/n-mean*mean))
	}
	one := sigma(0, len(xs))
	if one < widest {
		return true
	}
	most, above := 0.0, one
	for k := 2; k < len(xs)-1; k++ {
		low, high := float64(k), n-float64(k)
		gain := n*math.Log(one) - low*math.Log(max(narrow, sigma(0, k))) - high*math.Log(max(narrow, sigma(k, len(xs)))) +
			low*math.Log(low/n) + high*math.Log(high/n)
		if gain > most {
			most, above = gain, sigma(k, len(xs))
		}
	}
	return above < widest && most > evidence+1.5*math.Log(n)+flat*n
}

// hold is the evidence that a community is one, over its members being strangers.
func (p *partition) hold(c *community) float64 {
	p.odd = p.odd[:0]
	for _, l := range p.inside(c.members) {
		p.odd = append(p.odd, p.odds(c, l))
	}
	return evidence(p.odd, float64(len(c.members)*(len(c.members)-1))/2)
}
