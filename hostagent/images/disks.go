package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"heliotrope/imagesync/site"
)

const (
	answerWithin = 10 * time.Second       // a server that does not by then is none
	startPause   = 20 * time.Millisecond  // between two looks whether one has started
	crashPause   = 500 * time.Millisecond // before one that has ended is started again; twice as much each time
	longPause    = 10 * time.Second       // at most
	statusLimit  = time.Second            // the host's status does not wait longer for the server's
	goneLimit    = 30 * time.Second       // for the removal of a volume
)

// Disks is the agent's end: it keeps a server running, and asks it.
type Disks struct {
	c      Config
	spawn  func() *exec.Cmd
	client *client
	log    *slog.Logger

	mu    sync.Mutex
	busy  map[heliotrope.VMID]int // whose volume is being made: there may be no file that stands for it yet
	last  *agentapi.ImageStatus
	ready chan struct{} // closed while a server answers
	up    bool
}

// New is the agent's end; spawn is how a server is started.
func New(c Config, spawn func() *exec.Cmd) *Disks {
	return &Disks{c: c, spawn: spawn, client: newClient(c.controlSocket()), log: c.Log, busy: map[heliotrope.VMID]int{}, ready: make(chan struct{})}
}

// Used says whether the host has an image store, or disks that were made when it had one.
func (d *Disks) Used() bool {
	names, err := site.Volumes(d.c.Dir)
	return d.c.Store != "" || err != nil || len(names) > 0
}

// describes says whether a server is of this program, and has been told the same.
func (c Config) describes(s agentapi.ImageStatus) bool {
	return s.Server == c.Version && s.Store == c.Store && s.Budget == c.Cache && s.KeptBudget == c.Kept
}

// Run keeps a server of this program's version running until ctx ends. The server goes on.
func (d *Disks) Run(ctx context.Context) error {
	wait := crashPause
	for {
		began := time.Now()
		err := d.once(ctx)
		d.set(false)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Since(began) > 2*longPause {
			wait = crashPause
		}
		d.log.Warn("the server of disks has ended; it is started again", "error", err)
		pause(ctx, wait)
		wait = min(2*wait, longPause)
	}
}

// once starts a server, unless there is one, and waits for its end.
func (d *Disks) once(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	s, err := d.client.status(limited)
	if err == nil && !d.c.describes(s) {
		d.log.Info("the server of disks is of another version, or was told other things: a new one takes its place", "old", s.Server, "new", d.c.Version)
		_ = d.client.stop(limited) // if it has just ended, so much the better
		err = errors.New("replaced")
	}
	if err != nil {
		if err := d.start(ctx); err != nil {
			return err
		}
	}
	d.set(true)
	if err := d.client.life(ctx); err != nil {
		return err
	}
	return errServer
}

// start starts a server and waits until it answers. It may have to wait for another one to end,
// and takes its time where there are many disks.
func (d *Disks) start(ctx context.Context) error {
	cmd := d.spawn()
	// Neither a terminal's signals nor the agent's end are the server's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start server of disks: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // reaps it whenever it ends; nobody waits for that, since it outlives the agent
	for {
		if s, err := d.client.status(ctx); err == nil && d.c.describes(s) {
			if s.PID != cmd.Process.Pid { // there was one after all, for whose end this one waits
				_ = cmd.Process.Kill()
			}
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("start server of disks: it has ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("start server of disks: %w", context.Cause(ctx))
		default:
			pause(ctx, startPause)
		}
	}
}

func (d *Disks) set(up bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if up && !d.up {
		close(d.ready)
	}
	if !up && d.up {
		d.ready = make(chan struct{})
	}
	d.up = up
}

// wait waits for a server.
func (d *Disks) wait(ctx context.Context) error {
	d.mu.Lock()
	ready := d.ready
	d.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: the server of disks is being started: %w", agentapi.ErrBusy, context.Cause(ctx))
	}
}

// put asks for a volume.
func (d *Disks) put(ctx context.Context, vm heliotrope.VMID, w wanted) (v *libvirt.Volume, has site.Has, err error) {
	if err := d.wait(ctx); err != nil {
		return nil, "", err
	}
	m, err := d.client.put(ctx, string(vm), w)
	if err != nil {
		return nil, "", err
	}
	return &libvirt.Volume{Bytes: m.Bytes, Base: m.Base}, m.Has, nil
}

// soon asks the server for something that a move waits for.
func (d *Disks) soon(ctx context.Context, ask func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if err := d.wait(ctx); err != nil {
		return err
	}
	return ask(ctx)
}

