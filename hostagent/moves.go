package hostagent

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/durable"
	"heliotrope/hostagent/libvirt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"heliotrope/migration/relay"
)

const (
	journalKept = time.Hour // after a move has ended here
	revJump     = 1 << 20   // revisions between the journal and what may have been told before a crash
)

// journal is what is on disk of a move.
type journal struct {
	Begun     agentapi.MoveOrder  `json:"begun"` // the first order: VM, epoch, role, peer
	Order     agentapi.MoveOrder  `json:"order"` // of the step that is at hand, or done
	Done      bool                `json:"done"`
	Report    agentapi.MoveReport `json:"report"`
	PeerRelay string              `json:"peer_relay,omitempty"` // source: of the copy order
	XML       string              `json:"xml,omitempty"`        // source: of the description
	At        time.Time           `json:"at"`
}

// move is one move that this host has a part in.
type move struct {
	journal
	busy   bool                // a step is at work
	next   *agentapi.MoveOrder // ordered meanwhile; the step at work is to give up
	cancel context.CancelFunc  // of the step at work
	news   chan struct{}       // closed at the next change
	catch  catcher             // source: of a copy that began in this process; the steps' own
	writes *writeWatch         // source: of a VM with disks whose move began in this process; the steps' own
	client *relay.Client       // source: the way to the destination; the steps' own
}

// moves is this host's part in all moves. A step is worked on by a goroutine of run, so
// it outlives the order's connection.
type moves struct {
	dir     string // journals
	runDir  string // sockets
	diskDir string // VMs' disks
	user    string // whose QEMU connects to them
	log     *slog.Logger
	conn    *connection
	ledger  *durable.Ledger
	hub     *hub
	relay   *relay.Server
	to      func(peer heliotrope.HostID, tenant heliotrope.TenantID, addr string) (*relay.Client, error)
	work    chan *move

	mu      sync.Mutex
	byID    map[heliotrope.MoveID]*move
	begun   chan struct{}            // closed when a move is added
	ordered map[heliotrope.VMID]bool // an order that is no move's is being carried out
}

// load reads the journals. What was at work is queued for recovery by run.
func (s *moves) load() error {
	s.work = make(chan *move)
	s.byID, s.begun = map[heliotrope.MoveID]*move{}, make(chan struct{})
	s.ordered = map[heliotrope.VMID]bool{}
	all, err := durable.ReadAll[journal](s.dir)
	for id, j := range all {
		j.Report.Rev += revJump
		s.byID[heliotrope.MoveID(id)] = &move{journal: j, busy: !j.ended(), news: make(chan struct{})}
	}
	return err
}

// ended says that nothing is left to do or to wait for.
func (j journal) ended() bool {
	if !j.Done {
		return false
	}
	switch j.Report.State {
	case agentapi.MoveActive, agentapi.MoveFinished, agentapi.MoveResumed, agentapi.MoveDiscarded:
		return true
	case agentapi.MoveFailed:
		// Everything but a source that has released its VM.
		return j.Order.Step != agentapi.StepDrain
	}
	return false
}

// run works on steps until ctx ends and waits for them.
func (s *moves) run(ctx context.Context) error {
	var steps sync.WaitGroup
	defer func() {
		steps.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, m := range s.byID {
			m.client.Close()
		}
	}()
	s.mu.Lock()
	for _, m := range s.byID {
		if m.busy {
			steps.Go(func() { s.recover(ctx, m) })
		}
	}
	s.mu.Unlock()
	for {
		select {
		case m := <-s.work:
			steps.Go(func() { s.take(ctx, m) })
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// take works on the order of m, and on those that come while it does.
func (s *moves) take(ctx context.Context, m *move) {
	for {
		sctx, cancel := context.WithCancel(ctx)
		s.mu.Lock()
		m.cancel = cancel
		if m.next != nil {
			cancel()
		}
		order := m.Order
		s.mu.Unlock()
		s.log.Info("move step begins", "move", order.Move, "vm", order.VM, "step", order.Step)
		s.step(sctx, ctx, m, order)
		cancel()
		if ctx.Err() != nil || !s.goOn(m) {
			return
		}
	}
}

// goOn makes the order that came meanwhile the one at hand; false if there is none.
func (s *moves) goOn(m *move) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.cancel = nil
	if m.next == nil {
		m.busy = false
		return false
	}
	j := m.journal
	j.Order, j.Done, j.At = *m.next, false, time.Now()
	m.next = nil
	if err := s.save(j); err != nil {
		// It is not begun without being on disk. The controller repeats it.
		s.log.Error("cannot begin a step", "move", j.Begun.Move, "error", err)
		m.busy = false
		return false
	}
	m.journal = j
	return true
}

// superseded says that the step at work was told to give up for another one.
func (s *moves) superseded(m *move) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return m.next != nil
}

func (s *moves) save(j journal) error {
	data, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("encode journal: %w", err)
	}
	return durable.WriteFile(filepath.Join(s.dir, string(j.Begun.Move)+".json"), data, 0o600)
}

