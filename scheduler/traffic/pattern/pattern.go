// Package pattern says what a traffic matrix means: which VMs belong together, in which
// pattern they talk, and what each of them does in it.
package pattern

import "heliotrope/scheduler/traffic"

// Kind is a communication pattern.
type Kind string

// The patterns. Where two of them are the same graph at a small size, the one that stands
// first here is said.
const (
	Pair         Kind = "pair"          // two VMs
	Star         Kind = "star"          // clients around a server that answers them
	MasterWorker Kind = "master-worker" // a master that hands work out evenly and takes results back
	Ring         Kind = "ring"          // each to the next, the last to the first
	Pipeline     Kind = "pipeline"      // each to the next
	Tree         Kind = "tree"          // parents and children, k each
	Broadcast    Kind = "broadcast"     // a binomial tree, from or to its root
	Stencil1D    Kind = "stencil-1d"    // neighbours on a line, both ways
	Torus1D      Kind = "torus-1d"      // neighbours on a circle, both ways
	Stencil2D    Kind = "stencil-2d"
	Torus2D      Kind = "torus-2d"
	Stencil3D    Kind = "stencil-3d"
	Torus3D      Kind = "torus-3d"
	Butterfly    Kind = "butterfly" // i with i xor 2^k, for each k
	Shuffle      Kind = "shuffle"   // every one of one side to every one of the other
	AllToAll     Kind = "all-to-all"
	Random       Kind = "random"  // talk, but in none of these
	Unknown      Kind = "unknown" // too little was seen to say: the classifier abstains
)

// Edge is what goes from one node of a Graph to another, per second. Low and High bound
// Bytes with 95 % confidence.
type Edge struct {
	From, To  int
	Bytes     float64
	Low, High float64
	Packets   float64
	Flows     float64
	Service   traffic.Service // the largest
	Reply     bool            // From is the side that answers
}

// Graph is a matrix with numbers for names. Edges are ordered by From, then To, and no
// edge leads to its own node.
type Graph struct {
	Ends  []traffic.End
	Edges []Edge
}

// Group is a set of nodes that belong together, and what they do.
type Group struct {
	Members    []int         `json:"-"` // nodes of the graph, in the pattern's own order: along a ring, row by row, root first
	Ends       []traffic.End `json:"members"`
	Kind       Kind          `json:"pattern"`
	Confidence float64       `json:"confidence"`         // 0 to 1: the share of groups told this surely that are right
	Shape      []int         `json:"shape,omitempty"`    // sides of a grid, arity of a tree, sizes of a shuffle's two sides
	Coverage   float64       `json:"coverage"`           // share of the group's bytes that the pattern explains
	Bytes      float64       `json:"bytes_per_second"`   // within the group
	Outside    float64       `json:"outside_per_second"` // to and from everybody else
	Tiers      []Tier        `json:"tiers,omitempty"`    // what its members do
	Second     Kind          `json:"second,omitempty"`   // the next best pattern
	Evidence   []string      `json:"evidence"`           // sentences that an engineer can check against the matrix
}

// Tier is a part of a group that does one thing.
type Tier struct {
	Name       string            `json:"name"` // such as "tcp/5432 server", "clients of tcp/5432"
	Members    []traffic.End     `json:"members"`
	Serves     []traffic.Service `json:"serves,omitempty"`
	Uses       []traffic.Service `json:"uses,omitempty"`
	Confidence float64           `json:"confidence"`
}
