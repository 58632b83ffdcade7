package topologies

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"heliotrope"
)

const (
	maxNameLength = 63
	maxText       = 1000 // bytes
	maxMTU        = 1450 // underlay 1500 less VXLAN's 50
	minMTU4       = 576  // RFC 791
	minMTU6       = 1280 // RFC 8200
	maxVNI        = 1<<24 - 1
	maxDelay      = heliotrope.Duration(10 * time.Second)
	maxMemoryMiB  = 1 << 24
	maxCPUs       = 1024
	maxSeats      = 1_000_000
	maxMetadata   = 1024 // bytes of one VM: it travels on a kernel command line
	maxPassword   = 80   // bytes: TCP MD5, RFC 2385
)

// checker checks a topology as a whole. Each check leaves alone what an earlier one
// found wrong, so that one mistake is one problem.
type checker struct {
	report
	t    heliotrope.Topology
	skip func(pointer string) bool // nothing is said about these; nil for none

	taken  map[netip.Addr]*path
	macs   map[heliotrope.MAC]string
	vnis   map[uint32]*path
	names  map[string]*path      // machines of the lab
	sound  map[netip.Prefix]bool // underlays and subnets with nothing wrong of their own
	spaces regions               // the same without those in others
}

func (c *checker) check() {
	c.taken = map[netip.Addr]*path{}
	c.vnis = map[uint32]*path{}
	c.sound = map[netip.Prefix]bool{}
	root := (*path)(nil)
	if c.t.Version != 1 {
		c.say(root.key("version"), "write version: 1", "version %d is not known to this program", c.t.Version)
	}
	c.name(root.key("name"), c.t.Name)
	c.overlaps()
	c.sites()
	c.controller()
	c.hosts()
	c.links()
	c.networks()
	c.vms()
	c.peers()
	c.clients()
	c.capture()
	c.policies()
	c.pools()
	c.rules()
	c.demand()
	c.stubs()
	c.images()
}

// say reports a problem with the value at a path.
func (c *checker) say(at *path, hint, format string, args ...any) {
	switch {
	case c.full():
		c.more++
	case c.skip == nil || !c.skip(at.pointer()):
		c.add(Problem{Path: at.String(), Pointer: at.pointer(), Message: fmt.Sprintf(format, args...), Hint: hint})
	}
}

// overlaps checks all underlays and subnets, and collects those that are sound.
func (c *checker) overlaps() {
	var all []region
	for id, s := range sorted(c.t.Sites) {
		at := (*path)(nil).key("sites").key(string(id)).key("underlay")
		if c.prefix(at, s.Underlay) {
			if !s.Underlay.Addr().Is4() {
				c.say(at, "", "an underlay is IPv4: the controller's address in one is its BGP router ID")
				continue
			}
			all = append(all, region{s.Underlay, at})
		}
	}
	for id, n := range sorted(c.t.Networks) {
		at := (*path)(nil).key("networks").key(string(id)).key("subnet")
		if c.prefix(at, n.Subnet) {
			all = append(all, region{n.Subnet, at})
		}
	}
	for _, r := range all {
		c.sound[r.prefix] = true
	}
	c.spaces = newRegions(all, func(inner, outer region) {
		c.say(inner.at, "no two underlays or subnets may overlap", "%s overlaps %s, %s", inner.prefix, outer.at, outer.prefix)
	})
}

// prefix says whether p can be a LAN.
func (c *checker) prefix(at *path, p netip.Prefix) bool {
	narrowest, widest := 30, 8
	if p.Addr().Is6() {
		narrowest, widest = 126, 32
	}
	switch why := unusable(p.Addr()); {
	case !p.IsValid():
		c.say(at, example(reflect.TypeFor[netip.Prefix]()), "is missing")
	case p.Bits() > narrowest:
		c.say(at, fmt.Sprintf("use /%d or wider", narrowest), "%s has no room for a router and a machine", p)
	case p.Bits() < widest:
		c.say(at, fmt.Sprintf("use /%d or narrower", widest), "%s is too wide", p)
	case p != p.Masked():
		c.say(at, "did you mean "+p.Masked().String()+"?", "%s has bits set behind its length", p)
	case why != "":
		c.say(at, "", "%s %s", p, why)
	case p.Overlaps(labWAN):
		c.say(at, "", "%s overlaps %s, which the lab's WAN uses", p, labWAN)
	default:
		return true
	}
	return false
}

