package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"heliotrope"
	"heliotrope/controller/store"
	"heliotrope/controller/world"
	"heliotrope/hostagent/agentapi"
	"heliotrope/migration"
)

// own does one of the controller's own actions of a move. It may be called again after a
// crash or an error, so each first looks whether it is done.
func (r *moveRun) own(ctx context.Context, a migration.Action, m migration.Move) error {
	switch a {
	case migration.ActPreflight:
		return r.preflight(m)
	case migration.ActReceive:
		return r.place(ctx, m.VM, func(p *heliotrope.Placement) error {
			if p.Host != m.From || p.Epoch != m.Epoch {
				return refuse("%s is at %s in epoch %d by now", m.VM, p.Host, p.Epoch)
			}
			p.Incoming, p.Opened = m.To, false
			return nil
		}, m.To)
	case migration.ActOpen:
		return r.open(ctx, m)
	case migration.ActCommit:
		return r.commit(ctx, m.VM, m.From, m.To, m.Epoch)
	case migration.ActFlip:
		return r.flip(ctx, m)
	case migration.ActConverge:
		return r.converge(ctx)
	case migration.ActForget:
		if err := pause(ctx, time.Until(m.GraceUntil)); err != nil {
			return err
		}
		r.hearAfter(ctx, m)
		return r.place(ctx, m.VM, func(p *heliotrope.Placement) error { p.Previous = nil; return nil })
	case migration.ActRevert:
		return r.commit(ctx, m.VM, m.To, m.From, m.Epoch+1)
	case migration.ActClose:
		return r.place(ctx, m.VM, func(p *heliotrope.Placement) error {
			p.Incoming, p.Opened, p.Previous = "", false, nil
			return nil
		})
	}
	return refuse("unknown action %q", a)
}

// hearAfter asks the destination once more, for how the VM's writes go there. No move waits for that.
func (r *moveRun) hearAfter(ctx context.Context, m migration.Move) {
	agent := r.world.View().Hosts[m.To].Agent
	if agent == nil {
		return
	}
	limited, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	report, err := agent.GetMove(limited, m.ID, migration.Destination, 0)
	if err != nil {
		r.log.Debug("ask for writes after a move", "move", m.ID, "err", err)
		return
	}
	select {
	case r.events <- migration.Event{Report: &report}:
	case <-ctx.Done():
	}
}

// preflight looks for reasons why the move cannot work. It changes nothing.
func (r *moveRun) preflight(m migration.Move) error {
	for _, c := range preflightChecks(r.world.View(), m.VM, m.From, m.To) {
		if !c.OK {
			return refuse("%s: %s", c.Name, c.Detail)
		}
	}
	return nil
}

// place edits a placement and waits until the switches of hosts have flows for it.
func (r *moveRun) place(ctx context.Context, vm heliotrope.VMID, edit func(*heliotrope.Placement) error, hosts ...heliotrope.HostID) error {
	var no error
	rev, err := r.store.ChangePlacement(ctx, r.term, vm, func(p *heliotrope.Placement) {
		no = edit(p)
	})
	if err := errors.Join(no, err); err != nil {
		return err
	}
	return r.reached(ctx, rev, hosts...)
}

// reached waits until the switches of hosts have flows that know the store at rev.
func (r *moveRun) reached(ctx context.Context, rev int64, hosts ...heliotrope.HostID) error {
	v, err := r.world.Wait(ctx, func(v *world.View) bool { return v.Revision >= rev })
	if err != nil {
		return err
	}
	fabric := v.Fabric
	_, err = r.world.Wait(ctx, func(v *world.View) bool {
		for _, h := range hosts {
			if !v.FlowsReached(h, fabric) {
				return false
			}
		}
		return true
	})
	return err
}

// open lets the destination's ports send: its switch must know them by now.
func (r *moveRun) open(ctx context.Context, m migration.Move) error {
	err := r.place(ctx, m.VM, func(p *heliotrope.Placement) error {
		if p.Incoming == m.To {
			p.Opened = true
		}
		return nil
	}, m.To)
	if err != nil {
		return err
	}
	_, err = r.world.Wait(ctx, func(v *world.View) bool {
		_, ok := v.NICPorts(m.To, m.VM)
		return ok && v.FlowsReached(m.To, 0)
	})
	return err
}

