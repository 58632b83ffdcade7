package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// step is VMs that move side by side: each occupies room at both ends until all have moved.
type step struct {
	vms       []int
	from, to  []int // hosts
	temporary bool
}

const (
	mostTogether = 64 // VMs in a step that distance binds together
	mostPlaces   = 8  // temporary ones that are tried for a VM
)

// orderer finds an order of moves in which no step makes anything worse.
type orderer struct {
	*rack
	target  []int
	pending [][]int // VMs of a unit that have yet to move
	steps   []step
	moves   int
	barred  map[int]bool // VMs that went to a temporary place and did not get on from there
}

// arrange returns the steps that lead from where VMs are to target, as far as there is an
// order for them. first says which units go first: those with the greatest.
func arrange(f *field, target []int, first func(vms []int) float64) *orderer {
	o := &orderer{rack: rackOfNow(f.m), target: target, barred: map[int]bool{}}
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
	for len(o.pending) > 0 && (o.bound() || o.detour()) {
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
	_, licensed := o.m.seats.Step(o.at, vms, to)
	if n < len(vms) || !licensed || !o.agree(vms, to) {
		for i := range n {
			o.take(vms[i], to[i], -1)
		}
		return false
	}
	from := make([]int, len(vms))
	for i, v := range vms {
		from[i] = o.at[v]
		o.take(v, o.at[v], -1)
		o.seats.Take(v, o.at[v], -1)
		o.seats.Take(v, to[i], 1)
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

// detour breaks cycles: it takes VMs to temporary places, one after the other, until all of
// them have reached their targets. Where they do not, everything is as it was before, and
// those that were left waiting do not go there again.
func (o *orderer) detour() bool {
	saved := *o
	saved.rack, saved.pending, saved.steps = o.clone(), slices.Clone(o.pending), slices.Clone(o.steps)
	waiting := map[int]bool{}
	for {
		v := o.evict(waiting)
		if v == none && !o.bound() {
			break
		}
		if v != none {
			waiting[v] = true
		}
		o.sweep()
		maps.DeleteFunc(waiting, func(w int, _ bool) bool { return o.at[w] == o.target[w] })
		if len(waiting) == 0 {
			return true
		}
	}
	*o = saved
	maps.Copy(o.barred, waiting)
	return len(waiting) > 0
}

// evict takes a VM for which others wait to a temporary place: the smallest whose room lets
// one of them in at once, or else the largest. It returns none where it can take none.
func (o *orderer) evict(waiting map[int]bool) int {
	arrivals := map[int][]int{} // VMs that wait for a host
	for _, vms := range o.pending {
		for _, v := range vms {
			arrivals[o.target[v]] = append(arrivals[o.target[v]], v)
		}
	}
	rank := map[int]float64{}
	var list []int
	for _, vms := range o.pending {
		v := vms[0]
		if len(vms) > 1 || waiting[v] || o.barred[v] || o.at[v] == none || len(arrivals[o.at[v]]) == 0 && !o.licensed(v) {
			continue
		}
		size := &o.m.s.VMs[v]
		vcpus, mib := o.freeVCPUs[o.at[v]]+size.VCPUs, o.freeMiB[o.at[v]]+size.MemoryMiB
		rank[v] = 1 / (1 + size.MemoryMiB)
		if !slices.ContainsFunc(arrivals[o.at[v]], func(w int) bool { return o.m.s.VMs[w].VCPUs <= vcpus+slack && o.m.s.VMs[w].MemoryMiB <= mib+slack }) {
			rank[v] = -rank[v]
		}
		list = append(list, v)
	}
	slices.SortStableFunc(list, func(v, w int) int { return cmp.Compare(rank[w], rank[v]) })
	for _, v := range list {
		for _, h := range o.stopovers(v, arrivals) {
			if o.try([]int{v}, []int{h}, true) {
				return v
			}
		}
	}
	return none
}

// licensed says whether others may wait for a VM's seats.
func (o *orderer) licensed(vm int) bool {
	share := func(w int) bool {
		return w != vm && o.m.site[o.target[w]] == o.m.site[o.at[vm]] && o.m.seats.Licensed(w)
	}
	return o.m.seats.Licensed(vm) && slices.ContainsFunc(o.pending, func(vms []int) bool { return slices.ContainsFunc(vms, share) })
}

// stopovers are hosts where a VM can wait: first those where it is in nobody's way, then those
// at its own site or its target's, so that neither way has a longer pause than the move
// itself. Where a pause can be too long, there are no others.
func (o *orderer) stopovers(vm int, arrivals map[int][]int) []int {
	var hosts []int
	rank := map[int]float64{}
	size, licensed := &o.m.s.VMs[vm], o.licensed(vm)
	for h, k := range o.m.site {
		near := k == o.m.site[o.at[vm]] || k == o.m.site[o.target[vm]]
		if h == o.at[vm] || h == o.target[vm] || !near && o.m.p.MaxPauseMs > 0 || !o.room(vm, h) || !o.lonely(vm, h) || !o.seats.Fits([]int{vm}, o.at[vm], h) {
			continue
		}
		vcpus, mib := o.freeVCPUs[h]-size.VCPUs, o.freeMiB[h]-size.MemoryMiB
		for _, w := range arrivals[h] {
			vcpus -= o.m.s.VMs[w].VCPUs
			mib -= o.m.s.VMs[w].MemoryMiB
		}
		rank[h] = min(0, vcpus/max(o.m.s.Hosts[h].VCPUs, 1), mib/max(o.m.s.Hosts[h].MemoryMiB, 1))
		switch {
		case k == o.m.site[o.at[vm]] && licensed:
			rank[h] -= 2 // its seats are no freer for that
		case near && rank[h] == 0:
			rank[h] = 1
		}
		hosts = append(hosts, h)
	}
	slices.SortStableFunc(hosts, func(a, b int) int { return cmp.Compare(rank[b], rank[a]) })
	return hosts[:min(len(hosts), mostPlaces)]
}

// unlicensed says which licence keeps a VM from its target, or nothing.
func (o *orderer) unlicensed(vm int) string {
	if why := o.m.unlicensed(o.at, vm, o.target[vm]); why != "" {
		return why
	}
	return o.m.shortOf(o.at, []int{vm}, o.target[vm:vm+1])
}

// why says what keeps a VM from its target.
func (o *orderer) why(vm int) string {
	host := o.m.s.Hosts[o.target[vm]].ID
	switch most := o.m.p.MaxMoves; {
	case most > 0 && o.moves >= most:
		return fmt.Sprintf("the plan has its %d moves", most)
	case !o.room(vm, o.target[vm]):
		return fmt.Sprintf("%s has no room for it while others wait for room too, and there is no temporary place", host)
	case o.unlicensed(vm) != "":
		return o.unlicensed(vm)
	}
	return fmt.Sprintf("at %s it would be too near to, or too far from, VMs that have to move too, and there is no temporary place", host)
}
