package licence

// Use is how many seats a placement takes, kept up to date.
type Use struct {
	p    *Pools
	host [][]int // needed at each host, by licence
	site [][]int // needed of each site's pool, by licence
}

// Use counts what a placement takes. Of no licences it is nil, which is a Use, too.
func (p *Pools) Use(at []int) *Use {
	if p == nil {
		return nil
	}
	u := &Use{p: p, host: grid(len(p.Own), len(p.users)), site: grid(len(p.Free), len(p.users))}
	for v, needs := range p.Needs {
		if len(needs) > 0 {
			u.Take(v, at[v], 1)
		}
	}
	return u
}

func grid(rows, columns int) [][]int {
	all := make([]int, rows*columns)
	g := make([][]int, rows)
	for i := range g {
		g[i] = all[i*columns : (i+1)*columns : (i+1)*columns]
	}
	return g
}

// Clone is a copy that shares nothing.
func (u *Use) Clone() *Use {
	if u == nil {
		return nil
	}
	c := &Use{p: u.p, host: grid(len(u.host), len(u.p.users)), site: grid(len(u.site), len(u.p.users))}
	for i := range u.host {
		copy(c.host[i], u.host[i])
	}
	for i := range u.site {
		copy(c.site[i], u.site[i])
	}
	return c
}

// Take adds a VM to a host, if it is one, or takes it away: times is 1 or -1.
func (u *Use) Take(vm, host, times int) {
	if u == nil || host == None {
		return
	}
	k := u.p.Site[host]
	for _, n := range u.p.Needs[vm] {
		own, before := u.p.Own[host][n.Licence], u.host[host][n.Licence]
		after := before + times*n.Seats
		u.host[host][n.Licence] = after
		u.site[k][n.Licence] += max(0, after-own) - max(0, before-own)
	}
}

// Fits says whether there are seats for VMs at a host, all of which are at another, or None,
// now.
func (u *Use) Fits(vms []int, from, to int) bool {
	if u == nil || from == to {
		return true
	}
	licensed := false
	for _, v := range vms {
		licensed = licensed || len(u.p.Needs[v]) > 0
	}
	if !licensed {
		return true
	}
	carry := func(from, to int) {
		for _, v := range vms {
			u.Take(v, from, -1)
			u.Take(v, to, 1)
		}
	}
	carry(from, to)
	defer carry(to, from)
	k := u.p.Site[to]
	for _, v := range vms {
		for _, n := range u.p.Needs[v] {
			if u.site[k][n.Licence] > u.p.Free[k][n.Licence] && !u.p.rents(k, n.Licence) {
				return false
			}
		}
	}
	return true
}

// Rent is what the seats cost an hour that are rented.
func (u *Use) Rent() float64 {
	if u == nil {
		return 0
	}
	var usd float64
	for k, row := range u.site {
		for l, n := range row {
			if more := n - u.p.Free[k][l]; more > 0 && u.p.rents(k, l) {
				usd += float64(more) * u.p.USD[k][l]
			}
		}
	}
	return usd
}

// More is what the rent comes to more when VMs go to a host, all of which are at another, or
// None, now.
func (u *Use) More(vms []int, from, to int) float64 {
	if u == nil || from == to {
		return 0
	}
	before := u.Rent()
	for _, v := range vms {
		u.Take(v, from, -1)
		u.Take(v, to, 1)
	}
	after := u.Rent()
	for _, v := range vms {
		u.Take(v, to, -1)
		u.Take(v, from, 1)
	}
	return after - before
}

// Step says whether VMs may go to hosts side by side, from where a placement has them: first
// the licences of which a site could come to take more than it has, and than it takes now.
func (p *Pools) Step(at, vms, to []int) (Lack, bool) {
	if p == nil {
		return Lack{}, true
	}
	type pool struct{ site, licence int }
	seen := map[pool]bool{}
	for i, v := range vms {
		for _, n := range p.Needs[v] {
			k := pool{p.Site[to[i]], n.Licence}
			if seen[k] || p.rents(k.site, k.licence) {
				continue
			}
			seen[k] = true
			before, most := p.between(at, vms, to, k.site, k.licence)
			if free := p.Free[k.site][k.licence]; most > max(free, before) {
				return Lack{k.site, k.licence, most, free}, false
			}
		}
	}
	return Lack{}, true
}

// between is what a site's pool gives of a licence now, and at most while VMs move. That is
// no more than if they were at both ends; nor than what those who stay take and, for each
// that moves, what it adds where it adds most, once all others are there: needs beyond a
// host's own seats are convex. Where nobody moves within the site the first is what it
// comes to in one of the orders.
func (p *Pools) between(at, vms, to []int, site, licence int) (now, most int) {
	here := func(host int) bool { return host != None && p.Site[host] == site }
	before, both, stay := map[int]int{}, map[int]int{}, map[int]int{}
	for _, v := range p.users[licence] {
		if h := at[v]; here(h) {
			n := p.seatsOf(v, licence)
			before[h] += n
			both[h] += n
			stay[h] += n
		}
	}
	for i, v := range vms {
		n := p.seatsOf(v, licence)
		if here(at[v]) {
			stay[at[v]] -= n
		}
		if here(to[i]) && to[i] != at[v] {
			both[to[i]] += n
		} else if to[i] == at[v] && here(at[v]) {
			stay[at[v]] += n
		}
	}
	beyond := func(needed map[int]int) (sum int) {
		for h, n := range needed {
			sum += max(0, n-p.Own[h][licence])
		}
		return sum
	}
	adds := beyond(stay)
	for i, v := range vms {
		more, n := 0, p.seatsOf(v, licence)
		for _, h := range []int{at[v], to[i]} {
			if here(h) && at[v] != to[i] {
				own := p.Own[h][licence]
				more = max(more, max(0, both[h]-own)-max(0, both[h]-n-own))
			}
		}
		adds += more
	}
	return beyond(before), min(beyond(both), adds)
}

// Room is what a VM would find at a host: how many seats of a licence there are for it and
// the others there, and how many of these others take.
func (p *Pools) Room(at []int, vm, host, licence int) (used, seats int) {
	others := append([]int(nil), at...)
	others[vm] = None
	u := p.Use(others)
	own := p.Own[host][licence]
	return u.site[p.Site[host]][licence] + min(own, u.host[host][licence]), p.Free[p.Site[host]][licence] + own
}
