package controller

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/controller/world"
	"heliotrope/flows"
	"heliotrope/flows/openflow"
	"heliotrope/hostagent/agentapi"
	"heliotrope/internal/reconcile"
	"heliotrope/ovsdb"
)

// How often each loop looks unasked, so that a change that nobody reported is put right.
const (
	bridgesResync = 10 * time.Second
	flowsResync   = 10 * time.Second
	vmsResync     = 5 * time.Second
)

// How long a switch may take for one thing, and be silent: one that gets a hundred tunnels
// while its machine is busy must not be given up in the middle of that.
const (
	switchTimeout = 30 * time.Second
	switchSilence = 15 * time.Second
)

// portsPause, and portsPauseEach for each port, is the least time between two readings of a
// host's ports.
const (
	portsPause     = 20 * time.Millisecond
	portsPauseEach = 2 * time.Millisecond
)

// serveAgents lets hosts in and runs the loops of each over the connections that it makes.
func (c *Controller) serveAgents(ctx context.Context, term uint64) error {
	l, err := agentapi.Listen(ctx, c.cfg.AgentListen, c.members.Identity, agentapi.Acceptor{
		Join:    c.members.Join,
		Allowed: c.allowed,
		OnRPC:   func(ctx context.Context, a *agentapi.Agent) { c.ended(a.Host(), "rpc", c.runVMs(ctx, a, term)) },
		OnOVSDB: func(ctx context.Context, h heliotrope.HostID, conn net.Conn) {
			c.ended(h, "ovsdb", c.runBridges(ctx, h, conn, term))
		},
		OnOpenFlow: func(ctx context.Context, h heliotrope.HostID, conn net.Conn) {
			c.ended(h, "openflow", c.runFlows(ctx, h, conn, term))
		},
	}, c.log)
	if err != nil {
		return err
	}
	return l.Serve(ctx)
}

// ended notes that a connection of a host is gone.
func (c *Controller) ended(h heliotrope.HostID, channel string, err error) {
	c.world.UpdateHost(h, func(f *world.Host) { f.LastSeen = time.Now().UTC() })
	if errors.Is(err, context.Canceled) {
		return
	}
	c.log.Warn("host connection ended", "host", h, "channel", channel, "err", err)
	c.event("host", string(h), channel+" connection ended", map[string]string{"reason": errorText(err)})
}

// told logs what a loop did, and keeps its trouble where people look for it.
func (c *Controller) told(h heliotrope.HostID, loop string, r reconcile.Round) {
	c.metrics.round(loop, r)
	trouble := ""
	switch {
	case r.Err != nil:
		trouble = fmt.Sprintf("%s: %v", loop, r.Err)
		c.log.Warn("loop", "loop", loop, "host", h, "changes", r.Changes, "took", r.Took, "err", r.Err)
	case r.Changes > 0:
		c.log.Info("loop", "loop", loop, "host", h, "changes", r.Changes, "took", r.Took)
	}
	c.world.Trouble(h, loop, trouble)
}

