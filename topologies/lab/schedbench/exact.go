package schedbench

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/assign"
	"heliotrope/scheduler/assign/lp"
	"heliotrope/topologies/lab/claim"
)

// exactShapes are all made in each round, those first that take CBC longest.
var exactShapes = []shape{
	{vms: 80, sites: 6, hosts: 1, load: 0.5}, {vms: 50, sites: 3, hosts: 1, load: 0.7}, {vms: 40, sites: 4, hosts: 1, load: 0.6},
	{vms: 35, sites: 5, hosts: 1, load: 0.5}, {vms: 25, sites: 6, hosts: 1, load: 0.6}, {vms: 30, sites: 4, hosts: 1, load: 0.6},
	{vms: 20, sites: 4, hosts: 1, load: 0.6}, {vms: 15, sites: 5, hosts: 1, load: 0.6},
}

const (
	exactLimit = 20 * time.Second // of processor time, for each proof
	exactTotal = 15 * time.Minute

	mediumInstances = 6
	mediumLimit     = 60 * time.Second
)

// posed is an instance with our answer, for CBC to answer too.
type posed struct {
	shape
	field *assign.Field
	ours  solved
	at    []int // site of each VM; nil where not all constraints are kept
}

// pose makes an instance in which no VM has a place yet: what is compared is where they ought
// to be, not which way there is from full hosts.
func (b *Bench) pose(sh shape, seed uint64) (posed, error) {
	s := instance(b.world, sh, seed)
	for i := range s.VMs {
		s.VMs[i].Host = ""
	}
	p := posed{shape: sh}
	var err error
	if p.field, err = scheduler.Field(s, pure()); err != nil {
		return p, err
	}
	if p.ours, err = solve(s, pure(), scheduler.Options{Seed: b.Seed}); err != nil || len(p.ours.plan.Broken) > 0 {
		return p, err
	}
	site := map[heliotrope.HostID]int{}
	for _, h := range s.Hosts {
		site[h.ID] = slices.IndexFunc(s.Sites, func(k scheduler.Site) bool { return k.ID == h.Site })
	}
	after := p.ours.plan.Apply(s.Placement())
	for _, v := range s.VMs {
		p.at = append(p.at, site[after[v.ID]])
	}
	return p, nil
}

// answered is what CBC says.
type answered struct {
	lp.Answer
	seconds float64
}

// ask has CBC answer, on all cores. Helped, it begins with our solution, if there is one: what
// it proves it proves of the programme that it is given all the same.
func ask(ctx context.Context, list []posed, limit time.Duration, helped bool) ([]answered, error) {
	answers := make([]answered, len(list))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for i, p := range list {
		group.Go(func() (err error) {
			var start []int
			if helped {
				start = p.at
			}
			began := time.Now()
			answers[i].Answer, err = cbc(ctx, p.field, start, limit)
			answers[i].seconds = time.Since(began).Seconds()
			return err
		})
	}
	return answers, group.Wait()
}

// gaps are shares by which we are above optima.
type gaps struct {
	Instances  int     `json:"instances"`
	Proven     int     `json:"proven"`
	Mean       float64 `json:"mean"` // of those that are proven, as all that follows
	Max        float64 `json:"max"`
	Optimal    int     `json:"optimal"`    // within 10^-6
	BoundMean  float64 `json:"bound_mean"` // how far our bound is below the optimum
	BoundMax   float64 `json:"bound_max"`
	Open       int     `json:"not_proven_in_time"`
	OpenWorst  float64 `json:"not_proven_worst"`       // above CBC's best solution
	OpenMost   float64 `json:"not_proven_above_bound"` // above what is certain to be below the optimum
	Unsolved   int     `json:"unsolved"`               // by us, though CBC has a solution
	Infeasible int     `json:"without_a_solution"`     // left out: CBC proves that they have none
	SlowestS   float64 `json:"slowest_s"`              // of ours
	OracleS    float64 `json:"oracle_s"`
}

// judge holds our answer against CBC's.
func (g *gaps) judge(p posed, a answered) error {
	g.OracleS += a.seconds
	infeasible := strings.HasPrefix(a.Status, "Infeasible")
	switch {
	case infeasible && p.at != nil:
		return fmt.Errorf("judge %d x %d: CBC says that it has no solution, and we have one", p.vms, p.sites)
	case infeasible:
		g.Infeasible++
		return nil
	case p.at == nil:
		g.Unsolved++
		return nil
	}
	g.Instances++
	usd, bound := p.ours.plan.After.Total(), p.ours.plan.Bound
	g.SlowestS = max(g.SlowestS, p.ours.seconds)
	if !a.Proven {
		g.Open++
		g.OpenWorst = max(g.OpenWorst, usd/a.USD-1)
		g.OpenMost = max(g.OpenMost, usd/max(a.Bound, bound)-1)
		return nil
	}
	if usd < a.USD*(1-1e-6) || bound > a.USD*(1+1e-6) {
		return fmt.Errorf("judge %d x %d: %v must not be less than the proven optimum %v, nor the bound %v more", p.vms, p.sites, usd, a.USD, bound)
	}
	gap, below := usd/a.USD-1, 1-bound/a.USD
	n := float64(g.Proven)
	g.Mean, g.BoundMean = (g.Mean*n+gap)/(n+1), (g.BoundMean*n+below)/(n+1)
	g.Max, g.BoundMax = max(g.Max, gap), max(g.BoundMax, below)
	if g.Proven++; gap < 1e-6 {
		g.Optimal++
	}
	return nil
}

