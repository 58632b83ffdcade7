package synth

import (
	"math"

	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
)

// Regime is a way in which matrices are disturbed.
type Regime struct {
	Name       string
	Background float64
	Sampling   int
	Blind      bool // services are not told
}

// Regimes are those that inference is judged in.
var Regimes = []Regime{
	{Name: "1 % background", Background: 0.01},
	{Name: "5 % background", Background: 0.05},
	{Name: "20 % background", Background: 0.2},
	{Name: "5 % background, 1:64", Background: 0.05, Sampling: 64},
	{Name: "5 % background, no ports", Background: 0.05, Blind: true},
	{Name: "20 % background, no ports", Background: 0.2, Blind: true},
}

// Result is how well communities and patterns were found, over many matrices. Results of
// the same regime add up.
type Result struct {
	Matrices  int
	Rand      [1001]int // matrices by their adjusted Rand index, in thousandths; under 0 counts as 0
	Apps      int
	Lost      int       // applications that no group has the most of
	Patterns  Confusion // of the applications; one that was lost is said to be unknown
	Surplus   int       // groups that are no application's
	Confident Confusion // of those told with a confidence of 0.9 and more
}

// Networks that inference is judged in have Smallest to Largest VMs, as many up to their
// geometric mean as above it.
const (
	Smallest = 12
	Largest  = 400
)

// Judge makes a matrix, infers what is in it, and compares. Of four seeds, one has all, one
// has 5 % of the VMs not counted, one has a VM of each application moved in the window, and
// one has both.
func Judge(seed uint64, r Regime) Result {
	_, at := math.Modf(float64(seed/4) * math.Phi) // evenly spread (Weyl 1916)
	c := Config{Seed: seed, Background: r.Background, Sampling: r.Sampling, VMs: int(Smallest * math.Pow(float64(Largest)/Smallest, at))}
	if seed%2 == 1 {
		c.MissingHosts = 0.05
	}
	c.Moved = seed%4 >= 2
	t := Generate(c)
	if r.Blind {
		for i := range t.Graph.Edges {
			t.Graph.Edges[i].Service, t.Graph.Edges[i].Reply = traffic.Service{}, false
		}
	}
	return Compare(t, pattern.Infer(t.Graph))
}

// Compare scores what was said against what is.
func Compare(t Truth, said pattern.Analysis) Result {
	r := Result{Matrices: 1, Apps: len(t.Apps), Patterns: Confusion{}, Confident: Confusion{}}
	was := t.Labels()
	found := make([]int, len(was))
	for i := range was { // who is alone is a group of one
		found[i] = -1 - i
		if was[i] < 0 {
			was[i] = -1 - i
		}
	}
	for k, g := range said.Groups {
		for _, i := range g.Members {
			found[i] = k
		}
	}
	r.Rand[int(math.Round(1000*max(0, AdjustedRand(was, found))))]++

	taken := map[int]bool{}
	for _, app := range t.Apps {
		common := map[int]int{}
		for _, i := range app.Members {
			common[found[i]]++
		}
		kind := pattern.Unknown
		k, most := -1, 0
		for g, n := range common {
			if g >= 0 && (n > most || n == most && g < k) {
				k, most = g, n
			}
		}
		if k >= 0 && 2*most > len(app.Members) && 2*most > len(said.Groups[k].Members) {
			kind = said.Groups[k].Kind
			taken[k] = true
			if said.Groups[k].Confidence >= 0.9 {
				r.Confident.Add(app.Kind, kind, 1)
			}
		} else {
			r.Lost++
		}
		r.Patterns.Add(app.Kind, kind, 1)
	}
	r.Surplus = len(said.Groups) - len(taken)
	return r
}

// Join adds another's matrices. The zero Result has none.
func (r *Result) Join(o Result) {
	if r.Patterns == nil {
		r.Patterns, r.Confident = Confusion{}, Confusion{}
	}
	r.Matrices += o.Matrices
	for i, n := range o.Rand {
		r.Rand[i] += n
	}
	r.Apps += o.Apps
	r.Lost += o.Lost
	r.Surplus += o.Surplus
	r.Patterns.Join(o.Patterns)
	r.Confident.Join(o.Confident)
}

// RandMean is the mean adjusted Rand index.
func (r *Result) RandMean() float64 {
	sum := 0.0
	for i, n := range r.Rand {
		sum += float64(i*n) / 1000
	}
	return sum / max(1, float64(r.Matrices))
}

// RandQuantile is the adjusted Rand index that a share q of the matrices do not reach.
func (r *Result) RandQuantile(q float64) float64 {
	left := q * float64(r.Matrices)
	for i, n := range r.Rand {
		if left -= float64(n); left < 0 {
			return float64(i) / 1000
		}
	}
	return 1
}

// Right is the share of the applications of which the pattern is said as it is.
func (c Confusion) Right() float64 {
	right, all := 0, 0
	for truth, row := range c {
		for said, n := range row {
			all += n
			if said == truth {
				right += n
			}
		}
	}
	return float64(right) / max(1, float64(all))
}

// Grouping judges so many matrices in a regime, from seed on. Callers with more than one
// core split the seeds and join the results. progress may be nil.
func Grouping(r Regime, seed uint64, matrices int, progress func(done int)) Result {
	var all Result
	for i := range matrices {
		all.Join(Judge(seed+uint64(i), r))
		if progress != nil {
			progress(i + 1)
		}
	}
	return all
}
