package hostagent

import (
	"context"
	"errors"
	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// world is a controller's port and two hosts, or more, with real connections between them.
type world struct {
	t     *testing.T
	ctx   context.Context
	log   *slog.Logger
	wait  sync.WaitGroup
	hosts map[heliotrope.HostID]*testHost

	mu      sync.Mutex
	running map[heliotrope.VMID]string
	agents  map[heliotrope.HostID]*agentapi.Agent
	news    chan struct{}
	starts  []string // who let a VM run, in order
}

type testHost struct {
	*machine
	config Config
	relay  netip.AddrPort

	life sync.Mutex
	end  context.CancelFunc
	dead chan struct{} // closed when the agent that end ends has ended
}

// runs keeps the first law: a VM runs at one machine.
func (w *world) runs(machine string, vm heliotrope.VMID, yes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch at := w.running[vm]; {
	case yes && at != "" && at != machine:
		w.t.Errorf("%s runs at %s and at %s", vm, at, machine)
	case yes:
		w.running[vm] = machine
		w.starts = append(w.starts, machine)
	case at == machine:
		delete(w.running, vm)
	}
}

func newWorld(t *testing.T, more ...heliotrope.HostID) *world {
	ctx, cancel := context.WithCancel(t.Context())
	w := &world{t: t, ctx: ctx, log: slog.New(slog.NewTextHandler(t.Output(), nil)), hosts: map[heliotrope.HostID]*testHost{},
		running: map[heliotrope.VMID]string{}, agents: map[heliotrope.HostID]*agentapi.Agent{}, news: make(chan struct{})}
	t.Cleanup(func() { cancel(); w.wait.Wait() })
	ca, err := agentapi.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	tokens := map[string]agentapi.TokenRecord{}
	id, err := ca.IssueController()
	if err != nil {
		t.Fatal(err)
	}
	l, err := agentapi.Listen(ctx, "127.0.0.1:0", id, agentapi.Acceptor{
		Join: func(_ context.Context, r agentapi.JoinRequest) (agentapi.JoinAnswer, error) {
			record := tokens[r.TokenID]
			if err := record.Check(r, time.Now()); err != nil {
				return agentapi.JoinAnswer{}, err
			}
			cert, err := ca.SignHost(r.CSR, record.Host, agentapi.HostTTL)
			return agentapi.JoinAnswer{Host: record.Host, Certificate: cert}, err
		},
		Allowed: func(heliotrope.HostID) bool { return true },
		OnRPC:   w.connected,
		OnOVSDB: func(context.Context, heliotrope.HostID, net.Conn) {}, OnOpenFlow: func(context.Context, heliotrope.HostID, net.Conn) {},
	}, w.log)
	if err != nil {
		t.Fatal(err)
	}
	w.wait.Go(func() { l.Serve(ctx) })
	for _, h := range append([]heliotrope.HostID{"a", "b"}, more...) {
		token, record, err := ca.NewToken(h, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		tokens[record.ID] = record
		w.join(h, l.Addr().String(), token.String())
	}
	return w
}

func (w *world) connected(ctx context.Context, a *agentapi.Agent) {
	w.mu.Lock()
	w.agents[a.Host()] = a
	close(w.news)
	w.news = make(chan struct{})
	w.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-a.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.agents[a.Host()] == a {
		delete(w.agents, a.Host())
	}
}

func (w *world) join(h heliotrope.HostID, controller, token string) {
	dir := w.t.TempDir()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer free.Close()
	c := Config{
		Controller: controller, Relay: free.Addr().String(), ConfigDir: filepath.Join(dir, "etc"), StateDir: filepath.Join(dir, "var"),
		RunDir: filepath.Join(dir, "run"), OVSDir: dir, Bridge: "br-int", Log: w.log.With("host", h),
	}
	host := &testHost{machine: newMachine(w.t, w, string(h)), config: c, relay: netip.MustParseAddrPort(c.Relay)}
	host.config.dial = host.machine.dial
	if err := Join(w.ctx, host.config, token); err != nil {
		w.t.Fatal(err)
	}
	w.hosts[h] = host
	w.wait.Go(func() { w.supervise(host) })
}

// supervise starts the agent of a host again whenever it has ended.
func (w *world) supervise(h *testHost) {
	for w.ctx.Err() == nil {
		ctx, cancel := context.WithCancel(w.ctx)
		dead := make(chan struct{})
		h.life.Lock()
		h.end, h.dead = cancel, dead
		h.life.Unlock()
		if err := Run(ctx, h.config); !errors.Is(err, context.Canceled) {
			w.log.Error("agent ended", "host", h.name, "error", err)
			pause(w.ctx, 20*time.Millisecond) // its port is still being released
		}
		cancel()
		close(dead)
	}
}

// kill ends the agent of a host where it stands.
func (h *testHost) kill() {
	h.life.Lock()
	defer h.life.Unlock()
	h.end()
}

// killAt kills the agent once, when a call is at point.
func (h *testHost) killAt(point string) {
	var once sync.Once
	h.mu.Lock()
	defer h.mu.Unlock()
	h.point = func(name string) {
		if name == point {
			once.Do(h.kill)
		}
	}
}

// agent waits for a host's agent.
func (w *world) agent(h heliotrope.HostID) *agentapi.Agent {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
	defer cancel()
	for {
		w.mu.Lock()
		a, news := w.agents[h], w.news
		w.mu.Unlock()
		if a != nil {
			return a
		}
		select {
		case <-news:
		case <-ctx.Done():
			w.t.Fatalf("no agent of %s", h)
		}
	}
}

// insist repeats f until it has an answer of the agent.
func (w *world) insist(h heliotrope.HostID, f func(context.Context, *agentapi.Agent) error) error {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
	defer cancel()
	for {
		err := f(ctx, w.agent(h))
		if err == nil || errors.Is(err, agentapi.ErrStale) || errors.Is(err, agentapi.ErrInvalid) {
			return err
		}
		if pause(ctx, 20*time.Millisecond); ctx.Err() != nil {
			w.t.Fatalf("no answer of %s: %v", h, err)
		}
	}
}

func (w *world) start(vm heliotrope.VMID, at heliotrope.HostID, epoch uint64) {
	w.t.Helper()
	err := w.insist(at, func(ctx context.Context, a *agentapi.Agent) error {
		return a.PutVM(ctx, agentapi.VMOrder{Term: 1, VM: vm, Epoch: epoch, Spec: heliotrope.VM{Image: "tiny"}})
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// take orders a step and waits for one of the states, or for failed. An error is a refusal.
func (w *world) take(o agentapi.MoveOrder, until ...agentapi.MoveState) (agentapi.MoveReport, error) {
	w.t.Helper()
	if o.Step != agentapi.StepResume && o.Step != agentapi.StepDiscard {
		// After those it is the failure of the step before.
		until = append(until, agentapi.MoveFailed)
	}
	at := heliotrope.HostID("a")
	o.Term, o.Peer = 1, "b"
	if o.Role == agentapi.Destination {
		at, o.Peer = "b", "a"
	} else {
		o.PeerRelay = w.hosts["b"].relay
	}
	var r agentapi.MoveReport
	err := w.insist(at, func(ctx context.Context, a *agentapi.Agent) error {
		var err error
		r, err = a.PutMove(ctx, o)
		for err == nil && !slices.Contains(until, r.State) {
			r, err = a.GetMove(ctx, o.Move, o.Role, r.Rev)
		}
		return err
	})
	return r, err
}

// states describes where a VM is.
func (w *world) states(vm heliotrope.VMID) string {
	return strings.Join([]string{string(w.hosts["a"].state(vm)), string(w.hosts["b"].state(vm))}, " ")
}
