package schedbench

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/topologies/lab/claim"
)

const (
	fuzzBatch = 500 // plans that a worker makes between two looks around
	fuzzTold  = 20  // times that it is told how far it is
)

// tally counts what occurred, by name.
type tally map[string]int

func (t tally) add(o tally) {
	for name, n := range o {
		t[name] += n
	}
}

func (t tally) String() string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(t)) {
		list = append(list, fmt.Sprintf("%s %d", strings.ReplaceAll(name, "_", " "), t[name]))
	}
	return strings.Join(list, ", ")
}

// fuzzed is what came of plans for worlds.
type fuzzed struct {
	Worlds tally    `json:"worlds_with"`
	Broken tally    `json:"broken_before"` // constraints, by kind
	Left   tally    `json:"broken_after"`
	Plans  tally    `json:"plans"`
	Faults []string `json:"faults,omitempty"`
}

func newFuzzed() fuzzed {
	return fuzzed{Worlds: tally{}, Broken: tally{}, Left: tally{}, Plans: tally{}}
}

func (f *fuzzed) add(o fuzzed) {
	f.Worlds.add(o.Worlds)
	f.Broken.add(o.Broken)
	f.Left.add(o.Left)
	f.Plans.add(o.Plans)
	f.Faults = append(f.Faults, o.Faults...)
}

// fuzz plans for small worlds that have every kind of constraint, often ones that are not
// kept now, often too tight, and has each plan verified step by step. What a number makes is
// the same on any machine, and however many workers there are.
func fuzz(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	workers := runtime.NumCPU()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(workers)) // nothing here is claimed of one core
	batches := (b.Plans + fuzzBatch - 1) / fuzzBatch
	done := make(chan fuzzed)
	var next atomic.Int64
	group, inside := errgroup.WithContext(ctx)
	for range workers {
		group.Go(func() error {
			for {
				n := int(next.Add(1)) - 1
				if n >= batches || inside.Err() != nil {
					return nil
				}
				one, err := b.batch(n*fuzzBatch, min(b.Plans, (n+1)*fuzzBatch))
				if err != nil {
					return err
				}
				done <- one
			}
		})
	}
	failed := make(chan error, 1)
	go func() { failed <- group.Wait(); close(done) }()
	all := newFuzzed()
	for one := range done {
		told := all.Plans["plans"] * fuzzTold / b.Plans
		for _, fault := range one.Faults {
			b.Say("%s", fault)
		}
		if all.add(one); all.Plans["plans"]*fuzzTold/b.Plans > told {
			b.Say("%d of %d plans, %d break something", all.Plans["plans"], b.Plans, all.Plans["that_break_something"])
		}
	}
	b.Say("plans: %v", all.Plans)
	b.Say("worlds with: %v", all.Worlds)
	b.Say("constraints broken before: %v; after: %v", all.Broken, all.Left)
	return []claim.Claim{
		claim.New("fuzzed plans", float64(all.Plans["plans"]), ">=", 1e6),
		claim.New("fuzzed plans that break a constraint at any step", float64(all.Plans["that_break_something"]), "==", 0),
		claim.New("fuzzed plans that cost more and mend nothing", float64(all.Plans["that_cost_more_and_mend_nothing"]), "==", 0),
	}, all, <-failed
}

// batch makes the plans of some numbers.
func (b *Bench) batch(from, to int) (fuzzed, error) {
	f := newFuzzed()
	for i := from; i < to; i++ {
		seed := b.Seed*5_000_000 + uint64(i)
		if err := f.one(b.world, seed); err != nil {
			return f, fmt.Errorf("plan fuzzed world %d: %w", seed, err)
		}
	}
	return f, nil
}

// one makes and verifies one plan, and counts what occurred in it.
func (f *fuzzed) one(w *world, seed uint64) error {
	s, p := tangle(w, seed)
	plan, err := scheduler.Solve(s, p, scheduler.Options{Seed: seed, Iterations: 1024, Passes: 4})
	if err != nil {
		return err
	}
	if err := scheduler.Verify(s, p, plan); err != nil {
		f.Plans["that_break_something"]++
		f.Faults = append(f.Faults, fmt.Sprintf("world %d: %v", seed, err))
	}
	before, err := scheduler.Check(s, p, s.Placement())
	if err != nil {
		return err
	}
	for _, v := range before {
		f.Broken[v.Kind]++
	}
	for _, v := range plan.Broken {
		f.Left[v.Kind]++
	}
	f.Worlds.add(kinds(s, p))
	f.Plans["plans"]++
	f.Plans["moves"] += len(plan.Moves)
	if plan.Gain() < 0 && len(plan.Broken) >= len(before) {
		f.Plans["that_cost_more_and_mend_nothing"]++
	}
	if len(plan.Blocked) > 0 {
		f.Plans["with_blocked_moves"]++
	}
	if len(plan.Moves) == 0 {
		f.Plans["without_moves"]++
		return nil
	}
	for _, m := range plan.Moves {
		if m.Temporary {
			f.Plans["moves_to_a_temporary_place"]++
		}
	}
	for _, step := range plan.Steps() {
		f.Plans["steps"]++
		if len(step) > 1 {
			f.Plans["steps_of_several_moves"]++
			if tied(s, p, step) {
				f.Plans["steps_of_moves_that_a_constraint_ties"]++
			}
		}
	}
	f.spoil(s, p, plan, seed)
	return nil
}

