package pattern

import (
	"cmp"
	"math"
	"slices"
)

// candidate is a pattern that a group may have, and how likely what was seen is with it.
type candidate struct {
	kind    Kind
	shape   []int
	members []int // of the scene, in the pattern's own order
	score   float64
	pairs   [][2]int // of the scene, that have a bond
}

// Classify says what a group of nodes does. Every pattern is held against what its members
// send each other: how likely is that, if the pattern's bonds have like rates and
// everything else is background? A pattern whose places have to be found first pays for the
// number of ways in which they could have been filled (Rissanen's description length), so
// that a rich pattern does not win by its freedom alone.
func Classify(g Graph, members []int) Group {
	s := newScene(g, members)
	if stay, leave := s.aliens(); len(leave) > 0 {
		all := s
		s = newScene(g, stay)
		s.strangers, s.inside, s.outside = leave, all.inside, all.outside
	}
	if s.n == 2 {
		return s.group(g, []candidate{{kind: Pair, members: []int{0, 1}, pairs: [][2]int{{0, 1}}}})
	}
	if len(s.pairs) < (s.n+1)/2 || s.n < 2 {
		return s.group(g, []candidate{{kind: Unknown, members: s.loud}})
	}
	all := []candidate{s.hub(), s.complete(), s.random(), s.sides()}
	all = s.tryAll(templates(s.n), 0, all)
	none := all[slices.IndexFunc(all, func(c candidate) bool { return c.kind == Random })]
	if all[0].score-none.score < unclear && s.n > 4 {
		for wrong := 1; wrong <= 2; wrong++ {
			if s.n-wrong >= 5 {
				all = s.tryAll(templates(s.n-wrong), 0, all)
			}
			all = s.tryAll(templates(s.n+wrong), wrong, all)
		}
	}
	return s.group(g, all)
}

const (
	unclear = 6 // nats over no plan under which a member may be surplus or missing
	amiss   = 4 // nats that each such member costs
)

// ways is what it costs to say which of the ways to fill the template is meant.
func (s *scene) ways(t *template) float64 {
	wrong := max(t.n-s.n, s.n-t.n)
	return logFactorial(max(t.n, s.n)) - logFactorial(wrong) - t.ways + amiss*float64(wrong)
}

// tryAll adds what the templates make of the scene, the most promising first, and leaves
// out those that cannot come near the best. It returns candidates by their score.
func (s *scene) tryAll(ts []*template, ghosts int, all []candidate) []candidate {
	best := nothing
	for _, c := range all {
		best = max(best, c.score)
	}
	var hopes []*hope
	same := map[int]*hope{} // templates of so many pairs begin with the same model
	for _, t := range ts {
		h := &hope{template: t, found: candidate{score: nothing}}
		if o := same[t.pairs]; o != nil {
			h.model, h.gains, h.base = o.model, o.gains, o.base
		} else {
			h.model = s.fit(t.pairs, 2*t.pairs)
			h.gains, h.base = h.model.gains(ghosts), h.model.base()
			same[t.pairs] = h
		}
		h.most = h.base + t.bound(h.gains) - s.ways(t)
		hopes = append(hopes, h)
	}
	slices.SortStableFunc(hopes, func(a, b *hope) int { return cmp.Compare(b.most, a.most) })
	for width, wider := max(4, min(16, 300/s.n)), 0; wider <= 2; wider, width = wider+1, 4*width {
		for _, h := range hopes[:len(hopes)>>wider] { // more effort for the likeliest only
			if h.most < best-hopeless || wider > 0 && (h.most < best || h.found.score > h.most-hopeless) {
				continue
			}
			if c := s.try(h, width); c.score > h.found.score {
				h.found = c
			}
			best = max(best, h.found.score)
		}
	}
	for _, h := range hopes {
		if h.found.score > nothing {
			all = append(all, h.found)
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return cmp.Compare(b.score, a.score) })
	return all
}

// hope is a template that may be the scene's.
type hope struct {
	*template
	model model
	gains *gains
	base  float64 // how likely all of it is as background
	most  float64 // about the score that it cannot exceed
	found candidate
}

const hopeless = 10 // nats that a second fit of the model may still bring

// try looks for the best way to fill a template's places.
func (s *scene) try(h *hope, width int) candidate {
	t, m, g := h.template, h.model, h.gains
	at, _ := t.match(g, width)
	m.refit(t, at)
	m.settle(2 * t.pairs)
	g = m.gains(g.n - s.n)
	score := t.climb(g, at, t.score(g, at))
	c := candidate{kind: t.kind, shape: t.shape}
	c.score = m.base() + score - s.ways(t) + m.silence(func(i int) (lost float64) {
		if place := slices.Index(at, i); place >= 0 {
			for _, b := range t.bonds[place] {
				lost += m.lost(b.way)
			}
		}
		return lost
	})
	for i, bonds := range t.bonds {
		if at[i] >= s.n {
			continue // a ghost
		}
		c.members = append(c.members, at[i])
		for _, b := range bonds {
			if i < b.to && at[b.to] < s.n {
				c.pairs = append(c.pairs, [2]int{at[i], at[b.to]})
			}
		}
	}
	return c
}

