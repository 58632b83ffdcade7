package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/rest"
	"heliotrope/migration"
	"heliotrope/scheduler/traffic"
	"heliotrope/topologies"
)

// fake is a controller with two hosts, one VM, and moves that end as they are told to.
// Its HTTP side is the real one.
type fake struct {
	mu       sync.Mutex
	snapshot api.Snapshot
	topology heliotrope.Topology
	rev      int64
	moves    []api.Migration
	ends     string // phase in which moves end
	events   []api.Event
	broken   bool
	counted  func(api.TrafficQuery) traffic.Matrix // nil: what Matrix says
	keys     map[string][]byte
}

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func (f *fake) backend() api.Backend {
	return api.Backend{Topologies: f, Inventory: f, Membership: f, Migrations: f, Routes: f, Meshes: f, Flows: f, Events: f, Health: f, Answers: f, Traffic: f, Plans: f, Benchmarks: f, Snapshots: f,
		FormatTopology: topologies.Marshal,
		ParseTopology: func(data []byte, _ string) (heliotrope.Topology, []api.FieldProblem) {
			t, err := topologies.Parse(data, "", topologies.Options{})
			var all topologies.Errors
			if !errors.As(err, &all) {
				return t, nil
			}
			return t, []api.FieldProblem{{Line: all[0].Line, Column: all[0].Column, Path: all[0].Path, Detail: all[0].Message}}
		}}
}

func (f *fake) Topology(context.Context) (heliotrope.Topology, int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.topology, f.rev, nil
}

func (f *fake) PlanTopology(_ context.Context, t heliotrope.Topology) (api.TopologyPlan, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := api.TopologyPlan{Name: t.Name, Revision: f.rev}
	for _, c := range topologies.Diff(f.topology, t) {
		p.Changes = append(p.Changes, api.ObjectChange{Op: "update", Kind: "vm", Name: c.Path, Effect: "restarts nothing",
			Fields: []api.FieldChange{{Path: "memory_mib", Old: "256", New: "512"}}})
	}
	if len(f.topology.Sites) == 0 {
		p.Changes = []api.ObjectChange{{Op: "create", Kind: "vm", Name: "web", Effect: "starts at us-1"}, {Op: "create", Kind: "host", Name: "us-1"}}
		p.Warnings = []string{"us-1 has not joined yet"}
	}
	return p, nil
}

func (f *fake) ApplyTopology(ctx context.Context, t heliotrope.Topology, ifMatch int64) (api.TopologyPlan, error) {
	p, err := f.PlanTopology(ctx, t)
	f.mu.Lock()
	defer f.mu.Unlock()
	if ifMatch != -1 && ifMatch != f.rev {
		return p, api.Stale(f.rev)
	}
	f.topology, f.rev = t, f.rev+7
	p.Revision, p.Applied = f.rev, true
	return p, err
}

func (f *fake) Hosts(context.Context) ([]api.Host, error) {
	return []api.Host{
		{Name: "eu-1", Site: "eu", Address: netip.MustParseAddr("10.255.2.11"), State: api.HostExpected},
		{Name: "us-1", Site: "us", Address: netip.MustParseAddr("10.255.1.11"), Public: netip.MustParseAddr("10.255.1.111"), State: api.HostUp, JoinedAt: noon, LastSeen: noon,
			RPC: true, OVSDB: true, OpenFlow: true, Agent: "0.1.0", CPUs: 2, MemoryMiB: 1024, QEMU: "10.0.2", Libvirt: "11.3.0", UnderlayMTU: 1500,
			VMs: []heliotrope.VMID{"web"}, Unmanaged: []string{"port veth7 of br-int"}},
	}, nil
}

func (f *fake) VMs(context.Context) ([]api.VM, error) {
	return []api.VM{{Name: "web", State: "running", Host: "us-1", Site: "us", Home: "us-1", Epoch: 3, Image: "tiny", CPUs: 1, MemoryMiB: 256,
		NICs: []heliotrope.NIC{{Network: "lan", MAC: heliotrope.MAC{2, 0, 0, 0, 0, 1}, Address: netip.MustParseAddr("10.1.0.10"), Public: netip.MustParseAddr("198.51.100.10")}}}}, nil
}

func (f *fake) CreateToken(_ context.Context, h heliotrope.HostID) (api.JoinToken, error) {
	if h != "eu-1" {
		return api.JoinToken{}, api.NotFound("host", string(h))
	}
	return api.JoinToken{Host: h, Token: "join-secret", ExpiresAt: noon}, nil
}

