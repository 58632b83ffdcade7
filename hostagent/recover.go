package hostagent

import (
	"context"
	"errors"
	"fmt"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/libvirt"
	"time"
)

// errRestarted is why a step that cannot be taken up again has failed.
var errRestarted = errors.New("the agent was restarted in the middle of it")

// recover takes up a move after a restart of the agent, from the journal and what libvirt
// says. The controller learns no state before it is true.
func (s *moves) recover(ctx context.Context, m *move) {
	j := m.journal
	s.log.Info("move is taken up again", "move", j.Begun.Move, "vm", j.Begun.VM, "step", j.Order.Step, "done", j.Done, "state", j.Report.State)
	if j.Begun.Role == agentapi.Source {
		s.recoverSource(ctx, m, j)
	} else {
		s.recoverDestination(ctx, m, j)
	}
	if ctx.Err() == nil && s.goOn(m) {
		s.take(ctx, m)
	}
}

func (s *moves) recoverSource(ctx context.Context, m *move, j journal) {
	switch {
	case j.Done && (j.Report.State == agentapi.MoveReleased || j.Report.State == agentapi.MoveDrained || j.Order.Step == agentapi.StepDrain):
		// Only the controller knows who owns it now.
	case j.Order.Step == agentapi.StepDrain, j.Order.Step == agentapi.StepFinish, j.Order.Step == agentapi.StepResume:
		s.step(ctx, ctx, m, j.Order)
	default:
		// "Released" was not on disk, so nobody was told, so nothing is committed.
		s.undo(ctx, m, j.Begun.VM)
		if ctx.Err() == nil {
			s.fail(ctx, m, fmt.Errorf("%s: %w", j.Order.Step, errRestarted))
		}
	}
}

func (s *moves) recoverDestination(ctx context.Context, m *move, j journal) {
	var d libvirt.Domain
	s.insist(ctx, m, func() error {
		hv, err := s.conn.get(ctx)
		if err == nil {
			d, err = find(ctx, hv, j.Begun.VM)
		}
		return err
	})
	if ctx.Err() != nil {
		return
	}
	held := d.State == agentapi.VMIncoming || d.State == agentapi.VMPaused
	switch {
	case j.Order.Step == agentapi.StepDiscard:
		s.step(ctx, ctx, m, j.Order)
	case j.Order.Step == agentapi.StepActivate:
		s.recoverActivation(ctx, m, j, d.State, held)
	case j.Done && held:
		// The streams have ended with the agent, but if all had been sent it can still run.
		s.expect(m, j.Begun)
	default:
		s.insist(ctx, m, func() error { return s.throwAway(ctx, j.Begun) })
		if ctx.Err() == nil {
			s.fail(ctx, m, fmt.Errorf("%s: %w", j.Order.Step, errRestarted))
		}
	}
}

func (s *moves) recoverActivation(ctx context.Context, m *move, j journal, state agentapi.VMState, held bool) {
	p := s.ledger.Get(j.Begun.VM)
	permitted := p.Held && p.Epoch == j.Order.Epoch
	switch {
	case state == agentapi.VMRunning && permitted:
		s.expect(m, j.Begun) // for the packets that the source still has
		s.active(ctx, m, j.Order, time.Time{})
	case held:
		s.expect(m, j.Begun)
		s.stepActivate(ctx, m, j.Order)
	case !permitted:
		// It was not even tried.
		s.insist(ctx, m, func() error { return s.throwAway(ctx, j.Begun) })
		s.fail(ctx, m, fmt.Errorf("%w: %w", errNeverRan, errRestarted))
	default:
		s.doubt(ctx, m, fmt.Errorf("it is not known whether the VM ran here; it is %s now: %w", state, errRestarted))
	}
}
