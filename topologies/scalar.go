package topologies

import (
	"encoding"
	"errors"
	"net/netip"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"heliotrope"
)

// text decodes a value that has its own way of being written.
func (d *decoder) text(n *yaml.Node, v reflect.Value, into encoding.TextUnmarshaler, at *path) {
	if n.Kind != yaml.ScalarNode || isNull(n) {
		d.wrongKind(n, v.Type(), at)
		return
	}
	if err := into.UnmarshalText([]byte(n.Value)); err == nil && n.Value != "" {
		if m, ok := into.(*heliotrope.MAC); ok && m.IsZero() {
			d.failAt(n, at, "leave it out to have one derived from the VM's name", "a MAC address of zeros")
		}
		return
	}
	hint := example(v.Type())
	switch v.Type() {
	case reflect.TypeFor[netip.Addr]():
		if p, err := netip.ParsePrefix(n.Value); err == nil {
			hint = "write it without the length: " + p.Addr().String()
		}
	case reflect.TypeFor[netip.Prefix]():
		if a, err := netip.ParseAddr(n.Value); err == nil && a.Is4() && a.Zone() == "" {
			hint = "did you mean " + netip.PrefixFrom(a, 24).Masked().String() + "?"
		}
	}
	d.failAt(n, at, hint, "%s is not %s", quote(n.Value), describe(v.Type()))
	v.SetZero()
}

// scalar decodes text and numbers.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value, at *path) {
	if n.Kind != yaml.ScalarNode || isNull(n) {
		d.wrongKind(n, v.Type(), at)
		return
	}
	if v.Kind() == reflect.String {
		v.SetString(n.Value)
		return
	}
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		d.failAt(n, at, "remove the quotes", "%s is text where %s is wanted", quote(n.Value), describe(v.Type()))
		return
	}
	var err error
	switch {
	case v.CanFloat():
		err = setFloat(v, n.Value)
	default:
		err = setInt(v, n.Value)
	}
	switch {
	case errors.Is(err, strconv.ErrRange):
		d.failAt(n, at, "", "%s is out of range", shorten(n.Value))
	case errors.Is(err, errLeadingZero):
		d.failAt(n, at, "remove it", "%s begins with a zero, which some read as octal", shorten(n.Value))
	case err != nil:
		hint := example(v.Type())
		if share, ok := strings.CutSuffix(n.Value, "%"); ok && v.CanFloat() {
			if f, err := strconv.ParseFloat(share, 64); err == nil {
				hint = "write it as a share: " + strconv.FormatFloat(f/100, 'f', -1, 64)
			}
		}
		d.failAt(n, at, hint, "%s is not %s", quote(n.Value), describe(v.Type()))
	}
}

var errLeadingZero = errors.New("leading zero")

// setInt accepts 17, -17 and 0x11, and nothing else that YAML takes for a number.
func setInt(v reflect.Value, s string) error {
	digits, base := strings.TrimPrefix(s, "-"), 10
	if hex, ok := strings.CutPrefix(digits, "0x"); ok {
		digits, base = hex, 16
	} else if len(digits) > 1 && digits[0] == '0' && strings.Trim(digits, "0123456789") == "" {
		return errLeadingZero
	}
	n, err := strconv.ParseUint(digits, base, 63)
	if err != nil {
		return err
	}
	signed := int64(n)
	if s[0] == '-' {
		signed = -signed
	}
	if v.CanUint() {
		if signed < 0 || v.OverflowUint(n) {
			return strconv.ErrRange
		}
		v.SetUint(n)
		return nil
	}
	if v.OverflowInt(signed) {
		return strconv.ErrRange
	}
	v.SetInt(signed)
	return nil
}

// setFloat accepts decimal numbers that are finite.
func setFloat(v reflect.Value, s string) error {
	if strings.Trim(s, "+-.0123456789eE") != "" {
		return strconv.ErrSyntax
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return err
	}
	v.SetFloat(f)
	return nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func kindOf(n *yaml.Node) string {
	switch {
	case isNull(n):
		return "nothing"
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	}
	return quote(n.Value)
}

// words says what a type is called in messages, and how one is written.
var words = map[reflect.Type]struct{ noun, example string }{
	reflect.TypeFor[netip.Addr]():           {"an IP address", "write one like 10.1.0.10"},
	reflect.TypeFor[netip.Prefix]():         {"a prefix", "write one like 10.1.0.0/24"},
	reflect.TypeFor[heliotrope.Duration]():  {"a duration", "write a number and a unit, like 40ms"},
	reflect.TypeFor[heliotrope.BitRate]():   {"a bit rate", "write a number and a unit, like 100Mbit"},
	reflect.TypeFor[heliotrope.MAC]():       {"a MAC address", "write six hex pairs, like 02:00:00:00:00:01"},
	reflect.TypeFor[heliotrope.Weekday]():   {"a day", "days are mon, tue, wed, thu, fri, sat, sun"},
	reflect.TypeFor[heliotrope.DayTime]():   {"a time of day", "write it in quotes, like \"22:30\""},
	reflect.TypeFor[heliotrope.Zone]():      {"a time zone", "write a name like Europe/Vienna"},
	reflect.TypeFor[[2]heliotrope.SiteID](): {"a list of two sites", "write it like [us, eu]"},
}

func describe(t reflect.Type) string {
	if w, ok := words[t]; ok {
		return w.noun
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Float64:
		return "a number"
	case reflect.Struct, reflect.Map:
		return "a mapping"
	case reflect.Slice:
		return "a list"
	}
	return "a whole number"
}

func example(t reflect.Type) string { return words[t].example }
