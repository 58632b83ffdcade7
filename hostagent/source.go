package hostagent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/images"
	"heliotrope/hostagent/libvirt"
	"heliotrope/hostagent/memory"
	"heliotrope/migration"
	"heliotrope/migration/relay"
	"os"
	"path/filepath"
	"time"
)

const (
	drainQuiet = 20 * time.Millisecond // without a packet: the queue is empty and stays so
	drainTries = 5
)

// step carries out the order at hand. ctx ends when another order takes its place, or the
// agent ends; life only when the agent ends, and what must be done in any case goes by it.
// A step that the end of the agent cuts short is left as it is, for recover.
func (s *moves) step(ctx, life context.Context, m *move, o agentapi.MoveOrder) {
	switch o.Step {
	case agentapi.StepBegin:
		s.stepBegin(ctx, life, m, o)
	case agentapi.StepCopy:
		s.stepCopy(ctx, life, m, o)
	case agentapi.StepDrain:
		s.stepDrain(ctx, life, m, o)
	case agentapi.StepFinish:
		s.insist(life, m, func() error { return s.finish(life, m, o) })
	case agentapi.StepResume:
		s.insist(life, m, func() error { return s.resume(life, m, o) })
	case agentapi.StepPrepare:
		s.stepPrepare(ctx, life, m, o)
	case agentapi.StepActivate:
		s.stepActivate(life, m, o)
	case agentapi.StepDiscard:
		s.insist(life, m, func() error { return s.discard(life, m, o) })
	}
}

func (s *moves) stepBegin(ctx, life context.Context, m *move, o agentapi.MoveOrder) {
	if client, err := s.way(m); err == nil {
		client.Ahead(relay.Memory, relay.Disk, relay.Packets) // what fails is told by the copy
	}
	hv, err := s.conn.get(ctx)
	var d libvirt.Description
	if err == nil {
		d, err = hv.Begin(ctx, o.VM)
	}
	if err == nil {
		s.mu.Lock()
		m.XML = d.XML
		s.mu.Unlock()
		if m.writes == nil && len(d.Disks) > 0 {
			m.writes = &writeWatch{}
			s.watchWrites(ctx, m, migration.WritesBefore, time.Now())
		}
		err = s.end(m, func(r *agentapi.MoveReport) {
			r.State, r.XML, r.Disks, r.Cookie = agentapi.MoveBegun, d.XML, d.Disks, d.Cookie
		})
	}
	if err != nil && life.Err() == nil && !s.superseded(m) {
		s.undo(life, m, o.VM)
		s.fail(life, m, fmt.Errorf("begin move: %w", err))
	}
}

func (s *moves) stepCopy(ctx, life context.Context, m *move, o agentapi.MoveOrder) {
	cookie, err := s.copy(ctx, m, o)
	if life.Err() != nil {
		return
	}
	if err == nil {
		// Nobody is told "released" before it is on disk: until then the VM may be run
		// here again, and after that only by order.
		err = s.end(m, func(r *agentapi.MoveReport) { r.State, r.Cookie = agentapi.MoveReleased, cookie })
	}
	if err != nil && !s.superseded(m) {
		s.undo(life, m, o.VM)
		s.fail(life, m, fmt.Errorf("copy VM: %w", err))
	}
}

// way is the way to the destination, which is the same as long as the move is in this process.
func (s *moves) way(m *move) (_ *relay.Client, err error) {
	if m.client == nil {
		m.client, err = s.to(m.Begun.Peer, m.Begun.Tenant, m.PeerRelay)
	}
	return m.client, err
}

