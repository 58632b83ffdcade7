package scheduler

import (
	"slices"

	"heliotrope/scheduler/licence"
)

// rack is what stands where, with the room that is left.
type rack struct {
	m                  *model
	at                 []int // host of each VM, or none
	freeVCPUs, freeMiB []float64
	seats              *licence.Use
}

func newRack(m *model) *rack {
	r := &rack{m: m, at: slices.Repeat([]int{none}, len(m.s.VMs))}
	for _, h := range m.s.Hosts {
		r.freeVCPUs, r.freeMiB = append(r.freeVCPUs, h.VCPUs), append(r.freeMiB, h.MemoryMiB)
	}
	r.seats = m.seats.Use(r.at)
	return r
}

// rackOfNow has all VMs where they are, full or not.
func rackOfNow(m *model) *rack {
	r := newRack(m)
	for v, h := range m.home {
		if h != none {
			r.put(v, h)
		}
	}
	return r
}

func (r *rack) clone() *rack {
	return &rack{r.m, slices.Clone(r.at), slices.Clone(r.freeVCPUs), slices.Clone(r.freeMiB), r.seats.Clone()}
}

func (r *rack) put(vm, host int) {
	r.at[vm] = host
	r.take(vm, host, 1)
	r.seats.Take(vm, host, 1)
}

func (r *rack) remove(vm int) {
	r.take(vm, r.at[vm], -1)
	r.seats.Take(vm, r.at[vm], -1)
	r.at[vm] = none
}

func (r *rack) take(vm, host int, times float64) {
	if host == none {
		return
	}
	r.freeVCPUs[host] -= times * r.m.s.VMs[vm].VCPUs
	r.freeMiB[host] -= times * r.m.s.VMs[vm].MemoryMiB
}

// room says whether a host may take a VM and has the room.
func (r *rack) room(vm, host int) bool {
	v := &r.m.s.VMs[vm]
	return r.m.may(vm, host) && v.VCPUs <= r.freeVCPUs[host]+slack && v.MemoryMiB <= r.freeMiB[host]+slack
}

// may says whether a VM may be at a host, room and others aside.
func (m *model) may(vm, host int) bool {
	home := m.home[vm]
	if m.s.VMs[vm].Pinned && home != none {
		return host == home
	}
	return !m.s.Hosts[host].Drained && m.allowed[vm][m.site[host]] && (host == home || home == none || m.soon(vm, m.site[home], m.site[host]))
}

// lonely says whether a VM at a host is apart from those of its groups that stand there.
func (r *rack) lonely(vm, host int) bool {
	for _, g := range r.m.apartOf[vm] {
		for _, other := range r.m.apart[g].vms {
			if other != vm && r.at[other] != none && r.m.same(r.at[other], host, r.m.apart[g].scope) {
				return false
			}
		}
	}
	return true
}

// clashes says whether a VM's place breaks a constraint between it and another that was not
// broken where both were before. Each constraint counts by itself.
func (r *rack) clashes(vm int, before []int) bool {
	worse := func(others []int, bad func(other, host, otherHost int) bool) bool {
		return slices.ContainsFunc(others, func(o int) bool {
			return o != vm && r.at[o] != none && bad(o, r.at[vm], r.at[o]) &&
				(before[vm] == none || before[o] == none || !bad(o, before[vm], before[o]))
		})
	}
	for _, i := range r.m.apartOf[vm] {
		g := r.m.apart[i]
		if worse(g.vms, func(_, a, b int) bool { return r.m.same(a, b, g.scope) }) {
			return true
		}
	}
	for _, i := range r.m.togetherOf[vm] {
		g := r.m.together[i]
		if worse(g.vms, func(_, a, b int) bool { return !r.m.same(a, b, g.scope) }) {
			return true
		}
	}
	for _, i := range r.m.limitsOf[vm] {
		l := r.m.limits[i]
		if worse(l.vms, func(o, a, b int) bool { return l.binds(vm, o) && r.m.rttMs[r.m.site[a]][r.m.site[b]] > l.ms }) {
			return true
		}
	}
	return false
}
