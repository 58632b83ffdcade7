package agentapi

import (
	"context"
	"errors"
	"fmt"
	"heliotrope"
	"heliotrope/scheduler/perf"
	"heliotrope/scheduler/traffic"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// host is an agent's state, small.
type host struct {
	mu    sync.Mutex
	term  uint64
	vms   map[heliotrope.VMID]uint64
	moves map[heliotrope.MoveID]MoveReport
	bins  []traffic.Bin
	news  chan struct{}

	measured perf.Measurement
}

func newHost() *host {
	return &host{vms: map[heliotrope.VMID]uint64{}, moves: map[heliotrope.MoveID]MoveReport{}, news: make(chan struct{})}
}

func (h *host) Status(context.Context) (HostStatus, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := HostStatus{Host: "paris-1", Version: "test"}
	for vm, epoch := range h.vms {
		s.VMs = append(s.VMs, VMStatus{VM: vm, State: VMRunning, Epoch: epoch})
	}
	return s, nil
}

func (h *host) PutVM(_ context.Context, o VMOrder) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o.Term < h.term {
		return fmt.Errorf("%w: term %d is over", ErrStale, o.Term)
	}
	h.term, h.vms[o.VM] = o.Term, o.Epoch
	return nil
}

func (h *host) RemoveVM(_ context.Context, o RemoveOrder) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.vms[o.VM]; !ok {
		return ErrUnknown
	}
	delete(h.vms, o.VM)
	return nil
}

func (h *host) Probe(_ context.Context, o ProbeOrder) ([]Path, error) {
	return []Path{{Peer: "paris-2", MTU: o.Size}}, nil
}

func (h *host) Snapshot(_ context.Context, o SnapshotOrder) (ImageSnapshot, error) {
	return ImageSnapshot{Snapshot: o.Snapshot, VM: o.VM, State: SnapshotReading}, nil
}

func (h *host) PullImage(_ context.Context, o PullOrder) (ImageCache, error) {
	if o.Image != "debian@3" || o.Term == 0 {
		return ImageCache{}, ErrInvalid
	}
	return ImageCache{Image: o.Image, Bytes: 5}, nil
}

func (h *host) Count(_ context.Context, o CaptureOrder) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o.Term < h.term {
		return fmt.Errorf("%w: term %d is over", ErrStale, o.Term)
	}
	h.bins = append(h.bins, traffic.Bin{Host: "liar", Boot: "b", Seq: uint64(len(h.bins) + 1), Ports: len(o.Ports)})
	close(h.news)
	h.news = make(chan struct{})
	return nil
}

