package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"heliotrope"
	"heliotrope/controller/store"
	"heliotrope/migration"
)

// syncWorld keeps the world's view at what the store holds until ctx ends.
func (c *Controller) syncWorld(ctx context.Context) error {
	for u := range c.store.Watch(ctx, "", 0) {
		var problem error
		c.world.update(func(v *view) { problem = absorb(v, u) })
		if problem != nil {
			c.log.Error("store holds what cannot be read", "err", problem)
		}
	}
	return context.Cause(ctx)
}

// absorb takes one update of the store into v. It goes on past a record that cannot be
// read: the others are right.
func absorb(v *view, u store.Update) error {
	var problems []error
	if u.Reset {
		v.topology, v.topologyAt = heliotrope.Topology{}, 0
		v.placements, v.tombstones, v.moves, v.members, v.underway, v.concerned = nil, nil, nil, nil, nil, nil
		v.fabric++
	}
	before := *v
	placements, tombstones := maps.Clone(v.placements), maps.Clone(v.tombstones)
	moves, members := maps.Clone(v.moves), maps.Clone(v.members)
	for _, ch := range u.Changes {
		kind, name, _ := strings.Cut(ch.Key, "/")
		var err error
		switch kind {
		case "topology":
			var a store.Applied
			if err = json.Unmarshal(ch.Value, &a); err == nil {
				v.topology, v.topologyAt = a.Full(), ch.Rev
				v.fabric++
			}
		case "placements":
			placements, err = take(placements, heliotrope.VMID(name), ch, func(p heliotrope.Placement) heliotrope.Placement { return p })
			v.fabric++
		case "tombstones":
			tombstones, err = take(tombstones, heliotrope.VMID(name), ch, func(p heliotrope.Placement) heliotrope.Placement { return p })
		case "moves":
			moves, err = take(moves, heliotrope.MoveID(name), ch, func(m migration.Move) storedMove { return storedMove{m, ch.Rev} })
		case "hosts":
			members, err = take(members, heliotrope.HostID(name), ch, func(h store.Host) store.Host { return h })
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("read %s: %w", ch.Key, err))
		}
	}
	v.placements, v.tombstones, v.moves, v.members = placements, tombstones, moves, members
	v.revision = u.Rev
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
