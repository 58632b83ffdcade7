package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// StopGrace is how long a daemon may take to end when it is told to.
const StopGrace = 3 * time.Second

const (
	restartPause = 100 * time.Millisecond
	readyPause   = 50 * time.Millisecond
)

// daemons keeps a node's daemons running, as systemd does with Restart=always.
type daemons struct {
	children *children
	logs     string // directory
	changed  func() // called when a status differs
	group    *errgroup.Group

	mu       sync.Mutex
	statuses []DaemonStatus
	running  map[string]child
}

func newDaemons(c *children, logs string, changed func()) *daemons {
	return &daemons{children: c, logs: logs, changed: changed, group: &errgroup.Group{}, running: map[string]child{}}
}

// add starts d and keeps it running until ctx ends; wait waits for that.
func (ds *daemons) add(ctx context.Context, d Daemon) error {
	out, err := os.OpenFile(filepath.Join(ds.logs, d.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open daemon log: %w", err)
	}
	ds.mu.Lock()
	if slices.ContainsFunc(ds.statuses, func(s DaemonStatus) bool { return s.Name == d.Name }) {
		ds.mu.Unlock()
		return errors.Join(fmt.Errorf("start daemon %s: it is there already", d.Name), out.Close())
	}
	ds.statuses = append(ds.statuses, DaemonStatus{Name: d.Name})
	ds.mu.Unlock()
	ds.group.Go(func() error {
		defer out.Close()
		for ctx.Err() == nil {
			why := ds.once(ctx, d, out)
			ds.update(d.Name, func(s *DaemonStatus) {
				s.PID, s.Ready, s.LastExit = 0, false, why
				s.Restarts++
			})
			fmt.Fprintf(out, "lab: %s %s %s\n", time.Now().UTC().Format(time.RFC3339Nano), d.Name, why)
			pause(ctx, restartPause)
		}
		return nil
	})
	return nil
}

func (ds *daemons) wait() error { return ds.group.Wait() }

// once runs d from its start to its end and says how it ended.
func (ds *daemons) once(ctx context.Context, d Daemon, out *os.File) string {
	for _, argv := range d.Before {
		if err := ds.run(ctx, argv, out); err != nil {
			return err.Error()
		}
	}
	ch, err := ds.children.start(d.Argv, out)
	if err != nil {
		return err.Error()
	}
	ds.mu.Lock()
	ds.running[d.Name] = ch
	ds.mu.Unlock()
	ds.update(d.Name, func(s *DaemonStatus) { s.PID, s.Started = ch.pid, time.Now().UTC() })
	live, dead := context.WithCancel(ctx)
	var probe sync.WaitGroup
	probe.Go(func() {
		if ds.answers(live, d, out) {
			ds.update(d.Name, func(s *DaemonStatus) { s.Ready = true })
		}
	})
	status := ds.await(ctx, ch)
	dead()
	probe.Wait()
	ds.mu.Lock()
	delete(ds.running, d.Name)
	ds.mu.Unlock()
	return describe(status)
}

// await waits for a child to end; once ctx does, it is asked to, and after a while made to.
func (ds *daemons) await(ctx context.Context, ch child) unix.WaitStatus {
	select {
	case status := <-ch.done:
		return status
	case <-ctx.Done():
	}
	ds.children.kill(ch, unix.SIGTERM) // gone is as good
	select {
	case status := <-ch.done:
		return status
	case <-time.After(StopGrace):
	}
	ds.children.kill(ch, unix.SIGKILL) // gone is as good
	return <-ch.done
}

// answers tries d's readiness until it succeeds or ctx ends, which it does with the daemon.
func (ds *daemons) answers(ctx context.Context, d Daemon, out *os.File) bool {
	if d.Ready == nil {
		return true
	}
	for ctx.Err() == nil {
		if ds.run(ctx, d.Ready, out) == nil {
			return true
		}
		pause(ctx, readyPause)
	}
	return false
}

// run runs one command to its end.
func (ds *daemons) run(ctx context.Context, argv []string, out *os.File) error {
	ch, err := ds.children.start(argv, out)
	if err != nil {
		return err
	}
	if status := ds.await(ctx, ch); status.ExitStatus() != 0 {
		return fmt.Errorf("run %s: %s", argv[0], describe(status))
	}
	return nil
}

// signal sends s to a running daemon.
func (ds *daemons) signal(name string, s unix.Signal) error {
	ds.mu.Lock()
	ch, ok := ds.running[name]
	ds.mu.Unlock()
	if !ok {
		return fmt.Errorf("signal %s: it does not run", name)
	}
	return ds.children.kill(ch, s)
}

func (ds *daemons) update(name string, change func(*DaemonStatus)) {
	ds.mu.Lock()
	i := slices.IndexFunc(ds.statuses, func(s DaemonStatus) bool { return s.Name == name })
	change(&ds.statuses[i])
	ds.mu.Unlock()
	ds.changed()
}

func (ds *daemons) list() []DaemonStatus {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	return slices.Clone(ds.statuses)
}

func describe(s unix.WaitStatus) string {
	if s.Signaled() {
		return "killed by " + unix.SignalName(s.Signal())
	}
	return fmt.Sprintf("exited with %d", s.ExitStatus())
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
