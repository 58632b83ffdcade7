package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"heliotrope/hostagent/capture/flood"
	"heliotrope/scheduler/traffic"
)

// CostResult is what counting a stream of packets takes.
type CostResult struct {
	Offered uint64        // packets that came in at the port, which may be fewer than were asked for
	Counted uint64        // an estimate where packets were sampled
	Dropped uint64        // that were to be looked at and were not
	Took    time.Duration // to send them
	// CPU is the capture's thread's and its programs' in the kernel, and what the kernel's
	// copying into the ring is taken for.
	CPU                  time.Duration
	PacketsPerCoreSecond float64        // Counted over CPU
	Source               traffic.Source // at the end
	Sampling             uint32
}

const (
	costDevice = "tap0"
)

// Cost sends pps packets a second for a while through a captured veth pair in namespaces
// of its own, as fast as one thread can, and says what counting them took. Where source is
// empty, the default budget chooses how they are counted; otherwise nothing limits it. It
// needs root.
func Cost(ctx context.Context, source traffic.Source, sampling uint32, pps int, d time.Duration) (res CostResult, err error) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err == nil { // old kernels do not take the time down
		defer stats.Close()
	}
	p, err := newPair()
	if err != nil {
		return res, err
	}
	defer p.close()
	c, stop, err := p.count(ctx, source, sampling)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	before, err := p.received()
	if err != nil {
		return res, err
	}
	ran, guessed, seq, start := c.programs.Load(), c.guessed.Load(), c.last(), time.Now()
	if err := p.guest.inside(func() error {
		_, err := flood.Outwards.Flood(ctx, "eth0", pps, d)
		return err
	}); err != nil {
		return res, err
	}
	res.Took = time.Since(start)
	after, err := p.received()
	if err != nil {
		return res, err
	}
	res.Offered = after - before
	if err := res.add(ctx, c, seq); err != nil {
		return res, err
	}
	if ran = c.programs.Load() - ran; ran > 0 { // better than a guess
		res.CPU += time.Duration(ran - (c.guessed.Load() - guessed))
	}
	res.PacketsPerCoreSecond = float64(res.Counted) / res.CPU.Seconds()
	return res, nil
}

// add adds up the bins after seq, to the one of this second.
func (res *CostResult) add(ctx context.Context, c *Capture, seq uint64) error {
	for end := time.Now(); ; {
		bins, err := c.Bins(ctx, c.boot, seq)
		if err != nil {
			return err
		}
		for _, b := range bins {
			for _, n := range b.Counts {
				res.Counted += n.Packets
			}
			res.Dropped += b.Shed
			res.CPU += b.CPU
			res.Source, res.Sampling = b.Source, b.Sampling
			if seq = b.Seq; !b.Start.Add(traffic.BinLength).Before(end) {
				return nil
			}
		}
	}
}

func (c *Capture) last() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seq
}

// pair is a host and a guest with a veth between them; the host's end is like a tap.
type pair struct{ host, guest namespace }

func newPair() (p pair, err error) {
	if p.host, err = newNamespace(); err != nil {
		return p, err
	}
	if p.guest, err = newNamespace(); err != nil {
		p.host.close()
		return p, err
	}
	err = p.host.shell(fmt.Sprintf(`ip link add %[1]s type veth peer name eth0 netns %[2]s
		ip address add 10.0.0.254/24 dev %[1]s; ip link set %[1]s up`, costDevice, p.guest.path()))
	if err == nil {
		err = p.guest.shell("ip address add 10.0.0.1/24 dev eth0; ip link set eth0 up")
	}
	if err != nil {
		p.close()
	}
	return p, err
}

func (p pair) close() { p.host.close(); p.guest.close() }

// count counts at the host's end of the pair, from now until stop.
func (p pair) count(ctx context.Context, source traffic.Source, sampling uint32) (c *Capture, stop func() error, err error) {
	o := traffic.Orders{Source: source, Sampling: sampling, Budget: 1, Grain4: 24, Grain6: 64, Ports: []traffic.Port{{Device: costDevice, VM: "guest"}}}
	if source == "" {
		o.Budget = defaultBudget
	}
	c = New("host", slog.New(slog.DiscardHandler))
	c.Set(o)
	running, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- p.host.inside(func() error { return c.Run(running) }) }()
	stop = func() error {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}
	if _, err := c.Bins(ctx, "", 0); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return c, stop, nil
}

// received is the number of packets that have come in at the host's end.
func (p pair) received() (n uint64, err error) {
	err = p.host.inside(func() error {
		data, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return fmt.Errorf("read counters: %w", err)
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == costDevice+":" {
				n, err = strconv.ParseUint(f[2], 10, 64)
				return err
			}
		}
		return fmt.Errorf("read counters: no %s", costDevice)
	})
	return n, err
}

// ThroughputResult compares a port's TCP throughput with and without capture. All are
// medians.
type ThroughputResult struct {
	Without, With float64 // bytes a second
	Ratio         float64 // of transfers next to each other
	PerCPU        float64 // the same of bytes for processor time, all of capture's included
}

