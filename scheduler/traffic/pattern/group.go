package pattern

import "math"

// temper is how much less sure the classifier is than its likelihoods say: edges are not as
// independent as they take them to be.
const temper = 4

// sure is the most that it is: something that no pattern here stands for is always possible.
const sure = 0.995

// group makes the answer of candidates, the best first.
func (s *scene) group(g Graph, all []candidate) Group {
	best := all[0]
	out := Group{Kind: best.kind, Shape: best.shape, Confidence: 1}
	placed := make([]bool, s.n)
	for _, i := range best.members {
		placed[i] = true
		out.Members = append(out.Members, s.nodes[i])
	}
	for i, p := range placed {
		if !p {
			out.Members = append(out.Members, s.nodes[i])
		}
	}
	out.Members = append(out.Members, s.strangers...)
	for _, i := range out.Members {
		out.Ends = append(out.Ends, g.Ends[i])
	}
	rest, second := 0.0, nothing
	for _, c := range all[1:] {
		if c.kind == best.kind {
			continue
		}
		if out.Second == "" {
			out.Second, second = c.kind, c.score
		}
		rest += math.Exp((c.score - best.score) / temper)
	}
	out.Confidence = sure / (1 + rest)
	if best.kind == Unknown {
		out.Confidence = 0
	}
	explained := 0.0
	for _, p := range best.pairs {
		explained += math.Exp(s.at(p[0], p[1])) + math.Exp(s.at(p[1], p[0]))
	}
	out.Bytes, out.Outside, out.Coverage = s.inside, s.outside, explained/max(s.inside, 1e-9)
	out.Evidence = s.evidence(g, best, &out, second)
	out.Tiers = tiers(g, &out)
	return out
}
