package assign

import (
	"math"
	"slices"
)

// State is an assignment of units to sites with what each unit would cost elsewhere.
type State struct {
	f     *Field
	At    []int     // site of each unit
	would []float64 // unit × sites + site: USD per hour, all others staying where they are
	USD   float64

	freeVCPUs, freeMiB []float64
	toll               float64 // USD per hour for a vCPU over a site's room, or as much memory; 0: there is none over
	vcpusPerMiB        float64
	here               [][]int // units at each site, in no order
	slot               []int   // of each unit, in here
	moves              int     // VMs that change their site
	maxMoves           int
	out, in            []float64 // scratch: what a GB costs more from one site than from another, by the other end's
}

func newState(f *Field, at []int) *State {
	s := &State{f: f, At: slices.Clone(at), maxMoves: f.MaxMoves}
	if s.maxMoves == 0 {
		s.maxMoves = math.MaxInt
	}
	s.freeVCPUs, s.freeMiB = slices.Clone(f.RoomVCPUs), slices.Clone(f.RoomMiB)
	s.out, s.in = make([]float64, f.Sites), make([]float64, f.Sites)
	s.here, s.slot = make([][]int, f.Sites), make([]int, len(at))
	s.vcpusPerMiB = sum(f.VCPUs) / max(sum(f.MiB), 1e-9)
	for u, k := range at {
		s.enter(u, k)
	}
	s.refresh()
	return s
}

// refresh reckons the table anew: millions of sums and differences leave a little behind.
func (s *State) refresh() {
	f, n := s.f, s.f.Sites
	s.would = append(s.would[:0], f.Linear...)
	for u, list := range f.Edges {
		row := s.would[u*n : u*n+n]
		for _, e := range list {
			l := s.At[e.To]
			out, in := f.Back[l*n:l*n+n], f.Price[l*n:l*n+n]
			for k := range row {
				row[k] += e.Out*out[k] + e.In*in[k]
			}
			if e.Rule != None {
				for k := range row {
					row[k] += f.ruleUSD(e, k, l)
				}
			}
		}
	}
	s.USD = 0
	for u, k := range s.At { // what is between two is in the rows of both
		s.USD += (f.Linear[u*n+k] + s.would[u*n+k]) / 2
	}
}

func (s *State) enter(u, k int) {
	s.slot[u] = len(s.here[k])
	s.here[k] = append(s.here[k], u)
	s.freeVCPUs[k] -= s.f.VCPUs[u]
	s.freeMiB[k] -= s.f.MiB[u]
	s.moves += s.f.Moves[u*s.f.Sites+k]
}

func (s *State) leave(u int) {
	k := s.At[u]
	last := len(s.here[k]) - 1
	moved := s.here[k][last]
	s.here[k][s.slot[u]] = moved
	s.slot[moved] = s.slot[u]
	s.here[k] = s.here[k][:last]
	s.freeVCPUs[k] += s.f.VCPUs[u]
	s.freeMiB[k] += s.f.MiB[u]
	s.moves -= s.f.Moves[u*s.f.Sites+k]
}

// Gain is what a unit's move to a site adds to the cost.
func (s *State) Gain(u, k int) float64 {
	row := s.would[u*s.f.Sites:]
	return row[k] - row[s.At[u]]
}

// barred says whether a unit may not be at a site, whoever else is where.
func (s *State) barred(u, k int) bool {
	i := u*s.f.Sites + k
	return s.would[i] >= Never/2 && s.f.Linear[i] >= Never/2
}

// Fits says whether a site has room for a unit that is not there.
func (s *State) Fits(u, k int) bool {
	return s.holds(k, s.f.VCPUs[u], s.f.MiB[u])
}

func sum(list []float64) float64 {
	var all float64
	for _, x := range list {
		all += x
	}
	return all
}

// tolls is what it adds to the tolls when a site gets so much more.
func (s *State) tolls(k int, vcpus, mib float64) float64 {
	over := max(0, vcpus-s.freeVCPUs[k]) - max(0, -s.freeVCPUs[k])
	overMiB := max(0, mib-s.freeMiB[k]) - max(0, -s.freeMiB[k])
	return s.toll * (over + overMiB*s.vcpusPerMiB)
}

// relocating is what a unit's move to a site adds to the tolls.
func (s *State) relocating(u, k int) float64 {
	v, m := s.f.VCPUs[u], s.f.MiB[u]
	return s.tolls(k, v, m) + s.tolls(s.At[u], -v, -m)
}

// excess is how much more is asked for than there is, as shares of rooms.
func (s *State) excess() float64 {
	var sum float64
	for k := range s.f.Sites {
		sum += max(0, -s.freeVCPUs[k]-slack)/max(s.f.RoomVCPUs[k], 1) + max(0, -s.freeMiB[k]-slack)/max(s.f.RoomMiB[k], 1)
	}
	return sum
}

func (s *State) holds(k int, vcpus, mib float64) bool {
	return vcpus <= s.freeVCPUs[k]+slack && mib <= s.freeMiB[k]+slack
}

// permits says whether moving a unit keeps the number of moves.
func (s *State) permits(u, k int) bool {
	if s.maxMoves == math.MaxInt {
		return true
	}
	row := s.f.Moves[u*s.f.Sites:]
	more := row[k] - row[s.At[u]]
	return more <= 0 || s.moves+more <= s.maxMoves
}