// copy sends the VM through the destination's relay.
func (s *moves) copy(ctx context.Context, m *move, o agentapi.MoveOrder) ([]byte, error) {
	hv, err := s.conn.get(ctx)
	if err != nil {
		return nil, err
	}
	client, err := s.way(m)
	if err != nil {
		return nil, err
	}
	client.GuestPages, client.Image = libvirt.MemoryPages(m.XML), images.Root(m.XML)
	memory.Together(client, o)
	ramSocket, diskSocket, err := s.sockets(o.Move)
	if err != nil {
		return nil, err
	}
	streams, err := client.Forwarders(ctx, relay.Header{Move: o.Move, VM: o.VM}, map[relay.Kind]string{relay.Memory: ramSocket, relay.Disk: diskSocket},
		func(path string) error { return libvirt.GiveTo(s.user, path) })
	if err != nil {
		return nil, err
	}
	defer streams.Close() // not before the copy's end, or that would not get through
	if err := streams.Open(ctx, len(m.Report.Disks)); err != nil {
		return nil, err
	}
	// Whatever arrives once the vCPUs have stopped is to be found again.
	if m.catch, err = hv.Catch(ctx, o.VM); err != nil {
		return nil, err
	}
	s.note(m, func(r *agentapi.MoveReport) { r.State = agentapi.MoveCopying })
	s.watchWrites(ctx, m, migration.WritesBulk, time.Now())
	count := func(p *agentapi.MoveProgress) {
		p.RelayBytes, p.DiskBytes, p.Codec = client.Sent(), streams.Written(), client.Codec()
		p.Memory, p.Blocks = memory.Parts(client.Memory()), memory.Parts(client.Disks())
	}
	passes := memory.NewPasses(cmp.Or(time.Duration(o.MaxDowntime), libvirt.DefaultDowntime))
	stopped := false // no question more than needed in the pause
	cookie, err := hv.Perform(ctx, libvirt.Outgoing{
		VM: o.VM, XML: m.XML, Cookie: o.Cookie, MemorySocket: ramSocket, DiskSocket: diskSocket,
		MaxDowntime: time.Duration(o.MaxDowntime), MaxRate: o.MaxRate, MaxSlowdown: o.MaxSlowdown,
		Progress: func(p agentapi.MoveProgress) (course libvirt.Course) {
			count(&p)
			p.Passes, course = passes.Saw(p, time.Now())
			if !stopped {
				in := migration.WritesBulk
				if p.Rounds > 0 {
					in = migration.WritesMirror
				}
				s.watchWrites(ctx, m, in, time.Now())
			}
			s.note(m, func(r *agentapi.MoveReport) { r.Progress, r.DiskWrites = p, m.writes.now() })
			return course
		},
		Paused: func(at time.Time) {
			stopped = true
			s.note(m, func(r *agentapi.MoveReport) { r.State, r.PausedAt = agentapi.MovePaused, at })
		},
	})
	broken := streams.Close()
	s.note(m, func(r *agentapi.MoveReport) { count(&r.Progress) })
	if n := streams.Owed(); err == nil && n > 0 {
		err = fmt.Errorf("%d writes to the disk did not arrive", n)
	}
	if err != nil {
		return nil, errors.Join(err, broken)
	}
	return cookie, nil
}

// undo gives a move up that the controller cannot have committed: the VM runs here. It
// returns once it does, or is gone.
func (s *moves) undo(life context.Context, m *move, vm heliotrope.VMID) {
	s.insist(life, m, func() error { return s.runAgain(life, vm) })
	s.letGo(m)
}

// letGo ends what a copy has of its own.
func (s *moves) letGo(m *move) {
	m.client.Close()
	if m.client = nil; m.catch == nil {
		return
	}
	if err := m.catch.Close(); err != nil {
		s.log.Warn("packets are still recorded", "vm", m.Begun.VM, "error", err)
	}
	m.catch = nil
}

// runAgain ends what libvirt has of a move and makes the VM run, unless it has ended.
func (s *moves) runAgain(ctx context.Context, vm heliotrope.VMID) error {
	hv, d, err := s.conn.find(ctx, vm)
	if err != nil {
		return err
	}
	if !hasQEMU(d.State) {
		return nil
	}
	return hv.Confirm(ctx, vm, nil, true)
}

func hasQEMU(state agentapi.VMState) bool {
	return state == agentapi.VMRunning || state == agentapi.VMPaused || state == agentapi.VMIncoming
}

// resume makes the VM run here again, by order.
func (s *moves) resume(ctx context.Context, m *move, o agentapi.MoveOrder) error {
	if err := s.runAgain(ctx, o.VM); err != nil {
		return fmt.Errorf("resume VM: %w", err)
	}
	s.letGo(m)
	_, d, err := s.conn.find(ctx, o.VM)
	if err != nil {
		return err
	}
	if err := s.removeSockets(o.Move); err != nil {
		return err
	}
	return s.end(m, func(r *agentapi.MoveReport) {
		r.State, r.Error = agentapi.MoveResumed, ""
		if d.State != agentapi.VMRunning {
			// There is nothing to resume. To start it anew is another order.
			r.Error = fmt.Sprintf("the VM ended while it was moved: it is %s", d.State)
		}
	})
}

