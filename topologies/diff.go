package topologies

import (
	"fmt"
	"reflect"
	"strings"

	"heliotrope"
)

// Op is what a Change does, by the names of JSON Patch (RFC 6902).
type Op string

const (
	Add     Op = "add"
	Remove  Op = "remove"
	Replace Op = "replace"
)

// Change is one difference between two topologies. Old is nil for Add, New for Remove.
// Secrets are shown as "(secret)".
type Change struct {
	Op      Op     `json:"op"`
	Path    string `json:"path"`    // for people: vms.web.memory_mib
	Pointer string `json:"pointer"` // for programs: /vms/web/memory_mib
	Old     any    `json:"old,omitempty"`
	New     any    `json:"new,omitempty"`
}

// String is one line: "+ vms.db", "- vms.db", "~ vms.web.memory_mib: 256 → 512".
func (c Change) String() string {
	scalar := func(v any) bool {
		switch reflect.ValueOf(v).Kind() {
		case reflect.Map, reflect.Slice:
			return false
		case reflect.Struct:
			return reflect.TypeOf(v).Implements(reflect.TypeFor[fmt.Stringer]())
		}
		return true
	}
	switch {
	case c.Op == Replace:
		return fmt.Sprintf("~ %s: %v → %v", c.Path, c.Old, c.New)
	case c.Op == Add && scalar(c.New):
		return fmt.Sprintf("+ %s: %v", c.Path, c.New)
	case c.Op == Add:
		return "+ " + c.Path
	case scalar(c.Old):
		return fmt.Sprintf("- %s: %v", c.Path, c.Old)
	}
	return "- " + c.Path
}

// Diff returns the changes that turn old into new: section by section as a file has them,
// names in order, a list's surplus items from its end. Sections and other maps are never added or
// removed as a whole: their entries are.
func Diff(old, new heliotrope.Topology) []Change {
	var d differ
	d.compare(nil, reflect.ValueOf(old), reflect.ValueOf(new))
	return d.changes
}

type differ struct{ changes []Change }

func (d *differ) change(at *path, op Op, old, new any) {
	d.changes = append(d.changes, Change{Op: op, Path: at.String(), Pointer: at.pointer(), Old: conceal(old), New: conceal(new)})
}

// conceal hides the password of a peer that is shown as a whole.
func conceal(v any) any {
	if p, ok := v.(heliotrope.Peer); ok && p.Password != "" {
		p.Password = secret
		return p
	}
	return v
}

const secret = "(secret)"

func (d *differ) compare(at *path, old, new reflect.Value) {
	_, text := old.Interface().(fmt.Stringer)
	switch kind := old.Kind(); {
	case kind == reflect.Struct && !text:
		for _, f := range fieldsOf(old.Type()) {
			d.field(at.key(f.name), f, old.FieldByIndex(f.index), new.FieldByIndex(f.index), old.Type())
		}
	case kind == reflect.Slice:
		common := min(old.Len(), new.Len())
		for i := range common {
			d.compare(at.at(i), old.Index(i), new.Index(i))
		}
		for i := old.Len() - 1; i >= common; i-- {
			d.change(at.at(i), Remove, old.Index(i).Interface(), nil)
		}
		for i := common; i < new.Len(); i++ {
			d.change(at.at(i), Add, nil, new.Index(i).Interface())
		}
	case !old.Equal(new):
		d.change(at, Replace, old.Interface(), new.Interface())
	}
}

// field compares a field; one that may be left out is added and removed rather than
// changed from and to nothing.
func (d *differ) field(at *path, f field, old, new reflect.Value, of reflect.Type) {
	sf := of.FieldByIndex(f.index)
	hidden := sf.Tag.Get("json") == "-"
	show := func(v reflect.Value) any {
		if hidden {
			return secret
		}
		return v.Interface()
	}
	_, text := old.Interface().(fmt.Stringer)
	switch optional := strings.Contains(sf.Tag.Get("yaml"), ",omit"); {
	case old.Kind() == reflect.Map:
		d.maps(at, old, new)
	case old.Kind() == reflect.Struct && !text:
		d.compare(at, old, new)
	case old.IsZero() && new.IsZero():
	case optional && old.IsZero():
		d.change(at, Add, nil, show(new))
	case optional && new.IsZero():
		d.change(at, Remove, show(old), nil)
	case hidden && !old.Equal(new):
		d.change(at, Replace, secret, secret)
	case !hidden:
		d.compare(at, old, new)
	}
}

func (d *differ) maps(at *path, old, new reflect.Value) {
	keys := old.MapKeys()
	for _, k := range new.MapKeys() {
		if !old.MapIndex(k).IsValid() {
			keys = append(keys, k)
		}
	}
	for _, k := range sortedKeys(keys) {
		at, before, after := at.key(k.String()), old.MapIndex(k), new.MapIndex(k)
		switch {
		case !before.IsValid():
			d.change(at, Add, nil, after.Interface())
		case !after.IsValid():
			d.change(at, Remove, before.Interface(), nil)
		default:
			d.compare(at, before, after)
		}
	}
}
