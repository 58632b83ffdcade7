//go:build lab

package libvirt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/migration"
)

// Agent stands for the agent of a node: it lets the test use a Hypervisor, and taps, in
// the node's namespaces. The test calls it by net/rpc.
type Agent struct {
	mu      sync.Mutex
	h       *Hypervisor
	catch   *Catch
	abort   context.CancelFunc
	paused  time.Time
	latest  migration.Progress
	reports int
	events  []Event
	heard   []time.Time
	sockets map[string]int
}

// none is the argument or answer of a call that has none; gob knows no empty struct.
type none = int

const nothing none = 0

const (
	agentSocket   = "/run/heliotrope/agent"
	libvirtSocket = "/run/libvirt/libvirt-sock"
	callLimit     = 40 * time.Second
)

func runAgent() error {
	server := rpc.NewServer()
	if err := server.Register(new(Agent)); err != nil {
		return err
	}
	l, err := net.Listen("unix", agentSocket)
	if err != nil {
		return err
	}
	server.Accept(l)
	return errors.New("end of calls")
}

func limited() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), callLimit)
}

// Dial connects to libvirt, as an agent does when it starts.
func (a *Agent) Dial(none, *none) error {
	ctx, cancel := limited()
	defer cancel()
	h, err := Dial(ctx, libvirtSocket, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		return err
	}
	events, err := h.Events(context.Background())
	if err != nil {
		return err
	}
	a.h = h
	go func() { // until the connection ends
		for e := range events {
			a.mu.Lock()
			a.events = append(a.events, e)
			a.mu.Unlock()
		}
	}()
	return nil
}

// Drop ends the connection, as the death of an agent does.
func (a *Agent) Drop(none, *none) error {
	if err := a.h.Close(); err != nil {
		return err
	}
	<-a.h.Done()
	return nil
}

func (a *Agent) Events(_ none, events *[]Event) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	*events = append([]Event(nil), a.events...)
	return nil
}

func (a *Agent) Start(spec Spec, _ *none) error {
	ctx, cancel := limited()
	defer cancel()
	return a.h.Start(ctx, spec)
}

func (a *Agent) Remove(vm heliotrope.VMID, _ *none) error {
	ctx, cancel := limited()
	defer cancel()
	return a.h.Remove(ctx, vm)
}

func (a *Agent) DiskCounters(vm heliotrope.VMID, c *DiskCounters) (err error) {
	ctx, cancel := limited()
	defer cancel()
	*c, err = a.h.DiskCounters(ctx, vm)
	return err
}

func (a *Agent) Suspend(vm heliotrope.VMID, _ *none) error {
	ctx, cancel := limited()
	defer cancel()
	return a.h.Suspend(ctx, vm)
}

func (a *Agent) Resume(vm heliotrope.VMID, _ *none) error {
	ctx, cancel := limited()
	defer cancel()
	return a.h.Resume(ctx, vm)
}

func (a *Agent) Host(_ none, host *Host) (err error) {
	ctx, cancel := limited()
	defer cancel()
	*host, err = a.h.Host(ctx)
	return err
}

func (a *Agent) Domains(_ none, all *[]Domain) (err error) {
	ctx, cancel := limited()
	defer cancel()
	*all, err = a.h.Domains(ctx)
	return err
}

// Define defines a domain behind Heliotrope's back.
func (a *Agent) Define(xml string, _ *none) error {
	_, err := a.h.control.DomainDefineXML(xml)
	return err
}

func (a *Agent) Begin(vm heliotrope.VMID, d *Description) (err error) {
	ctx, cancel := limited()
	defer cancel()
	*d, err = a.h.Begin(ctx, vm)
	return err
}

func (a *Agent) Prepare(in Incoming, cookie *[]byte) (err error) {
	ctx, cancel := limited()
	defer cancel()
	*cookie, err = a.h.Prepare(ctx, in)
	return err
}

// Performed is what a Perform has said.
type Performed struct {
	Cookie  []byte
	Paused  time.Time
	Latest  migration.Progress
	Reports int
}

func (a *Agent) Perform(out Outgoing, p *Performed) error {
	ctx, cancel := limited()
	defer cancel()
	a.mu.Lock()
	a.abort = cancel
	a.mu.Unlock()
	out.Paused = func(at time.Time) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.paused = at
	}
	out.Progress = func(m migration.Progress) Course {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.latest = m
		a.reports++
		return Course{Pause: cmp.Or(out.MaxDowntime, DefaultDowntime), Slow: m.Rounds > 2}
	}
	cookie, err := a.h.Perform(ctx, out)
	a.mu.Lock()
	defer a.mu.Unlock()
	*p = Performed{Cookie: cookie, Paused: a.paused, Latest: a.latest, Reports: a.reports}
	return err
}

