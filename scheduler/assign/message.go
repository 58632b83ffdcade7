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

	from, to []int // scratch: sites that are to be tried
}

func newTariff(f *Field) tariff {
	n := f.Sites
	t := tariff{moreOut: make([]float64, n*n), moreIn: make([]float64, n*n),
		nearOut: slices.Repeat([]float64{math.Inf(1)}, n), nearIn: slices.Repeat([]float64{math.Inf(1)}, n)}
	for a := range n {
		for b := range n {
			out, in := math.Inf(-1), math.Inf(-1)
			for l := range n {
				out = max(out, f.Price[a*n+l]-f.Price[b*n+l])
				in = max(in, f.Back[a*n+l]-f.Back[b*n+l])
			}
			t.moreOut[a*n+b], t.moreIn[a*n+b] = out, in
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
	for i := range d.order {
		u := d.order[i]
		if !forwards {
			u = d.order[len(d.order)-1-i]
		}
		d.gather(u)
		least := slices.Min(d.own)
		usd += least
		if asks {
			d.ask(u, least)
		}
		for k := range d.own {
			d.own[k] = (d.own[k] - least) * d.share[u]
		}
		for i, e := range d.Edges[u] {
			if later := d.rank[e.To] > d.rank[u]; later == forwards {
				usd += d.send(d.number[u][i], e, later)
			}
		}
	}
	d.tally()
	return usd - sum(d.rent)
}

// send gives an edge its share of a unit's cost, and hands on what that leaves to the other
// end; it returns the part that is the same wherever that is.
func (d *dual) send(number int, e Edge, later bool) float64 {
	for k, usd := range d.to(number, !later) {
		d.give[k] = d.own[k] - usd
	}
	message := d.to(number, later)
	d.cheapest(e, d.give, message)
	least := slices.Min(message)
	for k := range message {
		message[k] -= least
	}
	return least
}

// cheapest fills in, for each site of an edge's other end, what the edge and this end cost
// at least.
func (d *dual) cheapest(e Edge, give, row []float64) {
	n, t := d.Sites, &d.tariff
	if e.Rule != None {
		for l := range row {
			row[l] = math.Inf(1)
		}
		for k, usd := range give {
			for l := range row {
				row[l] = min(row[l], usd+d.PairUSD(e, k, l))
			}
		}
		return
	}
	first := 0
	for k, usd := range give {
		if usd < give[first] {
			first = k
		}
	}
	least := give[first]
	from, to := append(t.from[:0], first), t.to[:0]
	moreOut, moreIn := t.moreOut[first*n:first*n+n], t.moreIn[first*n:first*n+n]
	for k, usd := range give {
		if usd < least+e.Out*moreOut[k]+e.In*moreIn[k] {
			from = append(from, k)
		}
		same := usd + (e.Out+e.In)*d.Price[k*n+k]
		row[k] = same
		if least+e.Out*t.nearOut[k]+e.In*t.nearIn[k] < same {
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
