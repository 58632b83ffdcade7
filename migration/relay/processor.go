package relay

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// spend does f and adds the processor time that it takes to sum. Meanwhile it has a thread to itself: it is the thread's
// time, so what else the process does is not in it. Between two it has none: to wait with one takes two switches of threads.
func spend(sum *atomic.Int64, f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begun, known := threadTime()
	f()
	if ended, ok := threadTime(); ok && known {
		sum.Add(int64(ended - begun))
	}
}

func threadTime() (time.Duration, bool) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano()), err == nil
}

// Codec is the processor time that encoding memory has taken so far: the codec's alone, without TLS and
// sockets.
func (c *Client) Codec() time.Duration { return time.Duration(c.codec.Load()) }
