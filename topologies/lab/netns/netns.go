// Package netns makes network namespaces that have no name, and does things inside: benchmarks
// send their traffic there. All of it needs root.
package netns

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// New makes one. It ends when the file is closed and nothing is in it any more.
func New() (ns *os.File, err error) {
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make namespace (root may): %w", err)
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return fmt.Errorf("open namespace: %w", err)
		}
		return nil
	})
	return ns, err
}

// Inside runs do on a thread in the namespace. What it opens stays there.
func Inside(ns *os.File, do func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return do()
	})
}

// onOwnThread runs do on a thread that ends with it.
func onOwnThread(do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: a thread that was elsewhere serves nobody else
		done <- do()
	}()
	return <-done
}

// Shell runs a script in a namespace.
func Shell(ns *os.File, script string) error {
	return Inside(ns, func() error {
		if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
			return fmt.Errorf("set namespace up: %w: %s", err, out)
		}
		return nil
	})
}
