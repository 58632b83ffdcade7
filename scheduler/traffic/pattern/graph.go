package pattern

import (
	"cmp"
	"math"
	"slices"

	"heliotrope/scheduler/traffic"
)

// FromMatrix returns m as rates. Every end of m is a node, VMs before prefixes, both by
// name. A window without length gives the counts themselves.
func FromMatrix(m traffic.Matrix) Graph {
	seconds := m.To.Sub(m.From).Seconds()
	if seconds <= 0 {
		seconds = 1
	}
	number := make(map[traffic.End]int)
	for _, c := range m.Cells {
		number[c.Src], number[c.Dst] = 0, 0
	}
	g := Graph{Ends: make([]traffic.End, 0, len(number)), Edges: make([]Edge, 0, len(m.Cells))}
	for e := range number {
		g.Ends = append(g.Ends, e)
	}
	slices.SortFunc(g.Ends, traffic.End.Compare)
	for i, e := range g.Ends {
		number[e] = i
	}
	for _, c := range m.Cells {
		if c.Src == c.Dst || c.Bytes <= 0 {
			continue
		}
		e := Edge{
			From: number[c.Src], To: number[c.Dst],
			Bytes: c.Bytes / seconds, Low: c.Low / seconds, High: c.High / seconds,
			Packets: c.Packets / seconds, Flows: c.Flows / seconds,
		}
		if len(c.Services) > 0 {
			e.Service, e.Reply = c.Services[0].Service, c.Services[0].Reply
		}
		g.Edges = append(g.Edges, e)
	}
	slices.SortFunc(g.Edges, func(a, b Edge) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	return g
}

// A link is two VMs that talk, in whichever direction.
type link struct {
	a, b int     // nodes, a < b
	x    float64 // natural logarithm of bytes per second, of the direction that has more
	out  int     // the edges: from a to b, and
	back int     // from b to a; -1: none

	service int // number of the service of the direction that has more

	noise float64 // what background returned, and
	rare  float64 // e^-noise: next to the rest, since fetching it from elsewhere is what costs
}

// answered says whether bytes went both ways.
func (l link) answered() bool { return l.out >= 0 && l.back >= 0 }

// half is a link as one of its ends sees it.
type half struct {
	to   int
	link int
}

// network is a graph's VMs and the links among them.
type network struct {
	nodes int
	links []link    // ordered by a, then b
	at    [][]half  // of each node, ordered by to
	share []float64 // of each service, among all links
}

// newNetwork reads g in time linear in its edges.
func newNetwork(g Graph) network {
	n := network{nodes: len(g.Ends), at: make([][]half, len(g.Ends))}
	into := make([][]int, len(g.Ends)) // of each node, the edges to it from a higher one, by From
	var downward = 0
	for i, e := range g.Edges {
		if e.From > e.To {
			into[e.To] = append(into[e.To], i)
			downward++
		}
	}
	n.links = make([]link, 0, len(g.Edges)-downward/2)
	services := make(map[traffic.Service]int)
	add := func(a, b, out, back int) {
		if !g.Ends[a].IsVM() || !g.Ends[b].IsVM() {
			return
		}
		more := out
		if out < 0 || back >= 0 && g.Edges[back].Bytes > g.Edges[out].Bytes {
			more = back
		}
		e := g.Edges[more]
		if e.Bytes <= 0 {
			return
		}
		s, ok := services[e.Service]
		if !ok {
			s = len(services)
			services[e.Service] = s
			n.share = append(n.share, 0)
		}
		n.share[s]++
		n.links = append(n.links, link{a: a, b: b, x: math.Log(e.Bytes), out: out, back: back, service: s})
	}
	next := 0
	for a := range g.Ends {
		back := into[a]
		for ; next < len(g.Edges) && g.Edges[next].From <= a; next++ {
			b := g.Edges[next].To
			if b < a {
				continue
			}
			for len(back) > 0 && g.Edges[back[0]].From < b {
				add(a, g.Edges[back[0]].From, -1, back[0])
				back = back[1:]
			}
			if len(back) > 0 && g.Edges[back[0]].From == b {
				add(a, b, next, back[0])
				back = back[1:]
			} else {
				add(a, b, next, -1)
			}
		}
		for _, e := range back {
			add(a, g.Edges[e].From, -1, e)
		}
	}
	for s := range n.share {
		n.share[s] /= float64(len(n.links))
	}
	degree := make([]int, n.nodes)
	for _, l := range n.links {
		degree[l.a]++
		degree[l.b]++
	}
	all := make([]half, 2*len(n.links))
	for i, d := range degree {
		n.at[i], all = all[:0:d], all[d:]
	}
	for i, l := range n.links { // by a, then b: every node sees its lower peers first, in order
		n.at[l.b] = append(n.at[l.b], half{l.a, i})
	}
	for i, l := range n.links {
		n.at[l.a] = append(n.at[l.a], half{l.b, i})
	}
	return n
}
