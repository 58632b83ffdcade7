package assign

import (
	"math"
	"slices"
)

// tariff is what a message need not try. Of most edges it need not try most pairs of sites: where little is
// said, only what is cheapest at this end matters, and where much is, the other end is best at the same site.
type tariff struct {
	// From a site × instead of another: what a GB costs more, wherever the other end is. Where a unit is that much
	// dearer than at the first site, the first is better.
	moreOut, moreIn []float64
	// To a site: what a GB costs from the nearest other.
	nearOut, nearIn []float64

	within          []float64 // a site: what a GB costs
	mostOut, mostIn []float64 // the most of moreOut and moreIn, by the other site

	from, to []int // scratch: sites that are to be tried
}

func newTariff(f *Field) tariff {
	n := f.Sites
	t := tariff{moreOut: make([]float64, n*n), moreIn: make([]float64, n*n),
		within: make([]float64, n), mostOut: make([]float64, n), mostIn: make([]float64, n), nearOut: slices.Repeat([]float64{math.Inf(1)}, n), nearIn: slices.Repeat([]float64{math.Inf(1)}, n)}
	for a := range n {
		t.within[a] = f.Price[a*n+a]
		for b := range n {
			out, in := math.Inf(-1), math.Inf(-1)
			for l := range n {
				out = max(out, f.Price[a*n+l]-f.Price[b*n+l])
				in = max(in, f.Back[a*n+l]-f.Back[b*n+l])
			}
			t.moreOut[a*n+b], t.moreIn[a*n+b] = out, in
			t.mostOut[a], t.mostIn[a] = max(t.mostOut[a], out), max(t.mostIn[a], in)
			if a != b {
				t.nearOut[b] = min(t.nearOut[b], f.Price[a*n+b])
				t.nearIn[b] = min(t.nearIn[b], f.Back[a*n+b])
			}
		}
	}
	return t
}

// pass sends messages from each unit to those after it (forwards) or before it. It returns
// what it took out, which with the rent is the bound, and may add up what is asked for.
func (d *dual) pass(forwards, asks bool) float64 {
	var usd float64
	clear(d.excess)
	d.charge()
	links := d.earlier
	if forwards {
		links = d.later
	}
	for i := range d.order {
		u := d.order[i]
		if !forwards {
			u = d.order[len(d.order)-1-i]
		}
		d.rented(d.told[u*d.Sites:], u)
		least := slices.Min(d.own)
		usd += least
		if asks {
			d.ask(u, least)
		}
		share := d.share[u]
		for k, x := range d.own {
			d.own[k] = (x - least) * share
		}
		for _, l := range links[u] {
			usd += d.send(l, forwards)
		}
	}
	d.tally()
	return usd - sum(d.rent)
}

// send gives an edge its share of a unit's cost, and hands on what that leaves to the other
// end; it returns the part that is the same wherever that is.
func (d *dual) send(l link, later bool) float64 {
	n := d.Sites
	back, there := d.to(l.number, !later)[:n], d.to(l.number, later)[:n]
	own, give, fresh, told := d.own[:n], d.give[:n], d.fresh[:n], d.told[l.To*n:][:n]
	first, least := 0, math.Inf(1)
	for k, usd := range own {
		usd -= back[k]
		give[k] = usd
		if usd < least {
			first, least = k, usd
		}
	}
	d.cheapest(l.Edge, give, fresh, first)
	least = math.Inf(1)
	for _, usd := range fresh {
		if usd < least {
			least = usd
		}
	}
	for k, usd := range fresh {
		usd -= least
		told[k] += usd - there[k]
		there[k] = usd
	}
	return least
}

// cheapest fills in, for each site of an edge's other end, what the edge and this end cost
// at least.
func (d *dual) cheapest(e *Edge, give, row []float64, first int) {
	n, t := d.Sites, &d.tariff
	if e.Rule != None {
		for l := range row {
			row[l] = math.Inf(1)
		}
		for k, usd := range give {
			for l := range row {
				row[l] = min(row[l], usd+d.PairUSD(*e, k, l))
			}
		}
		return
	}
	least, gb := give[first], e.Out+e.In
	from, to := append(t.from[:0], first), t.to[:0]
	out, in := e.Out, e.In
	moreOut, moreIn := t.moreOut[first*n:first*n+n], t.moreIn[first*n:first*n+n]
	nearOut, nearIn, within := t.nearOut[:n], t.nearIn[:n], t.within[:n]
	reach := out*t.mostOut[first] + in*t.mostIn[first]
	for k, usd := range give[:n] {
		if far := usd - least; far < reach && far < out*moreOut[k]+in*moreIn[k] {
			from = append(from, k)
		}
		same := usd + gb*within[k]
		row[k] = same
		if least+out*nearOut[k]+in*nearIn[k] < same {
			to = append(to, k)
		}
	}
	t.from, t.to = from, to
	for _, k := range from {
		usd, out, in := give[k], d.Price[k*n:k*n+n], d.Back[k*n:k*n+n]
		if len(to) < n/2 {
			for _, l := range to {
				if x := usd + e.Out*out[l] + e.In*in[l]; x < row[l] {
					row[l] = x
				}
			}
			continue
		}
		in, row := in[:len(out)], row[:len(out)]
		for l, x := range out {
			if x = usd + e.Out*x + e.In*in[l]; x < row[l] {
				row[l] = x
			}
		}
	}
}
