package story

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/topologies/lab"
	"heliotrope/topologies/lab/probe"
)

// stage is what every story has: a lab, the VM that it is about, and where it is told.
type stage struct {
	Name string // of the lab
	Keep bool   // leave the lab running
	VM   heliotrope.VMID
	Out  io.Writer

	store   bool // VMs' disks stand on an image of a store
	target  lab.Target
	client  *api.Client
	public  netip.Addr // of the VM
	started time.Time
	saying  sync.Mutex
}

func (s *stage) say(format string, args ...any) {
	s.saying.Lock()
	defer s.saying.Unlock()
	fmt.Fprintf(s.Out, "%6.1fs  %s\n", time.Since(s.started).Seconds(), fmt.Sprintf(format, args...))
}

// up starts the lab and waits until its VMs run and all sites know the way.
func (s *stage) up(ctx context.Context, t heliotrope.Topology, file string) error {
	s.target = lab.Target{Name: s.Name}
	s.say("bringing up %d sites, %d hosts and a WAN on this machine", len(t.Sites), len(t.Hosts))
	err := lab.Up(ctx, lab.Options{Topology: t, TopologyFile: file, Name: s.Name, ImageStore: s.store, Progress: func(what string) { s.say("  %s", what) }})
	if err != nil {
		return err
	}
	if s.client, err = api.Find(api.Place{Lab: s.Name}); err != nil {
		return errors.Join(err, s.down(ctx))
	}
	s.say("waiting for %d VMs, the mesh and the routers", len(t.VMs))
	if err := s.ready(ctx); err != nil {
		return errors.Join(err, s.down(ctx))
	}
	return nil
}

func (s *stage) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	if err := s.until(ctx, s.vmsRun); err != nil {
		return err
	}
	return s.until(ctx, s.routed)
}

// down takes the lab down, unless it is to be kept.
func (s *stage) down(ctx context.Context) error {
	if s.Keep {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	return lab.Down(ctx, s.target)
}

// until asks again and again until ok, and then says what it waited for if ctx ends.
func (s *stage) until(ctx context.Context, ok func(context.Context) error) error {
	for {
		err := ok(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (s *stage) vmsRun(ctx context.Context) error {
	vms, err := s.client.VMs(ctx)
	if err != nil {
		return err
	}
	for _, vm := range vms {
		if vm.State != string(heliotrope.VMRunning) {
			return fmt.Errorf("VM %s is %s at %s", vm.Name, vm.State, vm.Host)
		}
	}
	return nil
}

func (s *stage) routed(ctx context.Context) error {
	mesh, err := s.client.Mesh(ctx)
	if err != nil {
		return err
	}
	for _, l := range mesh.Links {
		if l.State != "up" {
			return fmt.Errorf("the tunnel from %s to %s is %s", l.From, l.To, l.State)
		}
	}
	why, err := s.client.WhyRoute(ctx, s.public)
	if err != nil {
		return err
	}
	for _, p := range why.Peers {
		if !p.Told {
			return fmt.Errorf("router %s has not been told of %s: its session is %s", p.Peer, s.public, p.Session)
		}
	}
	return nil
}

// probeFrom has a client's node probe the VM until stop, which is never nil, is called. It
// returns once the probe has answers.
func (s *stage) probeFrom(ctx context.Context, node string, rate int, p **probe.Client) (stop func(), err error) {
	// A place that the client's node sees too: its /run is its own.
	dir, err := os.MkdirTemp("", "heliotrope-story-")
	if err != nil {
		return func() {}, fmt.Errorf("make probe's directory: %w", err)
	}
	socket := filepath.Join(dir, "probe.sock")
	self, err := os.Executable()
	if err != nil {
		return func() { os.RemoveAll(dir) }, fmt.Errorf("find own program: %w", err)
	}
	run, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		argv := []string{self, "lab", "probe", "--target", s.public.String(), "--rate", fmt.Sprint(rate), "--socket", socket}
		code, err := lab.Exec(run, s.target, node, argv, lab.Stdio{Out: io.Discard, Err: os.Stderr})
		if err == nil && code != 0 {
			err = fmt.Errorf("the probe exited with %d", code)
		}
		done <- err
	}()
	ctx, cancelUp := context.WithTimeout(ctx, time.Minute)
	defer cancelUp()
	err = s.until(ctx, func(ctx context.Context) error {
		var err error
		if *p, err = probe.Dial(ctx, socket); err != nil {
			return err
		}
		r, err := (*p).Total(ctx)
		if err == nil && (!r.TCP.Connected || r.UDP.Answered == 0) {
			err = fmt.Errorf("%s has no answer yet", node)
		}
		return err
	})
	return func() { cancel(); <-done; os.RemoveAll(dir) }, err
}
