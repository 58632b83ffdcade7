package pattern

import (
	"cmp"
	"slices"

	"heliotrope/scheduler/traffic"
)

// Analysis is what a matrix means.
type Analysis struct {
	Groups []Group       `json:"groups"`           // those with the most bytes first
	Alone  []traffic.End `json:"alone,omitempty"`  // VMs that talk and are in no group
	Bytes  float64       `json:"bytes_per_second"` // of the whole matrix
	Inside float64       `json:"inside_per_second"`
}

// Infer finds the groups of g and says of each what it does. What is outside is in no
// group, but counts among those that a group talks to.
func Infer(g Graph) Analysis {
	n := newNetwork(g)
	var a Analysis
	for _, e := range g.Edges {
		a.Bytes += e.Bytes
	}
	v := newViews(g)
	grouped := make([]bool, len(g.Ends))
	for _, members := range n.communities() {
		group := v.classify(members)
		a.Groups = append(a.Groups, group)
		a.Inside += group.Bytes
		for _, i := range members {
			grouped[i] = true
		}
	}
	for i, e := range g.Ends {
		if e.IsVM() && !grouped[i] && len(v.touching[i]) > 0 {
			a.Alone = append(a.Alone, e)
		}
	}
	slices.SortStableFunc(a.Groups, func(x, y Group) int { return cmp.Compare(y.Bytes, x.Bytes) })
	return a
}

// views cuts a graph into what single groups see of it, so that to classify them all takes
// no longer than to read the graph.
type views struct {
	Graph
	touching [][]int // of each node, the edges from and to it
	number   []int   // of a node, in the view that is being made, plus 1; 0: none
}

func newViews(g Graph) views {
	v := views{Graph: g, touching: make([][]int, len(g.Ends)), number: make([]int, len(g.Ends))}
	degree := make([]int, len(g.Ends))
	for _, e := range g.Edges {
		degree[e.From]++
		degree[e.To]++
	}
	all := make([]int, 2*len(g.Edges))
	for i, d := range degree {
		v.touching[i], all = all[:0:d], all[d:]
	}
	for i, e := range g.Edges {
		v.touching[e.From] = append(v.touching[e.From], i)
		v.touching[e.To] = append(v.touching[e.To], i)
	}
	return v
}

// classify classifies members in a graph of them and their peers only.
func (v *views) classify(members []int) Group {
	var nodes, edges []int
	for _, i := range members {
		edges = append(edges, v.touching[i]...)
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	for _, e := range edges {
		nodes = append(nodes, v.Edges[e].From, v.Edges[e].To)
	}
	slices.Sort(nodes)
	nodes = slices.Compact(nodes)

	view := Graph{Ends: make([]traffic.End, len(nodes)), Edges: make([]Edge, len(edges))}
	for k, i := range nodes {
		view.Ends[k], v.number[i] = v.Ends[i], k
	}
	for k, i := range edges { // nodes keep their order, and so do edges
		view.Edges[k] = v.Edges[i]
		view.Edges[k].From, view.Edges[k].To = v.number[v.Edges[i].From], v.number[v.Edges[i].To]
	}
	local := make([]int, len(members))
	for k, i := range members {
		local[k] = v.number[i]
	}
	group := Classify(view, local)
	for k, i := range group.Members {
		group.Members[k] = nodes[i]
	}
	return group
}
