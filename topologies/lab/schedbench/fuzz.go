package schedbench

import (
	"context"
	"fmt"
	"math/rand/v2"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/topologies/lab/claim"
)

// fuzz plans for small worlds that have every kind of constraint, often ones that are not
// kept now, often too tight, and has each plan verified step by step.
func fuzz(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	figures := struct {
		Plans     int `json:"plans"`
		Empty     int `json:"without_moves"`
		Moves     int `json:"moves"`
		Temporary int `json:"by_a_temporary_place"`
		Blocked   int `json:"with_blocked_moves"`
		Broken    int `json:"that_break_something"`
		Worse     int `json:"that_cost_more_and_mend_nothing"`
	}{}
	for i := range b.Plans {
		if i%1000 == 0 && ctx.Err() != nil {
			break
		}
		s, p := tangle(b.world, b.Seed*5_000_000+uint64(i))
		plan, err := scheduler.Solve(s, p, scheduler.Options{Seed: uint64(i), Iterations: 1024, Passes: 4})
		if err != nil {
			return nil, figures, err
		}
		figures.Plans++
		figures.Moves += len(plan.Moves)
		if len(plan.Moves) == 0 {
			figures.Empty++
		}
		if len(plan.Blocked) > 0 {
			figures.Blocked++
		}
		for _, m := range plan.Moves {
			if m.Temporary {
				figures.Temporary++
			}
		}
		if err := scheduler.Verify(s, p, plan); err != nil {
			figures.Broken++
			b.Say("seed %d: %v", b.Seed*5_000_000+uint64(i), err)
		}
		before, err := scheduler.Check(s, p, s.Placement())
		if err != nil {
			return nil, figures, err
		}
		if plan.Gain() < 0 && len(plan.Broken) >= len(before) {
			figures.Worse++
		}
	}
	b.Say("%d plans, %d without moves, %d moves, %d of them to a temporary place; %d plans with blocked moves; %d break something",
		figures.Plans, figures.Empty, figures.Moves, figures.Temporary, figures.Blocked, figures.Broken)
	return []claim.Claim{
		claim.New("fuzzed plans", float64(figures.Plans), ">=", 1e6),
		claim.New("fuzzed plans that break a constraint at any step", float64(figures.Broken), "==", 0),
		claim.New("fuzzed plans that cost more and mend nothing", float64(figures.Worse), "==", 0),
	}, figures, nil
}

// tangle makes a small world with all kinds of constraints.
func tangle(w *world, seed uint64) (scheduler.Snapshot, scheduler.Policy) {
	r := rand.New(rand.NewPCG(seed, 13))
	sh := shape{vms: 3 + r.IntN(12), sites: 2 + r.IntN(3), hosts: 1 + r.IntN(3), load: 0.4 + 0.55*r.Float64()}
	s := instance(w, sh, seed)
	some := func(n int) []heliotrope.VMID {
		var ids []heliotrope.VMID
		for _, i := range r.Perm(len(s.VMs))[:min(n, len(s.VMs))] {
			ids = append(ids, s.VMs[i].ID)
		}
		return ids
	}
	scope := func() scheduler.Scope {
		if r.IntN(2) == 0 {
			return scheduler.AtHost
		}
		return scheduler.AtSite
	}
	for i := range r.IntN(3) {
		s.Apart = append(s.Apart, scheduler.Group{Name: fmt.Sprintf("apart-%d", i), VMs: some(2 + r.IntN(2)), Scope: scope()})
	}
	for i := range r.IntN(2) {
		s.Together = append(s.Together, scheduler.Group{Name: fmt.Sprintf("together-%d", i), VMs: some(2 + r.IntN(2)), Scope: scope()})
	}
	for i := range s.Hosts {
		s.Hosts[i].Drained = r.IntN(8) == 0
	}
	for i := range s.VMs {
		s.VMs[i].Pinned = r.IntN(12) == 0
		if r.IntN(40) == 0 {
			s.VMs[i].Host = ""
		}
	}
	names := scheduler.Presets()
	p, err := scheduler.Preset(names[r.IntN(len(names))])
	if err != nil {
		panic(err) // a preset of ours
	}
	if r.IntN(3) == 0 {
		p.RTTLimits = []scheduler.RTTLimit{{Name: "near", A: some(2), B: some(2), Ms: 10 + 150*r.Float64()}}
	}
	if r.IntN(4) == 0 {
		p.MaxPauseMs = 50 + 1000*r.Float64()
	}
	if r.IntN(3) == 0 {
		p.MaxMoves = 1 + r.IntN(5)
	}
	return s, p
}
