// Package node is what runs inside a node of the lab: a PID 1 that turns fresh namespaces
// into a machine and keeps it one.
//
// It gets a Plan from the lab's supervisor, makes the mount namespace the node's own
// (mounts.go), waits for its cables, and then does two things until it is told to stop:
// it keeps addresses and routes as planned (netconf.go, a reconcile loop) and its daemons
// running (daemons.go), reaping whatever else ends there (children.go). It reports what it
// has reached; it never outlives the supervisor, and everything in the node ends with it.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Run is the body of a node's PID 1. It returns when the supervisor says so or has
// gone, or on a SIGTERM; the kernel then kills whatever the node still runs.
func Run(ctx context.Context) error {
	if os.Getpid() != 1 {
		return errors.New("run node: this is a part of the lab and only PID 1 of a namespace; use 'heliotrope lab up'")
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	link := os.NewFile(FD, "supervisor")
	if err := unix.SetNonblock(FD, true); err != nil {
		return fmt.Errorf("open supervisor's socket: %w", err)
	}
	unix.CloseOnExec(FD)
	n := &node{link: link, orders: json.NewDecoder(link), reports: json.NewEncoder(link)}
	err := n.run(ctx)
	if err != nil && !errors.Is(err, errSupervisorGone) {
		n.report(func(r *Report) { r.Error = err.Error() })
	}
	return err
}

var (
	// errSupervisorGone ends a node at once: there is nobody to wait for.
	errSupervisorGone = errors.New("the supervisor has gone")
	// errStop ends a node in order.
	errStop = errors.New("told to stop")
)

// node is the state of a PID 1.
type node struct {
	plan    Plan
	link    *os.File
	orders  *json.Decoder
	daemons *daemons

	mu      sync.Mutex
	reports *json.Encoder
	last    Report
}

func (n *node) run(ctx context.Context) error {
	var first Order
	if err := n.orders.Decode(&first); err != nil || first.Plan == nil {
		return fmt.Errorf("read plan: %w", errors.Join(err, errSupervisorGone))
	}
	n.plan = *first.Plan
	if err := isolate(n.plan); err != nil {
		return fmt.Errorf("isolate node: %w", err)
	}
	n.report(func(r *Report) { r.Isolated = true })

	reaping, endReaping := context.WithCancel(context.WithoutCancel(ctx))
	children := newChildren()
	n.daemons = newDaemons(children, Dir+"/log", func() { n.report(func(*Report) {}) })
	var reaper sync.WaitGroup
	reaper.Go(func() { children.reap(reaping) })
	defer reaper.Wait()
	defer endReaping()

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.obey(ctx, group) })
	defer context.AfterFunc(ctx, func() { n.link.SetReadDeadline(time.Now()) })()
	err := group.Wait()
	if errors.Is(err, errSupervisorGone) {
		return err // the kernel is quicker than an orderly end
	}
	if errors.Is(err, errStop) {
		err = nil
	}
	return errors.Join(err, n.daemons.wait())
}

// obey carries out orders until ctx ends or the supervisor has gone. An order that fails
// is noted in the node's log: the supervisor sees in the reports that nothing came of it.
func (n *node) obey(ctx context.Context, group *errgroup.Group) error {
	for {
		var o Order
		if err := n.orders.Decode(&o); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%w: %w", errSupervisorGone, err)
		}
		if o.Stop {
			return errStop
		}
		if err := n.do(ctx, o, group); err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
		}
	}
}

func (n *node) do(ctx context.Context, o Order, group *errgroup.Group) error {
	switch {
	case o.Wired:
		group.Go(func() error { return netconf{n.plan}.run(ctx, n.configured) })
		for _, d := range n.plan.Daemons {
			if err := n.daemons.add(ctx, d); err != nil {
				return err
			}
		}
	case o.Start != nil:
		return n.daemons.add(ctx, *o.Start)
	case o.Signal != nil:
		return n.daemons.signal(o.Signal.Daemon, o.Signal.Signal)
	}
	return nil
}

// configured notes how a round of netconf went. A failure on the way is normal: br-phy
// takes its time.
func (n *node) configured(err error) {
	if err != nil && !errors.Is(err, errNoLink) {
		fmt.Fprintln(os.Stderr, err)
	}
	n.mu.Lock()
	known := n.last.Configured == (err == nil)
	n.mu.Unlock()
	if !known {
		n.report(func(r *Report) { r.Configured = err == nil })
	}
}

// report tells the supervisor the node's state after change.
func (n *node) report(change func(*Report)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(&n.last)
	if n.daemons != nil {
		n.last.Daemons = n.daemons.list()
	}
	n.reports.Encode(n.last) // a supervisor that has gone needs no report
}
