package scheduler

import "slices"

// mostAtHost is how many VMs come to a host, and leave it, side by side: more share its
// wire, and none is there sooner.
const mostAtHost = 4

// abreast makes fewer and wider steps of steps that were ordered one after the other.
func (m *model) abreast(steps []step) []step {
	var wide []step
	r := rackOfNow(m) // with the VMs of the last wide step at both ends; at is where they were before it
	for _, s := range steps {
		last := len(wide) - 1
		if last >= 0 && m.joins(r, wide[last], s) {
			w := &wide[last]
			w.vms, w.from, w.to = append(w.vms, s.vms...), append(w.from, s.from...), append(w.to, s.to...)
		} else {
			if last >= 0 {
				for i, v := range wide[last].vms {
					r.take(v, wide[last].from[i], -1)
					r.at[v] = wide[last].to[i]
				}
			}
			wide = append(wide, step{slices.Clone(s.vms), slices.Clone(s.from), slices.Clone(s.to), s.temporary})
		}
		for i, v := range s.vms {
			r.take(v, s.to[i], 1)
		}
	}
	return wide
}

// joins says whether a step may be taken beside the one before it: their VMs are others,
// there is room for both at once, and no constraint is about VMs of both, so that it does
// not matter which are there first.
func (m *model) joins(r *rack, w, s step) bool {
	if w.temporary != s.temporary {
		return false
	}
	if slices.ContainsFunc(s.vms, m.seats.Licensed) {
		if _, licensed := m.seats.Step(r.at, slices.Concat(w.vms, s.vms), slices.Concat(w.to, s.to)); !licensed {
			return false
		}
	}
	comes, leaves := map[int]int{}, map[int]int{}
	for i := range w.vms {
		comes[w.to[i]]++
		leaves[w.from[i]]++
	}
	ok, n := true, 0
	for ; n < len(s.vms) && ok; n++ {
		v, from, to := s.vms[n], s.from[n], s.to[n]
		comes[to]++
		leaves[from]++
		ok = comes[to] <= mostAtHost && leaves[from] <= mostAtHost && r.room(v, to) &&
			!slices.ContainsFunc(w.vms, func(u int) bool { return u == v || m.related(u, v) })
		r.take(v, to, 1)
	}
	for i := range n {
		r.take(s.vms[i], s.to[i], -1)
	}
	return ok
}

// related says whether a constraint may be about both VMs.
func (m *model) related(u, v int) bool {
	for _, of := range [][][]int{m.apartOf, m.togetherOf, m.limitsOf} {
		if slices.ContainsFunc(of[u], func(i int) bool { return slices.Contains(of[v], i) }) {
			return true
		}
	}
	return false
}
