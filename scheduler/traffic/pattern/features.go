package pattern

import (
	"cmp"
	"math"
	"slices"
)

// scene is what a group's members send each other, as logarithms.
type scene struct {
	nodes []int // of the graph
	n     int
	x     []float64 // n × n: log of bytes per second from row to column; silence where nothing was seen
	blur  []float64 // n × n: variance of x that is sampling's
	mute  []bool    // nothing that the node sends was counted: its row says nothing
	loud  []int     // nodes, those first that send and get most

	answers []float64 // of each node: bytes of services that it answers, less those that it asks

	low, high float64 // logarithms between which background lies
	samples   float64 // packets that stand for one that was looked at; 0: all were
	packet    float64 // bytes of a typical packet
	pairs     []float64

	inside, outside float64 // bytes per second among members, and to and from others
	strangers       []int   // nodes of the graph that were said to be members and hardly talk to any
}

var nothing = math.Inf(-1)

func newScene(g Graph, members []int) *scene {
	s := &scene{nodes: members, n: len(members)}
	at := make(map[int]int, s.n)
	for i, m := range members {
		at[m] = i
	}
	s.x, s.blur, s.mute = make([]float64, s.n*s.n), make([]float64, s.n*s.n), make([]bool, s.n)
	s.answers = make([]float64, s.n)
	for i := range s.x {
		s.x[i] = nothing
	}
	for i := range s.mute {
		s.mute[i] = true
	}
	var outside []float64
	total := make([]float64, s.n)
	var packets float64
	for _, e := range g.Edges {
		i, from := at[e.From]
		j, to := at[e.To]
		if from {
			s.mute[i] = false
		}
		switch {
		case e.Bytes <= 0:
		case from && to:
			s.x[i*s.n+j] = math.Log(e.Bytes)
			total[i] += e.Bytes
			total[j] += e.Bytes
			if e.Service.Port != 0 {
				s.answers[map[bool]int{true: i, false: j}[e.Reply]] += e.Bytes
				s.answers[map[bool]int{true: j, false: i}[e.Reply]] -= e.Bytes
			}
			s.inside, packets = s.inside+e.Bytes, packets+e.Packets
			if e.High > e.Low {
				sd := min((e.High-e.Low)/(3.92*e.Bytes), 1.2)
				s.blur[i*s.n+j] = sd * sd
				if s.samples == 0 || e.Packets < s.samples {
					s.samples = e.Packets
				}
			}
		case from || to:
			s.outside += e.Bytes
			if g.Ends[e.From].IsVM() && g.Ends[e.To].IsVM() {
				outside = append(outside, math.Log(e.Bytes))
			}
		}
	}
	s.packet = s.inside / max(packets, 1e-9)
	s.loud = make([]int, s.n)
	for i := range s.loud {
		s.loud[i] = i
	}
	slices.SortStableFunc(s.loud, func(a, b int) int { return cmp.Compare(total[b], total[a]) })
	for i := range s.n {
		for j := range i {
			if m := max(s.at(i, j), s.at(j, i)); m > nothing {
				s.pairs = append(s.pairs, m)
			}
		}
	}
	slices.Sort(s.pairs)
	slices.Reverse(s.pairs)
	s.background(outside)
	return s
}

func (s *scene) at(i, j int) float64 { return s.x[i*s.n+j] }

// background reads off what members say to others how loud noise is.
func (s *scene) background(outside []float64) {
	slices.Sort(outside)
	if n := len(outside); n >= 8 {
		s.low, s.high = outside[n/20]-0.5, outside[n-1-n/20]+0.5
	} else if len(s.pairs) > 0 {
		s.low, s.high = s.pairs[0]-9, s.pairs[0]-1
	}
	s.high = max(s.high, s.low+2)
}

