package relay

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// processor adds up the processor time of goroutines, each of which has a thread to itself:
// it is the thread's, so what else the process does meanwhile is not in it.
type processor struct {
	sum  *atomic.Int64 // nanoseconds
	last int64
}

// ofThread begins to count the time of the calling goroutine. It keeps its thread until it ends or calls
// runtime.UnlockOSThread.
func ofThread(sum *atomic.Int64) processor {
	runtime.LockOSThread()
	p := processor{sum: sum}
	p.last = p.now()
	return p
}

// count adds what was taken since it was called last.
func (p *processor) count() {
	now := p.now()
	p.sum.Add(now - p.last)
	p.last = now
}

func (p *processor) now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return p.last // no such clock: nothing is counted
	}
	return t.Nano()
}

// Codec is the processor time that encoding memory has taken so far: the codec's alone, without TLS and
// sockets.
func (c *Client) Codec() time.Duration { return time.Duration(c.codec.Load()) }
