package hostagent

import (
	"context"
	"fmt"
	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"slices"
	"time"
)

// stepsOf are the steps of each role.
var stepsOf = map[agentapi.Role][]agentapi.Step{
	agentapi.Source:      {agentapi.StepBegin, agentapi.StepCopy, agentapi.StepDrain, agentapi.StepFinish, agentapi.StepResume},
	agentapi.Destination: {agentapi.StepPrepare, agentapi.StepActivate, agentapi.StepDiscard},
}

// put takes an order up and returns what the move is at.
func (s *moves) put(ctx context.Context, o agentapi.MoveOrder) (agentapi.MoveReport, error) {
	if !slices.Contains(stepsOf[o.Role], o.Step) {
		return agentapi.MoveReport{}, fmt.Errorf("%w: %q is no step of a %q", agentapi.ErrInvalid, o.Step, o.Role)
	}
	if err := s.ledger.Fence(o.Term); err != nil {
		return agentapi.MoveReport{}, err
	}
	m, report, err := s.accept(o)
	if err != nil || m == nil {
		return report, err
	}
	select {
	case s.work <- m:
	case <-ctx.Done():
		// It is on disk; whoever repeats the order finds it idle.
		s.mu.Lock()
		defer s.mu.Unlock()
		m.busy, m.Done = false, false
		return report, context.Cause(ctx)
	}
	return report, nil
}

// accept decides about an order. The move is nil if there is nothing to start.
func (s *moves) accept(o agentapi.MoveOrder) (*move, agentapi.MoveReport, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.byID[o.Move]
	if m == nil {
		return s.admit(o)
	}
	if m.Begun.VM != o.VM || m.Begun.Role != o.Role || m.Begun.Peer != o.Peer {
		return nil, agentapi.MoveReport{}, fmt.Errorf("%w: move %s is of another VM, role or peer", agentapi.ErrInvalid, o.Move)
	}
	switch c := compare(o.Step, m.Order.Step); {
	case c < 0, c == 0 && (m.busy || m.Done && !m.again()):
		return nil, m.Report, nil
	case m.next != nil:
		return nil, m.Report, nil
	}
	if o.Step != m.Order.Step {
		if err := m.allows(o); err != nil {
			return nil, m.Report, err
		}
	}
	if err := s.mayRun(o); err != nil {
		return nil, m.Report, err
	}
	if m.busy {
		m.next = &o
		if m.cancel != nil {
			m.cancel()
		}
		return nil, m.Report, nil
	}
	return s.begin(m, o)
}

// again says that a step which failed may be tried again as it is.
func (m *move) again() bool {
	return m.Report.State == agentapi.MoveFailed &&
		slices.Contains([]agentapi.Step{agentapi.StepFinish, agentapi.StepResume, agentapi.StepDiscard}, m.Order.Step)
}

// admit begins a move that is not known here.
func (s *moves) admit(o agentapi.MoveOrder) (*move, agentapi.MoveReport, error) {
	first := map[agentapi.Step]bool{
		agentapi.StepBegin: true, agentapi.StepPrepare: true,
		// An undo that overtakes its first step, or comes though that never came: the
		// step must not be done later.
		agentapi.StepResume: true, agentapi.StepDiscard: true,
	}
	if !first[o.Step] {
		return nil, agentapi.MoveReport{}, fmt.Errorf("%w: move %s", agentapi.ErrUnknown, o.Move)
	}
	if id := s.liveLocked(o.VM, o.Move); id != "" {
		return nil, agentapi.MoveReport{}, fmt.Errorf("%w: %s is in move %s", agentapi.ErrBusy, o.VM, id)
	}
	if s.ordered[o.VM] {
		return nil, agentapi.MoveReport{}, fmt.Errorf("%w: another order for %s is at work", agentapi.ErrBusy, o.VM)
	}
	if err := s.mayRun(o); err != nil {
		return nil, agentapi.MoveReport{}, err
	}
	if err := s.prune(time.Now()); err != nil {
		return nil, agentapi.MoveReport{}, err
	}
	m := &move{news: make(chan struct{})}
	m.Begun = o
	m.Report = agentapi.MoveReport{Move: o.Move, Role: o.Role, State: agentapi.MoveUnknown}
	m, r, err := s.begin(m, o)
	if err == nil {
		s.byID[o.Move] = m
		close(s.begun)
		s.begun = make(chan struct{})
	}
	return m, r, err
}

