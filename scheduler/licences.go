package scheduler

import (
	"fmt"
	"slices"
	"strings"

	"heliotrope"
	"heliotrope/scheduler/licence"
)

// licences counts the seats that there are and that VMs need (package licence).
func (m *model) licences(bad *problems) {
	var vms, hosts, sites []map[heliotrope.LicenceID]int
	var usd []map[heliotrope.LicenceID]float64
	for _, v := range m.s.VMs {
		vms = append(vms, v.Licences)
		for id, n := range v.Licences {
			if n < 0 {
				bad.say("vm %s: its seats of %s are negative", v.ID, id)
			}
		}
	}
	for _, h := range m.s.Hosts {
		hosts = append(hosts, h.Licences)
	}
	for _, s := range m.s.Sites {
		sites, usd = append(sites, s.Licences), append(usd, s.SeatUSDPerHour)
	}
	m.seats, m.licence = licence.New(m.site, vms, hosts, sites, usd)
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
	f.price = p.Prices(units, rows, hard)
	for k := range f.price {
		for l, usd := range f.price[k] {
			f.paid += usd * float64(p.Seats(k, l))
		}
	}
	for v := range p.Needs {
		for k := range f.Sites {
			f.Linear[f.unitOf[v]*f.Sites+k] += f.charged(v, k)
		}
	}
}

// charged is what of a VM's own price at a site is the price of its seats.
func (f *field) charged(vm, site int) float64 {
	var usd float64
	if f.price != nil {
		for _, n := range f.m.seats.Needs[vm] {
			usd += float64(n.Seats) * f.price[site][n.Licence]
		}
	}
	return usd
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
