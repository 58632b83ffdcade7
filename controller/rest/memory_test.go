package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler/traffic"
	"heliotrope/topologies"
)

// memory is a controller with state and no network: what it is told, it remembers.
type memory struct {
	mu         sync.Mutex
	changed    chan struct{}
	rev        int64
	topology   heliotrope.Topology
	topologyAt int64
	migrations []api.Migration
	events     []api.Event
	trimmed    int64
	tokens     int
	snapshots  []api.Snapshot
	answers    map[string]kept
	revoked    map[heliotrope.HostID]bool
	drained    map[heliotrope.HostID]api.DrainRequest
	plans      []api.Plan
	err        error // what every call fails with, if set
	slow       chan struct{}
	checks     []api.Check
	panics     bool
	counted    []traffic.Matrix // the newest last, a minute each
	asked      []api.TrafficQuery
}

type kept struct {
	hash   string
	answer []byte
}

func newMemory() *memory {
	return &memory{changed: make(chan struct{}), rev: 1, answers: map[string]kept{}, revoked: map[heliotrope.HostID]bool{}, drained: map[heliotrope.HostID]api.DrainRequest{},
		checks: []api.Check{{Name: "store", OK: true, Detail: "answers"}}}
}

func (m *memory) backend() api.Backend {
	return api.Backend{Topologies: m, Inventory: m, Membership: m, Migrations: m, Routes: m, Meshes: m, Flows: m, Events: m, Health: m, Answers: m, Traffic: m, Plans: m, Benchmarks: m, Snapshots: m,
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "heliotrope_up 1") }),
		ParseTopology: func(data []byte, contentType string) (heliotrope.Topology, []api.FieldProblem) {
			t, err := topologies.Parse(data, "", topologies.Options{})
			var all topologies.Errors
			if errors.As(err, &all) {
				return t, fields(all)
			}
			return t, nil
		},
		FormatTopology: topologies.Marshal,
	}
}

func fields(all topologies.Errors) []api.FieldProblem {
	var out []api.FieldProblem
	for _, p := range all {
		out = append(out, api.FieldProblem{Detail: p.Message, Pointer: p.Pointer, Path: p.Path, Line: p.Line, Column: p.Column, Hint: p.Hint})
	}
	return out
}

// begin locks; the returned function unlocks.
func (m *memory) begin() (func(), error) {
	m.mu.Lock()
	if m.panics {
		m.mu.Unlock()
		panic("as ordered")
	}
	return m.mu.Unlock, m.err
}

// write counts a change and wakes who waits. The lock is held.
func (m *memory) write() int64 {
	m.rev++
	close(m.changed)
	m.changed = make(chan struct{})
	return m.rev
}

func (m *memory) Topology(context.Context) (heliotrope.Topology, int64, error) {
	end, err := m.begin()
	defer end()
	return m.topology, m.topologyAt, err
}

func (m *memory) PlanTopology(_ context.Context, t heliotrope.Topology) (api.TopologyPlan, error) {
	end, err := m.begin()
	defer end()
	return m.plan(t), err
}