// begin writes down that a step is at hand.
func (s *moves) begin(m *move, o agentapi.MoveOrder) (*move, agentapi.MoveReport, error) {
	j := m.journal
	j.Order, j.Done, j.At = o, false, time.Now()
	if o.PeerRelay.IsValid() {
		j.PeerRelay = o.PeerRelay.String()
	}
	j.Report.Rev++
	if err := s.save(j); err != nil {
		return nil, m.Report, err
	}
	m.journal, m.busy = j, true
	return m, m.Report, nil
}

// mayRun fences the orders that stand on the right to run the VM here.
func (s *moves) mayRun(o agentapi.MoveOrder) error {
	p := s.ledger.Get(o.VM)
	switch o.Step {
	case agentapi.StepActivate:
		if o.Epoch <= p.Epoch && !(p.Held && o.Epoch == p.Epoch) {
			return fmt.Errorf("%w: epoch %d of %s is over here", agentapi.ErrStale, o.Epoch, o.VM)
		}
	case agentapi.StepBegin, agentapi.StepCopy, agentapi.StepResume:
		if !p.Held || p.Epoch != o.Epoch {
			return fmt.Errorf("%w: this host's permit for %s is of epoch %d (held: %t), not %d", agentapi.ErrStale, o.VM, p.Epoch, p.Held, o.Epoch)
		}
	case agentapi.StepPrepare:
		if p.Held {
			return fmt.Errorf("%w: %s runs here already, by its permit of epoch %d", agentapi.ErrInvalid, o.VM, p.Epoch)
		}
		if o.Epoch < p.Epoch {
			return fmt.Errorf("%w: epoch %d of %s is over here", agentapi.ErrStale, o.Epoch, o.VM)
		}
	}
	return nil
}

// allows says whether o may follow what the move is at.
func (m *move) allows(o agentapi.MoveOrder) error {
	state, at := m.Report.State, m.Order.Step
	ok, undo := false, false
	switch o.Step {
	case agentapi.StepCopy:
		ok = state == agentapi.MoveBegun
	case agentapi.StepDrain:
		ok = state == agentapi.MoveReleased
	case agentapi.StepFinish:
		ok = state == agentapi.MoveReleased || state == agentapi.MoveDrained ||
			state == agentapi.MoveFailed && (at == agentapi.StepDrain || at == agentapi.StepFinish)
	case agentapi.StepActivate:
		ok = state == agentapi.MovePrepared
	case agentapi.StepResume:
		ok, undo = at != agentapi.StepFinish, true
	case agentapi.StepDiscard:
		undo = true
		ok = at != agentapi.StepActivate || state == agentapi.MoveFailed
		if at == agentapi.StepActivate && m.busy {
			return fmt.Errorf("%w: the VM is being started here", agentapi.ErrBusy)
		}
	}
	switch {
	case m.busy && !undo:
		return fmt.Errorf("%w: %s is at work", agentapi.ErrBusy, at)
	case !ok:
		return fmt.Errorf("%w: %s cannot follow %s, which came to %s", agentapi.ErrInvalid, o.Step, at, state)
	}
	return nil
}

var _ agentapi.Moves = moveService{}

// moveService is what the controller sees of moves.
type moveService struct{ *moves }

func (s moveService) PutMove(ctx context.Context, o agentapi.MoveOrder) (agentapi.MoveReport, error) {
	return s.put(ctx, o)
}

func (s moveService) GetMove(ctx context.Context, id heliotrope.MoveID, role agentapi.Role, after uint64) agentapi.MoveReport {
	r := s.get(ctx, id, role, after)
	if w := s.arrived(ctx, r); w != nil {
		r.DiskWrites = w
	}
	return r
}

func (s moveService) Watch(ctx context.Context) <-chan agentapi.Event { return s.hub.watch(ctx) }
