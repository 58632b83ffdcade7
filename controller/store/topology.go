package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"heliotrope"
)

const historyKept = 10

// Applied is the topology document: what is in force. Passwords of peers are kept apart,
// since a Topology leaves them out of its JSON.
type Applied struct {
	Topology  heliotrope.Topology          `json:"topology"`
	Passwords map[heliotrope.PeerID]string `json:"passwords,omitempty"`
}

func applied(t heliotrope.Topology) Applied {
	a := Applied{Topology: t}
	for name, p := range t.Peers {
		if p.Password == "" {
			continue
		}
		if a.Passwords == nil {
			a.Passwords = map[heliotrope.PeerID]string{}
		}
		a.Passwords[name] = p.Password
	}
	return a
}

// Full is the topology with its passwords.
func (a Applied) Full() heliotrope.Topology {
	for name, password := range a.Passwords {
		p := a.Topology.Peers[name]
		p.Password = password
		a.Topology.Peers[name] = p
	}
	return a.Topology
}

// PlacementKey is where the placement of a VM is kept.
func PlacementKey(vm heliotrope.VMID) string { return "placements/" + string(vm) }
func tombstoneKey(vm heliotrope.VMID) string { return "tombstones/" + string(vm) }
func movingKey(vm heliotrope.VMID) string    { return "moving/" + string(vm) }

// Topology is the one in force with its revision; ErrNotFound before the first.
func (s *Store) Topology(ctx context.Context) (heliotrope.Topology, int64, error) {
	kv, err := Get[Applied](ctx, s, "topology")
	if err != nil {
		return heliotrope.Topology{}, 0, err
	}
	return kv.Value.Full(), kv.Rev, nil
}

// Placements are those of all VMs of the topology.
func (s *Store) Placements(ctx context.Context) (map[heliotrope.VMID]KV[heliotrope.Placement], int64, error) {
	list, rev, err := List[heliotrope.Placement](ctx, s, "placements/")
	return byVM(list), rev, err
}

// Tombstones are the last placements of VMs that the topology no longer has. One goes
// away when its VM comes back, or by BuryVM.
func (s *Store) Tombstones(ctx context.Context) (map[heliotrope.VMID]KV[heliotrope.Placement], error) {
	list, _, err := List[heliotrope.Placement](ctx, s, "tombstones/")
	return byVM(list), err
}

func byVM(list []KV[heliotrope.Placement]) map[heliotrope.VMID]KV[heliotrope.Placement] {
	m := make(map[heliotrope.VMID]KV[heliotrope.Placement], len(list))
	for _, kv := range list {
		m[kv.Value.VM] = kv
	}
	return m
}

// ApplyTopology puts t in force at one revision, which it returns, together with a first
// placement for each new VM and a tombstone for each that is gone. A VM that comes back
// goes on with the epoch after its tombstone's. The one in force must have revision
// ifMatch (0: there is none; Any), else ErrConflict; a VM that is on the move cannot go:
// ErrMoving. Where t is in force already nothing is written, whatever ifMatch says.
// conds are further conditions, such as Fenced.
func (s *Store) ApplyTopology(ctx context.Context, t heliotrope.Topology, ifMatch int64, conds ...Cond) (int64, error) {
	for range 20 {
		rev, err := s.tryApply(ctx, t, ifMatch, conds)
		if !errors.Is(err, errRaced) {
			return rev, err
		}
	}
	return 0, fmt.Errorf("apply topology: placements keep changing: %w", ErrConflict)
}

// errRaced says that a placement changed between reading and writing: look again.
var errRaced = errors.New("raced")

func (s *Store) tryApply(ctx context.Context, t heliotrope.Topology, ifMatch int64, conds []Cond) (int64, error) {
	old, err := Get[Applied](ctx, s, "topology")
	if err != nil && !errors.Is(err, ErrNotFound) {
		return 0, err
	}
	doc := applied(t)
	if old.Rev != 0 && sameJSON(old.Value, doc) {
		return old.Rev, nil
	}
	if ifMatch != Any && ifMatch != old.Rev {
		return 0, fmt.Errorf("apply topology: it is at revision %d, not %d: %w", old.Rev, ifMatch, ErrConflict)
	}
	placed, err := s.placementOps(ctx, t)
	if err != nil {
		return 0, err
	}
	history, err := s.historyOps(ctx, old)
	if err != nil {
		return 0, err
	}
	again := RevIs("topology", old.Rev)
	if ifMatch == Any {
		again = again.Or(errRaced)
	}
	all := slices.Concat([]Cond{again}, placed.conds, conds)
	return s.Txn(ctx, all, slices.Concat([]Op{Set("topology", doc)}, placed.ops, history)...)
}

func sameJSON(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// guarded are writes with the conditions under which they are right.
type guarded struct {
	conds []Cond
	ops   []Op
}

func (s *Store) placementOps(ctx context.Context, t heliotrope.Topology) (guarded, error) {
	var g guarded
	have, _, err := s.Placements(ctx)
	if err != nil {
		return g, err
	}
	dead, err := s.Tombstones(ctx)
	if err != nil {
		return g, err
	}
	for vm, spec := range t.VMs {
		if _, ok := have[vm]; ok {
			// Only if it is still there: somebody may have removed it meanwhile.
			g.conds = append(g.conds, Exists(PlacementKey(vm)).Or(errRaced))
			continue
		}
		g.conds = append(g.conds,
			RevIs(PlacementKey(vm), 0).Or(errRaced),
			RevIs(tombstoneKey(vm), dead[vm].Rev).Or(errRaced))
		g.ops = append(g.ops,
			Set(PlacementKey(vm), heliotrope.Placement{VM: vm, Host: spec.Host, Epoch: dead[vm].Value.Epoch + 1}),
			Delete(tombstoneKey(vm)))
	}
	for vm, p := range have {
		if _, ok := t.VMs[vm]; ok {
			continue
		}
		g.conds = append(g.conds,
			RevIs(movingKey(vm), 0).Or(fmt.Errorf("remove VM %s: %w", vm, ErrMoving)),
			RevIs(PlacementKey(vm), p.Rev).Or(errRaced))
		g.ops = append(g.ops, Set(tombstoneKey(vm), p.Value), Delete(PlacementKey(vm)))
	}
	return g, nil
}

// historyOps keep the topology that is replaced, and forget the oldest.
func (s *Store) historyOps(ctx context.Context, old KV[Applied]) ([]Op, error) {
	if old.Rev == 0 {
		return nil, nil
	}
	kept, _, err := s.list(ctx, "topology-history/")
	if err != nil {
		return nil, err
	}
	ops := []Op{Set(fmt.Sprintf("topology-history/%020d", old.Rev), old.Value)}
	for i := 0; i < len(kept)-(historyKept-1); i++ {
		ops = append(ops, Delete(kept[i].Key))
	}
	return ops, nil
}

// TopologyHistory are the topologies that were in force before, newest first, at most
// ten. Name of each is the revision it had.
func (s *Store) TopologyHistory(ctx context.Context) ([]KV[Applied], error) {
	list, _, err := List[Applied](ctx, s, "topology-history/")
	slices.Reverse(list)
	return list, err
}
