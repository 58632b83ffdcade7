package pattern

import (
	"fmt"
	"math"
	"slices"
	"strconv"
)

// evidence says, in sentences that can be checked against the matrix, why it is best.
func (s *scene) evidence(g Graph, best candidate, out *Group, second float64) []string {
	if best.kind == Unknown {
		return []string{fmt.Sprintf("only %d of %d pairs were seen to talk", len(s.pairs), s.n*(s.n-1)/2)}
	}
	b := s.bonds(best)
	said := []string{fmt.Sprintf("the pattern's %d pairs carry %s of what the members send each other", len(best.pairs), percent(out.Coverage))}
	if what := s.peculiar(g, best); what != "" {
		said = append(said, what)
	}
	seen := fmt.Sprintf("all %d of them were seen", len(best.pairs))
	if b.silent > 0 {
		seen = fmt.Sprintf("%d of them were not seen", b.silent)
	}
	if b.stray > nothing && b.median > nothing {
		seen += fmt.Sprintf("; the loudest that is not one of them is %v to %v, at %s of their median",
			g.Ends[s.nodes[b.from]], g.Ends[s.nodes[b.to]], percent(math.Exp(b.stray-b.median)))
	}
	said = append(said, seen)
	if out.Second != "" {
		said = append(said, fmt.Sprintf("the next likeliest is %s, by a factor of %s", out.Second, power(best.score-second)))
	}
	if n := len(s.nodes) + len(s.strangers) - len(best.members); n > 0 {
		lost := out.Ends[len(out.Ends)-n:]
		said = append(said, fmt.Sprintf("%v have no place in it and may not belong here", lost))
	}
	return said
}

func percent(share float64) string { return strconv.FormatFloat(100*share, 'g', 3, 64) + " %" }

// power writes e^nats.
func power(nats float64) string {
	if nats < 7 {
		return strconv.FormatFloat(math.Exp(nats), 'g', 2, 64)
	}
	return fmt.Sprintf("10^%.0f", nats/math.Ln10)
}

// bonds are what a candidate's pairs look like, and the loudest edge that is in none.
type bonds struct {
	silent   int
	median   float64 // log of bytes per second, of the louder direction
	stray    float64
	from, to int
}

func (s *scene) bonds(c candidate) bonds {
	b := bonds{median: nothing, stray: nothing}
	in := make([]bool, s.n*s.n)
	var xs []float64
	for _, p := range c.pairs {
		in[p[0]*s.n+p[1]], in[p[1]*s.n+p[0]] = true, true
		if x := max(s.at(p[0], p[1]), s.at(p[1], p[0])); x > nothing {
			xs = append(xs, x)
		} else {
			b.silent++
		}
	}
	if len(xs) > 0 {
		slices.Sort(xs)
		b.median = xs[len(xs)/2]
	}
	for i := range s.n {
		for j := range s.n {
			if x := s.at(i, j); !in[i*s.n+j] && x > b.stray {
				b.stray, b.from, b.to = x, i, j
			}
		}
	}
	return b
}

// peculiar is what only this pattern has.
func (s *scene) peculiar(g Graph, c candidate) string {
	name := func(i int) string { return g.Ends[s.nodes[i]].String() }
	first, last := c.members[0], c.members[len(c.members)-1]
	switch c.kind {
	case Ring:
		return fmt.Sprintf("each sends to the next %s of its bytes or more, and the chain closes from %s to %s", percent(s.least(c, true)), name(last), name(first))
	case Pipeline:
		return fmt.Sprintf("each but the last sends to the next %s of its bytes or more; %s sends %s no data", percent(s.least(c, false)), name(last), name(first))
	case Star, MasterWorker:
		low, high := math.Inf(1), nothing
		for _, i := range c.members[1:] {
			if x := max(s.at(first, i), s.at(i, first)); x > nothing {
				low, high = min(low, x), max(high, x)
			}
		}
		return fmt.Sprintf("%s talks to all %d others, the largest of which has %.2g times what the smallest has", name(first), len(c.members)-1, math.Exp(high-low))
	case Tree, Broadcast:
		return fmt.Sprintf("%s is the root; each of the %d others has one parent", name(first), len(c.members)-1)
	case Shuffle:
		forth, back := 0.0, 0.0
		for _, p := range c.pairs {
			forth, back = forth+math.Exp(s.at(p[0], p[1])), back+math.Exp(s.at(p[1], p[0]))
		}
		return fmt.Sprintf("the first %d send to the other %d %s of the bytes between the two sides", c.shape[0], c.shape[1], percent(forth/max(forth+back, 1e-9)))
	case Random:
		return fmt.Sprintf("that is %s of all pairs, which no pattern explains", percent(float64(len(c.pairs))/max(float64(s.n*(s.n-1))/2, 1)))
	}
	both := 0
	for _, p := range c.pairs {
		if math.Abs(s.at(p[0], p[1])-s.at(p[1], p[0])) < math.Log(5) {
			both++
		}
	}
	return fmt.Sprintf("%d of them talk both ways, within a factor of 5", both)
}

// least is the smallest share of its bytes that a member sends to the next.
func (s *scene) least(c candidate, closes bool) float64 {
	least := 1.0
	for k, i := range c.members {
		if k == len(c.members)-1 && !closes || s.mute[i] {
			continue
		}
		sum := 0.0
		for j := range s.n {
			sum += math.Exp(s.at(i, j))
		}
		least = min(least, math.Exp(s.at(i, c.members[(k+1)%len(c.members)]))/max(sum, 1e-9))
	}
	return least
}