// finish removes the VM, which runs elsewhere.
func (s *moves) finish(ctx context.Context, m *move, o agentapi.MoveOrder) error {
	hv, err := s.conn.get(ctx)
	if err != nil {
		return err
	}
	s.letGo(m)
	s.watchWrites(ctx, m, m.writes.on(), m.Report.PausedAt)
	if err := hv.Confirm(ctx, o.VM, o.Cookie, false); err != nil {
		return fmt.Errorf("remove moved VM: %w", err)
	}
	if err := s.ledger.Revoke(o.VM); err != nil {
		return err
	}
	if err := s.removeSockets(o.Move); err != nil {
		return err
	}
	return s.end(m, func(r *agentapi.MoveReport) {
		if r.State, r.Error = agentapi.MoveFinished, ""; m.writes != nil {
			r.DiskWrites = m.writes.now()
		}
	})
}

func (s *moves) removeSockets(id heliotrope.MoveID) error {
	if err := os.RemoveAll(s.socketDir(id)); err != nil {
		return fmt.Errorf("remove sockets: %w", err)
	}
	return nil
}

func (s *moves) stepDrain(ctx, life context.Context, m *move, o agentapi.MoveOrder) {
	rescued, err := s.drain(ctx, m, o)
	switch {
	case life.Err() != nil || s.superseded(m):
	case err != nil:
		s.note(m, func(r *agentapi.MoveReport) { r.Rescued = rescued })
		s.fail(life, m, fmt.Errorf("drain: %w", err))
	default:
		s.insist(life, m, func() error {
			return s.end(m, func(r *agentapi.MoveReport) { r.State, r.Rescued = agentapi.MoveDrained, rescued })
		})
	}
}

// drain sends on what waits for the stopped VM, and returns how many frames the
// destination took.
func (s *moves) drain(ctx context.Context, m *move, o agentapi.MoveOrder) (rescued int, err error) {
	hv, d, err := s.conn.find(ctx, o.VM)
	if err != nil {
		return 0, err
	}
	if d.State != agentapi.VMPaused {
		return 0, fmt.Errorf("the VM is %s here, not paused", d.State)
	}
	client, err := s.way(m)
	if err != nil {
		return 0, err
	}
	// An agent that died in the middle begins anew: its batches must not look like old ones.
	h := relay.Header{Move: o.Move, VM: o.VM, Batch: uint64(time.Now().UnixNano())}
	for quiet := false; ; h.Batch++ {
		frames, readErr := caught(ctx, hv, m.catch, d)
		n, err := sendFrames(ctx, client, h, frames)
		rescued += n
		if err := errors.Join(readErr, err); err != nil {
			return rescued, err
		}
		if len(frames) == 0 && quiet {
			return rescued, nil
		}
		if quiet = len(frames) == 0; quiet {
			pause(ctx, drainQuiet)
		}
	}
}

// caught takes the frames that the stopped VM has not received. After a restart of the
// agent it is those in its taps' queues, without the one that QEMU took.
func caught(ctx context.Context, hv queues, c catcher, d libvirt.Domain) (frames []libvirt.Frame, err error) {
	if c != nil {
		return c.Frames(ctx)
	}
	for _, tap := range d.Taps {
		queued, err := hv.CaughtPackets(d.PID, tap.Name)
		for _, data := range queued {
			frames = append(frames, libvirt.Frame{NIC: tap.NIC, Data: data})
		}
		if err != nil {
			return frames, fmt.Errorf("read queue of %s: %w", tap.Name, err)
		}
	}
	return frames, nil
}

// sendFrames sends each NIC's frames in their order.
func sendFrames(ctx context.Context, client *relay.Client, h relay.Header, frames []libvirt.Frame) (sent int, err error) {
	byNIC := map[int][][]byte{}
	for _, f := range frames {
		byNIC[f.NIC] = append(byNIC[f.NIC], f.Data)
	}
	for nic, batch := range byNIC {
		h.NIC = nic
		n, sendErr := sendBatch(ctx, client, h, batch)
		sent, err = sent+n, errors.Join(err, sendErr)
	}
	return sent, err
}

// sendBatch repeats itself: the frames are nowhere else any more.
func sendBatch(ctx context.Context, client *relay.Client, h relay.Header, frames [][]byte) (n int, err error) {
	for range drainTries {
		if n, err = client.SendPackets(ctx, h, frames); err == nil || ctx.Err() != nil {
			break
		}
		pause(ctx, 50*time.Millisecond)
	}
	if err != nil {
		return 0, fmt.Errorf("send on %d packets: %w", len(frames), err)
	}
	return n, nil
}

// mkdirs makes the directories that an agent keeps its things in.
func mkdirs(c Config) error {
	for _, dir := range []string{c.StateDir, c.RunDir, filepath.Join(c.RunDir, "moves")} {
		// Everybody may pass: QEMU's user has a directory of its own in there.
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	return nil
}
