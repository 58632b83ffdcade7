package licence

import (
	"math"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// draw makes pools and a placement, kept or not.
func draw(t *rapid.T) (*Pools, []int) {
	number := func(from, to int, what string) int { return rapid.IntRange(from, to).Draw(t, what) }
	licences := number(1, 2, "licences")
	row := func(most int, what string) []int {
		var list []int
		for range licences {
			list = append(list, number(0, most, what))
		}
		return list
	}
	p := &Pools{}
	for k := range number(1, 3, "sites") {
		p.Free = append(p.Free, row(6, "free"))
		usd := make([]float64, licences)
		for l := range usd {
			if usd[l] = -1; number(0, 3, "rents") == 0 {
				usd[l] = float64(number(0, 8, "rent")) / 4
			}
		}
		p.USD = append(p.USD, usd)
		for range number(1, 3, "hosts") {
			p.Site = append(p.Site, k)
			p.Own = append(p.Own, row(4, "own"))
		}
	}
	var at []int
	for range number(1, 6, "vms") {
		var needs []Need
		for l := range licences {
			needs = append(needs, Need{l, number(0, 4, "need")})
		}
		p.Needs = append(p.Needs, needs)
		at = append(at, number(None, len(p.Site)-1, "at"))
	}
	p.Settle(licences)
	return p, at
}

// taken adds up anew what a site's pool gives.
func taken(p *Pools, at []int, site, licence int) int {
	sum := 0
	for h, k := range p.Site {
		needed := 0
		for v, needs := range p.Needs {
			for _, n := range needs {
				if at[v] == h && n.Licence == licence {
					needed += n.Seats
				}
			}
		}
		if k == site {
			sum += max(0, needed-p.Own[h][licence])
		}
	}
	return sum
}

// What is kept up to date is what adding up anew says, and so is what there would be room for.
func TestUseIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, at := draw(t)
		u := p.Use(at)
		for range 10 {
			v := rapid.IntRange(0, len(at)-1).Draw(t, "vm")
			to := rapid.IntRange(0, len(p.Site)-1).Draw(t, "to")
			fits := u.Fits([]int{v}, at[v], to)
			stays := at[v] == to
			u.Take(v, at[v], -1)
			u.Take(v, to, 1)
			at[v] = to
			if fresh := p.Use(at); !reflect.DeepEqual(fresh, u) || !reflect.DeepEqual(u.Clone(), u) {
				t.Fatalf("%+v, and anew %+v", u, fresh)
			}
			want := true
			for _, n := range p.Needs[v] {
				k := p.Site[to]
				want = want && (taken(p, at, k, n.Licence) <= p.Free[k][n.Licence] || p.USD[k][n.Licence] >= 0)
			}
			if fits != (want || stays) {
				t.Fatalf("fits: %v, must be %v", fits, want)
			}
		}
		for _, x := range p.Lacks(at) {
			if taken(p, at, x.Site, x.Licence) != x.Used || x.Used <= x.Seats {
				t.Fatalf("%+v, and %d are taken", x, taken(p, at, x.Site, x.Licence))
			}
		}
	})
}

// Whichever VMs of a step are there first, a step that may be taken leaves no site with more
// taken than it has, or had; and where nobody moves within a site, one that may not could.
func TestStepsKeepLicences(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, at := draw(t)
		vms := rapid.SliceOfNDistinct(rapid.IntRange(0, len(at)-1), 1, len(at), rapid.ID).Draw(t, "vms")
		var to []int
		within := false
		for _, v := range vms {
			to = append(to, rapid.IntRange(0, len(p.Site)-1).Draw(t, "to"))
			within = within || at[v] != None && p.Site[at[v]] == p.Site[to[len(to)-1]]
		}
		_, may := p.Step(at, vms, to)
		worse := false
		for some := range 1 << len(vms) {
			then := slices.Clone(at)
			for i, v := range vms {
				if some>>i&1 == 1 {
					then[v] = to[i]
				}
			}
			for k := range p.Free {
				for l, free := range p.Free[k] {
					worse = worse || p.USD[k][l] < 0 && taken(p, then, k, l) > max(free, taken(p, at, k, l))
				}
			}
		}
		if may && worse || !may && !worse && !within {
			t.Fatalf("it may: %v; an order that is worse: %v", may, worse)
		}
	})
}

// With any placement that keeps the licences, the prices cost no more than all the seats
// there are; with rented ones, no more than these and the rent.
func TestPricesAreALowerBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, at := draw(t)
		var units [][]int
		var costs [][]float64
		for v := range p.Needs {
			if !p.Licensed(v) {
				continue
			}
			units = append(units, []int{v})
			var row []float64
			for range p.Free {
				row = append(row, rapid.Float64Range(0, 10).Draw(t, "cost"))
			}
			costs = append(costs, row)
		}
		if len(units) == 0 {
			return
		}
		price := p.Prices(units, costs, rapid.Bool().Draw(t, "hard"))
		var paid, all float64
		for k := range price {
			for l, usd := range price[k] {
				all += usd * float64(p.Seats(k, l))
				if usd < 0 || p.USD[k][l] >= 0 && usd > p.USD[k][l] {
					t.Fatalf("a seat is worth %v, its rent is %v", usd, p.USD[k][l])
				}
			}
		}
		for v, needs := range p.Needs {
			for _, n := range needs {
				if at[v] != None {
					paid += float64(n.Seats) * price[p.Site[at[v]]][n.Licence]
				}
			}
		}
		if len(p.Lacks(at)) == 0 && paid > all+p.Rent(at)+1e-9 {
			t.Fatalf("seats cost %v by the prices, all there are %v, and rent is %v", paid, all, p.Rent(at))
		}
	})
}

// Two VMs want the one seat at the cheap site: it is worth what it saves the second, who
// gains more.
func TestPricesFindWhatASeatIsWorth(t *testing.T) {
	p := &Pools{Site: []int{0, 1}, Needs: [][]Need{{{0, 1}}, {{0, 1}}}, Own: [][]int{{0}, {0}}, Free: [][]int{{1}, {2}}, USD: [][]float64{{-1}, {-1}}}
	p.Settle(1)
	price := p.Prices([][]int{{0}, {1}}, [][]float64{{1, 4}, {1, 9}}, true)
	if usd := price[0][0]; usd < 3-1e-9 || usd > 8 || price[1][0] != 0 {
		t.Errorf("prices %v", price)
	}
	p.USD[0][0] = 2
	if price = p.Prices([][]int{{0}, {1}}, [][]float64{{1, 4}, {1, 9}}, false); math.Abs(price[0][0]-2) > 1e-9 {
		t.Errorf("with a rent of 2, prices %v", price)
	}
}

// A licence of which there are enough wherever all go is no constraint.
func TestAmpleLicencesAreForgotten(t *testing.T) {
	p := &Pools{Site: []int{0, 1}, Needs: [][]Need{{{0, 2}}, {{0, 1}}}, Own: [][]int{{0}, {0}}, Free: [][]int{{3}, {5}}, USD: [][]float64{{-1}, {-1}}}
	if p.Settle(1) || p.Licensed(0) {
		t.Error("3 seats are short of 3")
	}
	var no *Pools
	if _, ok := no.Step([]int{0}, []int{0}, []int{0}); !ok || no.Licensed(0) || no.Rent([]int{0}) != 0 || !no.Use(nil).Fits([]int{0}, 0, 0) || !no.May(0, 0) {
		t.Error("no licences are a constraint")
	}
}
