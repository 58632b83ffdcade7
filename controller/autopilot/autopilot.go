// Package autopilot keeps VMs where they ought to be.
//
// It makes plans (package scheduler) of what it knows of the world: for who asks, and for
// each pool of the topology, every interval, by the pool's policy. What a plan would move it
// says (advise), keeps until somebody applies it (confirm) or carries out (auto), at the
// pool's pace. A plan is a record in the store: its moves are migrations like any other,
// step by step, and after the last, once a window of traffic has been counted, it is told
// what the plan gained (gain.go). A host that is drained is emptied at once, whatever its
// VMs' pools say (drain.go). A VM that uses a stub from elsewhere is brought there where it
// has to be there, or that is cheaper by now (stub.go).
//
// What only varies is not followed: a pool's autopilot moves a VM only where that would have
// gained in each tenth of the window, by itself (confidence.go), and what a move costs has
// to be gained within the policy's hours. A pool that goes by forecasts plans for the demand
// of its next hours, as long as that costs no more than it may (forecast.go).
//
//	World ──► snapshot ──► scheduler.Solve ──► record ──advance──► migrations
//	(topology, placements, hosts, traffic)        ▲                    │
//	                                              └── gain ◄── traffic ┘
//
// Only the controller that leads has an autopilot at work. It keeps the records in memory
// and writes each before it acts on it, so that the next leader goes on from there.
package autopilot

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
	"heliotrope/scheduler"
	"heliotrope/scheduler/survey"
	"heliotrope/scheduler/traffic"
)

// World is what the autopilot must know of the rest, and may do to it.
type World interface {
	Topology() (heliotrope.Topology, map[heliotrope.VMID]heliotrope.Placement)
	// Host is how a host of the topology is.
	Host(h heliotrope.HostID) Host
	// Speeds are how many reference vCPUs a vCPU of each host that was measured is worth.
	Speeds() map[heliotrope.HostID]float64
	// Paths are those that a host measured lately to others.
	Paths(h heliotrope.HostID) []agentapi.Path
	// Counted is the traffic of the time of span before end; zero end: up to now.
	Counted(ctx context.Context, end time.Time, span time.Duration) (traffic.Matrix, error)
	// Tell records what happened.
	Tell(kind, subject, message string)
	api.Migrations
}

// Host is how a host is: what it says that it has, zeros where it said nothing yet; whether
// its agent is connected; whether no VM may be there.
type Host struct {
	CPUs, MemoryMiB int
	Connected       bool
	Drained         bool
}

const (
	plansKept = 200

	carryEvery    = 250 * time.Millisecond
	considerEvery = time.Second
	settle        = 2 * time.Second // that counts of traffic may take to arrive

	soundEvery = 10 * time.Second // between two looks at distances
	mostLoss   = 0.5              // of a path whose round trip is believed
)

// Autopilot makes plans and carries them out. Make it with New.
type Autopilot struct {
	world   World
	records Records
	log     *slog.Logger

	// Of consider alone.
	since   time.Time                       // when it began to work
	drained map[heliotrope.HostID]time.Time // when emptying each was last tried
	sounded time.Time                       // when distances were last looked at
	seers   map[heliotrope.PoolID]*seer     // of pools that go by forecasts

	mu      sync.Mutex // guards all below
	term    uint64     // 0: another controller leads
	plans   map[heliotrope.PlanID]*api.Plan
	pools   map[heliotrope.PoolID]*pool
	uses    []use // of stubs, by stub and VM
	far     survey.Distances
	changed chan struct{} // closed at the next change of a plan
}

// New returns an autopilot that is not at work.
func New(world World, records Records, log *slog.Logger) *Autopilot {
	return &Autopilot{world: world, records: records, log: log, changed: make(chan struct{})}
}

// Run works while this controller leads in a term, until ctx ends.
func (a *Autopilot) Run(ctx context.Context, term uint64) error {
	list, err := a.records.All(ctx)
	if err != nil {
		return fmt.Errorf("read plans: %w", err)
	}
	a.mu.Lock()
	a.since, a.drained, a.sounded = time.Now(), map[heliotrope.HostID]time.Time{}, time.Time{}
	a.far, a.seers = survey.Distances{}, map[heliotrope.PoolID]*seer{}
	a.uses = nil
	a.term, a.plans, a.pools = term, map[heliotrope.PlanID]*api.Plan{}, map[heliotrope.PoolID]*pool{}
	for _, p := range list {
		a.plans[p.ID] = &p
	}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.term = 0
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return every(ctx, carryEvery, a.carry) })
	g.Go(func() error { return every(ctx, considerEvery, a.consider) })
	return g.Wait()
}

