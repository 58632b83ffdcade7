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
	ran, seq, start := c.programs.Load(), c.last(), time.Now()
	if err := p.guest.inside(func() error {
		_, err := Outwards.Flood(ctx, "eth0", pps, d)
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
	res.CPU += time.Duration(c.programs.Load() - ran)
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
	Ratio         float64 // of rounds next to each other
	PerCPU        float64 // the same of bytes for processor time, capture's included, which other load blurs less
}

// transferred is what one connection did.
type transferred struct {
	rate   float64 // bytes a second
	perCPU float64 // bytes for a second of this process's processor time
}

// Throughput sends as much as TCP can from a guest to its host, in rounds with capture and
// without in turn, each of transfers connections of d, after settle, in which the budget
// finds out what it can afford. It needs root.
func Throughput(ctx context.Context, source traffic.Source, rounds, transfers int, settle, d time.Duration) (res ThroughputResult, err error) {
	p, err := newPair()
	if err != nil {
		return res, err
	}
	defer p.close()
	var with, without []transferred
	for i := range max(rounds, 1) * 2 {
		captured := i%4 == 1 || i%4 == 2 // a drift of the machine favours neither
		got, err := p.round(ctx, captured, source, transfers, settle, d)
		if err != nil {
			return res, err
		}
		if captured {
			with = append(with, got)
		} else {
			without = append(without, got)
		}
	}
	res.Without = median(without, func(i int) float64 { return without[i].rate })
	res.With = median(with, func(i int) float64 { return with[i].rate })
	res.Ratio = median(with, func(i int) float64 { return with[i].rate / without[i].rate })
	res.PerCPU = median(with, func(i int) float64 { return with[i].perCPU / without[i].perCPU })
	return res, nil
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

// round is the median of some transfers, all with capture or all without.
func (p pair) round(ctx context.Context, captured bool, source traffic.Source, transfers int, settle, d time.Duration) (got transferred, err error) {
	if captured {
		_, stop, failed := p.count(ctx, source, 0)
		if failed != nil {
			return got, failed
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	if _, err := p.transfer(ctx, settle); err != nil {
		return got, err
	}
	all := make([]transferred, max(transfers, 1))
	for i := range all {
		if all[i], err = p.transfer(ctx, d); err != nil {
			return got, err
		}
	}
	return transferred{
		rate:   median(all, func(i int) float64 { return all[i].rate }),
		perCPU: median(all, func(i int) float64 { return all[i].perCPU }),
	}, nil
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
		pin(0)
		block := make([]byte, 256<<10)
		for {
			if _, err := from.Write(block); err != nil {
				break // the time is over
			}
		}
		from.Close()
	})
	both.Go(func() {
		pin(1)
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

// pin keeps the calling goroutine on the nth processor, until it ends: whether a sender and a
// receiver share one is then not the scheduler's to say. Rounds still differ by a tenth.
func pin(nth int) {
	runtime.LockOSThread() // and the thread ends with the goroutine
	var allowed, one unix.CPUSet
	if unix.SchedGetaffinity(0, &allowed) != nil {
		return
	}
	nth %= allowed.Count()
	for cpu := range len(allowed) * bits.UintSize {
		if !allowed.IsSet(cpu) {
			continue
		}
		if nth--; nth < 0 {
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
