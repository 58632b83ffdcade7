package survey

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler"
)

// rules puts a topology's rules into a snapshot. Limits of distance are the policy's: Limits.
func (s *snapshot) rules(t heliotrope.Topology) {
	at := map[heliotrope.VMID]*scheduler.VM{}
	for i := range s.VMs {
		at[s.VMs[i].ID] = &s.VMs[i]
	}
	for _, id := range slices.Sorted(maps.Keys(t.Rules)) {
		r := t.Rules[id]
		switch {
		case r.Together != "":
			s.Together = append(s.Together, scheduler.Group{Name: string(id), VMs: r.VMs, Scope: scheduler.Scope(r.Together)})
		case r.Apart != "":
			s.Apart = append(s.Apart, scheduler.Group{Name: string(id), VMs: r.VMs, Scope: scheduler.Scope(r.Apart)})
		}
		for _, vm := range r.VMs {
			// Several lists of sites leave what is in all of them, so that the others are
			// forbidden here, and not these allowed.
			for site := range t.Sites {
				if slices.Contains(r.NotSites, site) || len(r.Sites) > 0 && !slices.Contains(r.Sites, site) {
					at[vm].Forbidden = append(at[vm].Forbidden, site)
				}
			}
		}
	}
	for i := range s.VMs {
		slices.Sort(s.VMs[i].Forbidden)
		s.VMs[i].Forbidden = slices.Compact(s.VMs[i].Forbidden)
	}
}

// Limits are a topology's rules of distance.
func Limits(t heliotrope.Topology) []scheduler.RTTLimit {
	var list []scheduler.RTTLimit
	for _, id := range slices.Sorted(maps.Keys(t.Rules)) {
		if r := t.Rules[id]; r.MaxRTT != 0 {
			list = append(list, scheduler.RTTLimit{Name: string(id), A: r.VMs, B: r.To, Ms: time.Duration(r.MaxRTT).Seconds() * 1e3})
		}
	}
	return list
}

// Members are a pool's VMs, sorted: those it names, or those that no pool of t does.
func Members(t heliotrope.Topology, id heliotrope.PoolID) []heliotrope.VMID {
	if p := t.Pools[id]; len(p.VMs) > 0 {
		return slices.Sorted(slices.Values(p.VMs))
	}
	rest := maps.Clone(t.VMs)
	for _, p := range t.Pools {
		for _, vm := range p.VMs {
			delete(rest, vm)
		}
	}
	return slices.Sorted(maps.Keys(rest))
}

// PoolOf is the pool that a VM is in; empty where it is in none.
func PoolOf(t heliotrope.Topology, vm heliotrope.VMID) heliotrope.PoolID {
	var rest heliotrope.PoolID
	for id, p := range t.Pools {
		if slices.Contains(p.VMs, vm) {
			return id
		}
		if len(p.VMs) == 0 {
			rest = id
		}
	}
	return rest
}

// Policy is the policy of a pool of a topology, its limits of distance included.
func Policy(t heliotrope.Topology, id heliotrope.PoolID) (scheduler.Policy, error) {
	pool := t.Pools[id]
	p, err := Named(t, cmp.Or(pool.Policy, DefaultPolicy))
	if err != nil {
		return p, err
	}
	p.RTTLimits = Limits(t)
	p.MinGainUSDPerHour = cmp.Or(pool.MinGain, p.MinGainUSDPerHour)
	p.MaxPauseMs = time.Duration(pool.MaxPause).Seconds() * 1e3
	return p, nil
}
