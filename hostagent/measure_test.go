package hostagent

import (
	"errors"
	"heliotrope/hostagent/agentapi"
	"heliotrope/hostagent/durable"
	"testing"
)

// Nobody measures a host while a move is under way there, and whoever asks before knows
// when one begins.
func TestMoveKeepsBenchAway(t *testing.T) {
	w := newWorld(t)
	w.start(vm, "a", 1)
	if r, err := w.take(source(agentapi.StepBegin), agentapi.MoveBegun); err != nil || r.State != agentapi.MoveBegun {
		t.Fatalf("begin: got %+v, %v", r, err)
	}
	for term, want := range map[uint64]error{0: agentapi.ErrStale, 1: agentapi.ErrBusy} {
		if m, err := w.agent("a").Measure(w.ctx, agentapi.BenchOrder{Term: term}); !errors.Is(err, want) {
			t.Errorf("term %d: got %+v, %v, want %v", term, m, err, want)
		}
	}

	book, err := durable.OpenLedger(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &moves{dir: t.TempDir(), ledger: book}
	if err := s.load(); err != nil {
		t.Fatal(err)
	}
	moving, begins := s.moving()
	if moving {
		t.Error("there is no move")
	}
	if _, _, err := s.admit(agentapi.MoveOrder{Move: "m", VM: vm, Role: agentapi.Destination, Step: agentapi.StepDiscard}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-begins:
	default:
		t.Error("a move has begun, and nobody was told")
	}
	if moving, _ := s.moving(); !moving {
		t.Error("a move is under way")
	}
}
