package api

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
	"heliotrope/topologies"
)

// memory is a controller with state and no network: what it is told, it remembers.
type memory struct {
	mu         sync.Mutex
	changed    chan struct{}
	rev        int64
	topology   heliotrope.Topology
	topologyAt int64
	migrations []Migration
	events     []Event
	trimmed    int64
	tokens     int
	answers    map[string]kept
	revoked    map[heliotrope.HostID]bool
	err        error // what every call fails with, if set
	slow       chan struct{}
	checks     []Check
	panics     bool
}

type kept struct {
	hash   string
	answer []byte
}

func newMemory() *memory {
	return &memory{changed: make(chan struct{}), rev: 1, answers: map[string]kept{}, revoked: map[heliotrope.HostID]bool{},
		checks: []Check{{Name: "store", OK: true, Detail: "answers"}}}
}

func (m *memory) backend() Backend {
	return Backend{Topologies: m, Inventory: m, Membership: m, Migrations: m, Routes: m, Meshes: m, Flows: m, Events: m, Health: m, Answers: m,
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "heliotrope_up 1") }),
		ParseTopology: func(data []byte, contentType string) (heliotrope.Topology, []FieldProblem) {
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

func fields(all topologies.Errors) []FieldProblem {
	var out []FieldProblem
	for _, p := range all {
		out = append(out, FieldProblem{Detail: p.Message, Pointer: p.Pointer, Path: p.Path, Line: p.Line, Column: p.Column, Hint: p.Hint})
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

func (m *memory) PlanTopology(_ context.Context, t heliotrope.Topology) (TopologyPlan, error) {
	end, err := m.begin()
	defer end()
	return m.plan(t), err
}

func (m *memory) plan(t heliotrope.Topology) TopologyPlan {
	p := TopologyPlan{Name: t.Name, Revision: m.topologyAt, Changes: []ObjectChange{}}
	for vm := range t.VMs {
		if _, ok := m.topology.VMs[vm]; !ok {
			p.Changes = append(p.Changes, ObjectChange{Op: "create", Kind: "vm", Name: string(vm), Effect: "starts"})
		}
	}
	slices.SortFunc(p.Changes, func(a, b ObjectChange) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	return p
}

func (m *memory) ApplyTopology(_ context.Context, t heliotrope.Topology, ifMatch int64) (TopologyPlan, error) {
	end, err := m.begin()
	defer end()
	if err != nil {
		return TopologyPlan{}, err
	}
	if ifMatch != -1 && ifMatch != m.topologyAt {
		return TopologyPlan{}, Stale(m.topologyAt)
	}
	p := m.plan(t)
	m.topology = t
	m.topologyAt = m.write()
	p.Revision, p.Applied = m.topologyAt, true
	return p, nil
}

func (m *memory) Hosts(context.Context) ([]Host, error) {
	end, err := m.begin()
	defer end()
	var hosts []Host
	for name, h := range m.topology.Hosts {
		x := Host{Name: name, Site: h.Site, Address: h.Address, Public: h.Public, State: HostUp, RPC: true, OVSDB: true, OpenFlow: true}
		if m.revoked[name] {
			x.State = HostRevoked
		}
		hosts = append(hosts, x)
	}
	slices.SortFunc(hosts, func(a, b Host) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	return hosts, err
}

func (m *memory) VMs(context.Context) ([]VM, error) {
	end, err := m.begin()
	defer end()
	var vms []VM
	for name, v := range m.topology.VMs {
		vms = append(vms, VM{Name: name, State: "running", Host: v.Host, Home: v.Host, Site: m.topology.Hosts[v.Host].Site, Epoch: 1, Image: v.Image, NICs: v.NICs})
	}
	slices.SortFunc(vms, func(a, b VM) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	return vms, err
}

func (m *memory) CreateToken(_ context.Context, host heliotrope.HostID) (JoinToken, error) {
	end, err := m.begin()
	defer end()
	if _, ok := m.topology.Hosts[host]; !ok {
		return JoinToken{}, NotFound("host", string(host))
	}
	m.tokens++
	return JoinToken{Host: host, Token: fmt.Sprint("secret-", m.tokens), ExpiresAt: time.Unix(3600, 0).UTC()}, err
}

func (m *memory) RevokeHost(_ context.Context, host heliotrope.HostID) error {
	end, err := m.begin()
	defer end()
	if _, ok := m.topology.Hosts[host]; !ok {
		return NotFound("host", string(host))
	}
	m.revoked[host] = true
	return err
}

func (m *memory) PreviewMigration(_ context.Context, r MigrationRequest) (MigrationPreview, error) {
	end, err := m.begin()
	defer end()
	v, ok := m.topology.VMs[r.VM]
	if !ok {
		return MigrationPreview{}, NotFound("vm", string(r.VM))
	}
	return MigrationPreview{VM: r.VM, From: v.Host, To: heliotrope.HostID(r.To), OK: true, ETAS: 4,
		Checks: []Check{{Name: "destination", OK: true, Detail: "has room"}}}, err
}

func (m *memory) StartMigration(ctx context.Context, id heliotrope.MoveID, r MigrationRequest) (Migration, error) {
	if m.slow != nil {
		select {
		case <-m.slow:
		case <-ctx.Done():
			return Migration{}, ctx.Err()
		}
	}
	end, err := m.begin()
	defer end()
	if err != nil {
		return Migration{}, err
	}
	for _, old := range m.migrations {
		if old.ID == id {
			return old, nil
		}
		if old.VM == r.VM && !old.Ended() {
			return Migration{}, Conflict(fmt.Sprintf("VM %s is on the move already (%s)", r.VM, old.ID), "wait for it, or abort it")
		}
	}
	v, ok := m.topology.VMs[r.VM]
	if !ok {
		return Migration{}, NotFound("vm", string(r.VM))
	}
	x := Migration{ID: id, VM: r.VM, From: v.Host, To: heliotrope.HostID(r.To), Phase: "Pending", Epoch: 1, CanAbort: true,
		CreatedAt: time.Unix(0, 0).UTC(), Phases: []PhaseTime{{Phase: "Pending"}}, Revision: m.write()}
	m.migrations = append([]Migration{x}, m.migrations...)
	return x, nil
}

// advance puts the newest migration into a phase.
func (m *memory) advance(phase string, progress float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := &m.migrations[0]
	x.Phase, x.Progress, x.Revision = phase, progress, m.write()
	x.Phases = append(x.Phases, PhaseTime{Phase: phase})
	x.CanAbort = progress < 0.8
}

func (m *memory) Migrations(context.Context) ([]Migration, error) {
	end, err := m.begin()
	defer end()
	return slices.Clone(m.migrations), err
}

func (m *memory) WaitMigration(ctx context.Context, id heliotrope.MoveID, after int64) (Migration, error) {
	for {
		end, err := m.begin()
		i := slices.IndexFunc(m.migrations, func(x Migration) bool { return x.ID == id })
		changed := m.changed
		var x Migration
		if i >= 0 {
			x = m.migrations[i]
		}
		end()
		if err != nil {
			return x, err
		}
		if i < 0 {
			return x, NotFound("migration", string(id))
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

func (m *memory) AbortMigration(_ context.Context, id heliotrope.MoveID) (Migration, error) {
	end, err := m.begin()
	defer end()
	for i := range m.migrations {
		x := &m.migrations[i]
		if x.ID != id {
			continue
		}
		if !x.CanAbort {
			return *x, Conflict("the move is committed", "it runs forward; move the VM back when it has ended")
		}
		x.Phase, x.CanAbort, x.Revision = PhaseRolledBack, false, m.write()
		return *x, err
	}
	return Migration{}, NotFound("migration", string(id))
}

func (m *memory) Routes(context.Context) ([]Route, error) {
	end, err := m.begin()
	defer end()
	var routes []Route
	for name, v := range m.topology.VMs {
		for _, nic := range v.NICs {
			if nic.Public.IsValid() {
				host := m.topology.Hosts[v.Host]
				routes = append(routes, Route{Prefix: netip.PrefixFrom(nic.Public, 32), VM: name, Private: nic.Address, Host: v.Host, Site: host.Site, NextHop: host.Public, Announced: true, Peers: 3})
			}
		}
	}
	return routes, err
}

func (m *memory) WhyRoute(_ context.Context, a netip.Addr) (RouteWhy, error) {
	end, err := m.begin()
	defer end()
	return RouteWhy{Address: a, Verdict: "unknown-address", Peers: []RouteAtPeer{}, Explanation: []string{"No VM has this address."}}, err
}

func (m *memory) Mesh(context.Context) (Mesh, error) {
	end, err := m.begin()
	defer end()
	return Mesh{Hosts: []heliotrope.HostID{"a", "b"}, Links: []MeshLink{
		{From: "a", To: "b", State: "up", BFD: "up", RTTMs: 80.3, MTU: 1450}, {From: "b", To: "a", State: "down", Loss: 1, Error: "no route"}}}, err
}

func (m *memory) VerifyMesh(_ context.Context, size int) (MeshVerification, error) {
	end, err := m.begin()
	defer end()
	return MeshVerification{PacketSize: size, OK: size <= 1450, Links: []MeshProbe{{From: "a", To: "b", OK: size <= 1450, RTTMs: 80}}}, err
}

func (m *memory) Flows(_ context.Context, host heliotrope.HostID) (FlowList, error) {
	end, err := m.begin()
	defer end()
	if _, ok := m.topology.Hosts[host]; !ok {
		return FlowList{}, NotFound("host", string(host))
	}
	return FlowList{Host: host, Flows: []Flow{{Table: "guard", Match: "any", Actions: "drop"}}}, err
}

func (m *memory) FlowDiff(_ context.Context, host heliotrope.HostID) (FlowDiff, error) {
	end, err := m.begin()
	defer end()
	if _, ok := m.topology.Hosts[host]; !ok {
		return FlowDiff{}, NotFound("host", string(host))
	}
	return FlowDiff{Host: host, Missing: []Flow{}, Extra: []Flow{}, Foreign: []Flow{}}, err
}

func (m *memory) WaitFlows(_ context.Context, revision int64) (FlowsReached, error) {
	end, err := m.begin()
	defer end()
	return FlowsReached{Revision: revision, Reached: true, Hosts: len(m.topology.Hosts), Behind: []heliotrope.HostID{}}, err
}

// happen writes an event and returns its ID.
func (m *memory) happen(kind, message string) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := Event{ID: m.write(), At: time.Unix(int64(m.rev), 0).UTC(), Kind: kind, Subject: "web", Message: message}
	m.events = append(m.events, e)
	return e.ID
}

func (m *memory) after(after int64) []Event {
	i := slices.IndexFunc(m.events, func(e Event) bool { return e.ID > after })
	if i < 0 {
		return nil
	}
	return slices.Clone(m.events[i:])
}

func (m *memory) Events(_ context.Context, after int64, limit int) (EventPage, error) {
	end, err := m.begin()
	defer end()
	events := m.after(after)
	return EventPage{Events: events[max(0, len(events)-limit):], Revision: m.rev}, err
}

func (m *memory) FollowEvents(ctx context.Context, after int64, send func(Event) error) error {
	for {
		m.mu.Lock()
		events, changed, trimmed := m.after(after), m.changed, m.trimmed
		m.mu.Unlock()
		if after > 0 && after < trimmed {
			events = append([]Event{{ID: trimmed, Kind: "gap", Message: "older events are gone"}}, events...)
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

func (m *memory) Checks(context.Context) []Check {
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
		return Claimed, nil, nil
	case k.hash != hash:
		return Reused, nil, nil
	case k.answer == nil:
		return Busy, nil, nil
	}
	return Kept, k.answer, nil
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
