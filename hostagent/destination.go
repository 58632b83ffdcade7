package hostagent

import (
	"context"
	"errors"
	"fmt"
	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/durable"
	"heliotrope/hostagent/libvirt"
	"heliotrope/migration/relay"
	"os"
	"time"
)

// eventLag is how long libvirt's word of what it has just done may take.
const eventLag = 200 * time.Millisecond

// errNeverRan is a failed activation after which it is certain that no vCPU ran here.
var errNeverRan = errors.New("the VM could not be started here")

func (s *moves) stepPrepare(ctx, life context.Context, m *move, o agentapi.MoveOrder) {
	cookie, err := s.prepare(ctx, m, o)
	if life.Err() != nil {
		return
	}
	if err == nil {
		err = s.end(m, func(r *agentapi.MoveReport) { r.State, r.Cookie = agentapi.MovePrepared, cookie })
	}
	if err != nil && !s.superseded(m) {
		s.insist(life, m, func() error { return s.throwAway(life, o) })
		s.fail(life, m, fmt.Errorf("prepare VM: %w", err))
	}
}

func (s *moves) prepare(ctx context.Context, m *move, o agentapi.MoveOrder) ([]byte, error) {
	hv, d, err := s.conn.find(ctx, o.VM)
	if err != nil {
		return nil, err
	}
	if d.Foreign || hasQEMU(d.State) {
		return nil, fmt.Errorf("%s is here already (%s, foreign: %t)", o.VM, d.State, d.Foreign)
	}
	memory, disk, err := s.sockets(o.Move)
	if err != nil {
		return nil, err
	}
	// QEMU makes them anew; those of an agent that died are in the way.
	if err := errors.Join(durable.RemoveFile(memory), durable.RemoveFile(disk)); err != nil {
		return nil, fmt.Errorf("remove old sockets: %w", err)
	}
	s.expect(m, o)
	return hv.Prepare(ctx, libvirt.Incoming{
		VM: o.VM, Epoch: o.Epoch + 1, XML: o.XML, Cookie: o.Cookie, Disks: o.Disks,
		DiskDir: s.diskDir, MemorySocket: memory, DiskSocket: disk,
	})
}

// expect opens the relay for the move.
func (s *moves) expect(m *move, o agentapi.MoveOrder) {
	memory, disk, _ := s.sockets(o.Move)
	base, _, err := libvirt.VolumeBase(o.XML)
	s.relay.Expect(o.Move, relay.Expectation{
		VM: o.VM, Tenant: o.Tenant, From: o.Peer, BlankDisks: err == nil && base == "",
		Sockets: map[relay.Kind]string{relay.Memory: memory, relay.Disk: disk},
		Packets: func(ctx context.Context, nic int, frames [][]byte) (int, error) {
			return s.inject(ctx, o.VM, nic, frames)
		},
	})
}

// inject puts packets that were caught at the source into the VM's queue here.
func (s *moves) inject(ctx context.Context, vm heliotrope.VMID, nic int, frames [][]byte) (int, error) {
	hv, d, err := s.conn.find(ctx, vm)
	if err != nil {
		return 0, err
	}
	for _, tap := range d.Taps {
		if tap.NIC == nic {
			if err := hv.Inject(tap.Name, frames); err != nil {
				return 0, fmt.Errorf("inject packets: %w", err)
			}
			return len(frames), nil
		}
	}
	return 0, fmt.Errorf("inject packets: %s has no NIC %d here", vm, nic)
}

// stepActivate lets the VM run. It ends as active, as failed if the VM certainly never
// ran here, or not at all: then the report's error says that nobody knows.
func (s *moves) stepActivate(life context.Context, m *move, o agentapi.MoveOrder) {
	if err := s.ledger.Grant(o.VM, o.Epoch); err != nil {
		s.fail(life, m, fmt.Errorf("write permit: %w", err))
		return
	}
	s.activate(life, m, o)
}

func (s *moves) activate(life context.Context, m *move, o agentapi.MoveOrder) {
	begun, doubt := time.Now(), false
	var outcome error
	s.insist(life, m, func() error {
		hv, err := s.conn.get(life)
		if err != nil {
			return err
		}
		outcome = hv.Finish(life, o.VM, o.Cookie, false)
		if outcome == nil {
			return nil
		}
		// libvirt may have done it and died before it said so.
		doubt = doubt || errors.Is(outcome, libvirt.ErrClosed)
		outcome, err = s.aftermath(life, hv, o.VM, begun, doubt, outcome)
		return err
	})
	switch {
	case life.Err() != nil:
	case outcome == nil:
		s.active(life, m, o, begun)
	case errors.Is(outcome, errNeverRan):
		s.insist(life, m, func() error { return s.throwAway(life, o) })
		s.insist(life, m, func() error { return s.ledger.Revoke(o.VM) })
		s.fail(life, m, outcome)
	default:
		s.doubt(life, m, outcome)
	}
}

// doubt ends an activation of which nobody knows whether the VM ran: the state stays as it
// is, since any other would have the controller act on it.
func (s *moves) doubt(life context.Context, m *move, err error) {
	s.log.Error("it is not known whether a VM ran: a person must look", "vm", m.Begun.VM, "move", m.Begun.Move, "error", err)
	s.insist(life, m, func() error {
		return s.end(m, func(r *agentapi.MoveReport) { r.Error = err.Error() })
	})
}

func (s *moves) active(life context.Context, m *move, o agentapi.MoveOrder, begun time.Time) {
	at, ok := s.hub.resumedSince(life, o.VM, begun, eventLag)
	if !ok {
		at = time.Now()
	}
	s.insist(life, m, func() error {
		if err := s.removeSockets(o.Move); err != nil {
			return err
		}
		return s.end(m, func(r *agentapi.MoveReport) {
			r.State, r.Error, r.ResumedAt = agentapi.MoveActive, "", at
		})
	})
}

// aftermath finds out what a Finish with an error has done: nil if the VM runs,
// errNeverRan, or an error that says that this is not known. retry says to ask again.
func (s *moves) aftermath(ctx context.Context, hv hypervisor, vm heliotrope.VMID, begun time.Time, doubt bool, cause error) (outcome, retry error) {
	d, err := find(ctx, hv, vm)
	if err != nil {
		return cause, err
	}
	if d.State == agentapi.VMRunning {
		return nil, nil
	}
	if _, ran := s.hub.resumedSince(ctx, vm, begun, eventLag); ran || doubt {
		return fmt.Errorf("it is not known whether the VM ran here; it is %s now: %w", d.State, cause), nil
	}
	return fmt.Errorf("%w: %w", errNeverRan, cause), nil
}

// discard throws the incoming VM away, by order.
func (s *moves) discard(ctx context.Context, m *move, o agentapi.MoveOrder) error {
	if err := s.throwAway(ctx, o); err != nil {
		return err
	}
	return s.end(m, func(r *agentapi.MoveReport) { r.State, r.Error = agentapi.MoveDiscarded, "" })
}

// throwAway removes what there is of an incoming VM. A VM that runs, or was not made by
// this move, is not touched.
func (s *moves) throwAway(ctx context.Context, o agentapi.MoveOrder) error {
	s.relay.Forget(o.Move)
	hv, d, err := s.conn.find(ctx, o.VM)
	if err != nil {
		return err
	}
	if _, err := os.Stat(s.socketDir(o.Move)); err == nil && !d.Foreign && d.State != agentapi.VMRunning {
		if err := hv.Finish(ctx, o.VM, nil, true); err != nil {
			return fmt.Errorf("discard VM: %w", err)
		}
	}
	return s.removeSockets(o.Move)
}
