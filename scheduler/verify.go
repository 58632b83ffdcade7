package scheduler

import (
	"errors"
	"fmt"
	"slices"
)

// Verify says whether a plan can be carried out from a snapshot, step by step: each VM is
// where its move begins, the room that it needs is there while its old place still holds
// it, and no step breaks a constraint that was kept before it. It shares nothing with what
// made the plan; whoever carries plans out asks it first.
func Verify(s Snapshot, p Policy, plan Plan) error {
	m, err := newModel(&s, p)
	if err != nil {
		return err
	}
	at := append([]int(nil), m.home...)
	known := map[string]bool{}
	for _, v := range m.check(at) {
		known[v.String()] = true
	}
	for _, step := range plan.Steps() {
		if err := m.verifyStep(at, step); err != nil {
			return fmt.Errorf("verify step %d: %w", step[0].Step, err)
		}
		for _, v := range m.check(at) {
			if !known[v.String()] {
				return fmt.Errorf("verify step %d: it breaks: %s", step[0].Step, v)
			}
		}
	}
	if m.p.MaxMoves > 0 && len(plan.Moves) > m.p.MaxMoves {
		return fmt.Errorf("verify plan: %d moves, at most %d may be", len(plan.Moves), m.p.MaxMoves)
	}
	return nil
}

// verifyStep moves at on by one step, if it may be taken.
func (m *model) verifyStep(at []int, step []Move) error {
	vcpus, mib := make([]float64, len(m.s.Hosts)), make([]float64, len(m.s.Hosts))
	hold := func(vm, host int) {
		vcpus[host] += m.s.VMs[vm].VCPUs
		mib[host] += m.s.VMs[vm].MemoryMiB
	}
	for v, h := range at {
		if h != none {
			hold(v, h)
		}
	}
	var vms, hosts []int
	before := slices.Clone(at)
	for _, move := range step {
		v, ok := m.vmOf[move.VM]
		to, ok2 := m.hostOf[move.To]
		from, ok3 := m.hostOf[move.From]
		if !ok3 {
			from = none
		}
		switch {
		case !ok || !ok2 || at[v] != from:
			return fmt.Errorf("%s is not at %q, or there is no %q", move.VM, move.From, move.To)
		case !m.may(v, to):
			return fmt.Errorf("%s may not be at %s", move.VM, move.To)
		case from != none && !m.soon(v, m.site[from], m.site[to]):
			return fmt.Errorf("%s would pause for too long on its way from %s to %s", move.VM, move.From, move.To)
		}
		hold(v, to)
		at[v] = to
		vms, hosts = append(vms, v), append(hosts, to)
	}
	if short := m.shortOf(before, vms, hosts); short != "" {
		return errors.New(short)
	}
	for _, move := range step {
		to := m.hostOf[move.To]
		if h := m.s.Hosts[to]; vcpus[to] > h.VCPUs*(1+slack) || mib[to] > h.MemoryMiB*(1+slack) {
			return fmt.Errorf("%s has no room while VMs are at both ends", move.To)
		}
	}
	return nil
}
