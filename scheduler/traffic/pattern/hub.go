package pattern

import (
	"math"
	"slices"
)

// hub is a star or a master with its workers: one node that all others talk to. Its rates
// may differ by more than other patterns' do, and what comes back goes by what went out.
func (s *scene) hub() candidate {
	best := candidate{kind: Star, members: s.loud, score: nothing}
	for _, h := range s.loud[:min(3, s.n)] {
		if c := s.hubAt(h); c.score > best.score {
			best = c
		}
	}
	return best
}

func (s *scene) hubAt(h int) candidate {
	const parameters = 4
	leaves := float64(s.n - 1)
	m := s.fit(s.n-1, 2*(s.n-1))
	c := candidate{kind: Star, members: []int{h}}
	c.score = m.base() - math.Log(leaves+1) - parameters/2*math.Log(2*leaves+2)
	var outs, ratios []float64
	var blur float64
	blurs := func(i int) float64 { return s.blur[h*s.n+i] + s.blur[i*s.n+h] }
	for i := range s.n {
		if i == h {
			continue
		}
		out, in := s.at(h, i), s.at(i, h)
		c.members, c.pairs = append(c.members, i), append(c.pairs, [2]int{h, i})
		blur += blurs(i) / leaves
		if out > nothing && in > nothing {
			ratios = append(ratios, in-out)
		} else if out == nothing {
			out = in
		}
		if out > nothing {
			outs = append(outs, out)
		}
	}
	mean, spread := middle(outs, blur)
	ratio, apart := middle(ratios, blur)
	for _, i := range c.members[1:] {
		from := mean
		if out := s.at(h, i); !s.mute[h] {
			c.score -= m.background(out)
			if out > nothing {
				from = out
				c.score += gaussian(out, mean, spread*spread+blurs(i))
			} else {
				c.score += math.Log(m.lostStrong)
			}
		}
		if in := s.at(i, h); !s.mute[i] {
			c.score -= m.background(in)
			if in > nothing {
				c.score += gaussian(in, from+ratio, apart*apart+blurs(i))
			} else {
				c.score += math.Log(m.lostAcks)
			}
		}
	}
	c.score += m.silence(func(i int) float64 {
		if i == h {
			return leaves * m.lost(sends)
		}
		return m.lost(gets)
	})
	if len(ratios) == 0 {
		apart = 0 // one side was not counted
	}
	even := spread < 0.35 && apart < 0.45 && math.Abs(ratio) < 1.2
	if even && s.answers[h] <= 0 { // who only answers hands nothing out
		c.kind = MasterWorker
	}
	return c
}

// middle is the median of xs and how far they spread around it, less the variance that is
// sampling's.
func middle(xs []float64, blur float64) (mean, spread float64) {
	const least = 0.12
	if len(xs) == 0 {
		return 0, 1
	}
	slices.Sort(xs)
	n := len(xs)
	wide := (xs[n-1-n/6] - xs[n/6]) / 2
	return xs[n/2], max(math.Sqrt(max(wide*wide-blur, 0)), least)
}
