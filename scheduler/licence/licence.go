// Package licence counts the seats of licences that VMs take.
//
// A seat is a host's own, for VMs there only, or its site's, for VMs at any host there. VMs
// take seats of their host first, together; what they need beyond these is the site's; and
// what they need beyond that is rented where the site has a price for it, and not to be had
// where it has none. So what a site's pool has to have is the sum over its hosts of what
// their VMs need beyond the host's own seats.
//
// A VM runs at one place at any moment, and takes its seats there. While VMs move side by
// side nobody knows which of them are there first: what a step takes (Step) is no less than
// what any order would. A licence that no placement could be short of takes no part.
//
// Everything has a number here: licences, VMs, hosts and sites.
package licence

import (
	"maps"
	"slices"

	"heliotrope"
)

// None is no host.
const None = -1

// Need is how many seats of a licence a VM takes.
type Need struct{ Licence, Seats int }

// Pools are all seats there are, and who needs how many. A nil one is one of no licences.
type Pools struct {
	Site  []int       // of each host
	Needs [][]Need    // of each VM
	Own   [][]int     // of each host: seats by licence
	Free  [][]int     // of each site: seats by licence, for VMs at any of its hosts
	USD   [][]float64 // of each site, by licence: what a rented seat costs an hour; negative: there are none

	hosts [][]int // of each site
	users [][]int // of each licence: VMs
}

// New makes pools of seats by name: what each VM needs, each host and each site has, and what a
// seat is rented for at each site. It returns the names, by number. Of no licence that may be short
// there are no pools.
func New(site []int, vms, hosts, sites []map[heliotrope.LicenceID]int, usd []map[heliotrope.LicenceID]float64) (*Pools, []heliotrope.LicenceID) {
	known := map[heliotrope.LicenceID]bool{}
	for _, needs := range vms {
		for id := range needs {
			known[id] = true
		}
	}
	if len(known) == 0 {
		return nil, nil
	}
	names := slices.Sorted(maps.Keys(known))
	rows := func(all []map[heliotrope.LicenceID]int) (list [][]int) {
		for _, seats := range all {
			row := make([]int, len(names))
			for l, id := range names {
				row[l] = max(0, seats[id])
			}
			list = append(list, row)
		}
		return list
	}
	p := &Pools{Site: site, Own: rows(hosts), Free: rows(sites)}
	for _, row := range rows(vms) {
		var needs []Need
		for l, n := range row {
			needs = append(needs, Need{l, n})
		}
		p.Needs = append(p.Needs, needs)
	}
	for _, prices := range usd {
		row := make([]float64, len(names))
		for l, id := range names {
			price, rents := prices[id]
			if row[l] = price; !rents {
				row[l] = -1
			}
		}
		p.USD = append(p.USD, row)
	}
	if !p.Settle(len(names)) {
		return nil, names
	}
	return p, names
}

// Settle makes p ready for questions, once it is filled in. What cannot be short anywhere is
// forgotten; it is false where that is everything.
func (p *Pools) Settle(licences int) bool {
	p.hosts, p.users = make([][]int, len(p.Free)), make([][]int, licences)
	for h, k := range p.Site {
		p.hosts[k] = append(p.hosts[k], h)
	}
	all := make([]int, licences)
	for _, needs := range p.Needs {
		for _, n := range needs {
			all[n.Licence] += n.Seats
		}
	}
	short, some := make([]bool, licences), false
	for _, free := range p.Free {
		for l, n := range free {
			short[l] = short[l] || all[l] > n
			some = some || short[l]
		}
	}
	for v, needs := range p.Needs {
		var kept []Need
		for _, n := range needs {
			if n.Seats > 0 && short[n.Licence] {
				kept = append(kept, n)
				p.users[n.Licence] = append(p.users[n.Licence], v)
			}
		}
		p.Needs[v] = kept
	}
	return some
}

// Licensed says whether a VM needs seats that may be short.
func (p *Pools) Licensed(vm int) bool { return p != nil && len(p.Needs[vm]) > 0 }