func (h *host) Bins(ctx context.Context, boot string, after uint64) ([]traffic.Bin, error) {
	for {
		h.mu.Lock()
		bins, news := h.bins, h.news
		h.mu.Unlock()
		if boot != "b" {
			after = 0
		}
		if after < uint64(len(bins)) {
			return bins[after:], nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (h *host) PutMove(_ context.Context, o MoveOrder) (MoveReport, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := MoveReport{Rev: h.moves[o.Move].Rev + 1, Move: o.Move, Role: o.Role, State: MoveCopying, XML: "<domain/>"}
	h.moves[o.Move] = r
	close(h.news)
	h.news = make(chan struct{})
	return r, nil
}

func (h *host) GetMove(ctx context.Context, id heliotrope.MoveID, role Role, after uint64) MoveReport {
	for {
		h.mu.Lock()
		r, news := h.moves[id], h.news
		h.mu.Unlock()
		if r.Rev != after {
			return r
		}
		select {
		case <-news:
		case <-ctx.Done():
			return r
		}
	}
}

func (h *host) Watch(ctx context.Context) <-chan Event {
	c := make(chan Event, 1)
	c <- Event{Kind: "host", What: "hello"}
	context.AfterFunc(ctx, func() { close(c) })
	return c
}

// echo is a switch's socket that sends everything back.
func echo(t *testing.T) func(context.Context) (net.Conn, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	g.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.Go(func() {
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); g.Wait() })
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
}

func dial(t *testing.T, addr string, r *registry, h *host) (stop func()) {
	t.Helper()
	d := Dialer{
		Controller: addr, Identity: identity(t, r.ca, "paris-1"), Handler: Handler(h, h, h, h),
		OVSDB: echo(t), OpenFlow: echo(t), Log: testLog(t),
	}
	ctx, cancel := context.WithCancel(t.Context())
	var g sync.WaitGroup
	g.Go(func() { d.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); g.Wait() })
	t.Cleanup(stop)
	return stop
}

// controller hands out what its agents connect.
type controller struct {
	agents chan *Agent
	echoed chan string
}

func (c *controller) acceptor(r *registry) Acceptor {
	echoes := func(what string) func(context.Context, heliotrope.HostID, net.Conn) {
		return func(ctx context.Context, h heliotrope.HostID, conn net.Conn) {
			fmt.Fprintf(conn, "%s of %s\n", what, h)
			buf := make([]byte, 100)
			n, _ := conn.Read(buf)
			select {
			case c.echoed <- string(buf[:n]):
			default:
			}
			<-ctx.Done()
		}
	}
	return Acceptor{
		Join: r.join, Allowed: r.allowed,
		OnRPC: func(ctx context.Context, a *Agent) {
			select {
			case c.agents <- a:
			case <-ctx.Done():
			}
			select {
			case <-a.Done():
			case <-ctx.Done():
			}
		},
		OnOVSDB: echoes("ovsdb"), OnOpenFlow: echoes("openflow"),
	}
}

func newController() *controller {
	return &controller{agents: make(chan *Agent, 1), echoed: make(chan string, 2)}
}

func (c *controller) agent(t *testing.T, d time.Duration) *Agent {
	t.Helper()
	select {
	case a := <-c.agents:
		return a
	case <-within(t, d).Done():
		t.Fatalf("no agent within %s", d)
		return nil
	}
}

func TestOrders(t *testing.T) {
	r, c, h := newRegistry(t), newController(), newHost()
	addr, _ := listen(t, "127.0.0.1:0", r.ca, c.acceptor(r))
	dial(t, addr, r, h)
	a := c.agent(t, 10*time.Second)
	ctx := within(t, 20*time.Second)

	if err := a.PutVM(ctx, VMOrder{Term: 5, VM: "web", Epoch: 7}); err != nil {
		t.Fatalf("PutVM: %v", err)
	}
	s, err := a.Status(ctx)
	if err != nil || len(s.VMs) != 1 || s.VMs[0].Epoch != 7 || a.Host() != "paris-1" {
		t.Fatalf("Status: got %+v, %v", s, err)
	}
	if err := a.PutVM(ctx, VMOrder{Term: 4, VM: "web", Epoch: 8}); !errors.Is(err, ErrStale) || !strings.Contains(err.Error(), "term 4 is over") {
		t.Errorf("stale term: got %v, want ErrStale and its message", err)
	}
	if err := a.RemoveVM(ctx, RemoveOrder{Term: 5, VM: "db"}); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown VM: got %v, want ErrUnknown", err)
	}
	if err := a.PutVM(ctx, VMOrder{Term: 5, VM: "../../etc"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("no name: got %v, want ErrInvalid", err)
	}
	big := VMOrder{Term: 5, VM: "web", Spec: heliotrope.VM{Image: strings.Repeat("x", bodyLimit)}}
	if err := a.PutVM(ctx, big); err == nil {
		t.Error("a body over the limit was taken")
	}
	if err := a.RemoveVM(ctx, RemoveOrder{Term: 5, VM: "web"}); err != nil {
		t.Errorf("RemoveVM: %v", err)
	}

	if p, err := a.Probe(ctx, ProbeOrder{Size: 1500}); err != nil || len(p) != 1 || p[0].MTU != 1500 {
		t.Errorf("Probe: got %+v, %v", p, err)
	}

	got := make(chan MoveReport, 1)
	var g sync.WaitGroup
	defer g.Wait()
	g.Go(func() {
		m, err := a.GetMove(ctx, "m1", Source, 0)
		if err != nil {
			t.Errorf("GetMove: %v", err)
		}
		got <- m
	})
	if _, err := a.PutMove(ctx, MoveOrder{Move: "m1", VM: "web", Role: Source, Step: StepCopy}); err != nil {
		t.Errorf("PutMove: %v", err)
	}
	if m := <-got; m.Rev != 1 || m.State != MoveCopying {
		t.Errorf("GetMove: got %+v, want revision 1, copying", m)
	}

	// An order, and each change, for as long as somebody listens.
	fctx, enough := context.WithCancel(ctx)
	var revs []uint64
	err = a.FollowMove(fctx, MoveOrder{Move: "m2", VM: "web", Role: Source, Step: StepBegin}, func(m MoveReport) {
		if revs = append(revs, m.Rev); m.XML != "<domain/>" {
			t.Errorf("revision %d has the description %q", m.Rev, m.XML)
		}
		if m.Rev == 3 {
			enough()
		} else if _, err := a.PutMove(ctx, MoveOrder{Move: "m2", VM: "web", Role: Source, Step: StepCopy}); err != nil {
			t.Errorf("PutMove: %v", err)
		}
	})
	if !errors.Is(err, context.Canceled) || !slices.Equal(revs, []uint64{1, 2, 3}) {
		t.Errorf("FollowMove: told of revisions %d, %v", revs, err)
	}
	if err := a.FollowMove(ctx, MoveOrder{Move: "../m2"}, func(MoveReport) {}); !errors.Is(err, ErrInvalid) {
		t.Errorf("FollowMove: got %v, want ErrInvalid", err)
	}

	if n, err := a.Snapshot(ctx, SnapshotOrder{Term: 5, Snapshot: "s-1", VM: "web", Do: SnapshotBegin}); err != nil || n.Snapshot != "s-1" || n.VM != "web" {
		t.Errorf("Snapshot: got %+v, %v", n, err)
	}
	for _, o := range []SnapshotOrder{{Snapshot: "../s"}, {Snapshot: "s-1", VM: "../web"}} {
		if _, err := a.Snapshot(ctx, o); !errors.Is(err, ErrInvalid) || !Answered(err) {
			t.Errorf("Snapshot %+v: got %v, want ErrInvalid", o, err)
		}
	}

	wctx, cancel := context.WithCancel(ctx)
	err = a.Watch(wctx, func(e Event) {
		if e.What != "hello" {
			t.Errorf("Watch: got %+v", e)
		}
		cancel()
	})
	if !errors.Is(err, context.Canceled) && !errors.Is(err, io.EOF) {
		t.Errorf("Watch: got %v", err)
	}
	for range 2 {
		select {
		case line := <-c.echoed:
			if line != "ovsdb of paris-1\n" && line != "openflow of paris-1\n" {
				t.Errorf("echo: got %q", line)
			}
		case <-ctx.Done():
			t.Fatal("the switch's connections did not come")
		}
	}
}

func TestRestartedControllerIsRejoined(t *testing.T) {
	r, h := newRegistry(t), newHost()
	first := newController()
	addr, stop := listen(t, "127.0.0.1:0", r.ca, first.acceptor(r))
	dial(t, addr, r, h)
	a := first.agent(t, 10*time.Second)
	stop()
	select {
	case <-a.Done():
	case <-within(t, 5*time.Second).Done():
		t.Fatal("the old connection did not end")
	}
	// It is away long enough for several attempts.
	<-within(t, 3*time.Second).Done()

	second := newController()
	start := time.Now()
	listen(t, addr, r.ca, second.acceptor(r))
	b := second.agent(t, 10*time.Second)
	took := time.Since(start)
	t.Logf("rejoined after %s", took)
	if took > 1500*time.Millisecond {
		t.Errorf("rejoined after %s, want about 1 s", took)
	}
	if _, err := b.Status(within(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
}

func TestNewerConnectionReplacesOlder(t *testing.T) {
	r, c := newRegistry(t), newController()
	addr, _ := listen(t, "127.0.0.1:0", r.ca, c.acceptor(r))
	stop := dial(t, addr, r, newHost())
	defer stop()
	a := c.agent(t, 10*time.Second)
	conn, err := dialTLS(t.Context(), addr, identity(t, r.ca, "paris-1").ControllerClient(alpnRPC))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	select {
	case <-a.Done():
	case <-within(t, 5*time.Second).Done():
		t.Error("two connections of one host stand")
	}
}

func TestRevokedHostIsCutOff(t *testing.T) {
	r, c := newRegistry(t), newController()
	addr, _ := listen(t, "127.0.0.1:0", r.ca, c.acceptor(r))
	dial(t, addr, r, newHost())
	a := c.agent(t, 10*time.Second)
	r.revoke("paris-1")
	select {
	case <-a.Done():
	case <-within(t, 5*time.Second).Done():
		t.Error("a revoked host is still connected after 5 s")
	}
}

func TestSlowHandshakesDoNotBlockOthers(t *testing.T) {
	r, c := newRegistry(t), newController()
	addr, _ := listen(t, "127.0.0.1:0", r.ca, c.acceptor(r))
	for range 3 * maxHandshakesIP {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	// All from one address: its own share is taken, until they time out.
	dial(t, addr, r, newHost())
	c.agent(t, handshakeTimeout+10*time.Second)
}