func (f *fake) RevokeHost(_ context.Context, h heliotrope.HostID) error {
	if h == "us-1" {
		return api.Conflict("us-1 owns VMs: web", "move them away first")
	}
	return nil
}

func (f *fake) DrainHost(_ context.Context, h heliotrope.HostID, _ api.DrainRequest) error {
	if h != "us-1" {
		return api.NotFound("host", string(h))
	}
	return nil
}

func (f *fake) UndrainHost(context.Context, heliotrope.HostID) error { return nil }

func (f *fake) PreviewMigration(_ context.Context, r api.MigrationRequest) (api.MigrationPreview, error) {
	p := api.MigrationPreview{VM: r.VM, From: "us-1", To: "eu-1", OK: r.To != "asia", ETAS: 4.2, PauseMs: 30, Bytes: 268_000_000, CostUSD: 0.0054}
	p.Checks = []api.Check{{Name: "destination", OK: p.OK, Detail: "eu-1 is connected"}, {Name: "memory", OK: true, Detail: "768 MiB are free"}}
	return p, nil
}

func (f *fake) StartMigration(_ context.Context, id heliotrope.MoveID, r api.MigrationRequest) (api.Migration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.VM != "web" {
		return api.Migration{}, api.Invalid("the migration cannot be", api.FieldProblem{Pointer: "/vm", Detail: fmt.Sprintf("there is no VM %q", r.VM), Hint: "heliotrope vm list shows what there is"})
	}
	m := api.Migration{ID: "m-1", VM: "web", From: "us-1", To: "eu-1", Phase: "Pending", Epoch: 3, Revision: 10, CreatedAt: noon, CanAbort: true,
		Phases: []api.PhaseTime{{Phase: "Pending", At: noon}}}
	f.moves = []api.Migration{m}
	return m, nil
}

func (f *fake) Migrations(context.Context) ([]api.Migration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.moves, nil
}

// WaitMigration lets the move go on one phase for each question.
func (f *fake) WaitMigration(_ context.Context, id heliotrope.MoveID, after int64) (api.Migration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.moves) == 0 || f.moves[0].ID != id {
		return api.Migration{}, api.NotFound("migration", string(id))
	}
	m := &f.moves[0]
	if after < 0 || after < m.Revision {
		return *m, nil
	}
	m.Revision++
	switch m.Phase {
	case "Pending":
		m.Phase, m.Progress, m.ETAS = "PreCopy", 0.4, 3
		m.Phases[0].TookS = 0.1
		m.Phases = append(m.Phases, api.PhaseTime{Phase: "PreCopy", At: noon.Add(100 * time.Millisecond), TookS: 3})
	case "PreCopy":
		m.Phase, m.Progress, m.ETAS, m.CanAbort, m.FinishedAt = f.ends, 1, 0, false, noon.Add(4*time.Second)
		m.Phases = append(m.Phases, api.PhaseTime{Phase: f.ends, At: noon.Add(4 * time.Second)})
		m.Measured = api.Measured{PauseMs: 29.4, Bytes: 123_456_789, Rounds: 3, RescuedPackets: 4, ConvergedMs: 81, Blocks: []migration.Encoded{{Kind: "zero", Pages: 4000, Stream: 16_384_000}, {Kind: "literal", Pages: 96, Stream: 393_216, Wire: 150_000}, {Kind: "heads", Wire: 290}},
			DiskWrites: []migration.DiskWrites{
				{Stretch: migration.WritesBefore, Seconds: 0.1, Writes: 12, WriteMs: 0.42, Flushes: 3, FlushMs: 1.9},
				{Stretch: migration.WritesBulk, Seconds: 1.4, Writes: 161, WriteMs: 0.61, Flushes: 40, FlushMs: 2.3},
				{Stretch: migration.WritesMirror, Seconds: 1.6, Writes: 140, WriteMs: 1.05, Flushes: 35, FlushMs: 2.75},
				{Stretch: migration.WritesAfter, Seconds: 2.2},
			}}
		if f.ends != api.PhaseSucceeded {
			m.Error = "the destination's disk is full"
		}
	}
	return *m, nil
}

func (f *fake) AbortMigration(_ context.Context, id heliotrope.MoveID) (api.Migration, error) {
	return api.Migration{ID: id, VM: "web", From: "us-1", To: "eu-1", Phase: "PreCopy"}, nil
}

func (f *fake) Routes(context.Context) ([]api.Route, error) {
	return []api.Route{{Prefix: netip.MustParsePrefix("198.51.100.10/32"), VM: "web", Private: netip.MustParseAddr("10.1.0.10"), Host: "us-1", Site: "us",
		NextHop: netip.MustParseAddr("10.255.1.111"), Announced: true, Peers: 3}}, nil
}

