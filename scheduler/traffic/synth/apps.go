package synth

import (
	"math"
	"math/rand/v2"

	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
)

// maker collects the edges of one application, whose rate is about 1 byte a second an edge.
type maker struct {
	r     *rand.Rand
	skew  float64
	edges []pattern.Edge
	at    map[[2]int]int
}

const (
	segment = 1400.0 // bytes of a full packet
	ack     = 60.0   // and of one that only acknowledges
)

func (m *maker) factor(skew float64) float64 { return math.Exp(skew * m.r.NormFloat64()) }

func (m *maker) put(from, to int, bytes, size float64, s traffic.Service, reply bool) {
	if i, ok := m.at[[2]int{from, to}]; ok {
		m.edges[i].Bytes += bytes
		m.edges[i].Packets += bytes / size
		return
	}
	m.at[[2]int{from, to}] = len(m.edges)
	m.edges = append(m.edges, pattern.Edge{From: from, To: to, Bytes: bytes, Packets: bytes / size, Flows: 1e-7, Service: s, Reply: reply})
}

// oneWay sends data from one to another, who acknowledges every second packet.
func (m *maker) oneWay(from, to int, s traffic.Service) {
	bytes, size := m.factor(m.skew), 600+800*m.r.Float64()
	m.put(from, to, bytes, size, s, false)
	m.put(to, from, bytes/size*ack*(0.3+0.7*m.r.Float64()), ack, s, true)
}

// bothWays exchanges about as much in each direction.
func (m *maker) bothWays(a, b int, s traffic.Service) {
	bytes, size := m.factor(m.skew), 600+800*m.r.Float64()
	m.put(a, b, bytes*m.factor(0.2), size, s, false)
	m.put(b, a, bytes*m.factor(0.2), size, s, true)
}

// Make makes an application of about n VMs, numbered from 0 on in the pattern's own order.
// Where the pattern has no graph of n, or one that another pattern has as well, it takes
// the next size that is its own: a butterfly has 16 or 32 (of 8 it is a cube), a two-
// dimensional torus has sides of 3 or of 5 and more (4 × 4 is a butterfly of 16), a three-
// dimensional stencil no side below 2 and not 2 × 2 × 2, a shuffle 3 and more on either
// side, and a torus of 3 × 3 × 3 at least.
func Make(kind pattern.Kind, n int, skew float64, r *rand.Rand) (App, []pattern.Edge) {
	m := &maker{r: r, skew: skew, at: map[[2]int]int{}}
	s := traffic.Service{Protocol: traffic.TCP, Port: uint16(5000 + r.IntN(5000))}
	app := App{Kind: kind}
	switch kind {
	case pattern.Star:
		m.star(n, s)
	case pattern.MasterWorker:
		m.masterWorker(n, s)
	case pattern.Ring:
		for i := range n {
			m.oneWay(i, (i+1)%n, s)
		}
	case pattern.Pipeline:
		for i := range n - 1 {
			m.oneWay(i, i+1, s)
		}
	case pattern.Tree:
		k := 2 + r.IntN(2)
		n = max(n, k*k+k+1) // at least three levels: of two it is a star
		app.Shape = []int{k}
		m.tree(n, func(i int) int { return (i - 1) / k }, s)
	case pattern.Broadcast:
		n = max(n, 8)
		m.tree(n, func(i int) int { return i - 1<<(bits(i)-1) }, s)
	case pattern.Butterfly:
		n = 16
		if r.IntN(3) == 0 {
			n = 32
		}
		for i := range n {
			for k := 1; k < n; k *= 2 {
				if j := i ^ k; i < j {
					m.bothWays(i, j, s)
				}
			}
		}
	case pattern.Shuffle:
		p := 3 + r.IntN(max(n-5, 1))
		n = max(n, p+3)
		app.Shape = []int{p, n - p}
		for i := range p {
			for j := p; j < n; j++ {
				m.oneWay(i, j, s)
			}
		}
	case pattern.AllToAll:
		for i := range n {
			for j := range i {
				m.bothWays(i, j, s)
			}
		}
	case pattern.Random:
		m.random(n, s)
	default:
		app.Shape = sides(kind, n, r)
		n = m.grid(app.Shape, kind == pattern.Torus1D || kind == pattern.Torus2D || kind == pattern.Torus3D, s)
	}
	for i := range n {
		app.Members = append(app.Members, i)
	}
	return app, m.edges
}

func bits(i int) (n int) {
	for ; i > 0; i >>= 1 {
		n++
	}
	return n
}

// star has a server that answers small requests with more, to clients of all sizes.
func (m *maker) star(n int, s traffic.Service) {
	for i := 1; i < n; i++ {
		reply := math.Pow(10, m.r.Float64()-0.5) * m.factor(m.skew/2)
		m.put(0, i, reply, 1000, s, true)
		m.put(i, 0, reply*(0.05+0.2*m.r.Float64()), 200, s, false)
	}
}

// masterWorker hands out even shares of work, and gets results of about that size.
func (m *maker) masterWorker(n int, s traffic.Service) {
	back := math.Exp(1.2*m.r.Float64() - 0.6) // results to work, of the whole application
	for i := 1; i < n; i++ {
		work := m.factor(0.12)
		m.put(0, i, work, 1100, s, false)
		m.put(i, 0, work*back*m.factor(0.1), 1100, s, true)
	}
}

func (m *maker) tree(n int, parent func(int) int, s traffic.Service) {
	down := m.r.IntN(2) == 0
	for i := 1; i < n; i++ {
		if down {
			m.oneWay(parent(i), i, s)
		} else {
			m.oneWay(i, parent(i), s)
		}
	}
}

// random is a connected graph with no plan: every VM to some others, both ways or one.
func (m *maker) random(n int, s traffic.Service) {
	share := 0.25 + 0.25*m.r.Float64()
	for i := 1; i < n; i++ {
		m.bothWays(i, m.r.IntN(i), s)
	}
	for i := range n {
		for j := range i {
			if _, ok := m.at[[2]int{i, j}]; ok || m.r.Float64() > share {
				continue
			}
			if m.r.IntN(2) == 0 {
				m.bothWays(i, j, s)
			} else {
				m.oneWay(i, j, s)
			}
		}
	}
}

// sides picks those of a grid of about n.
func sides(kind pattern.Kind, n int, r *rand.Rand) []int {
	switch kind {
	case pattern.Stencil2D:
		a := 2 + r.IntN(3)
		return []int{a, max((n+a/2)/a, 3)}
	case pattern.Torus2D:
		a := 3 + 2*r.IntN(2)
		b := max((n+a/2)/a, 3)
		if b == 4 {
			b = 5
		}
		return []int{min(a, b), max(a, b)}
	case pattern.Stencil3D:
		return []int{2, 2 + r.IntN(2), 3}
	case pattern.Torus3D:
		return []int{3, 3, 3}
	}
	return []int{n}
}

// grid joins neighbours along each dimension, round its ends where it wraps.
func (m *maker) grid(sides []int, wraps bool, s traffic.Service) int {
	n := 1
	for _, side := range sides {
		n *= side
	}
	for i := range n {
		for d, step := len(sides)-1, 1; d >= 0; d-- {
			if x := i / step % sides[d]; x+1 < sides[d] {
				m.bothWays(i, i+step, s)
			} else if wraps && sides[d] > 2 {
				m.bothWays(i, i-x*step, s)
			}
			step *= sides[d]
		}
	}
	return n
}
