package scheduler

import (
	"cmp"
	"fmt"
	"slices"
)

// step is VMs that move side by side: each occupies room at both ends until all have moved.
type step struct {
	vms       []int
	from, to  []int // hosts
	temporary bool
}

const (
	mostDetours  = 2000 // temporary places that are tried in all
	placesPerVM  = 8    // and for one VM
	mostTogether = 64   // VMs in a step that distance binds together
)

// orderer finds an order of moves in which no step makes anything worse.
type orderer struct {
	*rack
	target  []int
	pending [][]int // VMs of a unit that have yet to move
	steps   []step
	moves   int
}

// arrange returns the steps that lead from where VMs are to target, as far as there is an
// order for them. first says which units go first: those with the greatest.
func arrange(f *field, target []int, first func(vms []int) float64) *orderer {
	o := &orderer{rack: rackOfNow(f.m), target: target}
	for _, unit := range f.units {
		var vms []int
		for _, v := range unit {
			if target[v] != o.at[v] && target[v] != none {
				vms = append(vms, v)
			}
		}
		if len(vms) > 0 {
			o.pending = append(o.pending, vms)
		}
	}
	value := map[int]float64{} // by the first VM
	for _, vms := range o.pending {
		value[vms[0]] = first(vms)
	}
	slices.SortStableFunc(o.pending, func(a, b []int) int { return cmp.Compare(value[b[0]], value[a[0]]) })
	o.sweep()
	for tries := 0; len(o.pending) > 0 && tries < mostDetours; {
		if !o.bound() && !o.detour(&tries) {
			break
		}
	}
	return o
}

// sweep takes what can be taken until nothing can.
func (o *orderer) sweep() {
	for progress := true; progress; {
		progress = false
		o.pending = slices.DeleteFunc(o.pending, func(vms []int) bool {
			to := make([]int, len(vms))
			for i, v := range vms {
				to[i] = o.target[v]
			}
			done := o.try(vms, to, false)
			progress = progress || done
			return done
		})
	}
}

// try takes a step if it is allowed.
func (o *orderer) try(vms, to []int, temporary bool) bool {
	if most := o.m.p.MaxMoves; most > 0 && o.moves+len(vms) > most {
		return false
	}
	n := 0
	for ; n < len(vms) && o.room(vms[n], to[n]); n++ {
		o.take(vms[n], to[n], 1)
	}
	if n < len(vms) || !o.agree(vms, to) {
		for i := range n {
			o.take(vms[i], to[i], -1)
		}
		return false
	}
	from := make([]int, len(vms))
	for i, v := range vms {
		from[i] = o.at[v]
		o.take(v, o.at[v], -1)
		o.at[v] = to[i]
	}
	o.steps = append(o.steps, step{slices.Clone(vms), from, slices.Clone(to), temporary})
	o.moves += len(vms)
	return true
}

// agree says whether VMs at new hosts break nothing between them and any others.
func (o *orderer) agree(vms, to []int) bool {
	if !slices.ContainsFunc(vms, func(v int) bool { return len(o.m.apartOf[v])+len(o.m.togetherOf[v])+len(o.m.limitsOf[v]) > 0 }) {
		return true
	}
	before := o.at
	defer func() { o.at = before }()
	o.at = slices.Clone(before)
	for i, v := range vms {
		o.at[v] = to[i]
	}
	return !slices.ContainsFunc(vms, func(v int) bool { return o.clashes(v, before) })
}

// bound takes what distance or being apart binds together in one step.
func (o *orderer) bound() bool {
	for n := range o.pending {
		group := o.linked(n)
		if len(group) < 2 {
			continue
		}
		var vms, to []int
		for _, i := range group {
			for _, v := range o.pending[i] {
				vms, to = append(vms, v), append(to, o.target[v])
			}
		}
		if len(vms) <= mostTogether && o.try(vms, to, false) {
			o.pending = slices.DeleteFunc(o.pending, func(p []int) bool { return slices.Contains(vms, p[0]) })
			o.sweep()
			return true
		}
	}
	return false
}

// linked lists the pending units that limits tie to one, itself first.
func (o *orderer) linked(n int) []int {
	group := []int{n}
	for i := 0; i < len(group) && len(group) <= mostTogether; i++ {
		for other := range o.pending {
			if !slices.Contains(group, other) && o.tied(o.pending[group[i]], o.pending[other]) {
				group = append(group, other)
			}
		}
	}
	return group
}

func (o *orderer) tied(a, b []int) bool {
	share := func(of [][]int, v, w int) bool {
		return slices.ContainsFunc(of[v], func(g int) bool { return slices.Contains(of[w], g) })
	}
	for _, v := range a {
		for _, w := range b {
			if share(o.m.limitsOf, v, w) || share(o.m.apartOf, v, w) {
				return true
			}
		}
	}
	return false
}

// detour breaks a cycle: it takes a VM to a temporary place, where that lets it reach its
// target in the end. It leaves everything as it was where nothing helps.
func (o *orderer) detour(tries *int) bool {
	for _, vms := range slices.Clone(o.pending) { // which a try shortens in place
		if len(vms) != 1 {
			continue
		}
		v := vms[0]
		for _, h := range o.stopovers(v) {
			if *tries++; *tries > mostDetours {
				return false
			}
			saved := *o
			saved.rack, saved.pending, saved.steps = o.clone(), slices.Clone(o.pending), slices.Clone(o.steps)
			if o.try(vms, []int{h}, true) {
				o.sweep()
				if o.at[v] == o.target[v] {
					return true
				}
			}
			*o = saved
		}
	}
	return false
}

// stopovers are hosts where a VM can wait: at its own site or its target's, so that neither
// way has a longer pause than the move itself.
func (o *orderer) stopovers(vm int) []int {
	var hosts []int
	if o.at[vm] == none {
		return nil
	}
	for h, k := range o.m.site {
		if near := k == o.m.site[o.at[vm]] || k == o.m.site[o.target[vm]]; near && h != o.at[vm] && h != o.target[vm] && o.room(vm, h) && o.lonely(vm, h) {
			hosts = append(hosts, h)
		}
		if len(hosts) == placesPerVM {
			break
		}
	}
	return hosts
}

// why says what keeps a VM from its target.
func (o *orderer) why(vm int) string {
	host := o.m.s.Hosts[o.target[vm]].ID
	switch most := o.m.p.MaxMoves; {
	case most > 0 && o.moves >= most:
		return fmt.Sprintf("the plan has its %d moves", most)
	case !o.room(vm, o.target[vm]):
		return fmt.Sprintf("%s has no room for it while others wait for room too, and there is no temporary place", host)
	}
	return fmt.Sprintf("at %s it would be too near to, or too far from, VMs that have to move too, and there is no temporary place", host)
}
