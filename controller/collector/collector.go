// Package collector takes in what the hosts count, and says what it means.
//
// It tells every host what to count (orders.go, hosts.go): the ports of its VMs, and who
// has which address, and whether what a VM sends is counted where it is; so each packet is
// counted once. What comes goes into a ledger (package scheduler/traffic), which answers for
// any window of the last day, to files (package controller/history) and to other collectors
// (package controller/ipfix). Every few seconds the newest window is taken apart into groups
// and patterns (package scheduler/traffic/pattern), and what changed is told as events.
//
// Only the controller that leads collects. What it has not written is the agents' last two
// minutes, which the next leader asks them for.
package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/controller/history"
	"heliotrope/controller/ipfix"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/phases"
	"heliotrope/scheduler/traffic/report"
)

// World is what the collector must know of the rest.
type World interface {
	Fabric() Fabric
	// Devices are the network devices of a host's ports that are VMs', by interface ID.
	Devices(h heliotrope.HostID) map[string]string
	// Follow calls f now and after each change of Fabric or of Devices(h), until ctx ends.
	Follow(ctx context.Context, h heliotrope.HostID, f func()) error
	// Leads says whether this controller does: no other is told what hosts count.
	Leads() bool
	// Tell records what happened.
	Tell(kind, subject, message string)
}

const (
	// inferEvery is how often the newest inferWindow is taken apart. A change of pattern is
	// certain after three windows at most (phases.Tracker).
	inferEvery  = 10 * time.Second
	inferWindow = 10 * time.Second
	// settle is how long a second's bins may take to arrive.
	settle     = time.Second
	eventsKept = 200
)

// Config says what a collector is made of; zero fields take their defaults.
type Config struct {
	World     World
	Log       *slog.Logger
	Name      string        // the controller's
	Dir       string        // of its state
	History   string        // a directory or a bucket's URL; default: DIR/traffic; Off: not kept
	Retention time.Duration // of history; default 24 h
	IPFIX     string        // collector that is told, host:port by UDP; default: none
}

// Off is a Config.History that is not kept.
const Off = "off"

// Collector is the traffic that was counted. Make it with Open.
type Collector struct {
	world   World
	log     *slog.Logger
	now     func() time.Time
	history *history.History // nil: not kept
	ipfix   *ipfix.Exporter  // nil: nobody is told
	started time.Time

	mu      sync.Mutex // guards all below
	hosts   map[heliotrope.HostID]*host
	ledger  *traffic.Ledger
	tracker *phases.Tracker
	events  []report.Event // the newest last
}

// Open returns a collector that has only what its history has.
func Open(ctx context.Context, cfg Config) (*Collector, error) {
	c := &Collector{world: cfg.World, log: cfg.Log, now: time.Now, started: time.Now(),
		hosts: map[heliotrope.HostID]*host{}, ledger: traffic.NewLedger(traffic.Limits{}), tracker: &phases.Tracker{}}
	if cfg.IPFIX != "" {
		var err error
		if c.ipfix, err = ipfix.Dial(ctx, cfg.IPFIX, ipfix.Options{Log: cfg.Log, Address: c.address}); err != nil {
			return nil, fmt.Errorf("open IPFIX exporter: %w", err)
		}
	}
	if cfg.History == Off {
		return c, nil
	}
	url := cmp.Or(cfg.History, filepath.Join(cfg.Dir, "traffic"))
	var err error
	c.history, err = history.Open(ctx, url, history.Options{Controller: plainName(cfg.Name), Retention: cfg.Retention, Log: cfg.Log,
		Journal: filepath.Join(cfg.Dir, "traffic-journal")})
	if err != nil {
		return nil, fmt.Errorf("open traffic history: %w", err)
	}
	return c, nil
}

// plainName is a controller's name as a part of a file's.
func plainName(name string) string {
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(name))
	return cmp.Or(strings.Trim(plain, "-"), "controller")
}

// address is a VM's first private address of a family.
func (c *Collector) address(vm heliotrope.VMID, six bool) (netip.Addr, bool) {
	for _, nic := range c.world.Fabric().Topology.VMs[vm].NICs {
		if nic.Address.Is6() == six {
			return nic.Address, true
		}
	}
	return netip.Addr{}, false
}

