package topologies

import (
	"time"

	"heliotrope"
)

const (
	minBilling = heliotrope.Duration(time.Second)
	maxBilling = heliotrope.Duration(31 * 24 * time.Hour)
)

func (c *checker) sites() {
	c.names = map[string]*path{"controller": (*path)(nil).key("controller")}
	for id, s := range sorted(c.t.Sites) {
		at := (*path)(nil).key("sites").key(string(id))
		c.name(at, string(id))
		c.names["router-"+string(id)] = at.key("router")
		c.text(at.key("description"), s.Description)
		c.text(at.key("provider"), s.Provider)
		if s.Router.IsValid() || s.Underlay.IsValid() {
			c.address(at.key("router"), s.Router, s.Underlay)
		}
		number(c, at.key("latitude"), s.Latitude, -90, 90)
		number(c, at.key("longitude"), s.Longitude, -180, 180)
		number(c, at.key("price_per_vcpu_hour"), s.PricePerVCPUHour, 0, 1e6)
		number(c, at.key("price_per_gib_hour"), s.PricePerGiBHour, 0, 1e6)
		number(c, at.key("price_per_gb"), s.PricePerGB, 0, 1e6)
		number(c, at.key("grams_co2_per_vcpu_hour"), s.GramsCO2PerVCPUHour, 0, 1e6)
		number(c, at.key("interruptions_per_hour"), s.InterruptionsPerHour, 0, 3600)
		if s.Billing != 0 {
			number(c, at.key("billing"), s.Billing, minBilling, maxBilling)
		}
		c.seats(at.key("licences"), s.Licences, 0)
		for id, usd := range sorted(s.PricePerSeat) {
			at := at.key("price_per_seat_hour").key(string(id))
			c.name(at, string(id))
			number(c, at, usd, 0, 1e6)
		}
	}
}

// seats checks how many of each licence there are, or are needed.
func (c *checker) seats(at *path, seats map[heliotrope.LicenceID]int, least int) {
	for id, n := range sorted(seats) {
		c.name(at.key(string(id)), string(id))
		number(c, at.key(string(id)), n, least, maxSeats)
	}
}

// licences are all that some site or host has seats of, or rents them.
func (c *checker) licences() map[heliotrope.LicenceID]bool {
	all := map[heliotrope.LicenceID]bool{}
	add := func(seats map[heliotrope.LicenceID]int) {
		for id := range seats {
			all[id] = true
		}
	}
	for _, s := range c.t.Sites {
		add(s.Licences)
		for id := range s.PricePerSeat {
			all[id] = true
		}
	}
	for _, h := range c.t.Hosts {
		add(h.Licences)
	}
	return all
}

func (c *checker) controller() {
	at := (*path)(nil).key("controller")
	refer(c, at.key("site"), c.t.Controller.Site, "sites", c.t.Sites)
	c.address(at.key("address"), c.t.Controller.Address, c.t.Sites[c.t.Controller.Site].Underlay)
	c.as(at.key("as"), c.t.Controller.AS)
}

func (c *checker) hosts() {
	c.macs = map[heliotrope.MAC]string{heliotrope.GatewayMAC: "the gateway of every network"}
	for id, h := range sorted(c.t.Hosts) {
		at := (*path)(nil).key("hosts").key(string(id))
		c.machine(at, string(id))
		refer(c, at.key("site"), h.Site, "sites", c.t.Sites)
		lan := c.t.Sites[h.Site].Underlay
		c.address(at.key("address"), h.Address, lan)
		c.address(at.key("public"), h.Public, lan)
		number(c, at.key("cpus"), h.CPUs, 0, maxCPUs)
		c.text(at.key("instance_type"), h.InstanceType)
		number(c, at.key("memory_mib"), h.MemoryMiB, 0, maxMemoryMiB)
		c.seats(at.key("licences"), h.Licences, 0)
		c.mac(at, heliotrope.PublicMAC(id), "the public side of host "+string(id))
	}
}

// mac checks and claims a MAC address for what owner says.
func (c *checker) mac(at *path, m heliotrope.MAC, owner string) {
	switch other, ok := c.macs[m]; {
	case m.IsZero():
		c.say(at, "", "is missing")
	case m == heliotrope.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}:
		c.say(at, "", "%s is the broadcast address", m)
	case m[0]&1 != 0:
		c.say(at, "make the first byte even, like 02", "%s is a multicast address", m)
	case ok:
		c.say(at, "every MAC address has one owner", "%s is already that of %s", m, other)
	default:
		c.macs[m] = owner
	}
}

