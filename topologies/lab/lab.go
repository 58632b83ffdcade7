// Package lab brings a topology up on one Linux machine with real daemons, and takes it down.
//
// # The parts
//
// Up starts a supervisor in the background: this program again, in a session of its own. For
// each node the supervisor starts a process with its own network, mount, PID, UTS and IPC
// namespace; that process, again this program, is PID 1 there and keeps the node's addresses
// and daemons (package node). The supervisor makes the cables (wire.go) and forwards
// between the sites (package wan). What each node is follows from the topology alone
// (plan.go, pure).
//
//	client ─┐                                  ┌─ host: eth0 ─ br-phy (OVS) ─ libvirtd, agent
//	host ───┤ lan ─ router ─ wan0 ═ WAN ═ wan0 ─ router ─ lan ┤
//	controller                (supervisor)     └─ client
//
// In a light lab a VM is one more such process, on its host's br-int (light.go).
//
// # Nothing remains
//
// Namespaces have no names and devices are born inside them, so all that a lab is hangs on
// its processes: a PID 1 that dies takes with it every process, mount and device of its
// node. And no PID 1 outlives its supervisor, however that dies: its socket to the
// supervisor ends, and it has asked the kernel for SIGKILL. What is left is one directory,
// which the next Up or Down of that name removes. Labs side by side share nothing.
//
// # The directory
//
//	lock             held by the supervisor while it lives (layout.go)
//	processes        supervisor and PID 1s with their start times, for Down
//	lab.sock         the supervisor's control socket (control.go)
//	supervisor.log
//	controller/      /run/heliotrope of the controller: api.sock for the CLI outside
//	images/          what guests boot
//	image-store/     what the disks of guests stand on, where the lab has a store (images.go)
//	image-keys/      the key that signs for it
//	nodes/NODE/      what the node has of its own: etc-libvirt, run-openvswitch, log, …
package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope"
)

// Options say which lab to bring up.
type Options struct {
	Topology     heliotrope.Topology
	TopologyFile string // given to the controller as it is; not needed WithoutControl

	Name        string // default: the topology's
	Dir         string // default: DefaultDir/Name
	Binary      string // the program that has Command; default: this one
	AgentBinary string // default: heliotrope-agent beside Binary

	// Controller is the program that is the controller, with its arguments; default: Binary's
	// 'controller run'.
	Controller []string
	// Images are directories that hosts see read-only as /var/lib/heliotrope/images/KEY;
	// default: the lab's own guest, as "guest", unless WithoutControl.
	Images map[string]string
	// ImageStore gives the lab an image store with the guest's disk, from which controller and
	// agents take images.
	ImageStore bool
	// WithoutControl leaves controller and agents out: routers, Open vSwitch, libvirt only.
	WithoutControl bool
	// WithoutLibvirt leaves libvirt out, for fabrics of many hosts on one machine.
	WithoutLibvirt bool
	// Light makes each VM a namespace at its host in place of a guest (light.go). There is
	// no libvirt then, and nothing moves.
	Light bool
	// Patience is how long everything may take to come up; default 60 s.
	Patience time.Duration
	// Progress is told what has been reached, in a few words; may be nil.
	Progress func(string)
}

// Target names a lab: by Name below DefaultDir, or in Dir where that is set.
type Target struct{ Name, Dir string }

func (t Target) layout() (layout, error) {
	if t.Name == "" && t.Dir != "" {
		t.Name = filepath.Base(t.Dir)
	}
	return layoutOf(t.Dir, t.Name)
}

// grace is how long a supervisor may take to end in order.
const grace = 10 * time.Second

// Up brings a lab up and returns once everything in it answers; the lab then lives on its
// own until Down. Where it fails, nothing runs, and the logs are left in Dir. A lab of
// the same name that was killed is cleaned away first; one that runs is an error.
func Up(ctx context.Context, o Options) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	l := cfg.layout()
	lock, err := l.own(ctx)
	if errors.Is(err, errHeld) {
		return fmt.Errorf("bring lab up: %s runs already: take it down with 'heliotrope lab down %s'", cfg.Name, cfg.Name)
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := errors.Join(l.end(ctx, 0), l.clean()); err != nil {
		return err
	}
	if err := cfg.buildImages(ctx); err != nil {
		return fmt.Errorf("bring lab up: %w", err)
	}
	if err := supervise(ctx, cfg, lock, o.Progress); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*grace)
		defer cancel()
		return errors.Join(fmt.Errorf("bring lab up: %w", err), l.end(ctx, grace))
	}
	return nil
}

