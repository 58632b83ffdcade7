package topologies

import (
	"fmt"
	"slices"
	"strings"

	"heliotrope"
)

// ownPorts are bridges and ports of package ovsdb; tunnels begin with ownTunnels.
var ownPorts = []string{"br-int", "br-phy", "uplink", "uplink-phy"}

const ownTunnels = "vx-"

var accesses = []string{heliotrope.AccessAuto, heliotrope.AccessProxy, heliotrope.AccessLocal}

func (c *checker) stubs() {
	type port struct {
		host heliotrope.HostID
		name string
	}
	taken := map[port]*path{}
	for id, s := range sorted(c.t.Stubs) {
		at := (*path)(nil).key("stubs").key(string(id))
		c.name(at, string(id))
		if _, ok := c.t.VMs[heliotrope.VMID(id)]; ok {
			c.say(at, "who talks to whom is told by name", "vms has a %s as well", id)
			continue
		}
		refer(c, at.key("host"), s.Host, "hosts", c.t.Hosts)
		c.device(at.key("port"), s.Port)
		if before := taken[port{s.Host, s.Port}]; before != nil {
			c.say(at.key("port"), "", "%s of %s is already %s", s.Port, s.Host, before)
		}
		taken[port{s.Host, s.Port}] = at.key("port")
		c.nic(at, heliotrope.NIC{Network: s.Network, MAC: s.NIC(id).MAC, Address: s.Address})
		c.word(at.key("access"), s.Access, "accesses", accesses)
		number(c, at.key("linger"), s.Linger, 0, maxCoolDown)
		if s.Linger != 0 && s.AccessOf() != heliotrope.AccessLocal {
			c.say(at.key("linger"), "leave it out, or write access: local", "it is how long a VM stays that had to come, and with access: %s none has to", s.AccessOf())
		}
	}
}

// device checks the name of a network device of a host that is to be a port of br-int.
func (c *checker) device(at *path, name string) {
	const most = 15 // IFNAMSIZ less the final zero
	switch {
	case name == "":
		c.say(at, "name the network device of the host that it is behind, such as eth2", "is missing")
	case len(name) > most || name == "." || name == ".." || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/:"\`, r) }):
		c.say(at, fmt.Sprintf("at most %d printable characters, and none of / : \" \\", most), "%s is no name of a network device", quote(name))
	case slices.Contains(ownPorts, name) || strings.HasPrefix(name, ownTunnels):
		c.say(at, "give the device another name", "%s is a name that Heliotrope's own ports have", quote(name))
	}
}
