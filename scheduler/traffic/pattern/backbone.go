package pattern

import (
	"cmp"
	"math"
	"slices"
)

// The background is what VMs send each other for no application's sake: probes, updates,
// a login. Who does so is random, so of two VMs that share no application it is known only
// how often such a pair talks, and how much then. Both are read off the links that are in
// no community, so the background and the partition sharpen each other.
const (
	grain    = 0.1  // of log-rates, in which the background is tabulated
	narrow   = 4    // grains to each side over which it is smoothed at least, by a triangle
	breadth  = 1.3  // log-rates to each side over which one link alone is
	surprise = 0.25 // links that may come at any rate, spread evenly over
	span     = 14.0 // so many log-rates: six decades
	crowd    = 8.0  // links of a mean node that a node's own must outweigh to make it a busy one
	mixed    = 20.0 // links that strays and others are taken to have in common, whether answered or not
	contrast = 2.5  // log-rates: what is so far under an end's heaviest link is not of its application
)

// background returns of every link the logarithm of how many like it a pair of VMs has
// that share no application, per unit of log-rate. It is learnt from the stray links, each
// by the probability that it is one; a link does not speak for itself. There are so many
// pairs that could have one.
func (n *network) background(stray []float64, pairs float64) []float64 {
	if len(n.links) == 0 {
		return nil
	}
	busy := make([]float64, n.nodes) // links, then the logarithm of by how much that is more than the mean
	count, low, high := 0.0, math.Inf(1), math.Inf(-1)
	for i, l := range n.links {
		low, high = min(low, l.x), max(high, l.x)
		busy[l.a] += stray[i]
		busy[l.b] += stray[i]
		count += stray[i]
	}
	talkers := n.talkers()
	for i := range busy {
		busy[i] = math.Log((busy[i] + crowd) / (2*count/talkers + crowd))
	}
	// The fewer there are, the wider each is taken (Silverman, Density Estimation, 1986, 3.31).
	reach := max(narrow, int(breadth*math.Pow(1+count, -0.2)/grain)-1)
	hits := make([]float64, int((high-low)/grain)+2*reach+1)
	for i, l := range n.links {
		hits[int((l.x-low)/grain)+reach] += stray[i]
	}
	own := 1 / (float64(reach+1) * grain) // what a link adds at its own rate
	anywhere := surprise / span / (talkers * (talkers - 1) / 2)
	answered, silent := n.answers(stray)
	out := make([]float64, len(n.links))
	for i, l := range n.links {
		at, sum := int((l.x-low)/grain)+reach, 0.0
		for k := -reach; k <= reach; k++ {
			sum += hits[at+k] * float64(reach+1-max(k, -k)) / float64(reach+1)
		}
		sum -= stray[i]
		out[i] = math.Log(max(0, sum)*own/pairs+anywhere) + busy[l.a] + busy[l.b]
		if l.answered() {
			out[i] += answered
		} else {
			out[i] += silent
		}
	}
	return out
}

// answers returns the logarithm of how much likelier a stray link is answered than another,
// and how much likelier it is not. TCP is answered; many a probe is not.
func (n *network) answers(stray []float64) (answered, silent float64) {
	var all, those [2]float64 // of strays: the second
	for i, l := range n.links {
		all[0] += 1 - stray[i]
		all[1] += stray[i]
		if l.answered() {
			those[0] += 1 - stray[i]
			those[1] += stray[i]
		}
	}
	usual := (those[0] + those[1]) / (all[0] + all[1])
	ours := (those[0] + mixed*usual) / (all[0] + mixed)
	theirs := (those[1] + mixed*usual) / (all[1] + mixed)
	return math.Log(theirs / ours), math.Log((1 - theirs) / (1 - ours))
}

// strangers returns the number of pairs of VMs that talk and are not under one label.
func (n *network) strangers(label []int) float64 {
	talkers := n.talkers()
	pairs := talkers * (talkers - 1) / 2
	size := make([]float64, n.nodes)
	for i, l := range label {
		if len(n.at[i]) > 0 {
			pairs -= size[l]
			size[l]++
		}
	}
	return max(1, pairs)
}

// talkers is the number of VMs that have a link.
func (n *network) talkers() float64 {
	count := 0.0
	for _, at := range n.at {
		if len(at) > 0 {
			count++
		}
	}
	return count
}

// strays says 1 of the links that are some, and 0 of the others.
func (n *network) strays(is func(link) bool) []float64 {
	all := make([]float64, len(n.links))
	for i, l := range n.links {
		if is(l) {
			all[i] = 1
		}
	}
	return all
}

// skeleton is the first guess at communities, as a label for every node: that of one of
// its community's; and the background that it was made with. What is far under the heaviest link of one of its ends is background.
// What that makes likely is then no reason to join two VMs.
func (n *network) skeleton() (label []int, noise []float64) {
	top := make([]float64, n.nodes)
	for i := range top {
		top[i] = math.Inf(-1)
	}
	for _, l := range n.links {
		top[l.a], top[l.b] = max(top[l.a], l.x), max(top[l.b], l.x)
	}
	order := make([]int, len(n.links))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Or(cmp.Compare(n.links[j].x, n.links[i].x), i-j) })

	faint := func(l link) bool { return max(top[l.a], top[l.b]) > l.x+contrast }
	noise = n.background(n.strays(faint), n.strangers(nil))
	for range 2 {
		label = n.backbone(order, noise)
		noise = n.background(n.strays(func(l link) bool { return label[l.a] != label[l.b] }), n.strangers(label))
	}
	return n.backbone(order, noise), noise
}

// backbone takes links from the heaviest down. One joins what its ends are in by now if it
// is of the scale of both (an application's links are alike, and its VMs' other links are
// not) and no background link was to be expected between the two.
func (n *network) backbone(order []int, noise []float64) []int {
	const tolerance = 1.5 // log-rates under the mean of what is there
	const evidence = 2.0  // nats
	f := newForest(n.nodes)
	size, links, sum := make([]float64, n.nodes), make([]float64, n.nodes), make([]float64, n.nodes)
	for i := range size {
		size[i] = 1
	}
	for _, i := range order {
		l := n.links[i]
		a, b := f.root(l.a), f.root(l.b)
		if links[a] > 0 && sum[a]/links[a] > l.x+tolerance || links[b] > 0 && sum[b]/links[b] > l.x+tolerance {
			continue
		}
		if a != b {
			if noise[i]+math.Log(size[a]*size[b]) > -evidence {
				continue
			}
			f[b] = a
			size[a] += size[b]
			links[a] += links[b]
			sum[a] += sum[b]
		}
		links[a]++
		sum[a] += l.x
	}
	label := make([]int, n.nodes)
	for i := range label {
		label[i] = f.root(i)
	}
	return label
}

// forest is a union-find: each node's parent, a root's being itself.
type forest []int

func newForest(nodes int) forest {
	f := make(forest, nodes)
	for i := range f {
		f[i] = i
	}
	return f
}

func (f forest) root(i int) int {
	for f[i] != i {
		f[i] = f[f[i]]
		i = f[i]
	}
	return i
}

// join makes one tree of the trees of a and b, under a's root; false: they are one.
func (f forest) join(a, b int) bool {
	a, b = f.root(a), f.root(b)
	f[b] = a
	return a != b
}