// Forget makes Progress start anew.
func (a *Agent) Forget(none, *none) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.paused, a.latest, a.reports = time.Time{}, migration.Progress{}, 0
	return nil
}

// Progress is what the running Perform has said so far.
func (a *Agent) Progress(_ none, p *Performed) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	*p = Performed{Paused: a.paused, Latest: a.latest, Reports: a.reports}
	return nil
}

// CancelPerform ends the context of the running Perform.
func (a *Agent) CancelPerform(none, *none) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.abort()
	return nil
}

func (a *Agent) Abort(vm heliotrope.VMID, _ *none) error {
	ctx, cancel := limited()
	defer cancel()
	return a.h.Abort(ctx, vm)
}

func (a *Agent) Sweep(dir string, _ *none) error {
	ctx, cancel := limited()
	defer cancel()
	return a.h.Sweep(ctx, dir)
}

// Last is the argument of the last steps.
type Last struct {
	VM        heliotrope.VMID
	Cookie    []byte
	Cancelled bool
}

func (a *Agent) Settle(l Last, _ *none) error {
	ctx, cancel := limited()
	defer cancel()
	return a.h.Settle(ctx, l.VM, l.Cookie)
}

func (a *Agent) Finish(l Last, at *time.Time) error {
	ctx, cancel := limited()
	defer cancel()
	err := a.h.Finish(ctx, l.VM, l.Cookie, l.Cancelled)
	*at = time.Now()
	return err
}

func (a *Agent) Confirm(l Last, _ *none) error {
	ctx, cancel := limited()
	defer cancel()
	return a.h.Confirm(ctx, l.VM, l.Cookie, l.Cancelled)
}

func (a *Agent) Catch(vm heliotrope.VMID, _ *none) (err error) {
	ctx, cancel := limited()
	defer cancel()
	a.catch, err = a.h.Catch(ctx, vm)
	return err
}

func (a *Agent) Frames(_ none, frames *[]Frame) (err error) {
	ctx, cancel := limited()
	defer cancel()
	*frames, err = a.catch.Frames(ctx)
	return err
}

func (a *Agent) EndCatch(none, *none) error { return a.catch.Close() }

// Shipment is frames for a network device of the node.
type Shipment struct {
	Device string
	Frames [][]byte
}

func (a *Agent) Inject(s Shipment, _ *none) error { return Inject(s.Device, s.Frames) }

// Send is Inject over a socket that stays open: to close one takes the kernel 10 ms.
func (a *Agent) Send(s Shipment, _ *none) (err error) {
	fd, ok := a.sockets[s.Device]
	if !ok {
		if fd, err = packetSocket(s.Device, 0); err != nil {
			return err
		}
		if a.sockets == nil {
			a.sockets = make(map[string]int)
		}
		a.sockets[s.Device] = fd
	}
	for _, frame := range s.Frames {
		err = errors.Join(err, send(fd, frame))
	}
	return err
}

// Listen notes when RARP frames leave a VM's card from now on.
func (a *Agent) Listen(tap string, _ *none) error {
	fd, err := packetSocket(tap, unix.ETH_P_RARP)
	if err != nil {
		return err
	}
	a.heard = nil
	go func() { // until the tap is gone
		defer unix.Close(fd)
		buf := make([]byte, 2048)
		for {
			if _, err := unix.Read(fd, buf); err != nil {
				return
			}
			a.mu.Lock()
			a.heard = append(a.heard, time.Now())
			a.mu.Unlock()
		}
	}()
	return nil
}

// Heard returns when RARP frames were heard.
func (a *Agent) Heard(_ none, at *[]time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	*at = append([]time.Time(nil), a.heard...)
	return nil
}

// Dump writes a VM's memory of so many MiB to a file.
type Dump struct {
	VM   heliotrope.VMID
	File string
	MiB  int
}

func (a *Agent) DumpMemory(d Dump, _ *none) error {
	ctx, cancel := limited()
	defer cancel()
	found, err := a.h.lookup(ctx, d.VM)
	if err != nil {
		return err
	}
	_, err = a.h.monitor(ctx, found.ref, fmt.Sprintf(`{"execute":"pmemsave","arguments":{"val":0,"size":%d,"filename":%q}}`, d.MiB<<20, d.File))
	return err
}

// Exec runs a command in the node and returns what it says.
func (a *Agent) Exec(argv []string, said *string) error {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	*said = string(out)
	return err
}

// Moves counts the moves that the node has open.
func (a *Agent) Moves(_ none, n *int) error {
	a.h.mu.Lock()
	defer a.h.mu.Unlock()
	*n = len(a.h.moves)
	return nil
}