func (c *checker) links() {
	joined, sound := map[[2]heliotrope.SiteID]*path{}, true
	for id, l := range sorted(c.t.Links) {
		at := (*path)(nil).key("links").key(string(id))
		c.name(at, string(id))
		between, a, b := at.key("between"), l.Between[0], l.Between[1]
		known := refer(c, between.at(0), a, "sites", c.t.Sites)
		known = refer(c, between.at(1), b, "sites", c.t.Sites) && known
		before, twice := joined[[2]heliotrope.SiteID{min(a, b), max(a, b)}]
		switch {
		case !known:
			sound = false
		case a == b:
			c.say(between, "", "joins %s with itself", a)
		case twice:
			c.say(between, "two sites have one link", "%s joins these sites already", before)
		default:
			joined[[2]heliotrope.SiteID{min(a, b), max(a, b)}] = at
		}
		number(c, at.key("delay"), l.Delay, 0, maxDelay)
		number(c, at.key("jitter"), l.Jitter, 0, maxDelay)
		number(c, at.key("queue"), l.Queue, 0, maxDelay)
		number(c, at.key("loss"), l.Loss, 0, 1)
		number(c, at.key("rate"), l.Rate, 0, 1e15)
		number(c, at.key("price_per_gb"), l.PricePerGB, 0, 1e6)
		c.imagesRate(at.key("images_rate"), l)
	}
	if sound {
		c.reach()
	}
}

// reach checks that the controller's site has a way over links to every site with hosts.
func (c *checker) reach() {
	start := c.t.Controller.Site
	if _, ok := c.t.Sites[start]; !ok || c.skip != nil && c.skip("/links") {
		return
	}
	next := map[heliotrope.SiteID][]heliotrope.SiteID{}
	for _, l := range c.t.Links {
		a, b := l.Between[0], l.Between[1]
		next[a], next[b] = append(next[a], b), append(next[b], a)
	}
	seen := map[heliotrope.SiteID]bool{start: true}
	for todo := []heliotrope.SiteID{start}; len(todo) > 0; todo = todo[1:] {
		for _, s := range next[todo[0]] {
			if !seen[s] {
				seen[s] = true
				todo = append(todo, s)
			}
		}
	}
	for _, h := range sorted(c.t.Hosts) {
		if _, ok := c.t.Sites[h.Site]; !ok || seen[h.Site] {
			continue
		}
		seen[h.Site] = true
		c.say((*path)(nil).key("sites").key(string(h.Site)), "add a link, like between: ["+string(start)+", "+string(h.Site)+"]",
			"has hosts, but no links lead here from %s, the controller's site", start)
	}
}

func (c *checker) peers() {
	sites, owners := map[heliotrope.SiteID]*path{}, map[uint32]heliotrope.SiteID{}
	for id, p := range sorted(c.t.Peers) {
		at := (*path)(nil).key("peers").key(string(id))
		c.name(at, string(id))
		known := refer(c, at.key("site"), p.Site, "sites", c.t.Sites)
		site := c.t.Sites[p.Site]
		switch before, twice := sites[p.Site]; {
		case !p.Address.IsValid():
			c.say(at.key("address"), "write the address of the site's router", "is missing")
		case known && c.sound[site.Underlay] && p.Address != site.Router:
			c.say(at.key("address"), "write "+site.Router.String(), "%s is not the router of site %s", p.Address, p.Site)
		case known && twice:
			c.say(at.key("address"), "a router is one peer", "%s is already the neighbour %s", p.Address, before)
		case known:
			sites[p.Site] = at
		}
		if other, ok := owners[p.AS]; ok && other != p.Site && p.AS != c.t.Controller.AS {
			c.say(at.key("as"), "give each site its own AS, or the controller's", "AS %d is already that of site %s; BGP drops routes that come back to their AS", p.AS, other)
		} else if c.as(at.key("as"), p.AS) {
			owners[p.AS] = p.Site
		}
		c.password(at.key("password"), p.Password)
	}
}

// password allows what every router's configuration can quote.
func (c *checker) password(at *path, s string) {
	if len(s) > maxPassword {
		c.say(at, "", "is longer than %d bytes", maxPassword)
	}
	for _, b := range []byte(s) {
		if b <= ' ' || b >= 0x7f || b == '"' || b == '\\' {
			c.say(at, `use printable ASCII without spaces, " and \`, "has a character that a router's configuration cannot hold")
			return
		}
	}
}

func (c *checker) clients() {
	for id, cl := range sorted(c.t.Clients) {
		at := (*path)(nil).key("clients").key(string(id))
		c.machine(at, string(id))
		refer(c, at.key("site"), cl.Site, "sites", c.t.Sites)
		c.address(at.key("address"), cl.Address, c.t.Sites[cl.Site].Underlay)
	}
}
