package autopilot

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/store"
	"heliotrope/hostagent/agentapi"
	"heliotrope/scheduler/ahead"
	"heliotrope/scheduler/traffic"
)

const (
	takes  = 3 * time.Second // that a move does
	copies = 100e6           // bytes that one sends
)

// planet is a world whose traffic is a function of time, and whose moves take three seconds.
type planet struct {
	mu         sync.Mutex
	topology   heliotrope.Topology
	placements map[heliotrope.VMID]heliotrope.Placement
	moves      []api.Migration // oldest first
	away       map[heliotrope.HostID]bool
	drained    map[heliotrope.HostID]bool
	refuses    map[heliotrope.VMID]bool // moves of these fail
	traffic    func(from, to time.Time) []traffic.Cell
	rtt        func(from, to heliotrope.HostID) time.Duration // that hosts measure; nil: they do not
	told       []string
}

var clients = map[string]traffic.End{
	"us": traffic.Outside(netip.MustParsePrefix("10.255.1.0/24")), "eu": traffic.Outside(netip.MustParsePrefix("10.255.2.0/24")),
}

// newPlanet has two sites 80 ms apart with two hosts each, and VMs at us-1.
func newPlanet(vms ...heliotrope.VMID) *planet {
	ms := heliotrope.Duration(time.Millisecond)
	p := &planet{placements: map[heliotrope.VMID]heliotrope.Placement{}, away: map[heliotrope.HostID]bool{}, drained: map[heliotrope.HostID]bool{}, refuses: map[heliotrope.VMID]bool{}}
	p.topology = heliotrope.Topology{
		Sites: map[heliotrope.SiteID]heliotrope.Site{
			"us": {Underlay: netip.MustParsePrefix("10.255.1.0/24"), PricePerVCPUHour: 0.03},
			"eu": {Underlay: netip.MustParsePrefix("10.255.2.0/24"), PricePerVCPUHour: 0.03},
		},
		Links: map[heliotrope.LinkID]heliotrope.Link{"us-eu": {Between: [2]heliotrope.SiteID{"us", "eu"}, Delay: 40 * ms, PricePerGB: 0.02, Rate: 4e8}},
		Hosts: map[heliotrope.HostID]heliotrope.Host{"us-1": {Site: "us"}, "us-2": {Site: "us"}, "eu-1": {Site: "eu"}, "eu-2": {Site: "eu"}},
		VMs:   map[heliotrope.VMID]heliotrope.VM{}, Pools: map[heliotrope.PoolID]heliotrope.Pool{},
	}
	for _, vm := range vms {
		p.topology.VMs[vm] = heliotrope.VM{CPUs: 1, MemoryMiB: 256}
		p.placements[vm] = heliotrope.Placement{VM: vm, Host: "us-1", Epoch: 1}
	}
	p.traffic = func(time.Time, time.Time) []traffic.Cell { return nil }
	return p
}

// pool puts all VMs into one.
func (p *planet) pool(mode string, pace heliotrope.Pace) {
	p.topology.Pools["all"] = heliotrope.Pool{Autopilot: mode, Window: heliotrope.Duration(time.Minute), Interval: heliotrope.Duration(10 * time.Second), Pace: pace}
}

// serves makes a VM serve clients at a site with so many bytes per second, from a time on.
func serves(vm heliotrope.VMID, site string, rate float64) func(from, to time.Time) []traffic.Cell {
	return func(from, to time.Time) []traffic.Cell {
		bytes := rate * to.Sub(from).Seconds()
		return []traffic.Cell{{Src: traffic.VM(vm), Dst: clients[site], Bytes: bytes, Low: bytes, High: bytes}}
	}
}

// turn changes the traffic from now on; what was counted before stays as it was.
func (p *planet) turn(after func(from, to time.Time) []traffic.Cell) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, at := p.traffic, time.Now()
	p.traffic = func(from, to time.Time) (cells []traffic.Cell) {
		if from.Before(at) {
			cells = before(from, earlier(to, at))
		}
		if to.After(at) {
			cells = append(cells, after(later(from, at), to)...)
		}
		return cells
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (p *planet) settle() {
	for i := range p.moves {
		m := &p.moves[i]
		if m.Ended() || time.Since(m.CreatedAt) < takes {
			continue
		}
		if p.refuses[m.VM] {
			m.Phase, m.Error = api.PhaseRolledBack, "the way is cut"
		} else {
			m.Phase, m.Measured.PauseMs, m.Measured.Bytes = api.PhaseSucceeded, 200, copies
			p.placements = maps.Clone(p.placements)
			p.placements[m.VM] = heliotrope.Placement{VM: m.VM, Host: m.To, Epoch: p.placements[m.VM].Epoch + 1}
		}
		m.CanAbort = false
	}
}

func (p *planet) Topology() (heliotrope.Topology, map[heliotrope.VMID]heliotrope.Placement) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settle()
	return p.topology, p.placements
}

func (p *planet) Speeds() map[heliotrope.HostID]float64 { return nil }

