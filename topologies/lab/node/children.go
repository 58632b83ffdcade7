package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// children are the processes of a PID 1: those it starts and the orphans it inherits. It
// reaps them all in one place, so os/exec, which waits by itself, has no part in it.
// (A QEMU that nobody reaps made libvirt report a migration's end 2 s late.)
type children struct {
	mu      sync.Mutex
	waiting map[int]chan unix.WaitStatus
}

func newChildren() *children { return &children{waiting: map[int]chan unix.WaitStatus{}} }

// child is one process that was started. Its end comes on done, once.
type child struct {
	pid  int
	done <-chan unix.WaitStatus
}

// start runs argv with out as standard output and error, in a session of its own.
func (c *children) start(argv []string, out *os.File) (child, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return child{}, fmt.Errorf("find program: %w", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return child{}, fmt.Errorf("open null: %w", err)
	}
	defer null.Close()
	c.mu.Lock() // until it is registered, or a quick end would be reaped unseen
	defer c.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{
		Dir: "/", Env: Env,
		Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return child{}, fmt.Errorf("start %s: %w", argv[0], err)
	}
	done := make(chan unix.WaitStatus, 1)
	c.waiting[pid] = done
	return child{pid: pid, done: done}, nil
}

// Env is the environment of everything in a node; nothing of the caller's gets in.
var Env = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"HOME=/root", "LANG=C.UTF-8", "SHELL=/bin/sh",
}

// kill sends a signal to a child that has not been reaped: its number cannot have been given away.
func (c *children) kill(ch child, s unix.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.waiting[ch.pid]; !ok {
		return os.ErrProcessDone
	}
	return unix.Kill(ch.pid, s)
}

// reap waits for processes to end until ctx does.
func (c *children) reap(ctx context.Context) error {
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGCHLD)
	defer signal.Stop(sigs)
	for {
		c.collect()
		select {
		case <-ctx.Done():
			return nil
		case <-sigs:
		}
	}
}

// collect takes every process that has ended; one SIGCHLD may stand for several.
func (c *children) collect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if done, ok := c.waiting[pid]; ok {
			done <- status
			delete(c.waiting, pid)
		}
	}
}
