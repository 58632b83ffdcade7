package ovsdb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	libovsdb "github.com/ovn-kubernetes/libovsdb/ovsdb"

	"heliotrope/internal/reconcile"
	"heliotrope/ovsdb/vswitch"
)

// Target is a Switch as reconcile.Target. Its keys are names of bridges and ports.
type Target struct{ s *Switch }

// Target returns the switch as a target of the reconcile loop.
func (s *Switch) Target() Target { return Target{s} }

// Wanted returns what w comes to on this switch: the uplink only where br-phy exists.
func (s *Switch) Wanted(ctx context.Context, w Want) (map[string]Object, error) {
	t, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.round = t
	s.mu.Unlock()
	_, uplink := t.bridge(PhyBridge)
	return w.Objects(uplink)
}

// Observe returns what is marked as ours or bears one of our fixed names. It takes over
// what Wanted has read for the same round: a hundred ports are some work to read.
func (t Target) Observe(ctx context.Context) (map[string]Object, error) {
	t.s.mu.Lock()
	rows := t.s.round
	t.s.round = nil
	t.s.mu.Unlock()
	if rows == nil {
		var err error
		if rows, err = t.s.read(ctx, false); err != nil {
			return nil, err
		}
	}
	objects := map[string]Object{}
	if b, ok := rows.bridge(IntBridge); ok {
		objects[IntBridge] = observedBridge(b)
	}
	for _, p := range rows.places() {
		name := p.port.Name
		if name != p.iface.Name || len(p.port.Interfaces) != 1 || name == p.bridge.Name {
			continue
		}
		if _, ours := p.iface.ExternalIDs[ownerKey]; ours || name == Uplink || name == UplinkPhy {
			objects[name] = p.observed(rows.root)
		}
	}
	return objects, nil
}

// Apply makes the changes in one transaction and waits until ovs-vswitchd has carried them
// out. Its error names each port that does not work, with Open vSwitch's words for why.
func (t Target) Apply(ctx context.Context, changes []reconcile.Change[string, Object]) error {
	changes = slices.Clone(changes)
	slices.SortStableFunc(changes, func(a, b reconcile.Change[string, Object]) int {
		return cmp.Compare(rank(a), rank(b))
	})
	cfg, err := t.s.commit(ctx, func(rows *tables) ([]libovsdb.Operation, error) {
		b := batch{s: t.s, rows: rows}
		for _, c := range changes {
			switch {
			case c.Op == reconcile.Delete:
				b.remove(c.Key)
			case c.Want.Kind == KindBridge:
				b.putBridge(c.Key, c.Want)
			default:
				b.putPort(c.Key, c.Want)
			}
		}
		return b.ops, b.err
	})
	if err != nil {
		return err
	}
	return t.s.awaitDone(ctx, cfg, changes)
}

// rank orders deletions first, then bridges, then what is plugged into them.
func rank(c reconcile.Change[string, Object]) int {
	switch {
	case c.Op == reconcile.Delete:
		return 0
	case c.Want.Kind == KindBridge:
		return 1
	}
	return 2
}

// commit runs the operations that build makes of a fresh reading, fenced by term, and
// returns the configuration number that ovs-vswitchd will report when it has done them.
func (s *Switch) commit(ctx context.Context, build func(*tables) ([]libovsdb.Operation, error)) (int, error) {
	var timedOut *libovsdb.TimedOut
	for try := 1; ; try++ {
		rows, err := s.read(ctx, false)
		if err != nil {
			return 0, err
		}
		if seen := rows.term(); seen > s.opts.Term {
			return 0, fmt.Errorf("%w: it has seen term %d, ours is %d", ErrStaleTerm, seen, s.opts.Term)
		}
		ops, err := build(rows)
		if err != nil {
			return 0, err
		}
		results, err := s.transact(ctx, s.fenced(rows, ops)...)
		if errors.As(err, &timedOut) && try < 5 {
			continue // somebody wrote external_ids since we read them
		}
		if err != nil {
			return 0, err
		}
		cfg, ok := results[len(results)-1].Rows[0]["next_cfg"].(float64)
		if !ok {
			return 0, errors.New("read next_cfg: not a number")
		}
		return int(cfg), nil
	}
}

