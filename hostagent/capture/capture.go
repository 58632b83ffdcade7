// Package capture counts the packets of the VMs' ports of one host, and makes one
// traffic.Bin a second of them.
//
// One thread does it all. It reads TPACKET_V3 rings (one a port, shared with the kernel),
// decodes the headers there, finds the connection and counts the packet in the second of
// its time stamp, so that a bin is of a second of the wall clock however late it is read.
// A second is closed settle after its end. Nothing that follows a header is copied out of a
// ring.
//
// Where that takes more than the budget, the packets are counted in the kernel, by a TCX
// program on both hooks of each device, which also tells TCP's SYNs: they say who serves and
// how far it is. Where all are too many, it counts one of N: who is not among them passes by
// in the time of a die's throw, while a packet socket takes part in each packet's way whatever
// its filter says. Where the kernel cannot do that, the rings get one of N packets, chosen by
// the kernel before it copies.
//
// # What is counted where
//
// At a port: all that its VM sends. Of what it gets: that which no other port counts (the
// sender is not in the book as Counted), and which is for it. Frames that the agent puts
// back into a tap in a move have traffic.InjectMark and are not counted. A segmentation
// offload's frame is one packet, as it is to the device's own counters.
//
// # What a bin says of itself
//
// Where source or sampling change within a second, each packet is weighed with the
// sampling that it was chosen by, Squares are brought to the bin's Sampling, which is the
// largest, and Source is the one at its end. Flows are connections that are not among the
// last 65,536 and, where packets are sampled, only those of which one was looked at: they
// are not scaled. Peak and Active are told where every packet was looked at, and round trips
// too, but for those of handshakes, which are told also while the kernel counts.
//
// No bins are made while there is no port to count at.
package capture

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

// What is kept for those who ask for bins later.
const (
	keptBins  = 120
	keptBytes = 16 << 20
)

// Capture counts. Make it with New.
type Capture struct {
	host heliotrope.HostID
	boot string
	log  *slog.Logger

	programs atomic.Int64 // nanoseconds that the kernel's programs ran, where it takes that down
	guessed  atomic.Int64 // what bins say of that

	mu     sync.Mutex
	orders *traffic.Orders // that Run has not taken yet
	wake   int             // eventfd of Run; -1: it does not run
	bins   []traffic.Bin
	size   int // bytes of bins
	seq    uint64
	news   chan struct{} // closed when there is another bin
}

// New returns a Capture that counts nothing yet.
func New(host heliotrope.HostID, log *slog.Logger) *Capture {
	return &Capture{host: host, boot: rand.Text(), log: log, wake: -1, news: make(chan struct{})}
}

// Set takes orders in place of those before. Ports that are in both are counted on.
func (c *Capture) Set(o traffic.Orders) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.orders = &o
	c.kick()
}

// kick wakes Run's thread; c.mu is held.
func (c *Capture) kick() {
	if c.wake >= 0 {
		unix.Write(c.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // it fails only where it is awake already
	}
}

// take returns orders that are new.
func (c *Capture) take() *traffic.Orders {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.orders
	c.orders = nil
	return o
}

// Run counts until ctx ends, in the network namespace of its caller's thread. It fails
// only where the kernel has no epoll for it; whatever is wrong with a port is logged, and
// tried again each second.
func (c *Capture) Run(ctx context.Context) error {
	runtime.LockOSThread() // its processor time is what counting takes
	defer runtime.UnlockOSThread()
	r, err := newReader(c)
	if err != nil {
		return fmt.Errorf("start capture: %w", err)
	}
	defer r.close()
	c.mu.Lock()
	c.wake = r.wake
	c.kick() // there may be orders already
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.wake = -1
		c.mu.Unlock()
	}()
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.kick()
	})
	defer stop()
	for ctx.Err() == nil {
		if err := r.turn(); err != nil {
			return fmt.Errorf("capture: %w", err)
		}
	}
	return context.Cause(ctx)
}

// publish gives b its name and keeps it.
func (c *Capture) publish(b traffic.Bin) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	b.Host, b.Boot, b.Seq = c.host, c.boot, c.seq
	c.bins = append(c.bins, b)
	c.size += binSize(b)
	drop := 0
	for len(c.bins)-drop > 1 && (len(c.bins)-drop > keptBins || c.size > keptBytes) {
		c.size -= binSize(c.bins[drop])
		c.bins[drop] = traffic.Bin{}
		drop++
	}
	c.bins = c.bins[drop:]
	close(c.news)
	c.news = make(chan struct{})
}

func binSize(b traffic.Bin) int {
	return int(unsafe.Sizeof(b)) + len(b.Counts)*int(unsafe.Sizeof(traffic.Count{}))
}

// Bins returns the bins that follow the one numbered after, oldest first, and waits while
// there is none. Where boot is not this Capture's it begins with the oldest kept. It fails
// only when ctx ends.
func (c *Capture) Bins(ctx context.Context, boot string, after uint64) ([]traffic.Bin, error) {
	if boot != c.boot {
		after = 0
	}
	for {
		bins, news := c.after(after)
		if len(bins) > 0 {
			return bins, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for bin: %w", context.Cause(ctx))
		}
	}
}

func (c *Capture) after(seq uint64) ([]traffic.Bin, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, b := range c.bins {
		if b.Seq > seq {
			return append([]traffic.Bin(nil), c.bins[i:]...), c.news
		}
	}
	return nil, c.news
}