func every(ctx context.Context, d time.Duration, f func(context.Context) error) error {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := f(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// errNotLeading answers for a controller that has no autopilot at work.
var errNotLeading = api.Unavailable("this controller does not lead")

// leads says in which term this controller does.
func (a *Autopilot) leads() (uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.term == 0 {
		return 0, errNotLeading
	}
	return a.term, nil
}

// save writes a plan and takes it in. The plan that was there must not have changed.
func (a *Autopilot) save(ctx context.Context, p api.Plan) (api.Plan, error) {
	term, err := a.leads()
	if err != nil {
		return p, err
	}
	p.Revision, err = a.records.Put(ctx, term, p)
	if err != nil {
		return p, fmt.Errorf("keep plan: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.plans[p.ID] = &p
	close(a.changed)
	a.changed = make(chan struct{})
	return p, nil
}

// all are the plans that keep is true for, newest first.
func (a *Autopilot) all(keep func(api.Plan) bool) []api.Plan {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []api.Plan
	for _, p := range a.plans {
		if keep(*p) {
			list = append(list, *p)
		}
	}
	slices.SortFunc(list, func(p, q api.Plan) int {
		return cmp.Or(q.CreatedAt.Compare(p.CreatedAt), cmp.Compare(p.ID, q.ID))
	})
	return list
}

// trim forgets the oldest plans that have ended.
func (a *Autopilot) trim(ctx context.Context) error {
	ended := a.all(api.Plan.Ended)
	if len(ended) <= plansKept {
		return nil
	}
	term, err := a.leads()
	if err != nil {
		return err
	}
	for _, p := range ended[plansKept:] {
		if err := a.records.Delete(ctx, term, p.ID); err != nil {
			return fmt.Errorf("forget plan: %w", err)
		}
		a.mu.Lock()
		delete(a.plans, p.ID)
		a.mu.Unlock()
	}
	return nil
}

// sight is the world at one moment, but for its traffic.
type sight struct {
	topology   heliotrope.Topology
	placements map[heliotrope.VMID]heliotrope.Placement
	hosts      map[heliotrope.HostID]Host
	speeds     map[heliotrope.HostID]float64
	rttMs      map[[2]heliotrope.SiteID]float64 // as hosts measured them
	last       map[heliotrope.VMID]api.Migration
	since      map[heliotrope.VMID]time.Time // when VMs came to their sites, of those that have come from another
}

// see looks at the world; edit, where given, may change what is seen of the topology.
func (a *Autopilot) see(ctx context.Context, edit func(*heliotrope.Topology)) (*sight, error) {
	v := &sight{hosts: map[heliotrope.HostID]Host{}, speeds: a.world.Speeds()}
	v.topology, v.placements = a.world.Topology()
	v.topology.Hosts = maps.Clone(v.topology.Hosts)
	for id, h := range v.topology.Hosts { // what the topology leaves out is as the host reports
		now := a.world.Host(id)
		h.CPUs, h.MemoryMiB = cmp.Or(h.CPUs, now.CPUs), cmp.Or(h.MemoryMiB, now.MemoryMiB)
		if !now.Connected {
			h.CPUs, h.MemoryMiB = 0, 0 // room for what is there
		}
		v.topology.Hosts[id], v.hosts[id] = h, now
	}
	if edit != nil {
		edit(&v.topology)
	}
	a.mu.Lock()
	v.rttMs = a.far.Believed()
	a.mu.Unlock()
	var err error
	v.last, v.since, err = a.lastMoves(ctx, v.topology)
	return v, err
}

// sound takes in how far hosts are from each other.
func (a *Autopilot) sound(t heliotrope.Topology) {
	now := time.Now()
	if now.Sub(a.sounded) < soundEvery {
		return
	}
	a.sounded = now
	var samples []survey.Sample
	for id, h := range t.Hosts {
		for _, p := range a.world.Paths(id) {
			if peer, ok := t.Hosts[p.Peer]; ok && p.Loss < mostLoss {
				samples = append(samples, survey.Sample{From: h.Site, To: peer.Site, Ms: p.RTT.Seconds() * 1e3})
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.far.Learn(now, t, samples)
}

// survey is a snapshot with the traffic of a matrix. Nothing comes to a host whose agent is
// away, and nothing leaves it: it would not get there.
func (v *sight) survey(m traffic.Matrix) scheduler.Snapshot {
	s := survey.Take(m.To, v.topology, survey.Facts{Placements: v.placements, Traffic: m, Speeds: v.speeds, Since: v.since, RTTMs: v.rttMs})
	for i := range s.Hosts {
		s.Hosts[i].Drained = v.hosts[s.Hosts[i].ID].Drained
	}
	for i := range s.VMs {
		vm := &s.VMs[i]
		if h, ok := v.hosts[vm.Host]; ok && !h.Connected {
			vm.Pinned = true
		}
		if m, ok := v.last[vm.ID]; ok {
			vm.CopyBytes = float64(m.Measured.Bytes)
		}
	}
	return s
}

// snapshot is the world as a plan sees it, by the traffic of a window.
func (a *Autopilot) snapshot(ctx context.Context, end time.Time, window time.Duration, edit func(*heliotrope.Topology)) (scheduler.Snapshot, *sight, error) {
	m, err := a.world.Counted(ctx, end, window)
	if err != nil {
		return scheduler.Snapshot{}, nil, err
	}
	v, err := a.see(ctx, edit)
	if err != nil {
		return scheduler.Snapshot{}, nil, err
	}
	return v.survey(m), v, nil
}

// lastMoves are the newest moves of VMs that succeeded: a VM's last says more of its next
// than its size does, most of which is usually empty. since is when those from another site
// began: from then on the VM's place there was paid.
func (a *Autopilot) lastMoves(ctx context.Context, t heliotrope.Topology) (last map[heliotrope.VMID]api.Migration, since map[heliotrope.VMID]time.Time, err error) {
	list, err := a.world.Migrations(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("list migrations: %w", err)
	}
	last, since = map[heliotrope.VMID]api.Migration{}, map[heliotrope.VMID]time.Time{}
	for _, m := range list { // newest first
		if m.Phase != api.PhaseSucceeded {
			continue
		}
		if _, ok := last[m.VM]; !ok && m.Measured.Bytes > 0 {
			last[m.VM] = m
		}
		if _, ok := since[m.VM]; !ok && t.Hosts[m.From].Site != t.Hosts[m.To].Site {
			since[m.VM] = m.CreatedAt
		}
	}
	return last, since, nil
}