// fenced surrounds ops with the wait that makes them void if the row that holds the term
// is not as it was read, and with the next configuration number.
func (s *Switch) fenced(rows *tables, ops []libovsdb.Operation) []libovsdb.Operation {
	now := 0
	root := []libovsdb.Condition{uuidIs(rows.root.UUID)}
	all := []libovsdb.Operation{{
		Op: libovsdb.OperationWait, Table: "Open_vSwitch", Where: root, Timeout: &now,
		Until: string(libovsdb.WaitConditionEqual), Columns: []string{"external_ids"},
		Rows: []libovsdb.Row{{"external_ids": mapOf(rows.root.ExternalIDs)}},
	}}
	term := map[string]string{termKey: strconv.FormatUint(s.opts.Term, 10)}
	all = append(all, libovsdb.Operation{
		Op: libovsdb.OperationMutate, Table: "Open_vSwitch", Where: root,
		Mutations: append(setKeys("external_ids", term),
			*libovsdb.NewMutation("next_cfg", libovsdb.MutateOperationAdd, 1)),
	})
	all = append(all, ops...)
	return append(all, libovsdb.Operation{
		Op: libovsdb.OperationSelect, Table: "Open_vSwitch", Where: root, Columns: []string{"next_cfg"},
	})
}

// awaitDone waits until ovs-vswitchd has reached cfg and looked at all of changes.
func (s *Switch) awaitDone(ctx context.Context, cfg int, changes []reconcile.Change[string, Object]) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	for {
		next := s.nextChange()
		rows, err := s.read(ctx, false)
		if err != nil {
			return err
		}
		if rows.root.CurCfg >= cfg {
			return failures(rows, changes)
		}
		select {
		case <-next:
		case <-s.done:
			return fmt.Errorf("wait for ovs-vswitchd: %w", s.err)
		case <-ctx.Done():
			return fmt.Errorf("wait for ovs-vswitchd: it has carried out change %d of %d: %w", rows.root.CurCfg, cfg, ctx.Err())
		}
	}
}

// failures joins an error for each change that Open vSwitch could not carry out.
func failures(rows *tables, changes []reconcile.Change[string, Object]) error {
	var errs []error
	for _, c := range changes {
		if c.Op == reconcile.Delete {
			continue
		}
		p, ok := rows.find(c.Key)
		if !ok {
			errs = append(errs, fmt.Errorf("make port %s: it is gone again", c.Key))
		} else if why := p.failure(rows.root); why != "" {
			errs = append(errs, fmt.Errorf("make port %s: %s", c.Key, why))
		}
	}
	return errors.Join(errs...)
}

// batch collects the operations that make changes to a reading.
type batch struct {
	s    *Switch
	rows *tables
	ops  []libovsdb.Operation
	err  error
}

func (b *batch) add(op libovsdb.Operation) { b.ops = append(b.ops, op) }

// insert adds rows, each under its named UUID.
func (b *batch) insert(row any) {
	ops, err := b.s.client.Create(row)
	b.err = errors.Join(b.err, err)
	b.ops = append(b.ops, ops...)
}

func (b *batch) remove(name string) {
	if br, ok := b.rows.bridge(name); ok {
		b.add(libovsdb.Operation{Op: libovsdb.OperationMutate, Table: "Open_vSwitch",
			Where:     []libovsdb.Condition{uuidIs(b.rows.root.UUID)},
			Mutations: []libovsdb.Mutation{*libovsdb.NewMutation("bridges", libovsdb.MutateOperationDelete, uuidSet(br.UUID))}})
		return
	}
	if p, ok := b.rows.find(name); ok {
		b.unplug(p)
	}
}

func (b *batch) unplug(p place) {
	b.add(libovsdb.Operation{Op: libovsdb.OperationMutate, Table: "Bridge",
		Where:     []libovsdb.Condition{uuidIs(p.bridge.UUID)},
		Mutations: []libovsdb.Mutation{*libovsdb.NewMutation("ports", libovsdb.MutateOperationDelete, uuidSet(p.port.UUID))}})
}

