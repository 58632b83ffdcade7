package hostagent

import (
	"context"
	"errors"
	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const vm, mv = heliotrope.VMID("web"), heliotrope.MoveID("m1")

func source(step agentapi.Step) agentapi.MoveOrder {
	return agentapi.MoveOrder{Move: mv, VM: vm, Epoch: 1, Role: agentapi.Source, Step: step}
}

func destination(step agentapi.Step) agentapi.MoveOrder {
	return agentapi.MoveOrder{Move: mv, VM: vm, Epoch: 1, Role: agentapi.Destination, Step: step}
}

// drive moves the VM as the controller does, and says where it runs in the end: "a" if
// the move was rolled back, "b" if it succeeded, "held" if the controller cannot know.
func (w *world) drive() string {
	w.t.Helper()
	begun, err := w.take(source(agentapi.StepBegin), agentapi.MoveBegun)
	if err != nil || begun.State == agentapi.MoveFailed {
		return w.rollBack(begun, err)
	}
	o := destination(agentapi.StepPrepare)
	o.XML, o.Disks, o.Cookie = begun.XML, begun.Disks, begun.Cookie
	prepared, err := w.take(o, agentapi.MovePrepared)
	if err != nil || prepared.State == agentapi.MoveFailed {
		return w.rollBack(prepared, err)
	}
	o = source(agentapi.StepCopy)
	o.Cookie = prepared.Cookie
	released, err := w.take(o, agentapi.MoveReleased)
	if err != nil || released.State == agentapi.MoveFailed {
		return w.rollBack(released, err)
	}
	if released.PausedAt.IsZero() || released.Progress.RelayBytes == 0 {
		w.t.Errorf("released: got %+v, want when it paused and what it sent", released)
	}
	w.hosts["a"].arrive(vm, "straggler")
	// The commit is here.
	o = destination(agentapi.StepActivate)
	o.Epoch, o.Cookie = 2, released.Cookie
	active, err := w.take(o, agentapi.MoveActive)
	if err != nil || active.State == agentapi.MoveFailed {
		return w.rollBack(active, err)
	}
	if _, err := w.take(source(agentapi.StepDrain), agentapi.MoveDrained); err != nil {
		w.t.Errorf("drain: %v", err)
	}
	if r, err := w.take(source(agentapi.StepFinish), agentapi.MoveFinished); err != nil || r.State != agentapi.MoveFinished {
		w.t.Errorf("finish: got %+v, %v", r, err)
	}
	return "b"
}

func (w *world) rollBack(why agentapi.MoveReport, err error) string {
	w.t.Helper()
	w.t.Logf("rolled back: %s %v", why.Error, err)
	if r, err := w.take(source(agentapi.StepResume), agentapi.MoveResumed); err != nil || r.State != agentapi.MoveResumed {
		w.t.Errorf("resume: got %+v, %v", r, err)
	}
	if r, err := w.take(destination(agentapi.StepDiscard), agentapi.MoveDiscarded); err != nil || r.State != agentapi.MoveDiscarded {
		w.t.Errorf("discard: got %+v, %v", r, err)
	}
	return "a"
}

// settled checks that the VM runs at one host, with its memory, and that nothing of the
// move is left.
func (w *world) settled(at string) {
	w.t.Helper()
	want := map[string]string{"a": "running absent", "b": "absent running"}[at]
	if got := w.states(vm); got != want {
		w.t.Errorf("states: got %s, want %s", got, want)
	}
	host := w.hosts[heliotrope.HostID(at)]
	host.mu.Lock()
	if fake := host.vms[vm]; fake != nil && fake.memory != "memory of web" {
		w.t.Errorf("memory: got %q", fake.memory)
	}
	host.mu.Unlock()
	for id, h := range w.hosts {
		s, err := w.status(id)
		if err != nil {
			w.t.Error(err)
		}
		for _, v := range s.VMs {
			if v.Move != "" {
				w.t.Errorf("%s at %s is still in move %s", v.VM, id, v.Move)
			}
		}
		if left, _ := filepath.Glob(filepath.Join(h.config.RunDir, "moves", "*", "*.sock")); len(left) > 0 {
			w.t.Errorf("sockets are left at %s: %v", id, left)
		}
	}
}

func (w *world) status(h heliotrope.HostID) (s agentapi.HostStatus, err error) {
	err = w.insist(h, func(ctx context.Context, a *agentapi.Agent) error {
		s, err = a.Status(ctx)
		return err
	})
	return s, err
}

func TestMove(t *testing.T) {
	w := newWorld(t)
	w.start(vm, "a", 1)
	if at := w.drive(); at != "b" {
		t.Fatalf("the VM is at %s", at)
	}
	w.settled("b")
	b := w.hosts["b"]
	b.mu.Lock()
	if got := b.vms[vm].got; len(got) != 1 || string(got[0]) != "straggler" {
		t.Errorf("the guest received %q, want the straggler once", got)
	}
	b.mu.Unlock()
	s, err := w.status("b")
	if err != nil || len(s.VMs) != 1 || s.VMs[0].Epoch != 2 || s.QEMU != "7.2.0" {
		t.Errorf("status: got %+v, %v", s, err)
	}
	if !strings.Contains(strings.Join(s.Warnings, "\n"), "corrupts") {
		t.Errorf("warnings: got %q, want one of QEMU 7 without KVM", s.Warnings)
	}
	// Late orders of the old epoch change nothing.
	err = w.insist("a", func(ctx context.Context, a *agentapi.Agent) error {
		return a.PutVM(ctx, agentapi.VMOrder{Term: 1, VM: vm, Epoch: 1, Spec: heliotrope.VM{Image: "tiny"}})
	})
	if !errors.Is(err, agentapi.ErrStale) {
		t.Errorf("an order of the old epoch: got %v, want ErrStale", err)
	}
	if r, err := w.take(source(agentapi.StepCopy), agentapi.MoveFinished); err != nil || r.State != agentapi.MoveFinished {
		t.Errorf("a late order to copy: got %+v, %v, want the finished move", r, err)
	}
}

// TestKilled kills an agent at each place of a move. Whatever happens, the VM runs at one
// host when all is over, and never ran at two.
func TestKilled(t *testing.T) {
	for _, c := range []struct {
		host  heliotrope.HostID
		point string
		ends  string
	}{
		{"a", "begin", "a"},
		{"b", "prepare", "a"},
		{"a", "copying", "a"},
		{"a", "paused", "a"},
		{"a", "sent", "a"},     // "released" was not on disk
		{"b", "finish", "b"},   // the permit is on disk; QEMU outlived the agent
		{"b", "finished", "b"}, // it runs, and nobody was told
		{"a", "drain", "b"},
		{"a", "confirm", "b"},
		{"a", "confirmed", "b"},
	} {
		t.Run(string(c.host)+" at "+c.point, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.start(vm, "a", 1)
			if c.point == "finish" {
				w.hosts["b"].outlives = true
			}
			w.hosts[c.host].killAt(c.point)
			if at := w.drive(); at != c.ends {
				t.Errorf("the VM is at %s, want %s", at, c.ends)
			}
			w.settled(c.ends)
		})
	}
}

