package licence

import (
	"math"
	"slices"
)

const (
	rounds    = 80 // changes of prices
	firstStep = 2  // of what a seat costs more elsewhere, that the first change may come to
	lastStep  = 0.02
	mayNot    = 1e6 // USD per hour: no price, but a place that may not be
)

// Prices are what a seat is worth an hour, by site and licence, to units of VMs that cost so
// much at each site by themselves: the prices at which what they want comes nearest to what
// there is (a subgradient of the Lagrangian). Nothing is worth more than its rent. With hard
// not, nothing is worth anything that is not to be rented.
//
// For any such prices, what a placement costs is at least what it would with these on each
// seat that is needed, less what all the seats there are would cost.
func (p *Pools) Prices(units [][]int, costs [][]float64, hard bool) [][]float64 {
	sites, licences := len(p.Free), len(p.users)
	need, all := make([][]float64, len(units)), make([]float64, licences)
	for i, vms := range units {
		need[i] = make([]float64, licences)
		for _, v := range vms {
			for _, n := range p.Needs[v] {
				need[i][n.Licence] += float64(n.Seats)
				all[n.Licence] += float64(n.Seats)
			}
		}
	}
	seats, now, best := square(sites, licences), square(sites, licences), square(sites, licences)
	for k := range seats {
		for l := range seats[k] {
			seats[k][l] = float64(p.Seats(k, l))
		}
	}
	most, step := math.Inf(-1), firstStep*spread(costs, need)
	for range rounds {
		usd, used := ask(costs, need, now)
		for k := range seats {
			for l, n := range seats[k] {
				usd -= now[k][l] * n
			}
		}
		if usd > most {
			most = usd
			for k := range now {
				copy(best[k], now[k])
			}
		}
		for k := range now {
			for l := range now[k] {
				now[k][l] = p.limit(k, l, now[k][l]+step*(used[k][l]-seats[k][l])/max(all[l], 1), hard)
			}
		}
		step *= math.Pow(lastStep/firstStep, 1.0/rounds)
	}
	return best
}

// limit keeps a price to what it may be.
func (p *Pools) limit(site, licence int, usd float64, hard bool) float64 {
	switch rent := p.USD[site][licence]; {
	case rent >= 0:
		usd = min(usd, rent)
	case !hard:
		usd = 0
	}
	return max(0, usd)
}

// ask is what units cost in all where they cost least, and what they want there.
func ask(costs, need, price [][]float64) (usd float64, used [][]float64) {
	used = square(len(price), len(price[0]))
	for i, row := range costs {
		at, least := 0, math.Inf(1)
		for k, x := range row {
			for l, seats := range need[i] {
				x += seats * price[k][l]
			}
			if x < least {
				at, least = k, x
			}
		}
		usd += least
		for l, seats := range need[i] {
			used[at][l] += seats
		}
	}
	return usd, used
}

// spread is how much more, for each seat, the dearest site costs than the cheapest, on
// average, of those that may be.
func spread(costs, need [][]float64) float64 {
	var sum float64
	for i, row := range costs {
		least := slices.Min(row)
		most := least
		for _, usd := range row {
			if usd < mayNot {
				most = max(most, usd)
			}
		}
		sum += (most - least) / max(slices.Max(need[i]), 1)
	}
	return sum / float64(max(len(costs), 1))
}

func square(rows, columns int) [][]float64 {
	g := make([][]float64, rows)
	for i := range g {
		g[i] = make([]float64, columns)
	}
	return g
}