func (g *gaps) String() string {
	return fmt.Sprintf("%d proven: mean gap %.4f %%, max %.3f %%, %d optimal, bound %.2f %% below, at most %.2f %%; %d not proven in time and left out: at most %.3f %% above CBC's solution, %.2f %% above a bound; %d not solved, %d without a solution; ours took %.2f s at most, CBC %.0f s in all",
		g.Proven, 100*g.Mean, 100*g.Max, g.Optimal, 100*g.BoundMean, 100*g.BoundMax, g.Open, 100*g.OpenWorst, 100*g.OpenMost, g.Unsolved, g.Infeasible, g.SlowestS, g.OracleS)
}

// sized are gaps by size, as "80 x 6", and of all.
type sized struct {
	All gaps             `json:"all"`
	By  map[string]*gaps `json:"by_size"`
}

// compare poses one instance of each shape and judges our answers by CBC's. Plans are made
// before CBC runs, so that they have the machine for themselves.
func (b *Bench) compare(ctx context.Context, shapes []shape, seed uint64, limit time.Duration, helped bool, all *sized) error {
	var list []posed
	for i, sh := range shapes {
		p, err := b.pose(sh, seed+uint64(i))
		if err != nil {
			return err
		}
		list = append(list, p)
	}
	answers, err := ask(ctx, list, limit, helped)
	if err != nil {
		return err
	}
	for i, p := range list {
		size := fmt.Sprintf("%d x %d", p.vms, p.sites)
		if all.By[size] == nil {
			all.By[size] = &gaps{}
		}
		for _, g := range []*gaps{&all.All, all.By[size]} {
			if err := g.judge(p, answers[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// exact holds plans against optima that CBC proves, round by round until enough are proven.
func exact(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	all := sized{By: map[string]*gaps{}}
	defer func() { // also of what was stopped
		for _, sh := range exactShapes {
			size := fmt.Sprintf("%d x %d", sh.vms, sh.sites)
			if g := all.By[size]; g != nil {
				b.Say("%s: %v", size, g)
			}
		}
		b.Say("all: %v", &all.All)
	}()
	began := time.Now()
	for seed := b.Seed * 1_000_000; all.All.Proven < b.Instances; seed += uint64(len(exactShapes)) {
		if time.Since(began) > exactTotal {
			b.Say("exact: stopped after %d of %d proofs: %s is all that it may take", all.All.Proven, b.Instances, exactTotal)
			break
		}
		if err := b.compare(ctx, exactShapes, seed, exactLimit, true, &all); err != nil {
			return nil, all, err
		}
		b.Say("%d of %d proven, %d not in time", all.All.Proven, b.Instances, all.All.Open)
	}
	return []claim.Claim{
		claim.New("instances up to 80 x 6 that CBC proved", float64(all.All.Proven), ">=", 200),
		claim.New("that have a solution and got none", float64(all.All.Unsolved), "==", 0),
		claim.New("gap to the optimum, mean", all.All.Mean, "<=", 0.001),
		claim.New("gap to the optimum, max", all.All.Max, "<=", 0.01),
		claim.New("CPU seconds of the slowest plan up to 80 x 6", all.All.SlowestS, "<=", 1),
	}, all, nil
}

// medium is 200 VMs at 8 sites, which CBC proves only now and then: what is not proven is held
// against what CBC finds by itself, and told with what is certain to be below its optimum.
func medium(ctx context.Context, b *Bench) ([]claim.Claim, any, error) {
	all := sized{By: map[string]*gaps{}}
	shapes := slices.Repeat([]shape{{vms: 200, sites: 8, hosts: 1, load: 0.65}}, mediumInstances)
	err := b.compare(ctx, shapes, b.Seed*2_000_000, mediumLimit, false, &all)
	b.Say("200 x 8: %v", &all.All)
	return []claim.Claim{
		claim.New("200 x 8: instances", float64(all.All.Instances), "==", mediumInstances),
		claim.New("200 x 8: gap over CBC's solution, worst", max(all.All.Max, all.All.OpenWorst), "<=", 0.005),
		claim.New("200 x 8: CPU seconds of the slowest plan", all.All.SlowestS, "<=", 2),
	}, all, err
}
