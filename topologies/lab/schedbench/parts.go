package schedbench

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope/scheduler"
	"heliotrope/topologies/lab/claim"
)

// pure is a policy under which moves are free and every gain counts: what is measured is the
// placement.
func pure() scheduler.Policy {
	p, err := scheduler.Preset("balanced")
	if err != nil {
		panic(err) // a preset of ours
	}
	p.MoveUSD, p.PauseUSDPerSecond, p.AmortisationHours = 0, 0, 1e12
	p.MinGainUSDPerHour, p.MinMoveGainUSDPerHour = 0, 0
	return p
}

// solved is one plan and what it took.
type solved struct {
	plan    scheduler.Plan
	seconds float64
}

// solve counts processor time: on one core that is not shared it is what passes, and on one
// that is it is still what a plan takes.
func solve(s scheduler.Snapshot, p scheduler.Policy, o scheduler.Options) (solved, error) {
	runtime.GC() // what came before is not this plan's to collect
	began := processorSeconds()
	plan, err := scheduler.Solve(s, p, o)
	return solved{plan, processorSeconds() - began}, err
}

// processorSeconds is what this process has used.
func processorSeconds() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // it has no way to fail
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// scale is one size of large.
type scale struct {
	VMs     int     `json:"vms"`
	Sites   int     `json:"sites"`
	Seed    uint64  `json:"seed"`
	Edges   int     `json:"edges"`
	Seconds float64 `json:"seconds"`
	USD     float64 `json:"usd_per_hour"`
	Before  float64 `json:"before_usd_per_hour"`
	Bound   float64 `json:"bound_usd_per_hour"`
	Gap     float64 `json:"gap"`
	METIS   float64 `json:"metis_usd_per_hour"`
	Cheaper float64 `json:"cheaper_than_metis"`
	Blocked int     `json:"blocked"`
	Broken  int     `json:"broken"`
}

// large holds plans against METIS and against their own bound.
func large(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	var list []scale
	var claims []claim.Claim
	for _, size := range []struct {
		shape
		seconds float64
		seeds   int
	}{
		{shape{vms: 1000, sites: 12, hosts: 8, load: 0.65}, 1, 5},
		{shape{vms: 10000, sites: 20, hosts: 40, load: 0.65}, 10, 2},
	} {
		worst := scale{VMs: size.vms, Sites: size.sites, Cheaper: math.Inf(1)}
		for i := range size.seeds {
			r, err := b.measure(ctx, size.shape, b.Seed*3_000_000+uint64(i))
			if err != nil {
				return claims, list, err
			}
			list = append(list, r)
			b.Say("%d x %d, %d edges: %.2f s, USD %.2f/h (%.2f before), bound %.2f, gap %.2f %%; METIS and mapping %.2f: %.1f %% cheaper; %d blocked, %d broken",
				r.VMs, r.Sites, r.Edges, r.Seconds, r.USD, r.Before, r.Bound, 100*r.Gap, r.METIS, 100*r.Cheaper, r.Blocked, r.Broken)
			worst.Seconds, worst.Gap, worst.Cheaper = max(worst.Seconds, r.Seconds), max(worst.Gap, r.Gap), min(worst.Cheaper, r.Cheaper)
			worst.Broken += r.Broken
		}
		name := fmt.Sprintf("%d x %d: ", size.vms, size.sites)
		claims = append(claims, claim.New(name+"CPU seconds, worst", worst.Seconds, "<=", size.seconds),
			claim.New(name+"cheaper than METIS and mapping, worst", worst.Cheaper, ">=", 0.12),
			claim.New(name+"above the certified bound, worst", worst.Gap, "<=", 0.02),
			claim.New(name+"constraints broken", float64(worst.Broken), "==", 0))
	}
	return claims, list, nil
}

func (b *Bench) measure(ctx context.Context, sh shape, seed uint64) (scale, error) {
	s := instance(b.world, sh, seed)
	f, err := scheduler.Field(s, pure())
	if err != nil {
		return scale{}, err
	}
	r := scale{VMs: sh.vms, Sites: sh.sites, Seed: seed}
	for _, list := range f.Edges {
		r.Edges += len(list)
	}
	r.Edges /= 2
	ours, err := solve(s, pure(), scheduler.Options{Seed: b.Seed})
	if err != nil {
		return r, err
	}
	part, err := metis(ctx, f)
	if err != nil {
		return r, err
	}
	r.METIS = mapped(f, part, seed)
	p := ours.plan
	r.Seconds, r.USD, r.Before, r.Bound, r.Gap = ours.seconds, p.After.Total(), p.Before.Total(), p.Bound, p.Gap
	r.Cheaper, r.Blocked, r.Broken = 1-r.USD/r.METIS, len(p.Blocked), len(p.Broken)
	return r, nil
}

const replanMoves = 50

// replan changes 1 % of what is known of a world that has just been planned: rates, prices,
// VMs that are new. The plan then may have so many moves.
func replan(_ context.Context, b *Bench) ([]claim.Claim, any, error) {
	type result struct {
		VMs     int     `json:"vms"`
		Sites   int     `json:"sites"`
		Moves   int     `json:"moves"`
		Seconds float64 `json:"seconds"`
		Gain    float64 `json:"gain_usd_per_hour"`
		Full    float64 `json:"full_gain_usd_per_hour"` // of a plan from nothing, without a limit
	}
	var list []result
	var slowest, most float64
	for _, sh := range []shape{{vms: 1000, sites: 12, hosts: 8, load: 0.65}, {vms: 10000, sites: 20, hosts: 40, load: 0.65}} {
		s := instance(b.world, sh, b.Seed*4_000_000)
		first, err := scheduler.Solve(s, pure(), scheduler.Options{Seed: b.Seed})
		if err != nil {
			return nil, list, err
		}
		after := first.Apply(s.Placement())
		r := rand.New(rand.NewPCG(b.Seed, 11))
		for i := range s.VMs {
			s.VMs[i].Host = after[s.VMs[i].ID]
		}
		s.Flows = slices.Clone(s.Flows)
		for range max(len(s.Flows)/100, 1) {
			s.Flows[r.IntN(len(s.Flows))].BytesPerSecond *= math.Exp(2 * r.NormFloat64())
		}
		p, err := scheduler.Preset("balanced")
		if err != nil {
			return nil, list, err
		}
		full, err := solve(s, p, scheduler.Options{Seed: b.Seed})
		if err != nil {
			return nil, list, err
		}
		p.MaxMoves = replanMoves
		quick, err := solve(s, p, scheduler.Options{Seed: b.Seed, Iterations: -1, Passes: -1})
		if err != nil {
			return nil, list, err
		}
		list = append(list, result{sh.vms, sh.sites, len(quick.plan.Moves), quick.seconds, quick.plan.Gain(), full.plan.Gain()})
		b.Say("%d x %d: %d moves in %.3f s, USD %.3f/h; a plan from nothing gains %.3f with %d", sh.vms, sh.sites, len(quick.plan.Moves), quick.seconds, quick.plan.Gain(), full.plan.Gain(), len(full.plan.Moves))
		slowest, most = max(slowest, quick.seconds), max(most, float64(len(quick.plan.Moves)))
	}
	return []claim.Claim{
		claim.New("CPU seconds to plan again after 1 % changed, 10,000 x 20", slowest, "<=", 0.2),
		claim.New("moves of a plan after 1 % changed", most, "<=", replanMoves),
	}, list, nil
}