// runBridges keeps a host's bridges and tunnels as wanted, over one connection.
func (c *Controller) runBridges(ctx context.Context, h heliotrope.HostID, conn net.Conn, term uint64) error {
	changed := make(chan struct{}, 1)
	sw, err := ovsdb.Connect(ctx, conn, ovsdb.Options{Term: term, Timeout: switchTimeout, Echo: switchSilence, OnChange: func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}})
	if err != nil {
		return err
	}
	defer sw.Close()
	want := func(ctx context.Context) (map[string]ovsdb.Object, error) {
		return sw.Wanted(ctx, bridgesWanted(c.world.View(), h, c.cfg.BFD))
	}
	loop := reconcile.New[string, ovsdb.Object](reconcile.InTurn[string, ovsdb.Object]{Target: sw.Target(), Many: manyPorts, Turns: c.meshing}, want, ovsdb.Equal, reconcile.Options{Resync: bridgesResync,
		Done: func(r reconcile.Round) { c.told(h, "bridges", r) }})

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return loop.Run(ctx) })
	g.Go(func() error {
		return world.Follow(ctx, c.world, func(v *world.View) int64 { return v.TopologyAt }, func(*world.View) { loop.Kick() })
	})
	g.Go(func() error {
		for {
			n, err := c.readPorts(ctx, h, sw)
			if err != nil {
				return err
			}
			// The first of many changes is looked at quickly, the others together.
			if err := pause(ctx, portsPause+time.Duration(n)*portsPauseEach); err != nil {
				return err
			}
			select {
			case <-changed:
				loop.Kick()
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	})
	g.Go(func() error {
		select {
		case <-sw.Done():
			return sw.Err()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	defer c.world.UpdateHost(h, func(f *world.Host) { f.OVSDB = false })
	return g.Wait()
}

// meshingAtOnce is how many hosts get many ports at the same time. Hosts that are done begin
// to talk to each other, and with all at once a large mesh takes longer, not shorter.
const meshingAtOnce = 8

// manyPorts is how many changes are that many.
const manyPorts = 16

// bridgesWanted is br-int with a tunnel to every other host and the devices of stubs that
// are here; a host that the topology no longer has keeps the bridge only.
func bridgesWanted(v *world.View, h heliotrope.HostID, bfd time.Duration) ovsdb.Want {
	self, ok := v.Topology.Hosts[h]
	w := ovsdb.Want{Host: h, LocalIP: self.Address, Tunnels: make(map[heliotrope.HostID]ovsdb.Tunnel), Devices: make(map[string]string)}
	if !ok {
		return w
	}
	for other, spec := range v.Topology.Hosts {
		if other != h {
			w.Tunnels[other] = ovsdb.Tunnel{RemoteIP: spec.Address, BFD: bfd}
		}
	}
	for id, stub := range v.Topology.Stubs {
		if stub.Host == h {
			w.Devices[stub.Port] = heliotrope.InterfaceID(heliotrope.VMID(id), 0)
		}
	}
	return w
}

// readPorts takes a host's ports into the view, and returns how many there are.
func (c *Controller) readPorts(ctx context.Context, h heliotrope.HostID, sw *ovsdb.Switch) (int, error) {
	ports, err := sw.Ports(ctx)
	if err != nil {
		return 0, err
	}
	before := c.world.View().Hosts[h]
	c.world.UpdateHost(h, func(f *world.Host) {
		f.OVSDB, f.LastSeen = true, time.Now().UTC()
		if !slices.EqualFunc(f.Ports, ports, samePort) {
			f.PortsGen++
		}
		f.Ports = ports
	})
	for _, p := range ports {
		was := slices.IndexFunc(before.Ports, func(q ovsdb.Port) bool { return q.Name == p.Name })
		if p.Foreign && p.Bridge == ovsdb.IntBridge && (was < 0 || !before.Ports[was].Foreign) {
			c.event("host", string(h), fmt.Sprintf("port %s of %s is not ours: left alone", p.Name, p.Bridge), nil)
		}
	}
	return len(ports), nil
}

// samePort says whether flows for a and b are the same.
func samePort(a, b ovsdb.Port) bool {
	return a.Name == b.Name && a.Ofport == b.Ofport && a.IfaceID == b.IfaceID && a.Peer == b.Peer
}

// runFlows keeps the flows of a host's br-int as compiled, over one connection.
func (c *Controller) runFlows(ctx context.Context, h heliotrope.HostID, conn net.Conn, term uint64) error {
	of, err := openflow.New(ctx, conn, openflow.Options{})
	if err != nil {
		return err
	}
	defer of.Close()
	// An older controller that is still connected may look, and change nothing.
	if err := of.Role(ctx, openflow.Primary, term); err != nil {
		return fmt.Errorf("lead the switch of %s: %w", h, err)
	}
	target := openflow.Remember(openflow.NewTarget(of), flowsResync)
	pipe := &pipeline{host: h}
	want := func(context.Context) (map[string]flows.Flow, error) {
		v := c.world.View()
		target.Growing = v.Hosts[h].StatusAt.IsZero()
		all, err := pipe.at(v)
		return target.Narrow(all, pipe.touched), err
	}
	loop := reconcile.New[string, flows.Flow](target, want, flows.Flow.Equal, reconcile.Options{Resync: target.Resync(), RetryMin: 20 * time.Millisecond,
		Done: func(r reconcile.Round) {
			c.told(h, "flows", r)
			if r.Err == nil {
				c.world.UpdateHost(h, func(f *world.Host) { f.OpenFlow, f.Applied, f.LastSeen = true, pipe.made, time.Now().UTC() })
			}
		}})

	c.world.UpdateHost(h, func(f *world.Host) { f.Flows = of })
	defer c.world.UpdateHost(h, func(f *world.Host) { f.OpenFlow, f.Flows, f.Applied = false, nil, world.Compiled{} })
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return loop.Run(ctx) })
	g.Go(func() error { return c.traffic.ServeSwitch(ctx, h, of) })
	g.Go(func() error {
		key := func(v *world.View) world.Compiled {
			return world.Compiled{Fabric: v.Fabric, Ports: v.Hosts[h].PortsGen}
		}
		return world.Follow(ctx, c.world, key, func(*world.View) { loop.Kick() })
	})
	g.Go(func() error {
		select {
		case <-of.Done():
			return of.Err()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	return g.Wait()
}
