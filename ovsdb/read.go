package ovsdb

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	libovsdb "github.com/ovn-kubernetes/libovsdb/ovsdb"

	"heliotrope/ovsdb/vswitch"
)

// tables is one consistent reading of the database.
type tables struct {
	root    vswitch.OpenvSwitch
	bridges []vswitch.Bridge
	ports   map[string]vswitch.Port      // by UUID
	ifaces  map[string]vswitch.Interface // by UUID
}

// read selects all rows in one transaction. Statistics are left out unless asked for.
func (s *Switch) read(ctx context.Context, statistics bool) (_ *tables, err error) {
	defer recovered(&err)
	var skip []string
	if !statistics {
		skip = []string{"statistics"}
	}
	results, err := s.transact(ctx,
		selectAll("Open_vSwitch", columnsOf(vswitch.OpenvSwitch{})),
		selectAll("Bridge", columnsOf(vswitch.Bridge{})),
		selectAll("Port", columnsOf(vswitch.Port{})),
		selectAll("Interface", columnsOf(vswitch.Interface{}, skip...)))
	if err != nil {
		return nil, err
	}
	roots, err1 := decodeRows[vswitch.OpenvSwitch](s, results[0].Rows)
	bridges, err2 := decodeRows[vswitch.Bridge](s, results[1].Rows)
	ports, err3 := decodeRows[vswitch.Port](s, results[2].Rows)
	ifaces, err4 := decodeRows[vswitch.Interface](s, results[3].Rows)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	if len(roots) != 1 {
		return nil, fmt.Errorf("read switch: %d rows in table Open_vSwitch, not one; run ovs-vsctl init on the host", len(roots))
	}
	t := &tables{root: roots[0], bridges: bridges, ports: map[string]vswitch.Port{}, ifaces: map[string]vswitch.Interface{}}
	for _, p := range ports {
		t.ports[p.UUID] = p
	}
	for _, i := range ifaces {
		t.ifaces[i.UUID] = i
	}
	return t, nil
}

func selectAll(table string, columns []string) libovsdb.Operation {
	return libovsdb.Operation{Op: libovsdb.OperationSelect, Table: table, Columns: columns}
}

// columnsOf lists the columns of a row type, but for those to skip.
func columnsOf(row any, skip ...string) []string {
	var columns []string
	for t, i := reflect.TypeOf(row), 0; i < t.NumField(); i++ {
		if c := t.Field(i).Tag.Get("ovsdb"); !slices.Contains(skip, c) {
			columns = append(columns, c)
		}
	}
	return columns
}

func decodeRows[T any](s *Switch, rows []libovsdb.Row) ([]T, error) {
	out := make([]T, len(rows))
	for i := range rows {
		info, err := s.cache.DatabaseModel().NewModelInfo(&out[i])
		if err != nil {
			return nil, fmt.Errorf("describe row: %w", err)
		}
		if err := s.cache.Mapper().GetRowData(&rows[i], info); err != nil {
			return nil, fmt.Errorf("decode row: %w", err)
		}
		if err := setUUID(info.SetField, rows[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func setUUID(set func(column string, value any) error, row libovsdb.Row) error {
	uuid, ok := row["_uuid"].(libovsdb.UUID)
	if !ok {
		return fmt.Errorf("decode row: _uuid is %v", row["_uuid"])
	}
	return set("_uuid", uuid.GoUUID)
}

// transact runs ops and returns their results, or the first error among them in
// ovsdb-server's words. It always ends: by itself, by ctx, or by Options.Timeout.
func (s *Switch) transact(ctx context.Context, ops ...libovsdb.Operation) ([]libovsdb.OperationResult, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	results, err := s.client.Transact(ctx, ops...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("transact: %w", err), s.Err())
	}
	failed, err := libovsdb.CheckOperationResults(results, ops)
	if len(failed) > 0 {
		return nil, fmt.Errorf("transact: %w", failed[0])
	}
	if err != nil {
		return nil, fmt.Errorf("transact: %w", err)
	}
	return results[:len(ops)], nil
}

// term is the newest leader's that wrote here; zero where none did, or someone scribbled.
func (t *tables) term() uint64 {
	n, err := strconv.ParseUint(t.root.ExternalIDs[termKey], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (t *tables) bridge(name string) (vswitch.Bridge, bool) {
	i := slices.IndexFunc(t.bridges, func(b vswitch.Bridge) bool { return b.Name == name })
	if i < 0 {
		return vswitch.Bridge{}, false
	}
	return t.bridges[i], true
}

// place is where an interface is plugged in.
type place struct {
	bridge vswitch.Bridge
	port   vswitch.Port
	iface  vswitch.Interface
}

// places lists every interface of every bridge.
func (t *tables) places() []place {
	var all []place
	for _, b := range t.bridges {
		for _, p := range b.Ports {
			for _, i := range t.ports[p].Interfaces {
				if iface, ok := t.ifaces[i]; ok {
					all = append(all, place{b, t.ports[p], iface})
				}
			}
		}
	}
	return all
}

// find returns the place of the port called name, if it is a port of one interface.
func (t *tables) find(name string) (place, bool) {
	for _, p := range t.places() {
		if p.port.Name == name && p.iface.Name == name && len(p.port.Interfaces) == 1 {
			return p, true
		}
	}
	return place{}, false
}

// failure says why a place's interface does not work, in Open vSwitch's words; empty when
// it works or is still to be looked at.
func (p place) failure(root vswitch.OpenvSwitch) string {
	switch i := p.iface; {
	case i.Error != nil && *i.Error != "":
		return *i.Error
	case i.Ofport != nil && *i.Ofport > 0:
		return ""
	case i.Ofport != nil || root.CurCfg >= root.NextCfg:
		return "no OpenFlow port was made"
	}
	return ""
}

// observed describes a place as an Object: the columns that an Object of ours sets wholly,
// and of external_ids our own keys.
func (p place) observed(root vswitch.OpenvSwitch) Object {
	o := Object{Kind: Kind(p.iface.Type), Bridge: p.bridge.Name, Settings: map[string]string{}}
	for k, v := range p.iface.Options {
		o.Settings["options:"+k] = v
	}
	for k, v := range p.iface.BFD {
		o.Settings["bfd:"+k] = v
	}
	ownKeys(o.Settings, p.iface.ExternalIDs)
	if why := p.failure(root); why != "" {
		o.Settings["error"] = why
	}
	return o
}

func observedBridge(b vswitch.Bridge) Object {
	o := Object{Kind: KindBridge, Settings: map[string]string{"datapath_type": b.DatapathType}}
	if b.FailMode != nil {
		o.Settings["fail_mode"] = *b.FailMode
	}
	if len(b.Protocols) > 0 {
		o.Settings["protocols"] = strings.Join(slices.Sorted(slices.Values(b.Protocols)), ",")
	}
	if v, ok := b.OtherConfig["disable-in-band"]; ok {
		o.Settings["other_config:disable-in-band"] = v
	}
	ownKeys(o.Settings, b.ExternalIDs)
	return o
}

func ownKeys(settings, externalIDs map[string]string) {
	for _, k := range []string{ownerKey, peerKey, cardKey} {
		if v, ok := externalIDs[k]; ok {
			settings["external_ids:"+k] = v
		}
	}
}