// refit takes mean and spread from the bonds that were found.
func (m *model) refit(t *template, at []int) {
	var xs []float64
	var blur float64
	for i, bonds := range t.bonds {
		for _, b := range bonds {
			if at[i] >= m.n || at[b.to] >= m.n || b.way == gets {
				continue
			}
			if x := m.at(at[i], at[b.to]); x > nothing {
				xs = append(xs, x)
				blur += m.blur[at[i]*m.n+at[b.to]]
			}
		}
	}
	m.level(xs, blur)
}

func (m *model) level(xs []float64, blur float64) {
	if len(xs) < 3 {
		return
	}
	slices.Sort(xs)
	n := len(xs)
	m.mean = xs[n/2]
	// Half the width of the middle two thirds, which strays do not widen.
	wide := (xs[n-1-n/6] - xs[n/6]) / 2
	m.spread = min(max(math.Sqrt(max(wide*wide-blur/float64(n), 0)), 0.3), 0.9)
}

// complete is all-to-all: every pair, both ways.
func (s *scene) complete() candidate {
	pairs := s.n * (s.n - 1) / 2
	m := s.fit(pairs, 2*pairs)
	m.level(slices.DeleteFunc(slices.Clone(s.x), func(x float64) bool { return x == nothing }), 0)
	m.settle(2 * pairs)
	g := m.gains(0)
	c := candidate{kind: AllToAll, members: s.loud, score: m.base()}
	for i := range s.n {
		for j := range i {
			c.score += g.of(i, j, bothSend)
			c.pairs = append(c.pairs, [2]int{i, j})
		}
	}
	c.score += m.silence(func(int) float64 { return float64(s.n-1) * m.lost(bothSend) })
	return c
}

// random is a graph without a plan: each pair has a bond or not, by chance.
func (s *scene) random() candidate {
	best := candidate{kind: Random, members: s.loud, score: nothing}
	pairs := s.n * (s.n - 1) / 2
	for _, share := range []float64{0.1, 0.2, 0.35, 0.55, 0.8} {
		k := max(int(share*float64(pairs)), s.n/2)
		m := s.fit(k, 2*k)
		m.level(slices.Clone(s.pairs[:min(k, len(s.pairs))]), 0)
		m.settle(2 * k)
		g := m.gains(0)
		c := candidate{kind: Random, members: s.loud, score: m.base() - math.Log(5)}
		bonds := make([]float64, s.n)
		for i := range s.n {
			for j := range i {
				bond := 0.5*math.Exp(min(g.of(i, j, bothSend), 300)) + 0.25*math.Exp(min(g.of(i, j, sends), 300)) + 0.25*math.Exp(min(g.of(j, i, sends), 300))
				c.score += math.Log(1 - share + share*bond)
				if bond > 1 {
					c.pairs = append(c.pairs, [2]int{i, j})
					bonds[i]++
					bonds[j]++
				}
			}
		}
		c.score += m.silence(func(i int) float64 { return bonds[i] * (m.lost(gets) - math.Log(3)) })
		if c.score > best.score {
			best = c
		}
	}
	return best
}

// sides is a shuffle: all of one side send to all of the other.
func (s *scene) sides() candidate {
	best := candidate{kind: Shuffle, members: s.loud, score: nothing}
	lean := make([]float64, s.n) // how much more a node sends than it gets
	for i := range s.n {
		for j := range s.n {
			if i != j && s.at(i, j)+s.at(j, i) > nothing {
				lean[i] += max(min(s.at(i, j)-s.at(j, i), 4), -4)
			} else if s.at(i, j) > nothing {
				lean[i] += 2
			} else if s.at(j, i) > nothing {
				lean[i] -= 2
			}
		}
	}
	order := slices.Clone(s.loud)
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(lean[b], lean[a]) })
	give := slices.IndexFunc(order, func(i int) bool { return lean[i] <= 0 }) // members that send more than they get
	for p := max(give-2, 2); p <= min(give+2, s.n-2); p++ {
		q := s.n - p
		m := s.fit(p*q, 2*p*q)
		c := candidate{kind: Shuffle, shape: []int{p, q}, members: order}
		var xs []float64
		for _, i := range order[:p] {
			for _, j := range order[p:] {
				c.pairs = append(c.pairs, [2]int{i, j})
				if x := s.at(i, j); x > nothing {
					xs = append(xs, x)
				}
			}
		}
		m.level(xs, 0)
		m.settle(2 * p * q)
		g := m.gains(0)
		c.score = m.base() - (logFactorial(s.n) - logFactorial(p) - logFactorial(q)) - math.Log(float64(s.n))
		for _, b := range c.pairs {
			c.score += g.of(b[0], b[1], sends)
		}
		c.score += m.silence(func(i int) float64 {
			if slices.Index(order, i) < p {
				return float64(q) * m.lost(sends)
			}
			return float64(p) * m.lost(gets)
		})
		if c.score > best.score {
			best = c
		}
	}
	return best
}