// Move takes a unit to another site, and tells its neighbours' rows.
func (s *State) Move(u, to int) {
	f, n := s.f, s.f.Sites
	from := s.At[u]
	s.USD += s.Gain(u, to)
	s.leave(u)
	s.At[u] = to
	s.enter(u, to)
	// Rows of price and of back are those of a site, so all walk memory in order.
	out, in := s.out, s.in
	outTo, outFrom := f.Price[to*n:to*n+n], f.Price[from*n:from*n+n]
	inTo, inFrom := f.Back[to*n:to*n+n], f.Back[from*n:from*n+n]
	for k := range outTo {
		out[k], in[k] = outTo[k]-outFrom[k], inTo[k]-inFrom[k]
	}
	edges := f.Edges[u]
	for i := range edges {
		e := &edges[i]
		row := s.would[e.To*n : e.To*n+n]
		gbOut, gbIn, out, in := e.Out, e.In, out[:len(row)], in[:len(row)]
		for k := range row {
			row[k] += gbOut*out[k] + gbIn*in[k]
		}
		if e.Rule != None {
			s.forbid(row, f.Rules[e.Rule], from, to)
		}
	}
}

func (s *State) forbid(row []float64, rule []bool, from, to int) {
	n := s.f.Sites
	for k := range row {
		if rule[to*n+k] {
			row[k] += Never
		}
		if rule[from*n+k] {
			row[k] -= Never
		}
	}
}

// between finds what two units have to do with each other.
func (s *State) between(u, v int) (Edge, bool) {
	if len(s.f.Edges[u]) > len(s.f.Edges[v]) {
		e, ok := s.between(v, u)
		return Edge{v, e.In, e.Out, e.Rule}, ok
	}
	for _, e := range s.f.Edges[u] {
		if e.To == v {
			return e, true
		}
	}
	return Edge{}, false
}

// amends is what the gains of two units that take each other's site leave out: what is between them.
func (s *State) amends(u, v int) float64 {
	a, b := s.At[u], s.At[v]
	e, ok := s.between(u, v)
	if !ok {
		return 0
	}
	return s.f.PairUSD(e, b, a) + s.f.PairUSD(e, a, b) - s.f.PairUSD(e, a, a) - s.f.PairUSD(e, b, b)
}

// swapsWithin says whether two units that take each other's site add less than a limit. What is between them
// is asked for only where it matters: they are no nearer to each other then, unless a rule keeps them apart.
func (s *State) swapsWithin(u, v int, limit float64) bool {
	usd := s.Gain(u, s.At[v]) + s.Gain(v, s.At[u])
	return (usd < limit || usd > Never/2) && usd+s.amends(u, v) < limit
}

func (s *State) canSwap(u, v int) bool {
	f, a, b := s.f, s.At[u], s.At[v]
	if !s.holds(b, f.VCPUs[u]-f.VCPUs[v], f.MiB[u]-f.MiB[v]) || !s.holds(a, f.VCPUs[v]-f.VCPUs[u], f.MiB[v]-f.MiB[u]) {
		return false
	}
	if s.maxMoves == math.MaxInt {
		return true
	}
	more := f.Moves[u*f.Sites+b] - f.Moves[u*f.Sites+a] + f.Moves[v*f.Sites+a] - f.Moves[v*f.Sites+b]
	return more <= 0 || s.moves+more <= s.maxMoves
}

func (s *State) swap(u, v int) {
	a, b := s.At[u], s.At[v]
	s.Move(u, b)
	s.Move(v, a)
}

// groupGain is what it adds to the cost when units of one site, which have a mark, move to
// another together.
func (s *State) groupGain(group, mark []int, m, k int) float64 {
	f, n := s.f, s.f.Sites
	a := s.At[group[0]]
	apart := f.Price[k*n+a] + f.Price[a*n+k] - f.Price[k*n+k] - f.Price[a*n+a] // of a GB, either way
	var usd, gb float64
	for _, u := range group {
		usd += s.Gain(u, k)
		for _, e := range f.Edges[u] {
			if u >= e.To || mark[e.To] != m {
				continue
			}
			if gb += e.Out + e.In; e.Rule != None {
				usd += f.ruleUSD(e, k, k) + f.ruleUSD(e, a, a) - f.ruleUSD(e, k, a) - f.ruleUSD(e, a, k)
			}
		}
	}
	return usd - gb*apart
}

func (s *State) groupFits(group []int, k int) (fits bool, vcpus, mib float64) {
	for _, u := range group {
		vcpus += s.f.VCPUs[u]
		mib += s.f.MiB[u]
	}
	return s.holds(k, vcpus, mib), vcpus, mib
}

// permitsGroup says whether moving units keeps the number of moves.
func (s *State) permitsGroup(group []int, k int) bool {
	if s.maxMoves == math.MaxInt {
		return true
	}
	more := 0
	for _, u := range group {
		more += s.f.Moves[u*s.f.Sites+k] - s.f.Moves[u*s.f.Sites+s.At[u]]
	}
	return more <= 0 || s.moves+more <= s.maxMoves
}