// address checks that a is a machine's address in lan, where that is sound, and claims it.
func (c *checker) address(at *path, a netip.Addr, lan netip.Prefix) {
	why := unusable(a)
	switch {
	case !a.IsValid():
		c.say(at, example(reflect.TypeFor[netip.Addr]()), "is missing")
	case why != "":
		hint := ""
		if a.Is4In6() {
			hint = "write " + a.Unmap().WithZone("").String()
		}
		c.say(at, hint, "%s %s", a, why)
	case c.sound[lan] && notHost(a, lan) != "":
		c.say(at, span(lan), "%s %s", a, notHost(a, lan))
	default:
		c.claim(at, a)
	}
}

func (c *checker) claim(at *path, a netip.Addr) {
	if owner, ok := c.taken[a]; ok {
		c.say(at, "every address has one owner", "%s is already %s", a, owner)
		return
	}
	c.taken[a] = at
}

// name checks a name, which is good for a file, a host name and a URL alike.
func (c *checker) name(at *path, name string) {
	inside := strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
	switch {
	case name == "":
		c.say(at, "use a-z, 0-9 and, between them, -", "is an empty name")
	case len(name) > maxNameLength:
		c.say(at, "", "is too long a name: at most %d characters", maxNameLength)
	case !inside || name[0] == '-' || name[len(name)-1] == '-':
		c.say(at, "use a-z, 0-9 and, between them, -", "%s is no name", quote(name))
	}
}

// machine checks the name of a machine, all of which share one list in a lab.
func (c *checker) machine(at *path, name string) {
	c.name(at, name)
	if other, ok := c.names[name]; ok {
		c.say(at, "machines of a lab share one list of names", "%s has this name already", other)
		return
	}
	c.names[name] = at
}

// text checks free text that goes into logs and tables.
func (c *checker) text(at *path, s string) {
	switch {
	case !utf8.ValidString(s):
		c.say(at, "", "is no UTF-8")
	case len(s) > maxText:
		c.say(at, "", "is longer than %d bytes", maxText)
	case strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) }):
		c.say(at, "", "%s has characters that do not print", quote(s))
	}
}

// number checks that low ≤ n ≤ high; NaN is in no range.
func number[N cmp.Ordered](c *checker, at *path, n, low, high N) {
	if !(n >= low && n <= high) {
		c.say(at, fmt.Sprintf("use %v to %v", low, high), "%v is out of range", n)
	}
}

// as checks an autonomous system's number.
func (c *checker) as(at *path, as uint32) bool {
	switch as {
	case 0, 23456, 65535, 1<<32 - 1: // RFC 7607, 6793, 7300
		c.say(at, "64512 to 65534 are for private use", "AS %d is reserved", as)
		return false
	}
	return true
}

// refer checks that a name refers to an entry of a section.
func refer[K ~string, V any](c *checker, at *path, to K, plural string, section map[K]V) bool {
	if _, ok := section[to]; ok {
		return true
	}
	if c.skip != nil && c.skip("/"+plural) {
		return false
	}
	if c.full() {
		c.more++
		return false
	}
	known := make([]string, 0, len(section))
	for k := range sorted(section) {
		known = append(known, string(k))
	}
	if to == "" {
		c.say(at, didYouMean("", plural, known), "is missing")
	} else {
		c.say(at, didYouMean(string(to), plural, known), "there is no %s %s", strings.TrimSuffix(plural, "s"), quote(string(to)))
	}
	return false
}

// sorted walks a section in the order of its names.
func sorted[K cmp.Ordered, V any](m map[K]V) func(yield func(K, V) bool) {
	return func(yield func(K, V) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}