// transferred is what one connection did.
type transferred struct {
	rate   float64 // bytes a second
	perCPU float64 // bytes for a second of this process's processor time
}

// Throughput sends as much as TCP can from two guests to their host, by turns, each for d: one
// with capture and one without, which change places after half of the turns. Before each half the
// captured one sends for settle, in which the budget finds out what it can afford. Both ends of a
// connection share a processor, so that its rate is what a byte costs, and not who waited for
// whom: between two processors it differs by a third from connection to connection. It needs root.
func Throughput(ctx context.Context, source traffic.Source, turns int, settle, d time.Duration) (res ThroughputResult, err error) {
	var pairs [2]pair
	for i := range pairs {
		if pairs[i], err = newPair(); err != nil {
			return res, err
		}
		defer pairs[i].close()
	}
	var with, without []transferred
	for half := range 2 {
		w, wo, err := turn(ctx, pairs[half], pairs[1-half], source, max(turns/2, 1), settle, d)
		if err != nil {
			return res, err
		}
		with, without = append(with, w...), append(without, wo...)
	}
	res.Without = median(without, func(i int) float64 { return without[i].rate })
	res.With = median(with, func(i int) float64 { return with[i].rate })
	res.Ratio = median(with, func(i int) float64 { return with[i].rate / without[i].rate })
	res.PerCPU = median(with, func(i int) float64 { return with[i].perCPU / without[i].perCPU })
	return res, nil
}

// turn lets two pairs transfer by turns, of which one is captured.
func turn(ctx context.Context, captured, other pair, source traffic.Source, turns int, settle, d time.Duration) (with, without []transferred, err error) {
	_, stop, err := captured.count(ctx, source, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if _, err := captured.transfer(ctx, settle); err != nil {
		return nil, nil, err
	}
	with, without = make([]transferred, turns), make([]transferred, turns)
	for i := range 2 * turns {
		p, to := captured, &with[i/2]
		if i%4 == 1 || i%4 == 2 { // a drift of the machine favours neither
			p, to = other, &without[i/2]
		}
		if *to, err = p.transfer(ctx, d); err != nil {
			return nil, nil, err
		}
	}
	return with, without, nil
}

func median(of []transferred, value func(int) float64) float64 {
	values := make([]float64, len(of))
	for i := range of {
		values[i] = value(i)
	}
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// transfer sends as much as it can over one TCP connection from guest to host.
func (p pair) transfer(ctx context.Context, d time.Duration) (got transferred, err error) {
	var server net.Listener
	err = p.host.inside(func() (err error) {
		server, err = net.Listen("tcp", "10.0.0.254:0")
		return err
	})
	if err != nil {
		return got, fmt.Errorf("listen: %w", err)
	}
	defer server.Close()
	var from net.Conn
	err = p.guest.inside(func() (err error) {
		from, err = (&net.Dialer{Control: cubic}).DialContext(ctx, "tcp", server.Addr().String())
		return err
	})
	if err != nil {
		return got, fmt.Errorf("connect: %w", err)
	}
	defer from.Close()
	to, err := server.Accept()
	if err != nil {
		return got, fmt.Errorf("accept: %w", err)
	}
	defer to.Close()
	end := context.AfterFunc(ctx, func() { from.SetDeadline(time.Unix(1, 0)) })
	defer end()
	start, used := time.Now(), processTime()
	from.SetDeadline(start.Add(d))
	var total int
	var both sync.WaitGroup
	both.Go(func() {
		pin()
		block := make([]byte, 256<<10)
		for {
			if _, err := from.Write(block); err != nil {
				break // the time is over
			}
		}
		from.Close()
	})
	both.Go(func() {
		pin()
		block := make([]byte, 256<<10)
		for {
			n, err := to.Read(block)
			total += n
			if err != nil {
				break
			}
		}
	})
	both.Wait()
	got.rate = float64(total) / time.Since(start).Seconds()
	got.perCPU = float64(total) / (processTime() - used).Seconds()
	return got, ctx.Err()
}

// pin keeps the calling goroutine on the first processor that it may use, until it ends.
func pin() {
	runtime.LockOSThread() // and the thread ends with the goroutine
	var allowed, one unix.CPUSet
	if unix.SchedGetaffinity(0, &allowed) != nil {
		return
	}
	for cpu := range len(allowed) * bits.UintSize {
		if allowed.IsSet(cpu) {
			one.Set(cpu)
			_ = unix.SchedSetaffinity(0, &one) // the figures are noisier without
			return
		}
	}
}

// cubic makes a socket's congestion control Linux's default one. Where the machine's is BBR,
// connections pace themselves by what they measure, and two of the same differ by a fifth.
func cubic(_, _ string, c syscall.RawConn) error {
	var refused error
	err := c.Control(func(fd uintptr) {
		refused = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
	})
	return errors.Join(err, refused)
}

// processTime is what this process has used.
func processTime() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}
