package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"heliotrope/topologies/lab/node"
)

// handle is the supervisor's side of a node.
type handle struct {
	plan plan
	pid  int // of its PID 1, as the machine counts
	cmd  *exec.Cmd
	link *os.File

	ordering sync.Mutex
	orders   *json.Encoder

	mu      sync.Mutex
	last    node.Report
	gone    bool
	changed chan struct{} // closed and renewed with each report
}

// launch starts the nodes' PID 1s. They are killed when the supervisor goes, by three
// means: their socket ends, the parent-death signal, and Down, which has their numbers.
// The signal comes when the *thread* that forked ends, so one thread is kept for that
// until ctx ends.
func launch(ctx context.Context, group *errgroup.Group, cfg config, ps []plan) ([]*handle, error) {
	type result struct {
		nodes []*handle
		err   error
	}
	started := make(chan result)
	group.Go(func() error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var r result
		for _, p := range ps {
			h, err := start(cfg, p)
			if err != nil {
				r.err = err
				break
			}
			r.nodes = append(r.nodes, h)
		}
		started <- r
		var ended sync.WaitGroup
		for _, h := range r.nodes {
			ended.Go(func() { h.follow(ctx) })
		}
		ended.Wait()
		return nil
	})
	r := <-started
	return r.nodes, r.err
}

// start starts one node and gives it its plan.
func start(cfg config, p plan) (*handle, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	out, err := os.OpenFile(cfg.layout().log(p.Node, "node"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open node log: %w", err), ours.Close())
	}
	defer out.Close()
	cmd := exec.Command(cfg.Binary, "lab", "node")
	cmd.Dir, cmd.Env = "/", node.Env
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
		Setsid:     true,
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start node %s: %w", p.Node, err), ours.Close())
	}
	h := &handle{plan: p, pid: cmd.Process.Pid, cmd: cmd, link: ours, orders: json.NewEncoder(ours), changed: make(chan struct{})}
	if err := cfg.layout().record(h.pid); err != nil {
		return nil, errors.Join(err, ours.Close(), cmd.Process.Kill(), cmd.Wait())
	}
	return h, h.order(node.Order{Plan: &p.Plan})
}

// socketPair returns the supervisor's end, on which reads and writes have deadlines, and the node's.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "node"), os.NewFile(uintptr(fds[1]), "supervisor"), nil
}

// follow takes the node's reports until it has ended. When ctx ends, it asks the node to,
// by an order: a signal would be lost on a PID 1 that has no handler yet.
func (h *handle) follow(ctx context.Context) {
	ended := make(chan struct{})
	defer close(ended)
	defer context.AfterFunc(ctx, func() {
		h.order(node.Order{Stop: true}) // gone is as good
		select {
		case <-ended:
		case <-time.After(2 * node.StopGrace):
			h.cmd.Process.Kill() // gone is as good
		}
	})()
	reports := json.NewDecoder(h.link)
	for {
		var r node.Report
		if reports.Decode(&r) != nil {
			break
		}
		h.note(func() { h.last = r })
	}
	err := h.cmd.Wait()
	h.link.Close()
	h.note(func() {
		h.gone = true
		if h.last.Error == "" && err != nil {
			h.last.Error = "PID 1 " + err.Error()
		}
	})
}

func (h *handle) note(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
	close(h.changed)
	h.changed = make(chan struct{})
}

// order tells the node to do something; whether it has is seen in its reports.
func (h *handle) order(o node.Order) error {
	h.ordering.Lock()
	defer h.ordering.Unlock()
	if err := h.orders.Encode(o); err != nil {
		return fmt.Errorf("order node %s: %w", h.plan.Node, err)
	}
	return nil
}

// await waits until a report satisfies ok, the node has gone, or ctx ends.
func (h *handle) await(ctx context.Context, ok func(node.Report) bool) error {
	for {
		h.mu.Lock()
		last, gone, changed := h.last, h.gone, h.changed
		h.mu.Unlock()
		switch {
		case gone:
			return fmt.Errorf("node %s has gone: %s", h.plan.Node, last.Error)
		case ok(last):
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("node %s is not ready (%s): %w", h.plan.Node, missing(last), context.Cause(ctx))
		case <-changed:
		}
	}
}

func (h *handle) daemon(name string) (node.DaemonStatus, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.last.Daemons, func(d node.DaemonStatus) bool { return d.Name == name })
	if i < 0 {
		return node.DaemonStatus{}, false
	}
	return h.last.Daemons[i], true
}

func isolated(r node.Report) bool { return r.Isolated }

// up says whether all of the node works; daemons is how many it is to have.
func up(daemons int) func(node.Report) bool {
	return func(r node.Report) bool {
		return r.Configured && len(r.Daemons) == daemons && !slices.ContainsFunc(r.Daemons, func(d node.DaemonStatus) bool { return !d.Ready })
	}
}

// missing says what a node that is not up waits for.
func missing(r node.Report) string {
	switch i := slices.IndexFunc(r.Daemons, func(d node.DaemonStatus) bool { return !d.Ready }); {
	case !r.Isolated:
		return "making its namespaces"
	case i >= 0:
		return "daemon " + r.Daemons[i].Name + " does not answer " + r.Daemons[i].LastExit
	case !r.Configured:
		return "its addresses and routes are not set"
	}
	return "starting"
}