func (m *memory) plan(t heliotrope.Topology) api.TopologyPlan {
	p := api.TopologyPlan{Name: t.Name, Revision: m.topologyAt, Changes: []api.ObjectChange{}}
	for vm := range t.VMs {
		if _, ok := m.topology.VMs[vm]; !ok {
			p.Changes = append(p.Changes, api.ObjectChange{Op: "create", Kind: "vm", Name: string(vm), Effect: "starts"})
		}
	}
	slices.SortFunc(p.Changes, func(a, b api.ObjectChange) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	return p
}

func (m *memory) ApplyTopology(_ context.Context, t heliotrope.Topology, ifMatch int64) (api.TopologyPlan, error) {
	end, err := m.begin()
	defer end()
	if err != nil {
		return api.TopologyPlan{}, err
	}
	if ifMatch != -1 && ifMatch != m.topologyAt {
		return api.TopologyPlan{}, api.Stale(m.topologyAt)
	}
	p := m.plan(t)
	m.topology = t
	m.topologyAt = m.write()
	p.Revision, p.Applied = m.topologyAt, true
	return p, nil
}

func (m *memory) Hosts(context.Context) ([]api.Host, error) {
	end, err := m.begin()
	defer end()
	var hosts []api.Host
	for name, h := range m.topology.Hosts {
		x := api.Host{Name: name, Site: h.Site, Address: h.Address, Public: h.Public, State: api.HostUp, RPC: true, OVSDB: true, OpenFlow: true}
		if m.revoked[name] {
			x.State = api.HostRevoked
		}
		hosts = append(hosts, x)
	}
	slices.SortFunc(hosts, func(a, b api.Host) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	return hosts, err
}

func (m *memory) VMs(context.Context) ([]api.VM, error) {
	end, err := m.begin()
	defer end()
	var vms []api.VM
	for name, v := range m.topology.VMs {
		vms = append(vms, api.VM{Name: name, State: "running", Host: v.Host, Home: v.Host, Site: m.topology.Hosts[v.Host].Site, Epoch: 1, Image: v.Image, NICs: v.NICs})
	}
	slices.SortFunc(vms, func(a, b api.VM) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	return vms, err
}

func (m *memory) CreateToken(_ context.Context, host heliotrope.HostID) (api.JoinToken, error) {
	end, err := m.begin()
	defer end()
	if _, ok := m.topology.Hosts[host]; !ok {
		return api.JoinToken{}, api.NotFound("host", string(host))
	}
	m.tokens++
	return api.JoinToken{Host: host, Token: fmt.Sprint("secret-", m.tokens), ExpiresAt: time.Unix(3600, 0).UTC()}, err
}

func (m *memory) RevokeHost(_ context.Context, host heliotrope.HostID) error {
	end, err := m.begin()
	defer end()
	if _, ok := m.topology.Hosts[host]; !ok {
		return api.NotFound("host", string(host))
	}
	m.revoked[host] = true
	return err
}

func (m *memory) DrainHost(_ context.Context, host heliotrope.HostID, r api.DrainRequest) error {
	end, err := m.begin()
	defer end()
	if _, ok := m.topology.Hosts[host]; !ok {
		return api.NotFound("host", string(host))
	}
	m.drained[host] = r
	return err
}

func (m *memory) UndrainHost(_ context.Context, host heliotrope.HostID) error {
	end, err := m.begin()
	defer end()
	delete(m.drained, host)
	return err
}

func (m *memory) PreviewMigration(_ context.Context, r api.MigrationRequest) (api.MigrationPreview, error) {
	end, err := m.begin()
	defer end()
	v, ok := m.topology.VMs[r.VM]
	if !ok {
		return api.MigrationPreview{}, api.NotFound("vm", string(r.VM))
	}
	return api.MigrationPreview{VM: r.VM, From: v.Host, To: heliotrope.HostID(r.To), OK: true, ETAS: 4,
		Checks: []api.Check{{Name: "destination", OK: true, Detail: "has room"}}}, err
}

func (m *memory) StartMigration(ctx context.Context, id heliotrope.MoveID, r api.MigrationRequest) (api.Migration, error) {
	if m.slow != nil {
		select {
		case <-m.slow:
		case <-ctx.Done():
			return api.Migration{}, ctx.Err()
		}
	}
	end, err := m.begin()
	defer end()
	if err != nil {
		return api.Migration{}, err
	}
	for _, old := range m.migrations {
		if old.ID == id {
			return old, nil
		}
		if old.VM == r.VM && !old.Ended() {
			return api.Migration{}, api.Conflict(fmt.Sprintf("VM %s is on the move already (%s)", r.VM, old.ID), "wait for it, or abort it")
		}
	}
	v, ok := m.topology.VMs[r.VM]
	if !ok {
		return api.Migration{}, api.NotFound("vm", string(r.VM))
	}
	x := api.Migration{ID: id, VM: r.VM, From: v.Host, To: heliotrope.HostID(r.To), Phase: "Pending", Epoch: 1, CanAbort: true,
		CreatedAt: time.Unix(0, 0).UTC(), Phases: []api.PhaseTime{{Phase: "Pending"}}, Revision: m.write()}
	m.migrations = append([]api.Migration{x}, m.migrations...)
	return x, nil
}

// advance puts the newest migration into a phase.
func (m *memory) advance(phase string, progress float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := &m.migrations[0]
	x.Phase, x.Progress, x.Revision = phase, progress, m.write()
	x.Phases = append(x.Phases, api.PhaseTime{Phase: phase})
	x.CanAbort = progress < 0.8
}

func (m *memory) Migrations(context.Context) ([]api.Migration, error) {
	end, err := m.begin()
	defer end()
	return slices.Clone(m.migrations), err
}

func (m *memory) WaitMigration(ctx context.Context, id heliotrope.MoveID, after int64) (api.Migration, error) {
	for {
		end, err := m.begin()
		i := slices.IndexFunc(m.migrations, func(x api.Migration) bool { return x.ID == id })
		changed := m.changed
		var x api.Migration
		if i >= 0 {
			x = m.migrations[i]
		}
		end()
		if err != nil {
			return x, err
		}
		if i < 0 {
			return x, api.NotFound("migration", string(id))
		}
		if x.Revision > after {
			return x, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return x, nil
		}
	}
}

func (m *memory) AbortMigration(_ context.Context, id heliotrope.MoveID) (api.Migration, error) {
	end, err := m.begin()
	defer end()
	for i := range m.migrations {
		x := &m.migrations[i]
		if x.ID != id {
			continue
		}
		if !x.CanAbort {
			return *x, api.Conflict("the move is committed", "it runs forward; move the VM back when it has ended")
		}
		x.Phase, x.CanAbort, x.Revision = api.PhaseRolledBack, false, m.write()
		return *x, err
	}
	return api.Migration{}, api.NotFound("migration", string(id))
}

func (m *memory) Routes(context.Context) ([]api.Route, error) {
	end, err := m.begin()
	defer end()
	var routes []api.Route
	for name, v := range m.topology.VMs {
		for _, nic := range v.NICs {
			if nic.Public.IsValid() {
				host := m.topology.Hosts[v.Host]
				routes = append(routes, api.Route{Prefix: netip.PrefixFrom(nic.Public, 32), VM: name, Private: nic.Address, Host: v.Host, Site: host.Site, NextHop: host.Public, Announced: true, Peers: 3})
			}
		}
	}
	return routes, err
}

func (m *memory) WhyRoute(_ context.Context, a netip.Addr) (api.RouteWhy, error) {
	end, err := m.begin()
	defer end()
	return api.RouteWhy{Address: a, Verdict: "unknown-address", Peers: []api.RouteAtPeer{}, Explanation: []string{"No VM has this address."}}, err
}

func (m *memory) Mesh(context.Context) (api.Mesh, error) {
	end, err := m.begin()
	defer end()
	return api.Mesh{Hosts: []heliotrope.HostID{"a", "b"}, Links: []api.MeshLink{
		{From: "a", To: "b", State: "up", BFD: "up", RTTMs: 80.3, MTU: 1450}, {From: "b", To: "a", State: "down", Loss: 1, Error: "no route"}}}, err
}

func (m *memory) VerifyMesh(_ context.Context, size int) (api.MeshVerification, error) {
	end, err := m.begin()
	defer end()
	return api.MeshVerification{PacketSize: size, OK: size <= 1450, Links: []api.MeshProbe{{From: "a", To: "b", OK: size <= 1450, RTTMs: 80}}}, err
}

func (m *memory) Flows(_ context.Context, host heliotrope.HostID) (api.FlowList, error) {
	end, err := m.begin()
	defer end()
	if _, ok := m.topology.Hosts[host]; !ok {
		return api.FlowList{}, api.NotFound("host", string(host))
	}
	return api.FlowList{Host: host, Flows: []api.Flow{{Table: "guard", Match: "any", Actions: "drop"}}}, err
}

func (m *memory) FlowDiff(_ context.Context, host heliotrope.HostID) (api.FlowDiff, error) {
	end, err := m.begin()
	defer end()
	if _, ok := m.topology.Hosts[host]; !ok {
		return api.FlowDiff{}, api.NotFound("host", string(host))
	}
	return api.FlowDiff{Host: host, Missing: []api.Flow{}, Extra: []api.Flow{}, Foreign: []api.Flow{}}, err
}

func (m *memory) WaitFlows(_ context.Context, revision int64) (api.FlowsReached, error) {
	end, err := m.begin()
	defer end()
	return api.FlowsReached{Revision: revision, Reached: true, Hosts: len(m.topology.Hosts), Behind: []heliotrope.HostID{}}, err
}

// happen writes an event and returns its ID.
func (m *memory) happen(kind, message string) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := api.Event{ID: m.write(), At: time.Unix(int64(m.rev), 0).UTC(), Kind: kind, Subject: "web", Message: message}
	m.events = append(m.events, e)
	return e.ID
}

func (m *memory) after(after int64) []api.Event {
	i := slices.IndexFunc(m.events, func(e api.Event) bool { return e.ID > after })
	if i < 0 {
		return nil
	}
	return slices.Clone(m.events[i:])
}

func (m *memory) Events(_ context.Context, after int64, limit int) (api.EventPage, error) {
	end, err := m.begin()
	defer end()
	events := m.after(after)
	return api.EventPage{Events: events[max(0, len(events)-limit):], Revision: m.rev}, err
}

func (m *memory) FollowEvents(ctx context.Context, after int64, send func(api.Event) error) error {
	for {
		m.mu.Lock()
		events, changed, trimmed := m.after(after), m.changed, m.trimmed
		m.mu.Unlock()
		if after > 0 && after < trimmed {
			events = append([]api.Event{{ID: trimmed, Kind: "gap", Message: "older events are gone"}}, events...)
		}
		for _, e := range events {
			if err := send(e); err != nil {
				return err
			}
			after = e.ID
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (m *memory) Checks(context.Context) []api.Check {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.checks
}

func (m *memory) Leader(context.Context) (string, int64) { return "ctl-1", 7 }

func (m *memory) Claim(_ context.Context, key, hash string) (string, []byte, error) {
	end, err := m.begin()
	defer end()
	if err != nil {
		return "", nil, err
	}
	k, ok := m.answers[key]
	switch {
	case !ok:
		m.answers[key] = kept{hash: hash}
		return api.Claimed, nil, nil
	case k.hash != hash:
		return api.Reused, nil, nil
	case k.answer == nil:
		return api.Busy, nil, nil
	}
	return api.Kept, k.answer, nil
}

func (m *memory) Keep(_ context.Context, key, hash string, answer []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answers[key] = kept{hash: hash, answer: answer}
	return nil
}

func (m *memory) Release(_ context.Context, key, _ string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.answers, key)
	return nil
}