func TestUnknownOutcomeIsNotGuessed(t *testing.T) {
	// The destination's agent dies in the middle of letting the VM run, and its QEMU with
	// it: nobody can say that the VM never ran, so the agent must not say "failed", on
	// which the source would run.
	w := newWorld(t)
	w.start(vm, "a", 1)
	w.hosts["b"].killAt("finish")
	begun, err := w.take(source(agentapi.StepBegin), agentapi.MoveBegun)
	if err != nil {
		t.Fatal(err)
	}
	o := destination(agentapi.StepPrepare)
	o.XML, o.Cookie = begun.XML, begun.Cookie
	prepared, err := w.take(o, agentapi.MovePrepared)
	if err != nil {
		t.Fatal(err)
	}
	o = source(agentapi.StepCopy)
	o.Cookie = prepared.Cookie
	if r, err := w.take(o, agentapi.MoveReleased); err != nil || r.State != agentapi.MoveReleased {
		t.Fatalf("copy: got %+v, %v", r, err)
	}
	o = destination(agentapi.StepActivate)
	o.Epoch, o.Term, o.Peer = 2, 1, "a"
	var r agentapi.MoveReport
	err = w.insist("b", func(ctx context.Context, a *agentapi.Agent) error {
		r, err = a.PutMove(ctx, o)
		for err == nil && r.Error == "" {
			r, err = a.GetMove(ctx, mv, agentapi.Destination, r.Rev)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.State != agentapi.MovePrepared || !strings.Contains(r.Error, "not known") {
		t.Errorf("report: got %+v, want prepared, and that it is not known whether it ran", r)
	}
	if got := w.states(vm); got != "paused absent" {
		t.Errorf("states: got %s, want paused absent", got)
	}
	if _, err := w.take(destination(agentapi.StepDiscard), agentapi.MoveDiscarded); !errors.Is(err, agentapi.ErrInvalid) {
		t.Errorf("discard: got %v, want ErrInvalid", err)
	}
}

func TestReleasedSourceStaysStopped(t *testing.T) {
	w := newWorld(t)
	w.start(vm, "a", 1)
	begun, _ := w.take(source(agentapi.StepBegin), agentapi.MoveBegun)
	o := destination(agentapi.StepPrepare)
	o.XML, o.Cookie = begun.XML, begun.Cookie
	prepared, _ := w.take(o, agentapi.MovePrepared)
	o = source(agentapi.StepCopy)
	o.Cookie = prepared.Cookie
	before, err := w.take(o, agentapi.MoveReleased)
	if err != nil || before.State != agentapi.MoveReleased {
		t.Fatalf("copy: got %+v, %v", before, err)
	}
	a := w.hosts["a"]
	a.life.Lock()
	dead := a.dead
	a.life.Unlock()
	a.kill()
	<-dead
	after, err := w.take(o, agentapi.MoveReleased)
	if err != nil || after.State != agentapi.MoveReleased || string(after.Cookie) != "sent" || after.Rev <= before.Rev {
		t.Errorf("after a restart: got %+v, %v, want released, with its cookie and a newer revision than %d", after, err, before.Rev)
	}
	err = w.insist("a", func(ctx context.Context, a *agentapi.Agent) error {
		err := a.PutVM(ctx, agentapi.VMOrder{Term: 1, VM: vm, Epoch: 1, Spec: heliotrope.VM{Image: "tiny"}})
		if errors.Is(err, agentapi.ErrBusy) {
			return nil
		}
		return errors.Join(errors.New("not busy"), err)
	})
	if err != nil {
		t.Error(err)
	}
	if got := w.states(vm); got != "paused incoming" {
		t.Errorf("states: got %s, want paused incoming", got)
	}
	w.rollBack(after, nil)
	w.settled("a")
}

func TestAbortWhileCopying(t *testing.T) {
	w := newWorld(t)
	w.start(vm, "a", 1)
	begun, _ := w.take(source(agentapi.StepBegin), agentapi.MoveBegun)
	o := destination(agentapi.StepPrepare)
	o.XML, o.Cookie = begun.XML, begun.Cookie
	prepared, _ := w.take(o, agentapi.MovePrepared)
	hold, held := make(chan struct{}), make(chan struct{})
	a := w.hosts["a"]
	a.mu.Lock()
	a.point = func(name string) {
		if name == "paused" {
			close(held)
			<-hold
		}
	}
	a.mu.Unlock()
	o = source(agentapi.StepCopy)
	o.Cookie = prepared.Cookie
	if _, err := w.take(o, agentapi.MovePaused); err != nil {
		t.Fatal(err)
	}
	<-held
	err := w.insist("a", func(ctx context.Context, a *agentapi.Agent) error {
		o := source(agentapi.StepResume)
		o.Term, o.Peer = 1, "b"
		_, err := a.PutMove(ctx, o)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	close(hold)
	w.rollBack(agentapi.MoveReport{Error: "aborted"}, nil)
	w.settled("a")
}

func TestUndoThatOvertakes(t *testing.T) {
	// A discard may come before its prepare, which is then not to be done.
	w := newWorld(t)
	if r, err := w.take(destination(agentapi.StepDiscard), agentapi.MoveDiscarded); err != nil || r.State != agentapi.MoveDiscarded {
		t.Fatalf("discard: got %+v, %v", r, err)
	}
	o := destination(agentapi.StepPrepare)
	o.Cookie = []byte("begun")
	if r, err := w.take(o, agentapi.MoveDiscarded, agentapi.MovePrepared); err != nil || r.State != agentapi.MoveDiscarded {
		t.Errorf("prepare: got %+v, %v, want discarded", r, err)
	}
}

func TestOrdersAreFenced(t *testing.T) {
	w := newWorld(t)
	w.start(vm, "a", 3)
	put := func(term, epoch uint64, name heliotrope.VMID) error {
		return w.insist("a", func(ctx context.Context, a *agentapi.Agent) error {
			return a.PutVM(ctx, agentapi.VMOrder{Term: term, VM: name, Epoch: epoch, Spec: heliotrope.VM{Image: "tiny"}})
		})
	}
	if err := put(5, 3, vm); err != nil {
		t.Errorf("a repeated order in a new term: %v", err)
	}
	a := w.hosts["a"]
	a.life.Lock()
	dead := a.dead
	a.life.Unlock()
	a.kill()
	<-dead
	if err := put(4, 3, vm); !errors.Is(err, agentapi.ErrStale) {
		t.Errorf("a term that is over, after a restart: got %v, want ErrStale", err)
	}
	if err := put(5, 2, vm); !errors.Is(err, agentapi.ErrStale) {
		t.Errorf("an epoch that is over: got %v, want ErrStale", err)
	}
	a.mu.Lock()
	a.vms["foreign"] = &fakeVM{state: agentapi.VMRunning}
	a.mu.Unlock()
	if err := put(5, 1, "foreign"); !errors.Is(err, agentapi.ErrInvalid) {
		t.Errorf("a foreign domain: got %v, want ErrInvalid", err)
	}
	remove := func(epoch uint64, name heliotrope.VMID) error {
		return w.insist("a", func(ctx context.Context, a *agentapi.Agent) error {
			return a.RemoveVM(ctx, agentapi.RemoveOrder{Term: 5, VM: name, Epoch: epoch})
		})
	}
	if err := remove(9, "foreign"); !errors.Is(err, agentapi.ErrInvalid) {
		t.Errorf("removal of a foreign domain: got %v, want ErrInvalid", err)
	}
	if err := remove(2, vm); !errors.Is(err, agentapi.ErrStale) {
		t.Errorf("removal in an old epoch: got %v, want ErrStale", err)
	}
	if err := remove(3, vm); err != nil || a.state(vm) != agentapi.VMAbsent {
		t.Errorf("removal: got %v, and the VM is %s", err, a.state(vm))
	}
	if err := put(5, 1, vm); err != nil {
		t.Errorf("a new VM of the same name: %v", err)
	}
	for _, image := range []string{"", "..", "../../etc", "a/b"} {
		err := w.insist("a", func(ctx context.Context, a *agentapi.Agent) error {
			return a.PutVM(ctx, agentapi.VMOrder{Term: 5, VM: "x", Epoch: 1, Spec: heliotrope.VM{Image: image}})
		})
		if !errors.Is(err, agentapi.ErrInvalid) {
			t.Errorf("image %q: got %v, want ErrInvalid", image, err)
		}
	}
	if _, err := os.Stat(filepath.Join(a.config.StateDir, "permits", "web.json")); err != nil {
		t.Errorf("permit: %v", err)
	}
}
