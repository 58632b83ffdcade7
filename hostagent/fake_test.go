package hostagent

import (
	"context"
	"errors"
	"fmt"
	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// machine is what a host's libvirt and QEMUs are: it outlives agents. Its VMs have a
// memory of one string, which a move carries.
type machine struct {
	t     *testing.T
	name  string
	world *world
	point func(name string) // told where an agent's call is, without lock

	outlives bool // an incoming QEMU outlives its agent
	writes   bool // a copy writes to its disk
	forgets  bool // an incoming disk confirms nothing

	mu   sync.Mutex
	vms  map[heliotrope.VMID]*fakeVM
	subs map[chan libvirt.Event]bool
}

type fakeVM struct {
	state    agentapi.VMState
	epoch    uint64
	memory   string
	queue    [][]byte // of its tap, while it does not run
	got      [][]byte // what the guest received
	begun    *session
	counters libvirt.DiskCounters
	arrived  chan struct{} // incoming: everything is here
	socket   net.Listener
}

// session is an agent's connection to libvirt.
type session struct {
	*machine
	done chan struct{}
	once sync.Once
}

func newMachine(t *testing.T, w *world, name string) *machine {
	return &machine{t: t, name: name, world: w, point: func(string) {},
		vms: map[heliotrope.VMID]*fakeVM{}, subs: map[chan libvirt.Event]bool{}}
}

func (m *machine) dial(context.Context) (hypervisor, error) {
	return &session{machine: m, done: make(chan struct{})}, nil
}

// at is a place in a call where the agent may die. It then never learns how the call ended.
func (s *session) at(ctx context.Context, name string) error {
	s.mu.Lock()
	point := s.point
	s.mu.Unlock()
	point(name)
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", name, libvirt.ErrClosed)
	}
	return nil
}

// run lets a VM's vCPUs run. s.mu is held.
func (m *machine) run(id heliotrope.VMID, vm *fakeVM) {
	vm.state = agentapi.VMRunning
	vm.got = append(vm.got, vm.queue...)
	vm.queue = nil
	m.world.runs(m.name, id, true)
	m.tell(libvirt.Event{VM: id, What: libvirt.EventResumed, At: time.Now()})
}

func (m *machine) stop(id heliotrope.VMID, vm *fakeVM) {
	vm.state = agentapi.VMPaused
	m.world.runs(m.name, id, false)
	m.tell(libvirt.Event{VM: id, What: libvirt.EventSuspended, At: time.Now()})
}

func (m *machine) drop(id heliotrope.VMID) {
	if vm := m.vms[id]; vm != nil && vm.socket != nil {
		vm.socket.Close()
	}
	m.world.runs(m.name, id, false)
	delete(m.vms, id)
}

func (m *machine) tell(e libvirt.Event) {
	for s := range m.subs {
		select {
		case s <- e:
		default:
		}
	}
}

// arrive is a packet for a VM.
func (m *machine) arrive(id heliotrope.VMID, frame string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	vm := m.vms[id]
	if vm.state == agentapi.VMRunning {
		vm.got = append(vm.got, []byte(frame))
	} else {
		vm.queue = append(vm.queue, []byte(frame))
	}
}

func (m *machine) state(id heliotrope.VMID) agentapi.VMState {
	m.mu.Lock()
	defer m.mu.Unlock()
	if vm := m.vms[id]; vm != nil {
		return vm.state
	}
	return agentapi.VMAbsent
}

func (s *session) Done() <-chan struct{} { return s.done }

// Close is what libvirt does when a client dies: an incoming VM ends with it.
func (s *session) Close() error {
	s.once.Do(func() {
		close(s.done)
		s.mu.Lock()
		defer s.mu.Unlock()
		for id, vm := range s.vms {
			if vm.begun == s && vm.state == agentapi.VMIncoming && !s.outlives {
				s.drop(id)
			}
			if vm.begun == s {
				vm.begun = nil
			}
		}
	})
	return nil
}

func (s *session) Events(ctx context.Context) (<-chan libvirt.Event, error) {
	c := make(chan libvirt.Event, 64)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subs[c] = true
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subs, c)
		close(c)
	})
	return c, nil
}