// Bound says whether it matters to a VM's licences at which host of a site it is.
func (p *Pools) Bound(vm, site int) bool {
	if p == nil {
		return false
	}
	for _, n := range p.Needs[vm] {
		for _, h := range p.hosts[site] {
			if p.Own[h][n.Licence] > 0 {
				return true
			}
		}
	}
	return false
}

// Seats is what VMs at a site can have of a licence without renting: at most, wherever they are.
func (p *Pools) Seats(site, licence int) int {
	sum := p.Free[site][licence]
	for _, h := range p.hosts[site] {
		sum += p.Own[h][licence]
	}
	return sum
}

// rents says whether there are as many seats as anybody wants.
func (p *Pools) rents(site, licence int) bool { return p.USD[site][licence] >= 0 }

// May says whether some host of a site has seats for a VM alone.
func (p *Pools) May(vm, site int) bool {
	if p == nil {
		return true
	}
	for _, h := range p.hosts[site] {
		fits := true
		for _, n := range p.Needs[vm] {
			fits = fits && (p.rents(site, n.Licence) || n.Seats <= p.Free[site][n.Licence]+p.Own[h][n.Licence])
		}
		if fits {
			return true
		}
	}
	return false
}

// seatsOf is how many seats of a licence a VM needs.
func (p *Pools) seatsOf(vm, licence int) int {
	for _, n := range p.Needs[vm] {
		if n.Licence == licence {
			return n.Seats
		}
	}
	return 0
}

// Lack is a site that has too few seats of a licence.
type Lack struct {
	Site, Licence int
	Used, Seats   int // of the site's own pool
}

// Lacks lists where a placement, which has a host or None for each VM, takes seats that are
// not there.
func (p *Pools) Lacks(at []int) []Lack {
	if p == nil {
		return nil
	}
	var list []Lack
	u := p.Use(at)
	for k, pool := range p.Free {
		for l, seats := range pool {
			if used := u.site[k][l]; used > seats && !p.rents(k, l) {
				list = append(list, Lack{k, l, used, seats})
			}
		}
	}
	return list
}

// Rented is how many seats of a licence are rented at each site.
func (p *Pools) Rented(at []int, licence int) []int {
	u := p.Use(at)
	rented := make([]int, len(p.Free))
	for k := range rented {
		if p.rents(k, licence) {
			rented[k] = max(0, u.site[k][licence]-p.Free[k][licence])
		}
	}
	return rented
}

// Rent is what the seats cost an hour that are rented.
func (p *Pools) Rent(at []int) float64 {
	if p == nil {
		return 0
	}
	return p.Use(at).Rent()
}

// Shares is what the rent comes to more from one placement to another, by the VMs that move: by
// the seats that they bring to a site, or take away, so that it adds up.
func (p *Pools) Shares(before, after []int) map[int]float64 {
	if p == nil {
		return nil
	}
	usd := map[int]float64{}
	for l := range p.users {
		was, is := p.Rented(before, l), p.Rented(after, l)
		for k := range is {
			if is[k] == was[k] {
				continue
			}
			brings, net := map[int]int{}, 0
			for _, v := range p.users[l] {
				n := p.seatsOf(v, l)
				if before[v] == after[v] {
					continue
				}
				if after[v] != None && p.Site[after[v]] == k {
					brings[v] += n
					net += n
				}
				if before[v] != None && p.Site[before[v]] == k {
					brings[v] -= n
					net -= n
				}
			}
			for v, n := range brings {
				part := 1 / float64(len(brings))
				if net != 0 {
					part = float64(n) / float64(net)
				}
				usd[v] += float64(is[k]-was[k]) * p.USD[k][l] * part
			}
		}
	}
	return usd
}

// Users are the VMs that take seats of a licence at a site.
func (p *Pools) Users(at []int, site, licence int) []int {
	var vms []int
	for _, v := range p.users[licence] {
		if at[v] != None && p.Site[at[v]] == site {
			vms = append(vms, v)
		}
	}
	return vms
}
