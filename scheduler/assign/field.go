package assign

// None is no site, and no rule.
const None = -1

// Never is the price, in USD per hour, of what may not be: far above any bill, and small
// enough that sums with it keep their digits.
const Never = 1e7

// slack is how much may be taken for a sum's rounding.
const slack = 1e-9

// Field is a problem: which site each unit goes to.
type Field struct {
	Sites int
	Home  []int // site of each unit now, or None

	Linear   []float64 // unit × sites + site: USD per hour
	Moves    []int     // likewise: moves that it takes
	MaxMoves int       // 0: any number
	Price    []float64 // from × sites + to: USD per GB
	Back     []float64 // the same transposed
	Edges    [][]Edge  // of each unit, the heaviest first
	Rules    [][]bool  // from × sites + to: may not be; symmetric

	VCPUs, MiB         []float64 // of each unit
	RoomVCPUs, RoomMiB []float64 // of each site
}

// Edge is what a unit has to do with another. It is there at both, each way round.
type Edge struct {
	To      int
	Out, In float64 // GB per hour, to it and from it
	Rule    int     // which pairs of sites it may not have, or None
}

// PairUSD is what an edge costs with its unit at a and the other at b.
func (f *Field) PairUSD(e Edge, a, b int) float64 {
	return e.Out*f.Price[a*f.Sites+b] + e.In*f.Back[a*f.Sites+b] + f.ruleUSD(e, a, b)
}

// ruleUSD is what of that the edge's rule is.
func (f *Field) ruleUSD(e Edge, a, b int) float64 {
	if e.Rule != None && f.Rules[e.Rule][a*f.Sites+b] {
		return Never
	}
	return 0
}

// USD is what an assignment of units to sites costs.
func (f *Field) USD(at []int) float64 {
	var sum float64
	for u, k := range at {
		sum += f.Linear[u*f.Sites+k]
		for _, e := range f.Edges[u] {
			if u < e.To {
				sum += f.PairUSD(e, k, at[e.To])
			}
		}
	}
	return sum
}
