package traffic

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Matrix answers for the time of span before end, both rounded to whole seconds. Where that
// is so long ago that only coarser slots are left, the window is as much larger; From and
// To say it.
func (l *Ledger) Matrix(end time.Time, span time.Duration) Matrix {
	to := end.Unix()
	from := to - max(int64(span/time.Second), 1)
	pieces, from, to := l.cover(from, to, to-from)
	m := l.matrix(pieces, func(piece) float64 { return 1 })
	m.From, m.To = time.Unix(from, 0).UTC(), time.Unix(to, 0).UTC()
	m.Missing = l.missing(from, to)
	return m
}

// Decayed answers for all time before now, in which what is halfLife ago counts half. From
// is halfLife/ln 2 before To: a cell's bytes by To − From are its mean rate, weighted so.
func (l *Ledger) Decayed(now time.Time, halfLife time.Duration) Matrix {
	const halfLives = 12 // that are looked at; what was before counts less than 1 in 4,096
	half := max(halfLife.Seconds(), 1)
	to := now.Unix()
	pieces, _, to := l.cover(to-int64(halfLives*half), to, max(int64(half/8), 1))
	decay := math.Ln2 / half
	m := l.matrix(pieces, func(p piece) float64 { // the mean of the weight over the slot
		grain := float64(p.ring.grain)
		return math.Exp(-decay*float64(to-p.start-p.ring.grain)) * -math.Expm1(-decay*grain) / (decay * grain)
	})
	m.To = time.Unix(to, 0).UTC()
	m.From = m.To.Add(-time.Duration(half / math.Ln2 * float64(time.Second)))
	m.Missing = l.missing(m.From.Unix(), to)
	return m
}

// matrix adds slots up with their weights.
func (l *Ledger) matrix(pieces []piece, weight func(piece) float64) Matrix {
	m := Matrix{Cells: []Cell{}}
	sums := make([]sum, len(l.keys))
	for _, p := range pieces {
		s, ok := p.ring.slots[p.start]
		if !ok {
			continue
		}
		w := weight(p)
		m.Shed += uint64(math.Round(w * float64(s.shed)))
		m.Unseen = max(m.Unseen, unseenBytes(s.sampling))
		for i := range s.tallies {
			sums[s.tallies[i].key].add(&s.tallies[i], w)
		}
	}
	used := l.sorted(sums)
	shares := make([]ServiceShare, len(used))
	for len(used) > 0 {
		first := l.keys[used[0]]
		n := 1
		for n < len(used) && l.keys[used[n]].src == first.src && l.keys[used[n]].dst == first.dst {
			n++
		}
		var all sum
		services := shares[:n:n]
		shares = shares[n:]
		for i, k := range used[:n] {
			all.join(&sums[k])
			services[i] = ServiceShare{l.keys[k].service, l.keys[k].reply, sums[k].Bytes}
		}
		slices.SortFunc(services, func(s, t ServiceShare) int { return cmp.Compare(t.Bytes, s.Bytes) })
		c := all.cell(l.ends[first.src], l.ends[first.dst])
		c.Services = services
		m.Cells = append(m.Cells, c)
		used = used[n:]
	}
	return m
}

// sorted returns the keys that have something, by the names of their ends and then by
// service.
func (l *Ledger) sorted(sums []sum) []uint32 {
	ends := make([]uint32, len(l.ends))
	for i := range ends {
		ends[i] = uint32(i)
	}
	slices.SortFunc(ends, func(a, b uint32) int { return l.ends[a].Compare(l.ends[b]) })
	rank := make([]uint64, len(ends))
	for i, e := range ends {
		rank[e] = uint64(i)
	}
	type placed struct {
		pair    uint64 // ranks of both ends
		service uint32
		key     uint32
	}
	var list []placed
	for n := range sums {
		if sums[n].packets > 0 || sums[n].Bytes > 0 {
			k := &l.keys[n]
			service := uint32(k.service.Protocol)<<17 | uint32(k.service.Port)<<1
			if k.reply {
				service |= 1
			}
			list = append(list, placed{rank[k.src]<<32 | rank[k.dst], service, uint32(n)})
		}
	}
	slices.SortFunc(list, func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.pair, b.pair), cmp.Compare(a.service, b.service))
	})
	keys := make([]uint32, len(list))
	for i, p := range list {
		keys[i] = p.key
	}
	return keys
}