func (s *session) Host(context.Context) (libvirt.Host, error) {
	return libvirt.Host{QEMU: "7.2.0", Libvirt: "11.3.0", CPUs: 2, MemoryMiB: 2048}, nil
}

func (s *session) Domains(context.Context) ([]libvirt.Domain, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []libvirt.Domain
	for id, vm := range s.vms {
		all = append(all, libvirt.Domain{Name: string(id), State: vm.state, Epoch: vm.epoch, PID: 1,
			Taps: []libvirt.Tap{{Name: string(id)}}, Foreign: id == "foreign"})
	}
	return all, nil
}

func (s *session) Start(ctx context.Context, spec libvirt.Spec) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if vm := s.vms[spec.VM]; vm != nil && vm.state == agentapi.VMRunning {
		return nil
	}
	s.vms[spec.VM] = &fakeVM{epoch: spec.Epoch, memory: "memory of " + string(spec.VM)}
	s.run(spec.VM, s.vms[spec.VM])
	return nil
}

func (s *session) Resume(ctx context.Context, id heliotrope.VMID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	vm := s.vms[id]
	if vm == nil {
		return libvirt.ErrAbsent
	}
	if vm.state != agentapi.VMRunning {
		s.run(id, vm)
	}
	return nil
}

func (s *session) Remove(_ context.Context, id heliotrope.VMID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vms[id] != nil {
		s.drop(id)
	}
	return nil
}

