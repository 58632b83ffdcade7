package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"

	"heliotrope"
	"heliotrope/controller/store"
	"heliotrope/migration"
)

// Sync keeps the view at what the store holds until ctx ends.
func (w *World) Sync(ctx context.Context, s *store.Store, log *slog.Logger) error {
	for u := range s.Watch(ctx, "", 0) {
		var problem error
		w.Update(func(v *View) { problem = v.Absorb(u) })
		if problem != nil {
			log.Error("store holds what cannot be read", "err", problem)
		}
	}
	return context.Cause(ctx)
}

// Absorb takes one update of the store into v. It goes on past a record that cannot be
// read: the others are right.
func (v *View) Absorb(u store.Update) error {
	var problems []error
	if u.Reset {
		v.Topology, v.TopologyAt = heliotrope.Topology{}, 0
		v.Placements, v.Tombstones, v.Moves, v.Members, v.Underway, v.Concerned = nil, nil, nil, nil, nil, nil
		v.Fabric++
	}
	before := *v
	placements, tombstones := maps.Clone(v.Placements), maps.Clone(v.Tombstones)
	moves, members := maps.Clone(v.Moves), maps.Clone(v.Members)
	for _, ch := range u.Changes {
		kind, name, _ := strings.Cut(ch.Key, "/")
		var err error
		switch kind {
		case "topology":
			var a store.Applied
			if err = json.Unmarshal(ch.Value, &a); err == nil {
				v.Topology, v.TopologyAt = a.Full(), ch.Rev
				v.Fabric++
			}
		case "placements":
			placements, err = take(placements, heliotrope.VMID(name), ch, func(p heliotrope.Placement) heliotrope.Placement { return p })
			v.Fabric++
		case "tombstones":
			tombstones, err = take(tombstones, heliotrope.VMID(name), ch, func(p heliotrope.Placement) heliotrope.Placement { return p })
		case "moves":
			moves, err = take(moves, heliotrope.MoveID(name), ch, func(m migration.Move) Move { return Move{m, ch.Rev} })
		case "hosts":
			members, err = take(members, heliotrope.HostID(name), ch, func(h store.Host) store.Host { return h })
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("read %s: %w", ch.Key, err))
		}
	}
	v.Placements, v.Tombstones, v.Moves, v.Members = placements, tombstones, moves, members
	v.Revision = u.Rev
	v.digest(u, before)
	return errors.Join(problems...)
}

// take sets or deletes m[k] as ch says.
func take[K comparable, T, V any](m map[K]V, k K, ch store.Change, convert func(T) V) (map[K]V, error) {
	if ch.Deleted {
		delete(m, k)
		return m, nil
	}
	var t T
	if err := json.Unmarshal(ch.Value, &t); err != nil {
		return m, err
	}
	if m == nil {
		m = make(map[K]V)
	}
	m[k] = convert(t)
	return m, nil
}