// commit changes the owner; what another commit has changed it refuses.
func (r *moveRun) commit(ctx context.Context, vm heliotrope.VMID, from, to heliotrope.HostID, epoch uint64) error {
	_, err := r.store.ChangeOwner(ctx, r.term, vm, from, to, epoch)
	if errors.Is(err, store.ErrOwner) {
		return refuse("%v", err)
	}
	return err
}

// flip waits until the source's switch forwards to the new owner. A source that is gone
// forwards nothing and holds nobody up.
func (r *moveRun) flip(ctx context.Context, m migration.Move) error {
	committed, err := r.world.Wait(ctx, func(v *world.View) bool { return v.Placements[m.VM].Host == m.To })
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = r.world.Wait(limited, func(v *world.View) bool { return v.FlowsReached(m.From, committed.Fabric) })
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) && !r.world.View().Hosts[m.From].OpenFlow {
		return refuse("the switch of %s is not connected", m.From)
	}
	return err
}

// converge waits until every connected switch and every router was told.
func (r *moveRun) converge(ctx context.Context) error {
	fabric := r.world.View().Fabric
	_, err := r.world.Wait(ctx, func(v *world.View) bool {
		for h, f := range v.Hosts {
			if f.OpenFlow && !v.FlowsReached(h, fabric) {
				return false
			}
		}
		return v.RoutesAt >= fabric
	})
	return err
}

// orderHost orders a host's step and passes on its reports until ctx ends, which it does
// once the machine has what it wants.
func (r *moveRun) orderHost(ctx context.Context, a migration.Action, role migration.Role, step migration.Step, m migration.Move, send func(migration.Event)) {
	host := m.From
	if role == migration.Destination {
		host = m.To
	}
	for ctx.Err() == nil {
		v, err := r.world.Wait(ctx, func(v *world.View) bool { return v.Hosts[host].Agent != nil })
		if err != nil {
			return
		}
		agent := v.Hosts[host].Agent
		err = agent.FollowMove(ctx, r.order(v, m, role, step), func(report migration.Report) { send(migration.Event{Report: &report}) })
		if ctx.Err() == nil && isRefusal(err) {
			send(migration.Event{Refused: migration.Refusal{Action: a, Reason: fmt.Sprintf("%s: %s", host, err)}})
			return
		}
		if pause(ctx, 100*time.Millisecond) != nil {
			return
		}
	}
}

func isRefusal(err error) bool {
	return errors.Is(err, agentapi.ErrStale) || errors.Is(err, agentapi.ErrInvalid)
}

// order is what a host must know to take its step.
func (r *moveRun) order(v *world.View, m migration.Move, role migration.Role, step migration.Step) agentapi.MoveOrder {
	o := agentapi.MoveOrder{Term: r.term, Move: m.ID, VM: m.VM, Epoch: m.Epoch, Role: role, Step: step, Peer: m.To, Tenant: v.Topology.VMs[m.VM].Tenant}
	switch step {
	case migration.StepPrepare:
		o.XML, o.Disks, o.Cookie = m.Description.XML, m.Description.Disks, m.Description.Cookie
		order := vmOrder(v, r.term, m.VM, m.Epoch+1)
		o.Order = &order
	case migration.StepActivate:
		o.Epoch, o.Cookie = m.Epoch+1, m.SourceCookie
	case migration.StepCopy:
		o.Cookie, o.MaxDowntime, o.MaxSlowdown, o.Together = m.DestinationCookie, m.MaxDowntime, m.MaxSlowdown, v.Together(m)
	}
	if role == migration.Destination {
		o.Peer = m.From
	} else {
		o.PeerRelay = netip.AddrPortFrom(v.Topology.Hosts[m.To].Address, agentapi.RelayPort)
	}
	return o
}

// vmOrder is a VM as its host must know it.
func vmOrder(v *world.View, term uint64, vm heliotrope.VMID, epoch uint64) agentapi.VMOrder {
	spec := v.Topology.VMs[vm]
	o := agentapi.VMOrder{Term: term, VM: vm, Epoch: epoch, Spec: spec, Networks: make(map[heliotrope.NetworkID]heliotrope.Network)}
	for _, nic := range spec.NICs {
		o.Networks[nic.Network] = v.Topology.Networks[nic.Network]
	}
	return o
}
