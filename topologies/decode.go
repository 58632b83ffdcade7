package topologies

import (
	"cmp"
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"heliotrope"
)

// file is what stands in a topology file: the nouns, and defaults for them.
type file struct {
	heliotrope.Topology `yaml:",inline"`
	Defaults            Defaults `yaml:"defaults,omitempty"`
}

// decoder fills Go values from a YAML tree, remembers where each came from, and goes on
// after an error so as to find the next.
type decoder struct {
	report
	defaults Defaults
	places   map[string]place // by JSON pointer
	bad      map[string]bool  // JSON pointers of values that could not be read
}

// place is where something stands: a scalar itself, or the key of a mapping or list.
type place struct{ line, column int }

func placeOf(key, value *yaml.Node) place {
	if key == nil || value.Kind == yaml.ScalarNode {
		return place{value.Line, value.Column}
	}
	return place{key.Line, key.Column}
}

func newDecoder() *decoder {
	return &decoder{places: map[string]place{}, bad: map[string]bool{}, defaults: builtin()}
}

// file decodes a whole file, the defaults first because the rest starts from them.
func (d *decoder) file(root *yaml.Node) heliotrope.Topology {
	var f file
	if root.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(root.Content); i += 2 {
			if root.Content[i].Value == "defaults" {
				d.structure(root.Content[i+1], reflect.ValueOf(&d.defaults).Elem(), (*path)(nil).key("defaults"))
				break
			}
		}
	}
	d.structure(root, reflect.ValueOf(&f).Elem(), nil)
	derive(&f.Topology)
	return f.Topology
}

// value decodes n into v.
func (d *decoder) value(n *yaml.Node, v reflect.Value, at *path) {
	if text, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.text(n, v, text, at)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, v, at)
	case reflect.Map:
		d.mapping(n, v, at)
	case reflect.Slice, reflect.Array:
		d.list(n, v, at)
	default:
		d.scalar(n, v, at)
	}
}

// structure decodes a mapping whose keys are the fields of v's type. Fields that it does
// not mention keep what v holds.
func (d *decoder) structure(n *yaml.Node, v reflect.Value, at *path) {
	fields := fieldsOf(v.Type())
	if isNull(n) && !slices.ContainsFunc(fields, func(f field) bool { return !f.optional }) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.wrongKind(n, v.Type(), at)
		return
	}
	given, misspelt := map[string]bool{}, map[string]bool{}
	d.pairs(n, at, func(key, value *yaml.Node, at *path) {
		for _, f := range fields {
			if f.name == key.Value {
				given[f.name] = true
				if at.up == nil && f.name == "defaults" {
					return // file has read them
				}
				d.value(value, v.FieldByIndex(f.index), at)
				return
			}
		}
		names, hint := namesOf(fields), ""
		misspelt[closest(key.Value, names)] = true
		if !d.full() {
			hint = didYouMean(key.Value, "keys", names)
		}
		d.failAt(key, at, hint, "is no key here")
	})
	for _, f := range fields {
		if given[f.name] {
			continue
		}
		missing := at.key(f.name)
		if from, ok := d.inherited(at, f.name); ok {
			d.places[missing.pointer()] = from
		} else if misspelt[f.name] {
			d.bad[missing.pointer()] = true // one mistake, one problem
		} else if !f.optional && v.FieldByIndex(f.index).IsZero() {
			line, column := d.position(missing.pointer())
			d.failAt(&yaml.Node{Line: line, Column: column}, missing, example(v.FieldByIndex(f.index).Type()), "is missing")
		}
	}
}

// mapping decodes names and what they stand for; each entry starts from its defaults.
func (d *decoder) mapping(n *yaml.Node, v reflect.Value, at *path) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.wrongKind(n, v.Type(), at)
		return
	}
	d.pairs(n, at, func(key, value *yaml.Node, at *path) {
		entry := reflect.New(v.Type().Elem()).Elem()
		d.defaults.fill(entry)
		if len(key.Value) > maxNameLength {
			d.failAt(key, at, "", "is too long a name: at most %d characters", maxNameLength)
		} else {
			d.value(value, entry, at)
		}
		if v.IsNil() {
			v.Set(reflect.MakeMap(v.Type()))
		}
		v.SetMapIndex(reflect.ValueOf(key.Value).Convert(v.Type().Key()), entry)
	})
}

