package topologies

import (
	"fmt"
	"net/netip"
	"slices"
)

// labWAN is where the lab's routers have their addresses on the WAN.
var labWAN = netip.MustParsePrefix("100.64.0.0/24")

// unusable says why no machine of ours can have address a, or nothing.
func unusable(a netip.Addr) string {
	switch {
	case a.Zone() != "":
		return "has a zone"
	case a.Is4In6():
		return "is an IPv4 address written as IPv6"
	case a.IsUnspecified():
		return "is the unspecified address"
	case a.IsLoopback():
		return "is a loopback address"
	case a.IsMulticast():
		return "is a multicast address"
	case a.IsLinkLocalUnicast():
		return "is a link-local address"
	case a.Is4() && a.As4()[0] == 0:
		return "is in 0.0.0.0/8, which is reserved"
	case a.Is4() && a.As4()[0] >= 240:
		return "is in 240.0.0.0/4, which is reserved"
	case labWAN.Contains(a):
		return "is in " + labWAN.String() + ", which the lab's WAN uses"
	}
	return ""
}

// lastAddr is the highest address of p; the broadcast address where p is IPv4.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// notHost says why a is no address for a machine in prefix p, or nothing.
func notHost(a netip.Addr, p netip.Prefix) string {
	switch {
	case !p.Contains(a):
		return fmt.Sprintf("is outside of %s", p)
	case a == p.Addr():
		return fmt.Sprintf("is the network address of %s", p)
	case a.Is4() && a == lastAddr(p):
		return fmt.Sprintf("is the broadcast address of %s", p)
	}
	return ""
}

// span is the hint that goes with notHost.
func span(p netip.Prefix) string {
	last := lastAddr(p)
	if p.Addr().Is4() {
		last = last.Prev()
	}
	return fmt.Sprintf("use %s to %s", p.Addr().Next(), last)
}

// region is a prefix and where it is said.
type region struct {
	prefix netip.Prefix
	at     *path
}

// regions are prefixes in order of their addresses, none of which contains another.
type regions []region

// newRegions sorts all and leaves out those that lie in another, each of which it tells.
// Prefixes are nested or disjoint, so one look back is enough.
func newRegions(all []region, overlap func(inner, outer region)) regions {
	slices.SortStableFunc(all, func(a, b region) int { return a.prefix.Compare(b.prefix) })
	var kept regions
	for _, r := range all {
		if n := len(kept); n > 0 && kept[n-1].prefix.Overlaps(r.prefix) {
			overlap(r, kept[n-1])
			continue
		}
		kept = append(kept, r)
	}
	return kept
}

// find returns the region that a is in.
func (rs regions) find(a netip.Addr) (region, bool) {
	i, exact := slices.BinarySearchFunc(rs, a, func(r region, a netip.Addr) int { return r.prefix.Addr().Compare(a) })
	if !exact {
		i--
	}
	if i < 0 || !rs[i].prefix.Contains(a) {
		return region{}, false
	}
	return rs[i], true
}
