package scheduler

import (
	"fmt"
	"strings"

	"heliotrope"
)

// Violation is one constraint that a placement does not keep.
type Violation struct {
	Kind  string            `json:"kind"` // place, room, licence, apart, together, distance
	Name  string            `json:"name"` // host, licence, group or limit
	VMs   []heliotrope.VMID `json:"vms,omitempty"`
	Where string            `json:"where,omitempty"`
}

func (v Violation) String() string {
	var vms []string
	for _, id := range v.VMs {
		vms = append(vms, string(id))
	}
	return strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s", v.Kind, v.Name, strings.Join(vms, " "), v.Where)), " ")
}

// slack is how much more than its room a host may hold, as a share: sums of floats.
const slack = 1e-9

// Check lists what constraints a placement does not keep, from nothing but the snapshot
// and the policy: it shares no state with the search, whose plans are held against it.
func Check(s Snapshot, p Policy, where Placement) ([]Violation, error) {
	m, err := newModel(&s, p)
	if err != nil {
		return nil, err
	}
	at, err := m.hosts(where)
	if err != nil {
		return nil, err
	}
	return m.check(at), nil
}

func (m *model) check(at []int) []Violation {
	var list []Violation
	vcpus, mib := make([]float64, len(m.s.Hosts)), make([]float64, len(m.s.Hosts))
	for i, h := range at {
		v := &m.s.VMs[i]
		if h == none {
			list = append(list, Violation{Kind: "place", Name: "nowhere", VMs: []heliotrope.VMID{v.ID}})
			continue
		}
		vcpus[h] += v.VCPUs
		mib[h] += v.MemoryMiB
		if !m.may(i, h) {
			list = append(list, Violation{Kind: "place", Name: string(m.s.Hosts[h].ID), VMs: []heliotrope.VMID{v.ID}})
		}
	}
	for h, host := range m.s.Hosts {
		if vcpus[h] > host.VCPUs*(1+slack) || mib[h] > host.MemoryMiB*(1+slack) {
			list = append(list, Violation{Kind: "room", Name: string(host.ID)})
		}
	}
	list = append(list, m.lacks(at)...)
	for _, g := range m.together {
		for _, v := range g.vms[min(1, len(g.vms)):] {
			if a, b := at[g.vms[0]], at[v]; a != none && b != none && !m.same(a, b, g.scope) {
				list = append(list, m.pair("together", g.name, g.vms[0], v))
			}
		}
	}
	return m.checkPairs(at, list)
}

func (m *model) checkPairs(at []int, list []Violation) []Violation {
	for _, g := range m.apart {
		for n, i := range g.vms {
			for _, j := range g.vms[:n] {
				if at[i] != none && at[j] != none && m.same(at[i], at[j], g.scope) {
					list = append(list, m.pair("apart", g.name, j, i))
				}
			}
		}
	}
	for _, l := range m.limits {
		for n, i := range l.vms {
			for _, j := range l.vms[:n] {
				if at[i] != none && at[j] != none && l.binds(i, j) && m.rttMs[m.site[at[i]]][m.site[at[j]]] > l.ms {
					list = append(list, m.pair("distance", l.name, j, i))
				}
			}
		}
	}
	return list
}

func (m *model) pair(kind, name string, i, j int) Violation {
	return Violation{Kind: kind, Name: name, VMs: []heliotrope.VMID{m.s.VMs[i].ID, m.s.VMs[j].ID}}
}

// same says whether two hosts are the same, or at the same site.
func (m *model) same(a, b int, scope Scope) bool {
	return a == b || scope == AtSite && m.site[a] == m.site[b]
}
