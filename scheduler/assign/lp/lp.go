// Package lp writes a field as a mixed-integer programme, and reads what a solver answered.
//
// The programme is the edge-based linearisation of Adams and Johnson: x says where a unit
// is, z where the two ends of an edge are, and the sums of an edge's z over either end are
// the x of the other. It is tight enough that a solver proves optima of a hundred units;
// tests and benchmarks hold the search against those.
package lp

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"heliotrope/scheduler/assign"
)

// Write writes the programme in the LP format.
func Write(w io.Writer, f *assign.Field) error {
	p := &programme{Field: f, w: bufio.NewWriter(w)}
	p.line("Minimize\n obj:")
	p.objective()
	p.line("Subject To")
	p.places()
	p.room("c", f.VCPUs, f.RoomVCPUs)
	p.room("m", f.MiB, f.RoomMiB)
	p.edges()
	p.line("Binaries")
	for u := range f.Home {
		for _, k := range p.sites(u) {
			p.line(" %s", x(u, k))
		}
	}
	p.line("End")
	if err := p.w.Flush(); err != nil {
		return fmt.Errorf("write programme: %w", err)
	}
	return nil
}

type programme struct {
	*assign.Field
	w *bufio.Writer
}

func (p *programme) line(format string, args ...any) { fmt.Fprintf(p.w, format+"\n", args...) }

func x(u, k int) string { return fmt.Sprintf("x_%d_%d", u, k) }

func z(u, v, k, l int) string { return fmt.Sprintf("z_%d_%d_%d_%d", u, v, k, l) }

// sites are those where a unit may be.
func (p *programme) sites(u int) []int {
	var list []int
	for k := range p.Sites {
		if p.Linear[u*p.Sites+k] < assign.Never/2 {
			list = append(list, k)
		}
	}
	return list
}

// pairs calls do for each edge once.
func (p *programme) pairs(do func(u int, e assign.Edge)) {
	for u, list := range p.Edges {
		for _, e := range list {
			if u < e.To {
				do(u, e)
			}
		}
	}
}

func (p *programme) objective() {
	for u := range p.Home {
		for _, k := range p.sites(u) {
			p.line(" + %.15g %s", p.Linear[u*p.Sites+k], x(u, k))
		}
	}
	p.pairs(func(u int, e assign.Edge) {
		for _, k := range p.sites(u) {
			for _, l := range p.sites(e.To) {
				if usd := p.PairUSD(e, k, l); usd < assign.Never/2 {
					p.line(" + %.15g %s", usd, z(u, e.To, k, l))
				}
			}
		}
	})
}

func (p *programme) places() {
	for u := range p.Home {
		p.line(" u%d:", u)
		for _, k := range p.sites(u) {
			p.line(" + %s", x(u, k))
		}
		p.line(" = 1")
	}
	if p.MaxMoves == 0 {
		return
	}
	p.line(" moves:")
	for u := range p.Home {
		for _, k := range p.sites(u) {
			if n := p.Moves[u*p.Sites+k]; n > 0 {
				p.line(" + %d %s", n, x(u, k))
			}
		}
	}
	p.line(" <= %d", p.MaxMoves)
}

func (p *programme) room(name string, size, room []float64) {
	for k := range p.Sites {
		some := false
		for u := range p.Home {
			for _, l := range p.sites(u) {
				if l != k || size[u] == 0 {
					continue
				}
				if !some {
					p.line(" %s%d:", name, k)
				}
				some = true
				p.line(" + %.15g %s", size[u], x(u, k))
			}
		}
		if some {
			p.line(" <= %.15g", room[k])
		}
	}
}

// edges ties each edge's z to the x of its ends.
func (p *programme) edges() {
	n := 0
	p.pairs(func(u int, e assign.Edge) {
		n++
		row := func(name string, at int, end string, term func(other int) (string, bool), others []int) {
			p.line(" %s%d_%d:", name, n, at)
			for _, o := range others {
				if t, ok := term(o); ok {
					p.line(" + %s", t)
				}
			}
			p.line(" - %s = 0", end)
		}
		may := func(k, l int) (string, bool) {
			return z(u, e.To, k, l), p.PairUSD(e, k, l) < assign.Never/2
		}
		for _, k := range p.sites(u) {
			row("a", k, x(u, k), func(l int) (string, bool) { return may(k, l) }, p.sites(e.To))
		}
		for _, l := range p.sites(e.To) {
			row("b", l, x(e.To, l), func(k int) (string, bool) { return may(k, l) }, p.sites(u))
		}
	})
}

// Start is an assignment as CBC reads one to begin with.
func Start(f *assign.Field, at []int) []byte {
	text := fmt.Appendf(nil, "Start - objective value %.15g\n", f.USD(at))
	for u, k := range at {
		text = fmt.Appendf(text, "%d %s 1 0\n", u, x(u, k))
	}
	return text
}

// Answer is what a solver found.
type Answer struct {
	Status string
	USD    float64
	Bound  float64 // equal to USD where it is proven
	Proven bool
	At     []int // site of each unit; nil where it found none
}

// Read reads CBC's solution file, and its log for the bound where it was stopped.
func Read(solution, log io.Reader, units int) (Answer, error) {
	lines := bufio.NewScanner(solution)
	lines.Buffer(nil, 1<<20)
	if !lines.Scan() {
		return Answer{}, fmt.Errorf("read solution: it is empty")
	}
	status, value, ok := strings.Cut(lines.Text(), " - objective value ")
	if !ok {
		return Answer{}, fmt.Errorf("read solution: it begins with %q", lines.Text())
	}
	usd, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
	if err != nil {
		return Answer{}, fmt.Errorf("read solution: %w", err)
	}
	a := Answer{Status: status, USD: usd, Bound: math.Inf(-1), Proven: status == "Optimal"}
	if a.Proven {
		a.Bound = usd
	}
	at := make([]int, units)
	found := 0
	for lines.Scan() {
		var row, u, k int
		var amount float64
		if n, _ := fmt.Sscanf(strings.TrimLeft(lines.Text(), " *"), "%d x_%d_%d %g", &row, &u, &k, &amount); n == 4 && amount > 0.5 && u < units {
			at[u] = k
			found++
		}
	}
	if found == units {
		a.At = at
	}
	for lines = bufio.NewScanner(log); lines.Scan(); {
		if _, value, ok := strings.Cut(lines.Text(), "Lower bound:"); ok && !a.Proven {
			if bound, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil {
				a.Bound = bound
			}
		}
	}
	return a, nil
}