// end writes down that the step at work has come to what change makes of the report, and
// only then says so.
func (s *moves) end(m *move, change func(*agentapi.MoveReport)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := m.journal
	change(&j.Report)
	j.Report.Rev++
	j.Done, j.At = true, time.Now()
	if err := s.save(j); err != nil {
		return err
	}
	m.journal = j
	s.announce(m)
	return nil
}

// note changes the report of a step that goes on. It is not worth a write to disk.
func (s *moves) note(m *move, change func(*agentapi.MoveReport)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&m.Report)
	m.Report.Rev++
	s.announce(m)
}

func (s *moves) announce(m *move) {
	close(m.news)
	m.news = make(chan struct{})
	s.hub.tell(agentapi.Event{Kind: "move", VM: m.Begun.VM, Move: m.Begun.Move, At: time.Now(), What: string(m.Report.State)})
}

// fail ends a step that will not be done.
func (s *moves) fail(ctx context.Context, m *move, err error) {
	s.log.Warn("move step failed", "move", m.Begun.Move, "vm", m.Begun.VM, "step", m.Order.Step, "error", err)
	s.insist(ctx, m, func() error {
		return s.end(m, func(r *agentapi.MoveReport) { r.State, r.Error = agentapi.MoveFailed, err.Error() })
	})
}

// insist repeats f until it succeeds or ctx ends, and reports why it did not.
func (s *moves) insist(ctx context.Context, m *move, f func() error) {
	for wait := 100 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, 5*time.Second) {
		err := f()
		if err == nil || ctx.Err() != nil {
			return
		}
		s.log.Warn("move step is tried again", "move", m.Begun.Move, "step", m.Order.Step, "error", err)
		s.note(m, func(r *agentapi.MoveReport) { r.Error = err.Error() })
		pause(ctx, wait)
	}
}

// get returns the report of a move once its revision is not after any more.
func (s *moves) get(ctx context.Context, id heliotrope.MoveID, role agentapi.Role, after uint64) agentapi.MoveReport {
	for {
		s.mu.Lock()
		m := s.byID[id]
		report, news := agentapi.MoveReport{Move: id, Role: role, State: agentapi.MoveUnknown}, s.begun
		if m != nil && (role == "" || m.Begun.Role == role) {
			report, news = m.Report, m.news
		}
		s.mu.Unlock()
		if report.Rev != after {
			return report
		}
		select {
		case <-news:
		case <-ctx.Done():
			return report
		}
	}
}

// live returns the move that vm is in here, if any.
func (s *moves) live(vm heliotrope.VMID) heliotrope.MoveID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.liveLocked(vm, "")
}

// moving says whether a move is under way here, and gives a channel that is closed when the
// next one begins.
func (s *moves) moving() (bool, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.byID {
		if m.busy || !m.ended() {
			return true, s.begun
		}
	}
	return false, s.begun
}

func (s *moves) liveLocked(vm heliotrope.VMID, except heliotrope.MoveID) heliotrope.MoveID {
	for id, m := range s.byID {
		if m.Begun.VM == vm && id != except && (m.busy || !m.ended()) {
			return id
		}
	}
	return ""
}

// exclude keeps moves of vm from beginning until release is called, for an order that is
// no move's.
func (s *moves) exclude(vm heliotrope.VMID) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id := s.liveLocked(vm, ""); id != "" {
		return nil, fmt.Errorf("%w: %s is in move %s", agentapi.ErrBusy, vm, id)
	}
	if s.ordered[vm] {
		return nil, fmt.Errorf("%w: another order for %s is at work", agentapi.ErrBusy, vm)
	}
	s.ordered[vm] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.ordered, vm)
	}, nil
}

// prune forgets moves that ended long ago.
func (s *moves) prune(now time.Time) error {
	for id, m := range s.byID {
		if m.busy || !m.ended() || now.Sub(m.At) < journalKept {
			continue
		}
		if err := durable.RemoveFile(filepath.Join(s.dir, string(id)+".json")); err != nil {
			return fmt.Errorf("remove journal: %w", err)
		}
		s.relay.Forget(id)
		delete(s.byID, id)
	}
	return nil
}

// sockets makes the directory of a move's sockets, for QEMU's user alone.
func (s *moves) sockets(id heliotrope.MoveID) (memory, disk string, err error) {
	dir := s.socketDir(id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", fmt.Errorf("make socket directory: %w", err)
	}
	memory, disk = filepath.Join(dir, "memory.sock"), filepath.Join(dir, "disk.sock")
	return memory, disk, libvirt.GiveTo(s.user, dir)
}

func (s *moves) socketDir(id heliotrope.MoveID) string {
	return filepath.Join(s.runDir, "moves", string(id))
}

var ranks = []agentapi.Step{
	agentapi.StepBegin, agentapi.StepPrepare, agentapi.StepCopy, agentapi.StepDrain,
	agentapi.StepActivate, agentapi.StepFinish, agentapi.StepResume, agentapi.StepDiscard,
}

// compare says which of two steps of a role comes later.
func compare(a, b agentapi.Step) int {
	return cmp.Compare(slices.Index(ranks, a), slices.Index(ranks, b))
}
