// Package probe is the lab's somebody on the internet, who talks to a virtual machine all the
// time and notices whatever happens to it.
//
// It sends numbered UDP datagrams to the guest's echo at an exact pace and keeps one TCP
// connection to it on which numbers go out and come back. Every probe is booked in a ledger
// (ledger.go: pure), so an account of any window can be asked for afterwards; a control
// socket lets one probe, with its one connection, be asked about many moves.
//
// What is measured is the network, not this process: the pace is kept by absolute times on a
// thread of its own, what could not be sent in time is skipped and counted, never sent in a
// burst, and the times of arrival are the kernel's.
package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Config says whom to probe and how.
type Config struct {
	Target   netip.AddrPort // of the echo, UDP and TCP; port 0 is 7
	Rate     int            // UDP probes a second, 1 to 10,000; 0 is 100
	Socket   string         // path of the control socket, "" for none
	Patience time.Duration  // how long to try to set up the TCP connection; 0 is 30 s
	Log      *slog.Logger   // nil for none
}

const (
	defaultPort     = 7
	defaultRate     = 100
	maxProbeRate    = 10_000
	defaultPatience = 30 * time.Second
)

// Probe measures while its Run runs; its other methods may be called at any time after New.
type Probe struct {
	config  Config
	run     uint64       // tells our datagrams from those of an earlier probe
	rate    atomic.Int64 // UDP probes a second
	numbers atomic.Int64 // on the TCP connection, a second
	clock   clock

	mu    sync.Mutex
	began int64
	ended int64 // 0 while it runs
	udp   ledger
	tcp   ledger
	conn  connection
	marks map[string]*mark
}

// connection is the state of the TCP connection.
type connection struct {
	local    string
	since    int64 // 0 until it is set up
	err      error
	brokenAt int64
}

type mark struct{ from, to int64 } // to is 0 while the window is open

