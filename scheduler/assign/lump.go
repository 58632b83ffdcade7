package assign

// lumpRounds is how often units are lumped with those that they talk to most: a few units, then a few of these.
const lumpRounds = 2

// lumps is a field of fewer units, each made of some that talk much to each other and may be at
// the same sites. What is cheap in it is nearly so in the field: it is where the rent of
// room is looked for first. It knows no rules. lump is that of each unit.
func (f *Field) lumps() (lumps *Field, lump []int) {
	lump = make([]int, len(f.Home))
	count := len(lump)
	for u := range lump {
		lump[u] = u
	}
	for range lumpRounds {
		lump, count = f.join(lump, count)
	}
	n := f.Sites
	c := *f
	c.Home, c.Edges, c.Rules = make([]int, count), make([][]Edge, count), nil
	c.Linear, c.Moves = make([]float64, count*n), make([]int, count*n)
	c.VCPUs, c.MiB = make([]float64, count), make([]float64, count)
	members := make([][]int, count)
	for u, l := range lump {
		members[l] = append(members[l], u)
		c.VCPUs[l] += f.VCPUs[u]
		c.MiB[l] += f.MiB[u]
		for k := range n {
			c.Linear[l*n+k] += f.Linear[u*n+k]
			c.Moves[l*n+k] += f.Moves[u*n+k]
		}
	}
	at := make([]int, count) // of each lump, in the edges of the one that is looked at, and 1 more
	for l, units := range members {
		var edges []Edge
		for _, u := range units {
			for _, e := range f.Edges[u] {
				switch to := lump[e.To]; {
				case to == l: // seen from both ends
					for k := range n {
						c.Linear[l*n+k] += e.Out * f.Price[k*n+k]
					}
				case at[to] == 0:
					edges = append(edges, Edge{to, e.Out, e.In, None})
					at[to] = len(edges)
				default:
					edges[at[to]-1].Out += e.Out
					edges[at[to]-1].In += e.In
				}
			}
		}
		for _, e := range edges {
			at[e.To] = 0
		}
		c.Edges[l] = edges
	}
	return &c, lump
}

// join joins each lump with the one that it talks to most, of those that may be at the same sites.
func (f *Field) join(lump []int, count int) (joined []int, left int) {
	most, with, leader := make([]float64, count), make([]int, count), make([]int, count)
	for l := range count {
		with[l], leader[l] = l, l
	}
	for u, edges := range f.Edges {
		for _, e := range edges {
			if a, b := lump[u], lump[e.To]; a != b && e.Out+e.In > most[a] && f.alike(u, e.To) {
				most[a], with[a] = e.Out+e.In, b
			}
		}
	}
	root := func(l int) int {
		for leader[l] != l {
			leader[l] = leader[leader[l]]
			l = leader[l]
		}
		return l
	}
	for l, w := range with {
		leader[root(l)] = root(w)
	}
	number := make([]int, count)
	joined = make([]int, len(lump))
	for u, l := range lump {
		first := root(l)
		if number[first] == 0 {
			left++
			number[first] = left
		}
		joined[u] = number[first] - 1
	}
	return joined, left
}

// alike says whether two units may be at the same sites.
func (f *Field) alike(u, v int) bool {
	a, b := f.Linear[u*f.Sites:][:f.Sites], f.Linear[v*f.Sites:][:f.Sites]
	for k := range a {
		if (a[k] >= Never/2) != (b[k] >= Never/2) {
			return false
		}
	}
	return true
}