func (o Options) config() (config, error) {
	c := config{
		Name: o.Name, Topology: o.Topology, TopologyFile: o.TopologyFile, Binary: o.Binary, AgentBinary: o.AgentBinary, Controller: o.Controller,
		Images: o.Images, ImageStore: o.ImageStore, WithoutControl: o.WithoutControl, WithoutLibvirt: o.WithoutLibvirt || o.Light, Light: o.Light, Patience: o.Patience,
		Passwords: map[heliotrope.PeerID]string{},
	}
	if o.Light && o.WithoutControl {
		return config{}, errors.New("plan lab: light VMs need a controller: nobody else makes the switch that they hang on")
	}
	if o.ImageStore && (o.Images != nil || o.WithoutControl || c.WithoutLibvirt) {
		return config{}, errors.New("plan lab: an image store is for the disks of the lab's own guests: it needs controller and libvirt, and no other images")
	}
	if c.Name == "" {
		c.Name = o.Topology.Name
	}
	if c.Patience == 0 {
		c.Patience = time.Minute
	}
	l, err := layoutOf(o.Dir, c.Name)
	if err != nil {
		return config{}, err
	}
	c.Dir = string(l)
	for id, p := range o.Topology.Peers {
		c.Passwords[id] = p.Password
	}
	if c.Binary == "" {
		if c.Binary, err = os.Executable(); err != nil {
			return config{}, fmt.Errorf("find own program: %w", err)
		}
	}
	if c.AgentBinary == "" {
		c.AgentBinary = filepath.Join(filepath.Dir(c.Binary), "heliotrope-agent")
	}
	for _, path := range []*string{&c.Binary, &c.AgentBinary, &c.TopologyFile} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return config{}, fmt.Errorf("find file: %w", err)
		}
	}
	if c.Controller == nil {
		c.Controller = append([]string{c.Binary, "controller", "run"}, c.imageStoreFlag()...)
	}
	_, err = plans(c) // what is wrong with the topology is said before anything is started
	return c, err
}

// supervise starts the supervisor and waits until it says that the lab is up.
func supervise(ctx context.Context, cfg config, lock *os.File, progress func(string)) error {
	input, err := json.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("encode configuration: %w", err)
	}
	log, err := os.OpenFile(cfg.layout().supervisorLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open supervisor log: %w", err)
	}
	defer log.Close()
	messages, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer messages.Close()
	cmd := exec.Command(cfg.Binary, "lab", "supervise", "--name", cfg.Name)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = "/", bytes.NewReader(input), theirs, log
	cmd.ExtraFiles = []*os.File{lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return fmt.Errorf("start supervisor: %w", err)
	}
	go cmd.Wait() // the supervisor outlives Up; this reaps it should it end before we do
	if err := cfg.layout().record(cmd.Process.Pid); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	defer context.AfterFunc(ctx, func() { messages.Close() })()
	err = listen(json.NewDecoder(messages), progress)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		cmd.Process.Signal(unix.SIGTERM) // most likely it has ended
		return fmt.Errorf("%w; see %s", err, cfg.layout().supervisorLog())
	}
	return nil
}

// listen passes progress on until the supervisor is ready or gives up.
func listen(messages *json.Decoder, progress func(string)) error {
	for {
		var m message
		err := messages.Decode(&m)
		switch {
		case errors.Is(err, io.EOF):
			return errors.New("the supervisor died")
		case err != nil:
			return fmt.Errorf("listen to supervisor: %w", err)
		case m.Error != "":
			return errors.New(m.Error)
		case m.Ready:
			return nil
		case progress != nil:
			progress(m.Progress)
		}
	}
}

// Down ends a lab and removes its directory. It does so whatever state the lab is in, also
// when its supervisor was killed; where there is no such lab, that is no error.
func Down(ctx context.Context, t Target) error {
	l, err := t.layout()
	if err != nil {
		return err
	}
	if !l.exists() {
		return nil
	}
	lock, err := l.seize(ctx)
	if err != nil {
		return fmt.Errorf("take lab down: %w", err)
	}
	defer lock.Close()
	if err := os.RemoveAll(string(l)); err != nil {
		return fmt.Errorf("remove lab directory: %w", err)
	}
	return nil
}
