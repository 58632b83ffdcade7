package scheduler

import "math"

const (
	reseats  = 10  // times that all VMs with licences are tried, at most
	mostSwap = 200 // VMs with licences, of which all pairs are tried
)

// reseat takes VMs with licences, one by one and two in each other's place, to where all costs
// less: with what seats are rented for, and without the price that charge put on them. To
// leave home has to gain so much at least.
func (p *packer) reseat(least float64) {
	var vms []int
	for v := range p.m.s.VMs {
		if p.m.seats.Licensed(v) && len(p.f.units[p.f.unitOf[v]]) == 1 && p.loose(v) {
			vms = append(vms, v)
		}
	}
	for n, better := 0, true; better && n < reseats; n++ {
		better = false
		for i, v := range vms {
			for k := range p.f.Sites {
				if h := p.seatAt(v, k); h != none && h != p.at[v] {
					better = p.keep(least, []int{v}, []int{h}) || better
				}
			}
			for _, w := range vms[:min(i, mostSwap)] {
				if a, b := p.at[v], p.at[w]; p.m.site[a] != p.m.site[b] && p.exchangeable(v, w) {
					better = p.keep(least, []int{v, w}, []int{b, a}) || better
				}
			}
		}
	}
}

// seatAt is the host of a site at which a VM adds least, or none.
func (p *packer) seatAt(v, site int) int {
	best, least := none, math.Inf(1)
	for _, h := range p.bySite[site] {
		if usd := p.seats.More([]int{v}, p.at[v], h) + p.stirring(v, h); usd < least && p.fits(p.itemOf[v], h) {
			best, least = h, usd
		}
	}
	return best
}

// stirring is what being at another host of its own site costs a VM.
func (p *packer) stirring(v, host int) float64 {
	if p.m.siteAt(p.m.home[v]) != p.m.site[host] || p.m.mustLeave(v) {
		return 0
	}
	return p.m.moving(v, host).Total()
}

// exchangeable says whether two VMs fit into each other's place.
func (p *packer) exchangeable(v, w int) bool {
	a, b := p.at[v], p.at[w]
	p.remove(v)
	p.remove(w)
	ok := p.fits(p.itemOf[v], b)
	if ok {
		p.put(v, b)
		ok = p.fits(p.itemOf[w], a)
		p.remove(v)
	}
	p.put(v, a)
	p.put(w, b)
	return ok
}

// keep takes VMs to hosts, and back if that is not worth it.
func (p *packer) keep(least float64, vms, hosts []int) bool {
	var back []int
	usd, must := -p.costing(vms), 0.0
	for i, v := range vms {
		back = append(back, p.at[v])
		switch p.m.home[v] {
		case p.at[v]:
			must += least
		case hosts[i]:
			must -= least
		}
	}
	carry := func(hosts []int) {
		for i, v := range vms {
			p.remove(v)
			p.put(v, hosts[i])
			p.s.Move(p.f.unitOf[v], p.m.site[hosts[i]])
		}
	}
	carry(hosts)
	if usd += p.costing(vms); usd < -must-1e-9 && !p.tooMany() {
		return true
	}
	carry(back)
	return false
}

// costing is what all costs, but for what does not change when VMs move.
func (p *packer) costing(vms []int) float64 {
	usd := p.s.USD + p.seats.Rent()
	for _, v := range vms {
		usd += p.stirring(v, p.at[v]) - p.f.charged(v, p.m.site[p.at[v]])
	}
	return usd
}
