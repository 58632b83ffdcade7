package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// thread is the thread that a goroutine is locked to, with a clock of the time in which it
// could run: that which passed, without that in which it waited while other tasks of this
// machine had the CPU. What a hypervisor beneath took away is in it: so a busy host is not
// measured as a slow one, and one that is stolen from is.
type thread struct {
	start time.Time
	stat  *os.File // its schedstat; nil: the kernel keeps none, and CPU time must do
	buf   [96]byte
}

// onThread calls f on a thread of its own.
func onThread(f func(*thread)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	t := &thread{start: time.Now()}
	if file, err := os.Open("/proc/thread-self/schedstat"); err == nil {
		defer file.Close()
		t.stat = file
	}
	f(t)
}

// now is the time in which the thread could run, since some moment. A thread loses its CPU
// at the end of a system call more than elsewhere: the clock counts if it did not between
// two readings of how long it has waited.
func (t *thread) now() time.Duration {
	if t.stat != nil {
		wait, ok := t.waited()
		for ok {
			passed, before := time.Since(t.start), wait
			if wait, ok = t.waited(); wait == before {
				return passed - wait
			}
		}
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return time.Since(t.start)
	}
	return time.Duration(ts.Nano())
}

// waited is how long the thread has waited for a CPU: the second of three numbers.
func (t *thread) waited() (time.Duration, bool) {
	n, err := t.stat.ReadAt(t.buf[:], 0)
	if n == 0 && err != nil {
		return 0, false
	}
	fields := bytes.Fields(t.buf[:n])
	if len(fields) != 3 {
		return 0, false
	}
	ns, err := strconv.ParseInt(string(fields[1]), 10, 64)
	return time.Duration(ns), err == nil
}

// confine has the kernel end the process if it takes far more than it may, and take it
// first where memory is short.
func confine(cpu time.Duration) error {
	seconds := uint64((2*cpu + time.Second - 1) / time.Second)
	if err := unix.Setrlimit(unix.RLIMIT_CPU, &unix.Rlimit{Cur: seconds, Max: seconds}); err != nil {
		return fmt.Errorf("limit CPU time: %w", err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0o644); err != nil {
		return fmt.Errorf("offer memory: %w", err)
	}
	return nil
}

// yield lets every other task of the machine go first. Where the kernel refuses, the
// process goes on as it is: it is short.
func yield() {
	for range 2 { // a thread that begins meanwhile may have been missed
		tasks, err := filepath.Glob("/proc/self/task/*")
		if err != nil {
			return
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(filepath.Base(task))
			if err != nil {
				continue
			}
			attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
			if unix.SchedSetAttr(tid, attr, 0) != nil {
				_ = unix.Setpriority(unix.PRIO_PROCESS, tid, 19)
			}
		}
	}
}