// aliens are members that talk to others far less than the others do. So few that they may
// have come in by mistake.
func (s *scene) aliens() (stay, leave []int) {
	const far = 3.5 // nats
	if s.n < 4 {
		return s.nodes, nil
	}
	top := make([]float64, s.n)
	for i := range top {
		top[i] = nothing
		for j := range s.n {
			if j != i {
				top[i] = max(top[i], s.at(i, j), s.at(j, i))
			}
		}
	}
	ordered := slices.Sorted(slices.Values(top))
	for i, x := range top {
		if x < ordered[s.n/2]-far {
			leave = append(leave, s.nodes[i])
		} else {
			stay = append(stay, s.nodes[i])
		}
	}
	if len(leave) > max(1, s.n/6) || len(stay) < 2 {
		return s.nodes, nil
	}
	return stay, leave
}

// model is how likely what was seen is, for a pattern with so many strong bonds.
type model struct {
	*scene
	mean, spread float64 // of a strong bond's logarithm
	noise        float64 // share of pairs that have background
	lostStrong   float64 // share of strong bonds of which nothing was seen
	lostAcks     float64
	hum, quiet   float64 // log-probabilities of background at a rate, and of none
	breadth      float64 // log-rates that background is spread over
}

const (
	ackMean   = -3.7 // log of 2.5 %
	ackSpread = 0.75
	stray     = 0.02 // share of bonds whose rate is not like the others'
	strayWide = 9.0
)

// fit takes the strongest pairs for the pattern's bonds.
func (s *scene) fit(bonds, directed int) model {
	bonds = min(max(bonds, 1), len(s.pairs))
	m := model{scene: s, spread: 0.65}
	m.mean = s.pairs[bonds/2]
	m.settle(directed)
	return m
}

// settle works out what follows from the mean, where so many ordered pairs have bonds.
func (m *model) settle(directed int) {
	seen, all := 0, 0
	for i := range m.n {
		if m.mute[i] {
			continue
		}
		all += m.n - 1
		for j := range m.n {
			if m.at(i, j) > nothing {
				seen++
			}
		}
	}
	m.noise = min(max(float64(seen-directed)/float64(max(all-directed, 1)), 0.004), 0.7)
	m.breadth = m.high - m.low
	m.hum, m.quiet = math.Log(m.noise/m.breadth), math.Log1p(-m.noise)
	m.lostStrong, m.lostAcks = 0.004, m.unanswered()
	if m.samples > 0 {
		m.lostStrong = min(m.lostStrong+m.unseen(1), 0.9)
		m.lostAcks = min(m.lostAcks+0.03+m.unseen(0.5), 0.95)
	}
}

// unanswered is the share of strong bonds that nothing comes back over: TCP acknowledges,
// UDP need not.
func (m *model) unanswered() float64 {
	const usual, worth = 0.02, 10 // and what that is worth, in bonds
	silent, all := 0.0, 0.0
	for i := range m.n {
		for j := range m.n {
			if m.at(i, j) > m.mean-1.5*m.spread && !m.mute[j] {
				if all++; m.at(j, i) == nothing {
					silent++
				}
			}
		}
	}
	return max(usual, min((silent+usual*worth)/(all+worth), 0.95))
}

// unseen is the probability that no packet was looked at of a bond that has so many times
// the packets of a strong one. Rates spread: mean and one and a half deviations to each side.
func (m *model) unseen(times float64) (p float64) {
	for side, weight := range [3]float64{0.2, 0.6, 0.2} {
		rate := m.mean + 1.5*m.spread*float64(side-1)
		p += weight * math.Exp(-times*math.Exp(rate)/m.packet/m.samples)
	}
	return p
}

// gaussian is the log-density of a normal distribution with a share of strays.
func gaussian(x, mean, variance float64) float64 {
	d := x - mean
	p := (1-stray)*math.Exp(-d*d/(2*variance))/math.Sqrt(2*math.Pi*variance) + stray/strayWide
	return math.Log(p)
}

func (m *model) background(x float64) float64 {
	if x == nothing {
		return m.quiet
	}
	v := m.hum
	if out := max(x-m.high, m.low-x); out > 0 {
		v -= 1.5 * out // louder than noise is elsewhere
	}
	return v
}

func (m *model) strong(i, j int) float64 {
	x := m.at(i, j)
	if x == nothing {
		return math.Log(m.lostStrong)
	}
	return math.Log1p(-m.lostStrong) + gaussian(x, m.mean, m.spread*m.spread+m.blur[i*m.n+j])
}