// Close writes what is not written yet.
func (c *Collector) Close() error {
	var problems []error
	if c.history != nil {
		problems = append(problems, c.history.Close())
	}
	if c.ipfix != nil {
		problems = append(problems, c.ipfix.Close())
	}
	return errors.Join(problems...)
}

// Take takes a bin in. One that came before, or that others counted, is left.
func (c *Collector) Take(b traffic.Bin) {
	c.mu.Lock()
	f := c.hosts[b.Host]
	if f == nil {
		f = &host{}
		c.hosts[b.Host] = f
	}
	late := b.Start.Before(f.begun)
	f.last = b
	f.last.Counts = nil
	var err error
	if !late {
		err = c.ledger.Add(b, c.now())
	}
	c.mu.Unlock()
	if errors.Is(err, traffic.ErrEarly) {
		c.log.Warn("a host's clock is ahead: what it counts is not taken", "host", b.Host, "err", err)
	}
	if late || err != nil {
		return
	}
	if c.history != nil {
		c.history.Take(b)
	}
	if c.ipfix != nil {
		c.ipfix.Take(b)
	}
}

// Run infers, and forgets hosts that are gone, until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return every(ctx, time.Second, c.lapse) })
	g.Go(func() error { return every(ctx, inferEvery, c.infer) })
	if c.history != nil {
		g.Go(func() error { return c.history.Run(ctx) })
	}
	if c.ipfix != nil {
		g.Go(func() error { return c.ipfix.Run(ctx) })
	}
	return g.Wait()
}

func every(ctx context.Context, d time.Duration, f func()) error {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			f()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// infer takes the newest window apart, and tells what changed.
func (c *Collector) infer() {
	to := c.now().Add(-settle).Truncate(traffic.BinLength)
	c.mu.Lock()
	m := c.ledger.Matrix(to, inferWindow)
	c.mu.Unlock()
	analysis := pattern.Infer(pattern.FromMatrix(m))
	c.mu.Lock()
	var events []report.Event
	for _, ch := range c.tracker.Add(to, inferWindow, analysis) {
		events = append(events, report.Event{At: ch.At, Kind: string(ch.Of), Group: groupName(ch.Group), What: sentence(ch)})
	}
	c.events = append(c.events, events...)
	c.events = c.events[max(0, len(c.events)-eventsKept):]
	c.mu.Unlock()
	for _, e := range events {
		c.world.Tell("traffic", e.Group, e.What)
	}
}

// groupName is what people call a tracked group.
func groupName(id int) string { return fmt.Sprintf("group-%d", id) }

// sentence says what changed.
func sentence(c phases.Change) string {
	switch c.Of {
	case phases.GroupAppeared:
		return fmt.Sprintf("%d VMs talk in a group, pattern %s: %s", len(c.Joined), c.To, list(c.Joined))
	case phases.GroupEnded:
		return fmt.Sprintf("the group of pattern %s does not talk any more", c.From)
	case phases.PatternChanged:
		return fmt.Sprintf("the pattern changed from %s to %s", c.From, c.To)
	}
	var parts []string
	if len(c.Joined) > 0 {
		parts = append(parts, "joined: "+list(c.Joined))
	}
	if len(c.Left) > 0 {
		parts = append(parts, "left: "+list(c.Left))
	}
	return strings.Join(parts, "; ")
}

// list names ends, as many as fit in a line.
func list(ends []traffic.End) string {
	const most = 8
	var said []string
	for _, e := range ends[:min(len(ends), most)] {
		said = append(said, e.String())
	}
	if len(ends) > most {
		said = append(said, fmt.Sprintf("and %d more", len(ends)-most))
	}
	return strings.Join(said, ", ")
}

// matrix is what was counted in the time of span before end. What was before this
// controller began to collect is in the history, in windows of five minutes.
func (c *Collector) matrix(ctx context.Context, end time.Time, span time.Duration) (traffic.Matrix, error) {
	if from := end.Add(-span); c.history != nil && from.Before(c.started.Add(-countsOn)) {
		m, err := c.history.Matrix(ctx, from, end)
		if err != nil {
			return m, fmt.Errorf("read traffic history: %w", err)
		}
		return m, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ledger.Matrix(end, span), nil
}

// newest are the events up to end, the newest first.
func (c *Collector) newest(from, end time.Time) []report.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []report.Event
	for _, e := range slices.Backward(c.events) {
		if !e.At.Before(from) && !e.At.After(end) {
			list = append(list, e)
		}
	}
	return list
}
