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

// ErrOwner says that a VM is not where a commit wants to take it from.
var ErrOwner = errors.New("the VM has another owner by now")

// ChangeOwner is the commit of a move: in one transaction vm's owner from becomes to, and
// the epoch epoch+1. Where that has happened already it does nothing, since a commit whose
// answer was lost is done again. ErrOwner when the VM is elsewhere, or in another epoch.
func (s *Store) ChangeOwner(ctx context.Context, term uint64, vm heliotrope.VMID, from, to heliotrope.HostID, epoch uint64) (int64, error) {
	kv, err := Get[heliotrope.Placement](ctx, s, PlacementKey(vm))
	if err != nil {
		return 0, fmt.Errorf("change owner: %w", err)
	}
	p := kv.Value
	if p.Host == to && p.Epoch == epoch+1 {
		return kv.Rev, nil
	}
	if p.Host != from || p.Epoch != epoch {
		return 0, fmt.Errorf("%w: %s is at %s in epoch %d", ErrOwner, vm, p.Host, p.Epoch)
	}
	p = heliotrope.Placement{VM: vm, Host: to, Epoch: epoch + 1, Previous: []heliotrope.HostID{from}}
	return Put(ctx, s, kv.Key, p, kv.Rev, s.Fenced(term))
}

// ChangePlacement reads vm's placement, lets change alter a copy, and writes it if it
// differs, until nobody changed it in between. Owner and epoch are ChangeOwner's alone.
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