func (p *planet) Host(h heliotrope.HostID) Host {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Host{CPUs: 8, MemoryMiB: 8192, Connected: !p.away[h], Drained: p.drained[h]}
}

func (p *planet) Paths(from heliotrope.HostID) []agentapi.Path {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []agentapi.Path
	for to := range p.topology.Hosts {
		if p.rtt != nil && to != from && !p.away[from] {
			all = append(all, agentapi.Path{Peer: to, RTT: p.rtt(from, to)})
		}
	}
	return all
}

func (p *planet) Counted(_ context.Context, end time.Time, span time.Duration) (traffic.Matrix, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if end.IsZero() {
		end = time.Now()
	}
	return traffic.Matrix{From: end.Add(-span), To: end, Cells: p.traffic(end.Add(-span), end)}, nil
}

func (p *planet) Tell(kind, subject, message string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = append(p.told, fmt.Sprintf("%s %s: %s", kind, subject, message))
}

func (p *planet) PreviewMigration(context.Context, api.MigrationRequest) (api.MigrationPreview, error) {
	panic("nobody asks")
}

func (p *planet) StartMigration(_ context.Context, id heliotrope.MoveID, r api.MigrationRequest) (api.Migration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settle()
	for _, m := range p.moves {
		if m.ID == id {
			return m, nil
		}
		if m.VM == r.VM && !m.Ended() {
			return m, api.Conflict(string(r.VM)+" is on the move already", "")
		}
	}
	m := api.Migration{ID: id, VM: r.VM, From: p.placements[r.VM].Host, To: heliotrope.HostID(r.To), Phase: "PreCopy", CreatedAt: time.Now(), CanAbort: true}
	p.moves = append(p.moves, m)
	return m, nil
}

func (p *planet) Migrations(context.Context) ([]api.Migration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settle()
	list := slices.Clone(p.moves)
	slices.Reverse(list)
	return list, nil
}

func (p *planet) WaitMigration(context.Context, heliotrope.MoveID, int64) (api.Migration, error) {
	panic("nobody waits")
}

func (p *planet) AbortMigration(_ context.Context, id heliotrope.MoveID) (api.Migration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, m := range p.moves {
		if m.ID == id && !m.Ended() {
			p.moves[i].Phase, p.moves[i].CanAbort = api.PhaseRolledBack, false
		}
	}
	return api.Migration{}, nil
}

func (p *planet) at(vm heliotrope.VMID) heliotrope.HostID {
	_, placements := p.Topology()
	return placements[vm].Host
}

func (p *planet) count() int {
	list, _ := p.Migrations(context.Background())
	return len(list)
}

// shelf keeps plans in memory, with the promises of a store: a record changes only for who
// has seen it, and for the newest term.
type shelf struct {
	mu    sync.Mutex
	rev   int64
	term  uint64
	plans map[heliotrope.PlanID]api.Plan
	books map[heliotrope.PoolID][]byte
}

func (s *shelf) Books(_ context.Context, id heliotrope.PoolID) (*ahead.Books, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.books[id] == nil {
		return nil, nil
	}
	var b ahead.Books
	return &b, json.Unmarshal(s.books[id], &b)
}

func (s *shelf) KeepBooks(_ context.Context, _ uint64, id heliotrope.PoolID, b *ahead.Books) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.books == nil {
		s.books = map[heliotrope.PoolID][]byte{}
	}
	s.books[id], err = json.Marshal(b)
	return err
}

func (s *shelf) All(context.Context) ([]api.Plan, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.plans)), nil
}

func (s *shelf) Put(_ context.Context, term uint64, p api.Plan) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if term < s.term {
		return 0, store.ErrStaleTerm
	}
	if s.plans[p.ID].Revision != p.Revision {
		return 0, store.ErrConflict
	}
	s.term = term
	s.rev++
	p.Revision = s.rev
	if s.plans == nil {
		s.plans = map[heliotrope.PlanID]api.Plan{}
	}
	s.plans[p.ID] = p
	return s.rev, nil
}

func (s *shelf) Delete(_ context.Context, _ uint64, id heliotrope.PlanID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.plans, id)
	return nil
}

// fly runs an autopilot while do does something, in virtual time: what do sleeps passes at
// once, and is what the autopilot's timers see.
func fly(t *testing.T, p *planet, do func(t *testing.T, a *Autopilot)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { lead(t, p, &shelf{}, 1, do) })
}

func lead(t *testing.T, p *planet, s *shelf, term uint64, do func(t *testing.T, a *Autopilot)) {
	t.Helper()
	a := New(p, s, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx, term) }()
	synctest.Wait()
	do(t, a)
	cancel()
	if err := <-ended; err != context.Canceled {
		t.Error(err)
	}
}

// only is the one plan that there is.
func only(t *testing.T, a *Autopilot) api.Plan {
	t.Helper()
	list, err := a.Plans(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("%d plans, %v: %+v", len(list), err, list)
	}
	return list[0]
}