// spoil sends one move to some other host: that the verifier finds fault with most such
// plans says that it can.
func (f *fuzzed) spoil(s scheduler.Snapshot, p scheduler.Policy, plan scheduler.Plan, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 19))
	plan.Moves = slices.Clone(plan.Moves)
	m := &plan.Moves[r.IntN(len(plan.Moves))]
	to := s.Hosts[r.IntN(len(s.Hosts))].ID
	if to == m.To {
		return
	}
	m.To = to
	f.Plans["spoiled"]++
	if scheduler.Verify(s, p, plan) != nil {
		f.Plans["spoiled_and_refused"]++
	}
}

// tied says whether a constraint is about two of a step's VMs.
func tied(s scheduler.Snapshot, p scheduler.Policy, step []scheduler.Move) bool {
	two := func(ids []heliotrope.VMID) bool {
		n := 0
		for _, m := range step {
			if slices.Contains(ids, m.VM) {
				n++
			}
		}
		return n > 1
	}
	group := func(g scheduler.Group) bool { return two(g.VMs) }
	return slices.ContainsFunc(s.Apart, group) || slices.ContainsFunc(s.Together, group) ||
		slices.ContainsFunc(p.RTTLimits, func(l scheduler.RTTLimit) bool { return two(slices.Concat(l.A, l.B)) })
}

// kinds says which kinds of constraint a world has.
func kinds(s scheduler.Snapshot, p scheduler.Policy) tally {
	t := tally{}
	has := func(name string, yes bool) {
		if yes {
			t[name] = 1
		}
	}
	for _, v := range s.VMs {
		has("pinned_vms", v.Pinned)
		has("vms_without_a_place", v.Host == "")
		has("sites_that_vms_may_be_at", len(v.Allowed) > 0)
		has("sites_that_vms_may_not_be_at", len(v.Forbidden) > 0)
	}
	for _, h := range s.Hosts {
		has("drained_hosts", h.Drained)
	}
	for _, g := range s.Apart {
		has("apart_at_"+string(g.Scope)+"s", true)
	}
	for _, g := range s.Together {
		has("together_at_"+string(g.Scope)+"s", true)
	}
	for _, v := range s.VMs {
		has("licences", len(v.Licences) > 0)
	}
	for _, h := range s.Hosts {
		has("licences_of_hosts", len(h.Licences) > 0)
	}
	for _, site := range s.Sites {
		has("licences_to_rent", len(site.SeatUSDPerHour) > 0)
	}
	has("forbidden_sites", len(p.ForbiddenSites) > 0)
	has("farthest_distances", len(p.RTTLimits) > 0)
	has("a_longest_pause", p.MaxPauseMs > 0)
	has("a_number_of_moves", p.MaxMoves > 0)
	has("a_price_of_hosts", p.HostUSDPerHour > 0)
	has("only_moves_that_must_be", p.OnlyForced)
	return t
}

// licensed gives VMs needs of two licences, and sites and hosts seats of them, often too few.
func licensed(s *scheduler.Snapshot, r *rand.Rand) {
	for i := range s.VMs {
		if r.IntN(3) == 0 {
			s.VMs[i].Licences = map[heliotrope.LicenceID]int{"a": 1 + r.IntN(4)}
		}
		if r.IntN(8) == 0 {
			s.VMs[i].Licences = map[heliotrope.LicenceID]int{"a": 1, "b": 1 + r.IntN(2)}
		}
	}
	for i := range s.Sites {
		site := &s.Sites[i]
		if site.Licences = map[heliotrope.LicenceID]int{"a": r.IntN(10), "b": r.IntN(3)}; r.IntN(4) == 0 {
			site.SeatUSDPerHour = map[heliotrope.LicenceID]float64{"a": 0.3 * r.Float64()}
		}
	}
	for i := range s.Hosts {
		if r.IntN(4) == 0 {
			s.Hosts[i].Licences = map[heliotrope.LicenceID]int{"a": r.IntN(5)}
		}
	}
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
	site := func() []heliotrope.SiteID { return []heliotrope.SiteID{s.Sites[r.IntN(len(s.Sites))].ID} }
	for i := range r.IntN(3) {
		s.Apart = append(s.Apart, scheduler.Group{Name: fmt.Sprintf("apart-%d", i), VMs: some(2 + r.IntN(2)), Scope: scope()})
	}
	for i := range r.IntN(2) {
		s.Together = append(s.Together, scheduler.Group{Name: fmt.Sprintf("together-%d", i), VMs: some(2 + r.IntN(2)), Scope: scope()})
	}
	for i := range s.Hosts {
		h := &s.Hosts[i]
		h.Drained = r.IntN(8) == 0
		if r.IntN(20) == 0 {
			h.VCPUs *= 0.7 // it may have less than what is there asks for
		}
	}
	for i := range s.VMs {
		v := &s.VMs[i]
		v.PauseMs = 20 + 200*r.Float64()
		v.Pinned = r.IntN(12) == 0
		if r.IntN(40) == 0 {
			v.Host = ""
		}
		if r.IntN(30) == 0 {
			v.Forbidden = site()
		}
	}
	if r.IntN(3) == 0 {
		licensed(&s, r)
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
		p.MaxPauseMs = 100 + 1000*r.Float64()
	}
	if r.IntN(3) == 0 {
		p.MaxMoves = 1 + r.IntN(5)
	}
	if r.IntN(20) == 0 {
		p.ForbiddenSites = site()
	}
	return s, p
}