// acks is how likely it is that i only acknowledges what j sends.
func (m *model) acks(i, j int) float64 {
	x, of := m.at(i, j), m.at(j, i)
	if x == nothing {
		return math.Log(m.lostAcks)
	}
	mean, variance := of+ackMean, ackSpread*ackSpread+m.blur[i*m.n+j]+m.blur[j*m.n+i]
	if of == nothing {
		mean, variance = m.mean+ackMean, variance+m.spread*m.spread
	}
	p := math.Exp(gaussian(x, mean, variance))
	// Background may lie on top.
	return math.Log1p(-m.lostAcks) + math.Log((1-m.noise)*p+m.noise/m.breadth)
}

// deaf is the share of members whose host does not count what they send, before anything
// was seen.
const deaf = 0.05

// silence is how likely it is that nothing was seen of what the mute members send: such a
// one is deaf, or had nothing to send. lost is the logarithm of how likely the latter is.
func (m *model) silence(lost func(i int) float64) (sum float64) {
	for i, mute := range m.mute {
		if mute {
			sum += math.Log(deaf + (1-deaf)*math.Exp(lost(i)))
		}
	}
	return sum
}

// lost is how likely it is that nothing was seen of what goes one way over a bond.
func (m *model) lost(w way) float64 {
	if w == gets {
		return math.Log(m.lostAcks)
	}
	return math.Log(m.lostStrong)
}

// gains are what it brings to take a pair for a bond of each way rather than for background:
// n × n tables, rows being the end that the way is said of.
type gains struct {
	n      int
	ghosts int
	loud   []int // the loudest first, ghosts last
	table  [3][]float64
	most   []float64 // of the three and nothing
}

// gains are those of m, and of so many ghosts: members that were not seen, which have the
// last numbers and may fill places at no gain.
func (m *model) gains(ghosts int) *gains {
	n := m.n + ghosts
	all := make([]float64, 4*n*n)
	g := &gains{n: n, ghosts: ghosts, loud: slices.Clip(m.loud), table: [3][]float64{all[:n*n], all[n*n : 2*n*n], all[2*n*n : 3*n*n]}, most: all[3*n*n:]}
	for i := range ghosts {
		g.loud = append(g.loud, m.n+i)
	}
	quiet := math.Log(m.lostStrong) - m.background(nothing) // what a bond brings of which nothing was seen
	quietAcks := math.Log(m.lostAcks) - m.background(nothing)
	for i := range m.n {
		for j := range m.n {
			if i == j {
				continue
			}
			var both, one float64
			if m.at(i, j) == nothing && m.at(j, i) == nothing && !m.mute[i] && !m.mute[j] {
				g.table[bothSend][i*n+j], g.table[sends][i*n+j], g.table[gets][j*n+i] = 2*quiet, quiet+quietAcks, quiet+quietAcks
				continue
			}
			if !m.mute[i] {
				back, s := m.background(m.at(i, j)), m.strong(i, j)
				both, one = both+s-back, one+s-back
			}
			if !m.mute[j] {
				back := m.background(m.at(j, i))
				both, one = both+m.strong(j, i)-back, one+m.acks(j, i)-back
			}
			g.table[bothSend][i*n+j], g.table[sends][i*n+j], g.table[gets][j*n+i] = both, one, one
			g.most[i*n+j], g.most[j*n+i] = max(g.most[i*n+j], both, one), max(g.most[j*n+i], both, one)
		}
	}
	return g
}

// best is what the likeliest bond of v with w brings, if any.
func (g *gains) best(v, w int) float64 { return g.most[v*g.n+w] }

// of is what it brings that v has a bond with w.
func (g *gains) of(v, w int, b way) float64 { return g.table[b][v*g.n+w] }

// base is how likely all of it is as background alone.
func (m *model) base() (sum float64) {
	for i := range m.n {
		for j := range m.n {
			if i != j && !m.mute[i] {
				sum += m.background(m.at(i, j))
			}
		}
	}
	return sum
}