// New checks c and fills in what it leaves out.
func New(c Config) (*Probe, error) {
	if !c.Target.Addr().IsValid() {
		return nil, errors.New("make probe: no target address")
	}
	if c.Target.Port() == 0 {
		c.Target = netip.AddrPortFrom(c.Target.Addr(), defaultPort)
	}
	if c.Rate == 0 {
		c.Rate = defaultRate
	}
	if c.Rate < 1 || c.Rate > maxProbeRate {
		return nil, fmt.Errorf("make probe: rate %d is not between 1 and %d", c.Rate, maxProbeRate)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Patience == 0 {
		c.Patience = defaultPatience
	}
	p := &Probe{config: c, run: rand.Uint64(), marks: map[string]*mark{}}
	p.rate.Store(int64(c.Rate))
	p.numbers.Store(int64(time.Second / numberInterval))
	p.udp.grace, p.tcp.grace = int64(grace), math.MaxInt64
	p.clock = clock{wall: time.Now(), mono: now()}
	p.began = p.clock.mono
	return p, nil
}

// Run probes until ctx ends and returns the report of all of it.
func Run(ctx context.Context, c Config) (Report, error) {
	p, err := New(c)
	if err != nil {
		return Report{}, err
	}
	if err := p.Run(ctx); err != nil {
		return Report{}, err
	}
	return p.Total(), nil
}

// Run probes until ctx ends. That the target does not answer is no error but in the report.
func (p *Probe) Run(ctx context.Context) error {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(p.config.Target))
	if err != nil {
		return fmt.Errorf("open UDP socket: %w", err)
	}
	if err := stampArrivals(conn); err != nil {
		conn.Close()
		return fmt.Errorf("open UDP socket: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, func() { conn.Close() })
	group.Go(func() error { return p.sendUDP(ctx, conn) })
	group.Go(func() error { return p.receiveUDP(conn) })
	group.Go(func() error { return p.talkTCP(ctx) })
	if p.config.Socket != "" {
		group.Go(func() error { return p.control(ctx) })
	}
	err = group.Wait()
	p.mu.Lock()
	p.ended = now()
	p.mu.Unlock()
	return err
}

// now is CLOCK_MONOTONIC.
func now() int64 {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // cannot fail for this clock
	return t.Nano()
}

// Total reports on everything since New.
func (p *Probe) Total() Report { return p.report("", mark{from: p.began}) }

// Window reports on the probes sent from from until before to, which may have passed long
// ago. Until 5 s after to, some may be Pending.
func (p *Probe) Window(from, to time.Time) Report {
	return p.report("", mark{from: p.clock.monotonic(from), to: p.clock.monotonic(to)})
}

// Pace changes how many UDP probes are sent a second, and of numbers on the TCP connection as
// many as that, but no more than without. At 0 the probe rests, and the connection stays.
func (p *Probe) Pace(perSecond int) error {
	if perSecond < 0 || perSecond > maxProbeRate {
		return fmt.Errorf("set pace: %d is not between 0 and %d", perSecond, maxProbeRate)
	}
	p.rate.Store(int64(perSecond))
	p.numbers.Store(min(int64(perSecond), int64(time.Second/numberInterval)))
	return nil
}

// Mark begins the window name, anew where there was one, and returns the time.
func (p *Probe) Mark(name string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := &mark{from: now()}
	p.marks[name] = m
	return p.clock.utc(m.from)
}

// End ends the window name and returns the time.
func (p *Probe) End(name string) (time.Time, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := p.marks[name]
	if !ok {
		return time.Time{}, fmt.Errorf("end window: no mark is named %q", name)
	}
	m.to = now()
	return p.clock.utc(m.to), nil
}

// Report reports on the window name, until its end or until now.
func (p *Probe) Report(name string) (Report, error) {
	m, err := p.marked(name)
	if err != nil {
		return Report{}, fmt.Errorf("report window: %w", err)
	}
	return p.report(name, m), nil
}

func (p *Probe) marked(name string) (mark, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := p.marks[name]
	if !ok {
		return mark{}, fmt.Errorf("no mark is named %q", name)
	}
	return *m, nil
}

// Settle ends the window name unless it has ended, waits until each of its probes is either
// answered or lost (5 s at most), and reports on it.
func (p *Probe) Settle(ctx context.Context, name string) (Report, error) {
	m, err := p.marked(name)
	if err == nil && m.to == 0 {
		_, err = p.End(name)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for err == nil {
		if m, err = p.marked(name); err == nil && p.settled(m) {
			return p.report(name, m), nil
		}
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-tick.C:
		}
	}
	return Report{}, fmt.Errorf("settle window: %w", err)
}

func (p *Probe) settled(m mark) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended != 0 || m.to != 0 && p.udp.settled(m.to, now())
}

// report computes outside the lock, else it would hold up the next probes.
func (p *Probe) report(name string, m mark) Report {
	p.mu.Lock()
	at := now()
	if p.ended != 0 {
		at = p.ended
	}
	if m.to == 0 {
		m.to = at
	}
	udp, tcp, conn := p.udp.excerpt(m.from, m.to), p.tcp.excerpt(m.from, m.to), p.conn
	p.mu.Unlock()
	return Report{
		Name: name, Target: p.config.Target.String(), From: p.clock.utc(m.from), To: p.clock.utc(m.to),
		UDP: p.clock.udp(udp.window(m.from, m.to, at)),
		TCP: p.clock.tcp(tcp.window(m.from, m.to, at), conn),
	}
}

// The datagram: magic, run, number, time sent, 8 bytes each, big endian.
const (
	datagramMagic = 0x686c742d70726f62 // hlt-prob
	datagramSize  = 32
)

func putDatagram(b []byte, run, number uint64, sent int64) {
	binary.BigEndian.PutUint64(b, datagramMagic)
	binary.BigEndian.PutUint64(b[8:], run)
	binary.BigEndian.PutUint64(b[16:], number)
	binary.BigEndian.PutUint64(b[24:], uint64(sent))
}

// datagramNumber is the number of a datagram of this run.
func datagramNumber(b []byte, run uint64) (number uint64, ok bool) {
	if len(b) != datagramSize || binary.BigEndian.Uint64(b) != datagramMagic || binary.BigEndian.Uint64(b[8:]) != run {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[16:]), true
}