func (s *session) Begin(ctx context.Context, id heliotrope.VMID) (libvirt.Description, error) {
	if err := s.at(ctx, "begin"); err != nil {
		return libvirt.Description{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	vm := s.vms[id]
	if vm == nil || vm.state != agentapi.VMRunning {
		return libvirt.Description{}, errors.New("it does not run")
	}
	vm.begun = s
	return libvirt.Description{XML: "<domain>" + string(id), Cookie: []byte("begun")}, nil
}

func (s *session) Prepare(ctx context.Context, in libvirt.Incoming) ([]byte, error) {
	if err := s.at(ctx, "prepare"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if string(in.Cookie) != "begun" || s.vms[in.VM] != nil {
		return nil, fmt.Errorf("cannot prepare with cookie %q", in.Cookie)
	}
	l, err := net.Listen("unix", in.MemorySocket)
	if err != nil {
		return nil, err
	}
	if s.forgets {
		if err := s.forget(in); err != nil {
			return nil, err
		}
	}
	vm := &fakeVM{state: agentapi.VMIncoming, epoch: in.Epoch, begun: s, socket: l, arrived: make(chan struct{})}
	s.vms[in.VM] = vm
	s.world.wait.Go(func() { s.receive(vm, l) })
	return []byte("prepared"), nil
}

// receive takes the stream and says so, as QEMU does on the return path.
func (m *machine) receive(vm *fakeVM, l net.Listener) {
	conn, err := l.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	memory, err := io.ReadAll(conn)
	if err != nil {
		return
	}
	m.mu.Lock()
	vm.memory = string(memory)
	m.mu.Unlock()
	close(vm.arrived)
	io.WriteString(conn, "everything is here")
}

func (s *session) Perform(ctx context.Context, out libvirt.Outgoing) (cookie []byte, err error) {
	s.mu.Lock()
	vm := s.vms[out.VM]
	ok := vm != nil && vm.begun == s && string(out.Cookie) == "prepared"
	s.mu.Unlock()
	if !ok {
		return nil, errors.New("the move has not begun on this connection")
	}
	defer func() {
		// QEMU resumes by itself where its stream broke.
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil && !errors.Is(err, errKilledLate) && vm.state == agentapi.VMPaused {
			s.machine.run(out.VM, vm)
		}
	}()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", out.MemorySocket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	half := len(vm.memory) / 2
	if _, err := io.WriteString(conn, vm.memory[:half]); err != nil {
		return nil, err
	}
	if s.writes {
		if err := writeDisk(out.DiskSocket); err != nil {
			return nil, err
		}
	}
	out.Progress(agentapi.MoveProgress{TotalBytes: 10, DoneBytes: 5})
	if err := s.at(ctx, "copying"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.machine.stop(out.VM, vm)
	s.mu.Unlock()
	out.Paused(time.Now())
	if err := s.at(ctx, "paused"); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, vm.memory[half:]); err != nil {
		return nil, err
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		return nil, err
	}
	if back, err := io.ReadAll(conn); string(back) != "everything is here" {
		return nil, fmt.Errorf("return path: %q, %w", back, err)
	}
	if err := s.at(ctx, "sent"); err != nil {
		return nil, errKilledLate
	}
	return []byte("sent"), nil
}

// errKilledLate is a Perform that succeeded, whose agent was dead by then.
var errKilledLate = fmt.Errorf("all was sent: %w", libvirt.ErrClosed)

func (s *session) Receives(heliotrope.VMID) bool { return false }

func (s *session) Finish(ctx context.Context, id heliotrope.VMID, _ []byte, cancelled bool) error {
	if err := s.at(ctx, "finish"); err != nil {
		return err
	}
	s.mu.Lock()
	vm := s.vms[id]
	s.mu.Unlock()
	switch {
	case vm == nil && cancelled:
		return nil
	case vm == nil:
		return libvirt.ErrAbsent
	case cancelled:
		s.mu.Lock()
		defer s.mu.Unlock()
		if vm.state == agentapi.VMRunning {
			return libvirt.ErrRunning
		}
		s.drop(id)
		return nil
	}
	select {
	case <-vm.arrived:
	case <-time.After(5 * time.Second):
		return errors.New("not everything has arrived")
	}
	s.mu.Lock()
	if vm.state != agentapi.VMRunning {
		vm.begun = nil
		s.run(id, vm)
	}
	s.mu.Unlock()
	return s.at(ctx, "finished")
}

func (s *session) Confirm(ctx context.Context, id heliotrope.VMID, _ []byte, cancelled bool) error {
	if err := s.at(ctx, "confirm"); err != nil {
		return err
	}
	s.mu.Lock()
	vm := s.vms[id]
	switch {
	case vm == nil && cancelled:
		s.mu.Unlock()
		return libvirt.ErrAbsent
	case vm == nil:
	case cancelled && vm.state != agentapi.VMRunning:
		s.run(id, vm)
	case cancelled:
	case vm.state == agentapi.VMRunning:
		s.mu.Unlock()
		return libvirt.ErrRunning
	default:
		s.drop(id)
	}
	s.mu.Unlock()
	return s.at(ctx, "confirmed")
}

// fakeCatch has what a stopped VM did not receive.
type fakeCatch struct {
	*session
	vm heliotrope.VMID
}

func (s *session) Catch(_ context.Context, vm heliotrope.VMID) (catcher, error) {
	return fakeCatch{s, vm}, nil
}

func (fakeCatch) Close() error { return nil }

func (c fakeCatch) Frames(ctx context.Context) ([]libvirt.Frame, error) {
	if err := c.at(ctx, "drain"); err != nil {
		return nil, err
	}
	data, err := c.CaughtPackets(1, string(c.vm))
	var frames []libvirt.Frame
	for _, d := range data {
		frames = append(frames, libvirt.Frame{Data: d})
	}
	return frames, err
}

func (s *session) CaughtPackets(_ int, tap string) ([][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	vm := s.vms[heliotrope.VMID(tap)]
	if vm == nil {
		return nil, libvirt.ErrAbsent
	}
	frames := vm.queue
	vm.queue = nil
	return frames, nil
}

func (s *session) Inject(tap string, frames [][]byte) error {
	for _, f := range frames {
		s.arrive(heliotrope.VMID(tap), string(f))
	}
	return nil
}

// Sweep has nothing to do: a fake host's disks are not files.
func (s *session) Sweep(context.Context, string) error { return nil }

func (s *session) DiskCounters(_ context.Context, id heliotrope.VMID) (libvirt.DiskCounters, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if vm := s.vms[id]; vm != nil {
		return vm.counters, nil
	}
	return libvirt.DiskCounters{}, libvirt.ErrAbsent
}
