package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"heliotrope"
)

// MoveKey is where a move is kept.
func MoveKey(id heliotrope.MoveID) string { return "moves/" + string(id) }

// StartMove writes a new move under id and takes vm for it, both at the revision that it
// returns. ErrMoving when another move has the VM, ErrConflict when there is a move under
// id already, ErrNotFound when the VM has no placement.
func (s *Store) StartMove(ctx context.Context, vm heliotrope.VMID, id heliotrope.MoveID, move any, conds ...Cond) (int64, error) {
	all := append([]Cond{
		RevIs(MoveKey(id), 0),
		Exists(PlacementKey(vm)),
		RevIs(movingKey(vm), 0).Or(fmt.Errorf("move VM %s: %w", vm, ErrMoving)),
	}, conds...)
	return s.Txn(ctx, all, Set(MoveKey(id), move), Set(movingKey(vm), id))
}

// EndMove writes the last state of a move and frees its VM.
func (s *Store) EndMove(ctx context.Context, term uint64, vm heliotrope.VMID, id heliotrope.MoveID, move any, moveRev int64, ops ...Op) (int64, error) {
	conds := []Cond{s.Fenced(term), RevIs(MoveKey(id), moveRev)}
	return s.Txn(ctx, conds, append([]Op{Set(MoveKey(id), move), Delete(movingKey(vm))}, ops...)...)
}

// Moving are the moves that have not ended, by VM.
func (s *Store) Moving(ctx context.Context) (map[heliotrope.VMID]heliotrope.MoveID, error) {
	list, _, err := List[heliotrope.MoveID](ctx, s, "moving/")
	m := make(map[heliotrope.VMID]heliotrope.MoveID, len(list))
	for _, kv := range list {
		m[heliotrope.VMID(kv.Name())] = kv.Value
	}
	return m, err
}

// Commit is the one transaction of a move: VM's owner From becomes To, Epoch becomes
// Epoch+1, From is among the previous owners, and the move is written as Move says.
type Commit struct {
	VM       heliotrope.VMID
	From, To heliotrope.HostID
	Epoch    uint64 // in which the move began
	ID       heliotrope.MoveID
	Move     any   // the move as it is once committed
	MoveRev  int64 // its revision until then
}

// CommitMove does c and returns the revision of both records. ErrConflict when the
// placement is not as c says, or the move has another revision: read both again, since a
// commit whose answer was lost looks like that too.
func (s *Store) CommitMove(ctx context.Context, term uint64, c Commit, ops ...Op) (int64, error) {
	kv, err := Get[heliotrope.Placement](ctx, s, PlacementKey(c.VM))
	if err != nil {
		return 0, fmt.Errorf("commit move: %w", err)
	}
	p := kv.Value
	if p.Host != c.From || p.Epoch != c.Epoch {
		return 0, fmt.Errorf("commit move: %s is at %s in epoch %d, not at %s in epoch %d: %w",
			c.VM, p.Host, p.Epoch, c.From, c.Epoch, ErrConflict)
	}
	p.Previous = slices.DeleteFunc(slices.Clone(p.Previous), func(h heliotrope.HostID) bool { return h == c.To || h == c.From })
	p = heliotrope.Placement{VM: c.VM, Host: c.To, Epoch: c.Epoch + 1, Previous: append(p.Previous, c.From)}
	conds := []Cond{s.Fenced(term), RevIs(MoveKey(c.ID), c.MoveRev), RevIs(PlacementKey(c.VM), kv.Rev)}
	return s.Txn(ctx, conds, append([]Op{Set(PlacementKey(c.VM), p), Set(MoveKey(c.ID), c.Move)}, ops...)...)
}

// ChangePlacement reads vm's placement, lets change alter a copy, and writes it if it
// differs, until nobody changed it in between. Owner and epoch are CommitMove's alone.
func (s *Store) ChangePlacement(ctx context.Context, term uint64, vm heliotrope.VMID, change func(*heliotrope.Placement)) (int64, error) {
	for {
		kv, err := Get[heliotrope.Placement](ctx, s, PlacementKey(vm))
		if err != nil {
			return 0, err
		}
		p := kv.Value
		p.Previous = slices.Clone(p.Previous)
		change(&p)
		if p.Host != kv.Value.Host || p.Epoch != kv.Value.Epoch {
			return 0, fmt.Errorf("change placement of %s: only a commit changes its owner", vm)
		}
		if sameJSON(p, kv.Value) {
			return kv.Rev, nil
		}
		rev, err := Put(ctx, s, PlacementKey(vm), p, kv.Rev, s.Fenced(term))
		if !errors.Is(err, ErrConflict) {
			return rev, err
		}
	}
}