func (f *fake) WhyRoute(_ context.Context, a netip.Addr) (api.RouteWhy, error) {
	if a != netip.MustParseAddr("198.51.100.10") {
		return api.RouteWhy{Address: a, Verdict: "unknown-address", Explanation: []string{"No VM of the topology has this address."}}, nil
	}
	return api.RouteWhy{Address: a, Verdict: "ok", VM: "web", Host: "us-1", NextHop: netip.MustParseAddr("10.255.1.111"),
		Explanation: []string{"It is the public address of web, which us-1 owns in epoch 3.", "Every router should send it to 10.255.1.111."},
		Peers:       []api.RouteAtPeer{{Peer: "us", Site: "us", Session: "established", Told: true, NextHop: netip.MustParseAddr("10.255.1.111")}}}, nil
}

func (f *fake) Mesh(context.Context) (api.Mesh, error) {
	return api.Mesh{Hosts: []heliotrope.HostID{"eu-1", "us-1"}, Links: []api.MeshLink{
		{From: "eu-1", To: "us-1", State: "up", BFD: "up", RTTMs: 80.3, MTU: 1450, RxBytes: 1500, TxBytes: 2_000_000},
		{From: "us-1", To: "eu-1", State: "down", BFD: "down", Loss: 1, Error: "no echo"}}}, nil
}

func (f *fake) VerifyMesh(_ context.Context, size int) (api.MeshVerification, error) {
	ok := size <= 1450
	why := map[bool]string{false: "message too long"}[ok]
	return api.MeshVerification{PacketSize: size, OK: ok, Links: []api.MeshProbe{{From: "eu-1", To: "us-1", OK: ok, RTTMs: 80.3, Error: why}}}, nil
}

func (f *fake) Flows(_ context.Context, h heliotrope.HostID) (api.FlowList, error) {
	return api.FlowList{Host: h, Flows: []api.Flow{{Table: "guard", Priority: 0, Match: "any", Actions: "drop", Packets: 7}}}, nil
}

func (f *fake) WaitFlows(_ context.Context, revision int64) (api.FlowsReached, error) {
	return api.FlowsReached{Revision: revision, Reached: true}, nil
}

func (f *fake) FlowDiff(_ context.Context, h heliotrope.HostID) (api.FlowDiff, error) {
	d := api.FlowDiff{Host: h}
	if f.broken {
		d.Missing = []api.Flow{{Table: "l2", Priority: 10, Match: "dl_dst=02:00:00:00:00:01", Actions: "output:web"}}
	}
	return d, nil
}

func (f *fake) Events(_ context.Context, after int64, limit int) (api.EventPage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var kept []api.Event
	for _, e := range f.events {
		if e.ID > after {
			kept = append(kept, e)
		}
	}
	return api.EventPage{Events: kept[max(0, len(kept)-limit):], Revision: 42}, nil
}

func (f *fake) FollowEvents(ctx context.Context, after int64, send func(api.Event) error) error {
	for _, e := range f.events {
		e.ID += 100 // those to come
		if err := send(e); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (f *fake) Checks(context.Context) []api.Check {
	return []api.Check{{Name: "store", OK: true, Detail: "answers in 1 ms"}, {Name: "loops", OK: !f.broken, Detail: "8 run"}}
}

func (f *fake) Leader(context.Context) (string, int64) { return "ctl", 5 }

func (f *fake) Claim(_ context.Context, key, _ string) (string, []byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.keys[key]; a != nil {
		return api.Kept, a, nil
	}
	return api.Claimed, nil, nil
}

func (f *fake) Keep(_ context.Context, key, _ string, answer []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys[key] = answer
	return nil
}

func (f *fake) Release(context.Context, string, string) error { return nil }

// serve runs the fake behind the real server on /run/heliotrope/api.sock under root.
func serve(t *testing.T, f *fake, root string) {
	t.Helper()
	f.keys = map[string][]byte{}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	h, err := rest.NewHandler(f.backend(), rest.Options{Version: api.Version{Version: "1.2.3", Go: "go1.26"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	listenAt(t, filepath.Join(root, "run/heliotrope/api.sock"), h, log)
}

func listenAt(t *testing.T, socket string, h http.Handler, log *slog.Logger) {
	t.Helper()
	s, err := rest.Listen(t.Context(), rest.ServerConfig{Socket: socket, Handler: h, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("server ended with %v", err)
		}
	})
}

// shortDir is a directory whose name is short enough for a socket in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
