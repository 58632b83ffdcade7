package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"heliotrope/topologies/lab/node"
)

// Stdio are a command's standard streams; nil ones are /dev/null. Files are given to the
// command as they are, so that a terminal is one inside the node, too.
type Stdio struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
}

// Exec runs argv inside a node and returns its exit code, 128 plus the signal where one
// ended it. When ctx ends the command is asked to end, and killed a second later. An error
// means that it did not run.
func Exec(ctx context.Context, t Target, node string, argv []string, stdio Stdio) (int, error) {
	if len(argv) == 0 {
		return 0, errors.New("execute in node: no command")
	}
	st, err := Read(ctx, t)
	if err != nil {
		return 0, err
	}
	n, ok := st.Node(node)
	if !ok || n.PID == 0 {
		return 0, fmt.Errorf("execute in node: lab %s has no node %q that lives", st.Name, node)
	}
	return Enter(ctx, n.PID, argv, stdio)
}

// Enter runs argv in all namespaces of the process pid, like Exec.
func Enter(ctx context.Context, pid int, argv []string, stdio Stdio) (int, error) {
	code := 0
	err := onOwnThread(func() (err error) {
		code, err = enter(ctx, pid, argv, stdio)
		return err
	})
	return code, err
}

// enter joins the namespaces with the calling thread and starts the command from it. The
// PID namespace is that of its children.
func enter(ctx context.Context, pid int, argv []string, stdio Stdio) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, fmt.Errorf("open node: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // a shared root cannot change
		return 0, fmt.Errorf("leave own root: %w", err)
	}
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	if err := unix.Setns(fd, all); err != nil {
		return 0, fmt.Errorf("enter node: %w", err)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = node.Env
	if term := os.Getenv("TERM"); term != "" {
		cmd.Env = append(slices.Clone(node.Env), "TERM="+term)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio.In, stdio.Out, stdio.Err
	// No Pdeathsig: Go's child asks who its parent is, gets 0 in the node, and kills itself.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case errors.As(err, &exit):
		if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return exit.ExitCode(), nil
	case err != nil:
		return 0, fmt.Errorf("execute in node: %w", err)
	}
	return 0, nil
}

// Logs copies a daemon's log to out, and with follow goes on until ctx ends. The daemon
// "node" is the node's PID 1; node "supervisor" is the lab's supervisor.
func Logs(ctx context.Context, t Target, node, daemon string, follow bool, out io.Writer) error {
	l, err := t.layout()
	if err != nil {
		return err
	}
	path := l.log(node, daemon)
	if node == "supervisor" {
		path = l.supervisorLog()
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		if names, err := LogNames(t, node); err == nil {
			return fmt.Errorf("open log: node %s has none named %q: there are %s", node, daemon, strings.Join(names, ", "))
		}
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	in := bufio.NewReader(f)
	if _, err := io.Copy(out, in); err != nil || !follow {
		return err
	}
	var copied error
	err = poll(ctx, 100*time.Millisecond, func(time.Duration) bool {
		_, copied = io.Copy(out, in)
		return copied != nil || !l.exists()
	})
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(err, copied)
}

// LogNames lists the logs of a node.
func LogNames(t Target, node string) ([]string, error) {
	l, err := t.layout()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(l.node(node) + "/log")
	if err != nil {
		return nil, fmt.Errorf("list logs: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".log"))
	}
	return names, nil
}
