package topologies

import (
	"fmt"
	"net/netip"
	"strings"

	"heliotrope"
)

const (
	hoursOfDay = 24
	maxAsked   = 1e15 // requests or bytes in an hour

	longest4, longest6 = 24, 48 // prefixes that addresses of clients are counted by
)

func (c *checker) demand() {
	var all []region
	for _, r := range c.spaces {
		all = append(all, region{r.prefix, r.at})
	}
	for id, d := range sorted(c.t.Demand) {
		at := (*path)(nil).key("demand").key(string(id))
		c.name(at, string(id))
		if _, ok := c.t.Sites[heliotrope.SiteID(id)]; ok {
			c.say(at, "clients at a site are known by their addresses", "is the name of a site")
		}
		for i, p := range d.Prefixes {
			if at := at.key("prefixes").at(i); c.clientPrefix(at, p) {
				all = append(all, region{p, at})
			}
		}
		c.rtts(at.key("rtt"), d)
		for i, a := range d.Asks {
			c.ask(at.key("asks").at(i), a)
		}
	}
	newRegions(all, func(inner, outer region) {
		if ofDemand(inner.at) {
			c.say(inner.at, "an address is in one region, and in none that is ours", "%s overlaps %s, %s", inner.prefix, outer.at, outer.prefix)
		} else if ofDemand(outer.at) {
			c.say(outer.at, "an address is in one region, and in none that is ours", "%s overlaps %s, %s", outer.prefix, inner.at, inner.prefix)
		}
	})
}

// ofDemand says whether a path is in the section demand.
func ofDemand(at *path) bool { return strings.HasPrefix(at.pointer(), "/demand/") }

// clientPrefix says whether clients can be told by p.
func (c *checker) clientPrefix(at *path, p netip.Prefix) bool {
	longest := longest4
	if p.Addr().Is6() {
		longest = longest6
	}
	switch {
	case !p.IsValid():
		c.say(at, "write one like 198.18.0.0/16", "is missing")
	case p.Bits() > longest:
		c.say(at, fmt.Sprintf("use /%d or wider", longest), "%s is narrower than what clients' addresses are counted by", p)
	case p != p.Masked():
		c.say(at, "did you mean "+p.Masked().String()+"?", "%s has bits set behind its length", p)
	default:
		return true
	}
	return false
}

// rtts checks that a region has a distance to all sites that VMs can be at.
func (c *checker) rtts(at *path, d heliotrope.Demand) {
	for site, rtt := range sorted(d.RTT) {
		refer(c, at.key(string(site)), site, "sites", c.t.Sites)
		number(c, at.key(string(site)), rtt, 0, 2*maxDelay)
	}
	told := map[heliotrope.SiteID]bool{}
	for _, h := range sorted(c.t.Hosts) {
		_, site := c.t.Sites[h.Site]
		if _, ok := d.RTT[h.Site]; site && !ok && !told[h.Site] {
			told[h.Site] = true
			c.say(at, fmt.Sprintf("add %s: 80ms, or what it is", h.Site), "has no round trip to %s, which has hosts", h.Site)
		}
	}
}

func (c *checker) ask(at *path, a heliotrope.Ask) {
	if len(a.VMs) == 0 {
		c.say(at.key("vms"), "", "names no VMs")
	}
	c.each(at.key("vms"), a.VMs)
	if len(a.Requests)+len(a.Bytes) == 0 {
		c.say(at.key("requests_per_hour"), "give it requests_per_hour or bytes_per_hour, or both", "asks for nothing")
	}
	for _, list := range []struct {
		name   string
		values []float64
	}{{"requests_per_hour", a.Requests}, {"bytes_per_hour", a.Bytes}} {
		at := at.key(list.name)
		if n := len(list.values); n != 0 && n != 1 && n != hoursOfDay {
			c.say(at, "write 24, from midnight on, or one for all hours", "has %d numbers", n)
		}
		for i, x := range list.values {
			number(c, at.at(i), x, 0, maxAsked)
		}
	}
}