// moves are what a VM's volume remembers of moves.
func (d *Disks) moves(vm heliotrope.VMID) (site.Moves, error) {
	o, err := site.ReadOrigin(d.c.Dir, string(vm))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return o.Moves, err
}

// Pull lets a version of an image come before a VM needs it, and returns what there is of it now.
// ErrInvalid: the host has no image store, or that has no such image.
func (d *Disks) Pull(ctx context.Context, o agentapi.PullOrder) (agentapi.ImageCache, error) {
	ref := o.Image
	if d.c.Store == "" {
		return agentapi.ImageCache{}, fmt.Errorf("pull %s: %w: this host has no image store (--image-store)", ref, agentapi.ErrInvalid)
	}
	if err := d.wait(ctx); err != nil {
		return agentapi.ImageCache{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	p := pulling{Pull: site.Pull{Windows: o.Windows, Rate: o.Rate, Priority: o.Priority, Shared: o.Shared}, Lend: o.Lend, Part: o.Part}
	for _, h := range o.Chain {
		p.Chain = append(p.Chain, site.Peer(h))
	}
	c, err := d.client.pull(ctx, ref, p)
	if errors.Is(err, ErrNoImage) {
		err = fmt.Errorf("%w: %w", agentapi.ErrInvalid, err)
	}
	return c, err
}

// Orders are the controller's about images. Fence refuses those of a term that is over.
type Orders struct {
	Fence func(term uint64) error
	Disks *Disks
}

// PullImage implements agentapi.Host, as does Snapshot.
func (o *Orders) PullImage(ctx context.Context, order agentapi.PullOrder) (agentapi.ImageCache, error) {
	if err := o.Fence(order.Term); err != nil {
		return agentapi.ImageCache{}, err
	}
	return o.Disks.Pull(ctx, order)
}

// Snapshot begins a snapshot of a VM's disk, or says what it is at.
func (o *Orders) Snapshot(ctx context.Context, order agentapi.SnapshotOrder) (agentapi.ImageSnapshot, error) {
	if err := o.Fence(order.Term); err != nil {
		return agentapi.ImageSnapshot{}, err
	}
	return o.Disks.Snapshot(ctx, order)
}

// hold keeps a VM's volume from being swept until release is called.
func (d *Disks) hold(vm heliotrope.VMID) (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy[vm]++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.busy[vm]--; d.busy[vm] == 0 {
			delete(d.busy, vm)
		}
	}
}

// settle removes a VM's volume if no file stands for it any more. What cannot be done now is
// done by the next sweep.
func (d *Disks) settle(ctx context.Context, vm heliotrope.VMID) { d.end(ctx, vm, d.client.remove) }

// left makes of a VM's volume one that has left, if no file stands for it any more.
func (d *Disks) left(ctx context.Context, vm heliotrope.VMID) { d.end(ctx, vm, d.client.keep) }

func (d *Disks) end(ctx context.Context, vm heliotrope.VMID, how func(ctx context.Context, vm string) error) {
	if o, err := site.ReadOrigin(d.c.Dir, string(vm)); errors.Is(err, os.ErrNotExist) || err == nil && o.Moves.Left != "" {
		return
	}
	known, err := libvirt.KnowsVolume(d.c.DiskDir, vm)
	if known || err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goneLimit)
	defer cancel()
	if err = d.wait(ctx); err == nil {
		err = how(ctx, string(vm))
	}
	if err != nil {
		d.log.Warn("a disk that nobody needs remains until the agent starts again", "vm", vm, "error", err)
	}
}

// sweep removes volumes that no file stands for.
func (d *Disks) sweep(ctx context.Context) error {
	names, err := site.Volumes(d.c.Dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		vm := heliotrope.VMID(name)
		d.mu.Lock()
		busy := d.busy[vm] > 0
		d.mu.Unlock()
		if !busy {
			d.settle(ctx, vm)
		}
	}
	return nil
}

// Status is what the host has of images, as it was lately if the server does not answer at once;
// nil: it has no image store. trouble is for people.
func (d *Disks) Status(ctx context.Context) (s *agentapi.ImageStatus, trouble []string) {
	if d == nil || !d.Used() {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	now, err := d.client.status(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.last = &now
	} else {
		trouble = append(trouble, "the server of disks does not answer: "+err.Error())
	}
	if d.last != nil {
		for _, v := range d.last.Volumes {
			if v.Error != "" {
				trouble = append(trouble, fmt.Sprintf("the disk of %s cannot be served: %s", v.VM, v.Error))
			}
		}
	}
	return d.last, trouble
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
