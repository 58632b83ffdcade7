package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"heliotrope"
	"heliotrope/scheduler/licence"
)

// licences counts the seats that there are and that VMs need (package licence).
func (m *model) licences(bad *problems) {
	number := map[heliotrope.LicenceID]int{}
	for _, v := range m.s.VMs {
		for id, n := range v.Licences {
			number[id] = 0
			if n < 0 {
				bad.say("vm %s: its seats of %s are negative", v.ID, id)
			}
		}
	}
	if len(number) == 0 {
		return
	}
	m.licence = slices.Sorted(maps.Keys(number))
	for l, id := range m.licence {
		number[id] = l
	}
	row := func(seats map[heliotrope.LicenceID]int) []int {
		list := make([]int, len(m.licence))
		for l, id := range m.licence {
			list[l] = max(0, seats[id])
		}
		return list
	}
	p := &licence.Pools{Site: m.site}
	for _, v := range m.s.VMs {
		var needs []licence.Need
		for _, id := range slices.Sorted(maps.Keys(v.Licences)) {
			needs = append(needs, licence.Need{Licence: number[id], Seats: v.Licences[id]})
		}
		p.Needs = append(p.Needs, needs)
	}
	for _, h := range m.s.Hosts {
		p.Own = append(p.Own, row(h.Licences))
	}
	for _, s := range m.s.Sites {
		p.Free = append(p.Free, row(s.Licences))
		usd := slices.Repeat([]float64{-1}, len(m.licence))
		for id, price := range s.SeatUSDPerHour {
			if l, ok := number[id]; ok {
				usd[l] = price
			}
		}
		p.USD = append(p.USD, usd)
	}
	if p.Settle(len(m.licence)) {
		m.seats = p
	}
}

// rents adds to each VM that moves its share of what is rented more, or less, at the sites
// that it leaves and comes to: by seats, those that come less those that go.
func (m *model) rents(list []reason, before, after []int) {
	if m.seats == nil {
		return
	}
	for l := range m.licence {
		was, is := m.seats.Rented(before, l), m.seats.Rented(after, l)
		for k, more := range is {
			if more -= was[k]; more == 0 {
				continue
			}
			share, net := map[int]int{}, 0 // seats that each VM brings
			for _, at := range []struct {
				hosts []int
				sign  int
			}{{after, 1}, {before, -1}} {
				for _, v := range m.seats.Users(at.hosts, k, l) {
					if before[v] != after[v] {
						share[v] += at.sign * m.s.VMs[v].Licences[m.licence[l]]
						net += at.sign * m.s.VMs[v].Licences[m.licence[l]]
					}
				}
			}
			for v, seats := range share {
				part := 1 / float64(len(share))
				if net != 0 {
					part = float64(seats) / float64(net)
				}
				list[v].gain.Licences -= float64(more) * m.seats.USD[k][l] * part
			}
		}
	}
}

// lacks are the licences that a placement does not keep, as violations.
func (m *model) lacks(at []int) []Violation {
	var list []Violation
	for _, x := range m.seats.Lacks(at) {
		list = append(list, Violation{Kind: "licence", Name: string(m.licence[x.Licence]), Where: "at " + string(m.s.Sites[x.Site].ID)})
	}
	return list
}

// shortOf says which licence VMs would be short of on their way to hosts, or nothing.
func (m *model) shortOf(at, vms, to []int) string {
	x, ok := m.seats.Step(at, vms, to)
	if ok {
		return ""
	}
	return fmt.Sprintf("%s has %d seats of licence %s for VMs at any of its hosts, and while VMs move up to %d would be taken", m.s.Sites[x.Site].ID, x.Seats, m.licence[x.Licence], x.Used)
}

// unlicensed says which licence keeps a VM from a host, others being where at says, or nothing.
func (m *model) unlicensed(at []int, vm, host int) string {
	if !m.seats.Licensed(vm) {
		return ""
	}
	k := m.site[host]
	for _, n := range m.seats.Needs[vm] {
		used, seats := m.seats.Room(at, vm, host, n.Licence)
		name, site := m.licence[n.Licence], m.s.Sites[k].ID
		switch {
		case m.seats.USD[k][n.Licence] >= 0 || used+n.Seats <= seats:
		case seats == 0:
			return fmt.Sprintf("there is no licence of %s at %s", name, site)
		case used == 0:
			return fmt.Sprintf("it needs %d seats of licence %s, and %s has %d", n.Seats, name, site, seats)
		default:
			return fmt.Sprintf("no licence of %s left at %s: %d of %d seats are used by %s, and it needs %d", name, site, used, seats, m.names(m.seats.Users(at, k, n.Licence), vm), n.Seats)
		}
	}
	return ""
}

// nowhere says why there is no host for a VM, others being where at says.
func (m *model) nowhere(at []int, vm int) string {
	for h := range m.s.Hosts {
		if why := m.unlicensed(at, vm, h); why != "" && m.may(vm, h) {
			return "no host that it may be at has room and licences for it: " + why
		}
	}
	return "no host that it may be at has room for it"
}

const mostNames = 4 // of VMs in a sentence

func (m *model) names(vms []int, but int) string {
	var list []string
	for _, v := range vms {
		if v != but {
			list = append(list, string(m.s.VMs[v].ID))
		}
	}
	if more := len(list) - mostNames; more > 0 {
		list = append(list[:mostNames], fmt.Sprintf("%d more", more))
	}
	return strings.Join(list, ", ")
}

// charge puts a price on seats where there are too few of them, and tells the search so by
// the units' own prices. What all seats there are would cost by it (paid) is taken off the
// bound again: who keeps to the seats pays no more than that, and who rents some pays as much
// for them at least (licence.Pools.Prices). With hard not, none is put on seats that are not
// to be rented.
func (f *field) charge(hard bool) {
	p := f.m.seats
	if p == nil {
		return
	}
	var units [][]int
	var rows [][]float64
	for u, vms := range f.units {
		if slices.ContainsFunc(vms, p.Licensed) {
			units, rows = append(units, vms), append(rows, f.alone(u))
		}
	}
	price := p.Prices(units, rows, hard)
	for k := range price {
		for l, usd := range price[k] {
			f.paid += usd * float64(p.Seats(k, l))
		}
	}
	for v, needs := range p.Needs {
		for _, n := range needs {
			for k := range f.Sites {
				f.Linear[f.unitOf[v]*f.Sites+k] += float64(n.Seats) * price[k][n.Licence]
			}
		}
	}
}

// alone is what a unit would cost at each site, all others being where they are now.
func (f *field) alone(u int) []float64 {
	row := slices.Clone(f.Linear[u*f.Sites : (u+1)*f.Sites])
	for _, e := range f.Edges[u] {
		if home := f.Home[e.To]; home != none {
			for k := range row {
				row[k] += f.PairUSD(e, k, home)
			}
		}
	}
	return row
}
