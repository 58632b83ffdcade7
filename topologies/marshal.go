package topologies

import (
	"bytes"
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"heliotrope"
)

// Marshal writes t as a topology file. The same topology gives the same bytes, and Parse
// of them gives Complete(t) if that is valid. MAC addresses that follow from names are left out.
func Marshal(t heliotrope.Topology) ([]byte, error) {
	t = Complete(t)
	for id, vm := range t.VMs {
		for i := range vm.NICs {
			if vm.NICs[i].MAC == heliotrope.NICMAC(id, i) {
				vm.NICs[i].MAC = heliotrope.MAC{}
			}
		}
	}
	var w writer
	all := w.node(reflect.ValueOf(t))
	if w.err != nil {
		return nil, fmt.Errorf("write topology: %w", w.err)
	}
	var b bytes.Buffer
	for i := 0; i < len(all.Content); i += 2 { // section by section, an empty line before each
		if all.Content[i+1].Kind == yaml.MappingNode {
			b.WriteByte('\n')
		}
		enc := yaml.NewEncoder(&b)
		enc.SetIndent(2)
		if err := enc.Encode(&yaml.Node{Kind: yaml.MappingNode, Content: all.Content[i : i+2]}); err != nil {
			return nil, fmt.Errorf("write topology: %w", err)
		}
	}
	return b.Bytes(), nil
}

// writer turns Go values into YAML nodes, and keeps the last error.
type writer struct{ err error }

func (w *writer) node(v reflect.Value) *yaml.Node {
	if text, ok := v.Interface().(encoding.TextMarshaler); ok {
		b, err := text.MarshalText()
		if err != nil {
			w.err = err
		}
		return w.text(string(b))
	}
	switch v.Kind() {
	case reflect.Struct, reflect.Map:
		return w.mapping(v)
	case reflect.Slice, reflect.Array:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		if v.Kind() == reflect.Array {
			n.Style = yaml.FlowStyle
		}
		for i := range v.Len() {
			n.Content = append(n.Content, w.node(v.Index(i)))
		}
		return n
	case reflect.String:
		return w.text(v.String())
	case reflect.Float64:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: strconv.FormatFloat(v.Float(), 'f', -1, 64)}
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: fmt.Sprint(v.Interface())}
}

// mapping writes a struct's fields in their order and a map's entries in that of their names.
func (w *writer) mapping(v reflect.Value) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	if v.Kind() == reflect.Map {
		for _, k := range sortedKeys(v.MapKeys()) {
			n.Content = append(n.Content, w.text(k.String()), w.node(v.MapIndex(k)))
		}
		return n
	}
	for _, f := range fieldsOf(v.Type()) {
		fv := v.FieldByIndex(f.index)
		if f.optional && (fv.IsZero() || fv.Kind() == reflect.Map && fv.Len() == 0) {
			continue
		}
		n.Content = append(n.Content, w.text(f.name), w.node(fv))
	}
	return n
}

func sortedKeys(keys []reflect.Value) []reflect.Value {
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	return keys
}

// text quotes whatever is not plainly text, because the library's choices for spaces
// and line ends do not all read back as they were.
func (w *writer) text(s string) *yaml.Node {
	if !utf8.ValidString(s) {
		w.err = fmt.Errorf("%s is no UTF-8", quote(s))
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if s != strings.TrimSpace(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}
