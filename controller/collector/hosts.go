package collector

import (
	"context"
	"reflect"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/internal/reconcile"
	"heliotrope/scheduler/traffic"
)

const (
	// countsOn is how long a host that is not connected is believed to count on: its agent
	// keeps what it counted for as long.
	countsOn    = 2 * time.Minute
	orderResync = 30 * time.Second
)

// host is what is known of one host's counting.
type host struct {
	loop   *reconcile.Loop[heliotrope.HostID, traffic.Orders] // nil while it is not connected
	counts bool                                               // what its VMs send is counted there
	begun  time.Time                                          // since then; earlier bins are not taken: others counted that
	left   time.Time                                          // when its connection ended
	last   traffic.Bin                                        // without its counts
}

// Serve has a host count, and takes in what it counts, over its agent's connection, until
// that or ctx ends.
func (c *Collector) Serve(ctx context.Context, agent *agentapi.Agent, term uint64, done func(reconcile.Round)) error {
	h := agent.Host()
	target := &orderTarget{c: c, agent: agent, term: term}
	want := func(context.Context) (map[heliotrope.HostID]traffic.Orders, error) {
		return map[heliotrope.HostID]traffic.Orders{h: Orders(c.fabric(), c.world.Devices(h))}, nil
	}
	same := func(a, b traffic.Orders) bool { return reflect.DeepEqual(a, b) }
	loop := reconcile.New[heliotrope.HostID, traffic.Orders](target, want, same, reconcile.Options{Resync: orderResync, Done: done})
	c.change(h, func(f *host) { f.loop = loop })
	defer c.change(h, func(f *host) {
		if f.loop == loop { // it may have connected again before this end was seen
			f.loop, f.left = nil, c.now()
		}
	})

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return loop.Run(ctx) })
	g.Go(func() error { return c.world.Follow(ctx, h, loop.Kick) })
	g.Go(func() error {
		last := c.known(h).last
		return agent.Bins(ctx, last.Boot, last.Seq, func(b traffic.Bin) error {
			c.Take(b)
			return nil
		})
	})
	return g.Wait()
}

// orderTarget is what a host was told to count over one connection.
type orderTarget struct {
	c     *Collector
	agent *agentapi.Agent
	term  uint64
	told  map[heliotrope.HostID]traffic.Orders
}

// Observe returns what the host was told: an agent takes an order whole or not at all.
func (t *orderTarget) Observe(context.Context) (map[heliotrope.HostID]traffic.Orders, error) {
	return t.told, nil
}

// Apply tells it.
func (t *orderTarget) Apply(ctx context.Context, changes []reconcile.Change[heliotrope.HostID, traffic.Orders]) error {
	for _, ch := range changes {
		if err := t.agent.Count(ctx, agentapi.CaptureOrder{Term: t.term, Orders: ch.Want}); err != nil {
			return err
		}
		t.told = map[heliotrope.HostID]traffic.Orders{ch.Key: ch.Want}
		bySwitch := traffic.Source(t.c.world.Fabric().Topology.Capture.Source) == traffic.SourceCounters
		t.c.counts(ch.Key, len(ch.Want.Ports) > 0 || bySwitch)
	}
	return nil
}

// counts notes whether what h's VMs send is counted there. If not, other hosts count it
// where it arrives, and what h counted before it begins again is not taken: it would be
// there twice.
func (c *Collector) counts(h heliotrope.HostID, does bool) {
	c.change(h, func(f *host) {
		switch now := c.now(); {
		case does && !f.counts:
			f.begun = now
			c.ledger.Expect(h, now.Add(traffic.BinLength), time.Time{})
		case !does && f.counts:
			c.ledger.Expect(h, now, now)
		}
		f.counts = does
	})
}

// change changes what is known of h. If that is whether it counts, every host is told.
func (c *Collector) change(h heliotrope.HostID, edit func(*host)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.hosts[h]
	if f == nil {
		f = &host{}
		c.hosts[h] = f
	}
	was := f.counts
	edit(f)
	if f.counts == was {
		return
	}
	for _, other := range c.hosts {
		if other.loop != nil {
			other.loop.Kick()
		}
	}
}

// known is what is known of h.
func (c *Collector) known(h heliotrope.HostID) host {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.hosts[h]; f != nil {
		return *f
	}
	return host{}
}

// fabric is the world's, with the hosts that count.
func (c *Collector) fabric() Fabric {
	f := c.world.Fabric()
	c.mu.Lock()
	defer c.mu.Unlock()
	f.Counting = make(map[heliotrope.HostID]bool, len(c.hosts))
	for h, known := range c.hosts {
		f.Counting[h] = known.counts
	}
	return f
}

// lapse gives up hosts that have been away for longer than they keep what they counted.
func (c *Collector) lapse() {
	for h := range c.fabric().Counting {
		if f := c.known(h); f.counts && f.loop == nil && c.now().Sub(f.left) > countsOn {
			c.counts(h, false)
		}
	}
}
