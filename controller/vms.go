package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/controller/store"
	"heliotrope/controller/world"
	"heliotrope/hostagent/agentapi"
	"heliotrope/internal/reconcile"
)

// runVMs keeps the VMs of a host as wanted, over its agent's connection, and the agent
// known to the moves.
func (c *Controller) runVMs(ctx context.Context, agent *agentapi.Agent, term uint64) error {
	h := agent.Host()
	target := &vmTarget{c: c, agent: agent, host: h, term: term}
	loop := reconcile.New(target, target.want, sameVM, reconcile.Options{Resync: vmsResync,
		Done: func(r reconcile.Round) { c.told(h, "vms", r) }})
	c.world.UpdateHost(h, func(f *world.Host) { f.Agent = agent })
	defer c.world.UpdateHost(h, func(f *world.Host) { f.Agent = nil })
	c.log.Info("host connected", "host", h)
	c.event("host", string(h), "connected", nil)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return loop.Run(ctx) })
	g.Go(func() error {
		type key struct{ topology, concerned int64 }
		return world.Follow(ctx, c.world, func(v *world.View) key { return key{v.TopologyAt, v.Concerned[h]} }, func(*world.View) { loop.Kick() })
	})
	g.Go(func() error { return agent.Watch(ctx, func(agentapi.Event) { loop.Kick() }) })
	g.Go(func() error {
		return c.traffic.Serve(ctx, agent, term, func(r reconcile.Round) { c.told(h, "counting", r) })
	})
	g.Go(func() error { return c.speeds.Serve(ctx, agent, term) })
	g.Go(func() error {
		select {
		case <-agent.Done():
			return errors.New("agent's connection ended")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	return g.Wait()
}

// vmWant is a VM that is to run at a host, or does.
type vmWant struct {
	epoch uint64
	state heliotrope.VMState
}

func sameVM(want, have vmWant) bool { return want == have }

// vmTarget is a host's hypervisor as a reconcile target. It sees only VMs that the store
// says something of: a VM that nobody knows is shown by the API and otherwise left alone.
type vmTarget struct {
	c     *Controller
	agent *agentapi.Agent
	host  heliotrope.HostID
	term  uint64
}

// want is every VM that the host owns and that is not on the move: a move's VM is the
// driver's.
func (t *vmTarget) want(context.Context) (map[heliotrope.VMID]vmWant, error) {
	v := t.c.world.View()
	want := make(map[heliotrope.VMID]vmWant)
	if v.Hosts[t.host].Status.NoVMs {
		return want, nil
	}
	for vm, p := range v.Placements {
		if _, moving := v.Moving(vm); p.Host == t.host && !moving {
			want[vm] = vmWant{epoch: p.Epoch, state: heliotrope.VMRunning}
		}
	}
	return want, nil
}

// Observe asks the agent, takes the answer into the view, and returns those VMs that the
// host owns or that the topology no longer has.
func (t *vmTarget) Observe(ctx context.Context) (map[heliotrope.VMID]vmWant, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	status, err := t.agent.Status(ctx)
	if err != nil {
		return nil, err
	}
	t.c.world.UpdateHost(t.host, func(f *world.Host) {
		if status.GatewayMAC.IsZero() { // an agent that has just started has not looked yet
			status.GatewayMAC = f.Status.GatewayMAC
		}
		if f.Status.GatewayMAC != status.GatewayMAC || f.StatusAt.IsZero() {
			f.PortsGen++ // flows are made of it
		}
		f.Status, f.StatusAt, f.LastSeen = status, time.Now().UTC(), time.Now().UTC()
	})
	v := t.c.world.View()
	if err := t.measurePaths(ctx, v, status.Paths); err != nil {
		t.c.log.Warn("paths to other hosts are not measured", "host", t.host, "err", err) // VMs matter more
	}
	if err := t.c.heed(ctx, t.host, v.Members[t.host], status.Revocation); err != nil {
		return nil, err
	}
	have := make(map[heliotrope.VMID]vmWant)
	for _, s := range status.VMs {
		p, placed := v.Placements[s.VM]
		_, dead := v.Tombstones[s.VM]
		_, moving := v.Moving(s.VM)
		if !s.Foreign && !moving && (placed && p.Host == t.host || !placed && dead) {
			have[s.VM] = vmWant{epoch: s.Epoch, state: s.State}
		}
	}
	return have, nil
}

// heed takes in whether a host's cloud takes it away.
func (c *Controller) heed(ctx context.Context, h heliotrope.HostID, known store.Host, notice *agentapi.Revocation) error {
	if notice == nil && !known.Noticed || notice != nil && known.Drained() {
		return nil
	}
	if err := c.members.Heed(ctx, h, notice); err != nil {
		return fmt.Errorf("heed notice of revocation: %w", err)
	}
	return nil
}

// measurePaths tells the agent whom to measure the underlay to, where it does not know.
func (t *vmTarget) measurePaths(ctx context.Context, v *world.View, have []agentapi.Path) error {
	unknown := peersOf(v, t.host)
	for _, p := range have {
		delete(unknown, p.Peer)
	}
	if len(unknown) == 0 {
		return nil
	}
	_, err := t.agent.Probe(ctx, agentapi.ProbeOrder{Peers: peersOf(v, t.host)})
	return err
}

// Apply starts what is to run, and removes what the topology no longer has.
func (t *vmTarget) Apply(ctx context.Context, changes []reconcile.Change[heliotrope.VMID, vmWant]) error {
	v := t.c.world.View()
	if v.Hosts[t.host].Status.NoVMs { // what is wanted was worked out before Observe had asked
		return nil
	}
	var problems []error
	for _, ch := range changes {
		if ch.Op == reconcile.Delete {
			epoch := v.Tombstones[ch.Key].Epoch
			if _, dead := v.Tombstones[ch.Key]; dead {
				problems = append(problems, t.told(ch.Key, "removed", t.agent.RemoveVM(ctx, agentapi.RemoveOrder{Term: t.term, VM: ch.Key, Epoch: epoch})))
			}
			continue
		}
		problems = append(problems, t.told(ch.Key, "runs", t.agent.PutVM(ctx, vmOrder(v, t.term, ch.Key, ch.Want.epoch))))
	}
	return errors.Join(problems...)
}

func (t *vmTarget) told(vm heliotrope.VMID, what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s%w", vmTrouble(vm), err)
	}
	t.c.event("vm", string(vm), fmt.Sprintf("%s at %s", what, t.host), map[string]string{"host": string(t.host)})
	return nil
}