// putBridge makes or mends a bridge.
func (b *batch) putBridge(name string, want Object) {
	cols := columnsOfSettings(want.Settings)
	failMode := cols.scalar["fail_mode"]
	protocols := strings.Split(cols.scalar["protocols"], ",")
	have, ok := b.rows.bridge(name)
	if !ok {
		iface := vswitch.Interface{UUID: "i_" + named(name), Name: name, Type: "internal"}
		port := vswitch.Port{UUID: "p_" + named(name), Name: name, Interfaces: []string{iface.UUID}}
		bridge := vswitch.Bridge{
			UUID: "b_" + named(name), Name: name, Ports: []string{port.UUID},
			DatapathType: cols.scalar["datapath_type"], FailMode: &failMode, Protocols: protocols,
			OtherConfig: cols.maps["other_config"], ExternalIDs: cols.maps["external_ids"],
		}
		b.insert(&iface)
		b.insert(&port)
		b.insert(&bridge)
		b.add(libovsdb.Operation{Op: libovsdb.OperationMutate, Table: "Open_vSwitch",
			Where:     []libovsdb.Condition{uuidIs(b.rows.root.UUID)},
			Mutations: []libovsdb.Mutation{*libovsdb.NewMutation("bridges", libovsdb.MutateOperationInsert, uuidSet(bridge.UUID))}})
		return
	}
	where := []libovsdb.Condition{uuidIs(have.UUID)}
	b.add(libovsdb.Operation{Op: libovsdb.OperationUpdate, Table: "Bridge", Where: where, Row: libovsdb.Row{
		"datapath_type": cols.scalar["datapath_type"], "fail_mode": failMode, "protocols": stringSet(protocols)}})
	b.add(libovsdb.Operation{Op: libovsdb.OperationMutate, Table: "Bridge", Where: where,
		Mutations: append(setKeys("other_config", cols.maps["other_config"]), setKeys("external_ids", cols.maps["external_ids"], peerKey)...)})
}

// putPort makes or mends a port. One of the same name in the right bridge becomes ours; in
// another bridge it is moved if it is ours, and an error if it is not.
func (b *batch) putPort(name string, want Object) {
	cols := columnsOfSettings(want.Settings)
	have, ok := b.rows.find(name)
	if ok && have.bridge.Name == want.Bridge {
		where := []libovsdb.Condition{uuidIs(have.iface.UUID)}
		b.add(libovsdb.Operation{Op: libovsdb.OperationUpdate, Table: "Interface", Where: where, Row: libovsdb.Row{
			"type": string(want.Kind), "options": mapOf(cols.maps["options"]), "bfd": mapOf(cols.maps["bfd"])}})
		b.add(libovsdb.Operation{Op: libovsdb.OperationMutate, Table: "Interface", Where: where,
			Mutations: setKeys("external_ids", cols.maps["external_ids"], ownerKey, peerKey, cardKey)})
		return
	}
	if ok {
		if _, ours := have.iface.ExternalIDs[ownerKey]; !ours {
			b.err = errors.Join(b.err, fmt.Errorf("make port %s in %s: %s has a port of that name, which is not ours", name, want.Bridge, have.bridge.Name))
			return
		}
		b.unplug(have)
	}
	iface := vswitch.Interface{UUID: "i_" + named(name), Name: name, Type: string(want.Kind),
		Options: cols.maps["options"], BFD: cols.maps["bfd"], ExternalIDs: cols.maps["external_ids"]}
	port := vswitch.Port{UUID: "p_" + named(name), Name: name, Interfaces: []string{iface.UUID}}
	b.insert(&iface)
	b.insert(&port)
	b.add(libovsdb.Operation{Op: libovsdb.OperationMutate, Table: "Bridge",
		Where:     []libovsdb.Condition{libovsdb.NewCondition("name", libovsdb.ConditionEqual, want.Bridge)},
		Mutations: []libovsdb.Mutation{*libovsdb.NewMutation("ports", libovsdb.MutateOperationInsert, uuidSet(port.UUID))}})
}

// settingColumns is Object.Settings by column.
type settingColumns struct {
	scalar map[string]string
	maps   map[string]map[string]string
}

func columnsOfSettings(settings map[string]string) settingColumns {
	c := settingColumns{map[string]string{}, map[string]map[string]string{}}
	for k, v := range settings {
		column, key, isMap := strings.Cut(k, ":")
		if !isMap {
			c.scalar[column] = v
			continue
		}
		if c.maps[column] == nil {
			c.maps[column] = map[string]string{}
		}
		c.maps[column][key] = v
	}
	return c
}
