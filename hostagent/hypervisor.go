package hostagent

import (
	"context"
	"fmt"
	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"log/slog"
	"sync"
	"time"
)

// What the agent needs of a hypervisor, by who needs it.
type (
	// inventory is for the host's status.
	inventory interface {
		Host(ctx context.Context) (libvirt.Host, error)
		Domains(ctx context.Context) ([]libvirt.Domain, error)
	}
	// runner is for orders about VMs.
	runner interface {
		Start(ctx context.Context, spec libvirt.Spec) error
		Resume(ctx context.Context, vm heliotrope.VMID) error
		Remove(ctx context.Context, vm heliotrope.VMID) error
	}
	// sender is for the source of a move.
	sender interface {
		Begin(ctx context.Context, vm heliotrope.VMID) (libvirt.Description, error)
		Perform(ctx context.Context, out libvirt.Outgoing) ([]byte, error)
		Confirm(ctx context.Context, vm heliotrope.VMID, cookie []byte, cancelled bool) error
	}
	// receiver is for the destination of a move.
	receiver interface {
		Prepare(ctx context.Context, in libvirt.Incoming) ([]byte, error)
		Receives(vm heliotrope.VMID) bool
		Finish(ctx context.Context, vm heliotrope.VMID, cookie []byte, cancelled bool) error
		Sweep(ctx context.Context, diskDir string) error
	}
	// counting is for how long a VM's writes take.
	counting interface {
		DiskCounters(ctx context.Context, vm heliotrope.VMID) (libvirt.DiskCounters, error)
	}
	// queues is for the packets of a VM that does not run.
	queues interface {
		Catch(ctx context.Context, vm heliotrope.VMID) (catcher, error)
		CaughtPackets(qemuPID int, tap string) ([][]byte, error)
		Inject(tap string, frames [][]byte) error
	}
	// catcher has the packets that reached a stopped VM and not its guest.
	catcher interface {
		Frames(ctx context.Context) ([]libvirt.Frame, error)
		Close() error
	}
	hypervisor interface {
		inventory
		runner
		sender
		receiver
		counting
		queues
		Events(ctx context.Context) (<-chan libvirt.Event, error)
		Done() <-chan struct{}
		Close() error
	}
)

// local is libvirt with the functions that work on taps directly.
type local struct{ *libvirt.Hypervisor }

func (l local) Catch(ctx context.Context, vm heliotrope.VMID) (catcher, error) {
	c, err := l.Hypervisor.Catch(ctx, vm)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (local) CaughtPackets(pid int, tap string) ([][]byte, error) {
	return libvirt.CaughtPackets(pid, tap)
}

func (local) Inject(tap string, frames [][]byte) error { return libvirt.Inject(tap, frames) }

// connection is the hypervisor for as long as there is one: libvirtd may be restarted.
type connection struct {
	dial func(context.Context) (hypervisor, error)
	log  *slog.Logger

	mu    sync.Mutex
	hv    hypervisor
	ready chan struct{} // closed while hv is there
}

func newConnection(dial func(context.Context) (hypervisor, error), log *slog.Logger) *connection {
	return &connection{dial: dial, log: log, ready: make(chan struct{})}
}

// get waits for the hypervisor.
func (c *connection) get(ctx context.Context) (hypervisor, error) {
	for {
		c.mu.Lock()
		hv, ready := c.hv, c.ready
		c.mu.Unlock()
		if hv != nil {
			return hv, nil
		}
		select {
		case <-ready:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for libvirt: %w", ctx.Err())
		}
	}
}

// keep keeps the connection up until ctx ends, and gives its events to tell.
func (c *connection) keep(ctx context.Context, tell func(libvirt.Event)) error {
	told := ""
	for {
		err := c.once(ctx, tell)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err.Error() != told {
			told = err.Error()
			c.log.Warn("no libvirt", "error", err)
		}
		pause(ctx, 200*time.Millisecond)
	}
}

func (c *connection) once(ctx context.Context, tell func(libvirt.Event)) error {
	hv, err := c.dial(ctx)
	if err != nil {
		return fmt.Errorf("dial libvirt: %w", err)
	}
	defer hv.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := hv.Events(ctx)
	if err != nil {
		return fmt.Errorf("watch libvirt: %w", err)
	}
	c.set(hv)
	defer c.set(nil)
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return fmt.Errorf("watch libvirt: connection ended")
			}
			tell(e)
		case <-hv.Done():
			return fmt.Errorf("watch libvirt: connection ended")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (c *connection) set(hv hypervisor) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hv = hv
	if hv != nil {
		close(c.ready)
	} else {
		c.ready = make(chan struct{})
	}
}

// find gets the hypervisor and what it has of vm; the domain's State is VMAbsent if that is nothing.
func (c *connection) find(ctx context.Context, vm heliotrope.VMID) (hypervisor, libvirt.Domain, error) {
	hv, err := c.get(ctx)
	if err != nil {
		return nil, libvirt.Domain{}, err
	}
	d, err := find(ctx, hv, vm)
	return hv, d, err
}

// find returns the domain of vm; its State is VMAbsent if there is none.
func find(ctx context.Context, hv inventory, vm heliotrope.VMID) (libvirt.Domain, error) {
	domains, err := hv.Domains(ctx)
	if err != nil {
		return libvirt.Domain{}, fmt.Errorf("list domains: %w", err)
	}
	for _, d := range domains {
		if heliotrope.VMID(d.Name) == vm {
			return d, nil
		}
	}
	return libvirt.Domain{State: agentapi.VMAbsent}, nil
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
