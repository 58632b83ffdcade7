package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
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
	CPU     time.Duration // of the capture's thread, and of its programs in the kernel
	// PacketsPerCoreSecond is Counted over CPU. The kernel's copying into the ring is not in
	// it: that is done by who sends.
	PacketsPerCoreSecond float64
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
	Ratio         float64 // of runs next to each other
	PerCPU        float64 // the same of bytes for processor time, capture's included, which other load blurs less
}

// transferred is what one connection did.
type transferred struct {
	rate   float64 // bytes a second
	perCPU float64 // bytes for a second of this process's processor time
}

// Throughput sends as much as TCP can from a guest to its host, for d at a time, in turn
// without capture and with it. It needs root.
func Throughput(ctx context.Context, source traffic.Source, runs int, d time.Duration) (res ThroughputResult, err error) {
	p, err := newPair()
	if err != nil {
		return res, err
	}
	defer p.close()
	var with, without []transferred
	if _, err := p.transfer(ctx, d/4); err != nil { // warm up
		return res, err
	}
	for i := range max(runs, 1) * 2 {
		var got transferred
		captured := i%4 == 1 || i%4 == 2 // a drift of the machine favours neither
		if captured {
			got, err = p.captured(ctx, source, d)
			with = append(with, got)
		} else {
			got, err = p.transfer(ctx, d)
			without = append(without, got)
		}
		if err != nil {
			return res, err
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

// captured is transfer with capture.
func (p pair) captured(ctx context.Context, source traffic.Source, d time.Duration) (got transferred, err error) {
	_, stop, err := p.count(ctx, source, 0)
	if err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	return p.transfer(ctx, d)
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
		from, err = net.Dial("tcp", server.Addr().String())
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
	written := make(chan struct{})
	go func() {
		defer close(written)
		block := make([]byte, 256<<10)
		for {
			if _, err := from.Write(block); err != nil {
				break // the time is over
			}
		}
		from.Close()
	}()
	var total int
	block := make([]byte, 256<<10)
	for {
		n, err := to.Read(block)
		total += n
		if err != nil {
			break
		}
	}
	<-written
	got.rate = float64(total) / time.Since(start).Seconds()
	got.perCPU = float64(total) / (processTime() - used).Seconds()
	return got, ctx.Err()
}

// processTime is what this process has used.
func processTime() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}