// pairs calls do for each key of a mapping that is a name, and was not there before.
func (d *decoder) pairs(n *yaml.Node, at *path, do func(key, value *yaml.Node, at *path)) {
	first := make(map[string]*yaml.Node, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || isNull(key) {
			d.failAt(key, at, "", "has a key that is no name")
			continue
		}
		at := at.key(key.Value)
		if before, ok := first[key.Value]; ok {
			d.add(Problem{Line: key.Line, Column: key.Column, Path: at.String(), Pointer: at.pointer(),
				Message: fmt.Sprintf("stands here twice, first in line %d", before.Line), Hint: "remove or rename one"})
			continue
		}
		first[key.Value] = key
		d.places[at.pointer()] = placeOf(key, value)
		do(key, value, at)
	}
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, at *path) {
	if isNull(n) && v.Kind() == reflect.Slice {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.wrongKind(n, v.Type(), at)
		return
	}
	if v.Kind() == reflect.Array && len(n.Content) != v.Len() {
		d.failAt(n, at, example(v.Type()), "has %d entries instead of %d", len(n.Content), v.Len())
		return
	}
	if v.Kind() == reflect.Slice && len(n.Content) > 0 {
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	}
	for i, item := range n.Content {
		at := at.at(i)
		d.places[at.pointer()] = placeOf(nil, item)
		d.value(item, v.Index(i), at)
	}
}

// failAt reports a problem of the value at the place of n, and marks the value as unread.
func (d *decoder) failAt(n *yaml.Node, at *path, hint, format string, args ...any) {
	if d.full() {
		d.more++
	} else {
		d.add(Problem{Line: n.Line, Column: n.Column, Path: at.String(), Pointer: at.pointer(),
			Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	d.bad[at.pointer()] = true
}

func (d *decoder) wrongKind(n *yaml.Node, want reflect.Type, at *path) {
	d.failAt(n, at, example(want), "%s where %s is wanted", kindOf(n), describe(want))
}

// spoiled says that the value at pointer, or what holds it, could not be read, so that
// nothing more is to be said about it.
func (d *decoder) spoiled(pointer string) bool {
	for ; !d.bad[pointer]; pointer = parentPointer(pointer) {
		if pointer == "" {
			return false
		}
	}
	return true
}

// position is where the value at pointer stands, or else what should have held it.
func (d *decoder) position(pointer string) (line, column int) {
	for ; pointer != ""; pointer = parentPointer(pointer) {
		if p, ok := d.places[pointer]; ok {
			return p.line, p.column
		}
	}
	return 1, 1
}

// inherited is where the file's defaults give the named field of the entry at a path.
func (d *decoder) inherited(at *path, field string) (place, bool) {
	if at == nil || at.up == nil || at.up.up != nil {
		return place{}, false
	}
	p, ok := d.places["/defaults/"+at.up.name+"/"+field]
	return p, ok
}

// field is a field of a noun as the file knows it.
type field struct {
	name     string
	index    []int
	optional bool // may be left out of a file
}

func namesOf(fields []field) []string {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	return names
}

// fieldsOf lists the fields of a struct type by their yaml tags.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for sf := range t.Fields() {
		name, opts, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		if opts == "inline" {
			for _, f := range fieldsOf(sf.Type) {
				f.index = append([]int{sf.Index[0]}, f.index...)
				fields = append(fields, f)
			}
			continue
		}
		fields = append(fields, field{
			name: cmp.Or(name, strings.ToLower(sf.Name)), index: sf.Index,
			optional: strings.HasPrefix(opts, "omit") || derived[t.Name()+"."+sf.Name],
		})
	}
	return fields
}
