package lab

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"heliotrope"
	"heliotrope/hostagent/agentapi"
	"heliotrope/topologies/lab/node"
)

// Kind is what a node is for.
type Kind string

// The kinds of nodes.
const (
	KindRouter     Kind = "router"
	KindController Kind = "controller"
	KindHost       Kind = "host"
	KindClient     Kind = "client"
	KindVM         Kind = "vm" // of a light lab, or a stub
)

// plan is a node as the supervisor sees it; the embedded part is for its PID 1.
type plan struct {
	node.Plan
	Kind    Kind
	Site    heliotrope.SiteID
	Address netip.Addr
	Host    heliotrope.HostID // of a host, whose node may have to be named otherwise, or that a VM is at
	VM      heliotrope.VMID   // of a VM
	Hosts   string            // the content of /etc/hosts
}

// maxSites is what the addresses between the routers, 100.64.0.0/24, have room for.
const maxSites = 254

// planner derives the nodes' plans from a topology; it touches nothing outside.
type planner struct {
	config config
	top    heliotrope.Topology
	sites  []heliotrope.SiteID // ordered: a site's place is its number on the WAN
	names  map[string]bool     // taken
	plans  []plan
}

// plans returns the nodes of a topology, routers first.
func plans(cfg config) ([]plan, error) {
	p := &planner{
		config: cfg, top: cfg.Topology,
		sites: slices.Sorted(maps.Keys(cfg.Topology.Sites)),
		names: map[string]bool{},
	}
	if len(p.sites) > maxSites {
		return nil, fmt.Errorf("plan lab: %d sites, at most %d fit in 100.64.0.0/24", len(p.sites), maxSites)
	}
	hops := nextHops(p.top)
	for i, id := range p.sites {
		p.router(i, id, hops[id])
	}
	if !cfg.WithoutControl {
		p.controller()
	}
	for _, id := range slices.Sorted(maps.Keys(p.top.Hosts)) {
		p.host(id, p.top.Hosts[id])
	}
	for _, id := range slices.Sorted(maps.Keys(p.top.Clients)) {
		c := p.top.Clients[id]
		p.leaf(string(id), KindClient, c.Site, c.Address, "eth0")
	}
	if cfg.Light {
		for _, id := range slices.Sorted(maps.Keys(p.top.VMs)) {
			p.vm(id, p.top.VMs[id].Host)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(p.top.Stubs)) {
		p.stub(id, p.top.Stubs[id])
	}
	for i := range p.plans {
		if _, ok := p.top.Sites[p.plans[i].Site]; !ok {
			return nil, fmt.Errorf("plan lab: node %s is in site %q, which is not in the topology", p.plans[i].Node, p.plans[i].Site)
		}
		p.plans[i].Hosts = p.hostsFile(p.plans[i].Kind == KindVM)
	}
	return p.plans, nil
}

// add appends a node under a name that no other has.
func (p *planner) add(name string, kind Kind, site heliotrope.SiteID, addr netip.Addr) *plan {
	if p.names[name] {
		name = string(kind) + "-" + name
	}
	for p.names[name] {
		name += "-2"
	}
	p.names[name] = true
	p.plans = append(p.plans, plan{
		Kind: kind, Site: site, Address: addr,
		Plan: node.Plan{
			Node: name, Dir: p.config.layout().node(name),
			Sysctls: maps.Clone(nodeSysctls), Trees: map[string]string{},
		},
	})
	return &p.plans[len(p.plans)-1]
}

// nodeSysctls hold in every node. A node answers ARP only on the interface that has the
// address: OVS's userspace datapath leaves packets to the kernel as well, which would
// answer on eth0 what only br-phy must answer. Redirects would let a client send to a
// VM's old host behind its router's back.
var nodeSysctls = map[string]string{
	"net/ipv4/conf/all/rp_filter":            "0",
	"net/ipv4/conf/default/rp_filter":        "0",
	"net/ipv4/conf/all/arp_ignore":           "1",
	"net/ipv4/conf/all/arp_announce":         "2",
	"net/ipv4/conf/all/send_redirects":       "0",
	"net/ipv4/conf/default/send_redirects":   "0",
	"net/ipv4/conf/all/accept_redirects":     "0",
	"net/ipv4/conf/default/accept_redirects": "0",
	"net/ipv6/conf/default/disable_ipv6":     "1",
	"net/ipv4/ping_group_range":              "0 2147483647",
}

// router is a site's router: bridge lan to the hosts, tap wan0 to the other routers, BIRD.
func (p *planner) router(i int, id heliotrope.SiteID, hops map[heliotrope.SiteID]heliotrope.SiteID) {
	site := p.top.Sites[id]
	n := p.add("router-"+string(id), KindRouter, id, site.Router)
	n.Sysctls["net/ipv4/ip_forward"] = "1"
	n.Addresses = []node.Address{
		{Device: "lan", Prefix: netip.PrefixFrom(site.Router, site.Underlay.Bits())},
		{Device: wanDevice, Prefix: netip.PrefixFrom(wanAddress(i), 24)},
	}
	for j, other := range p.sites {
		if hop, ok := hops[other]; ok {
			k := slices.Index(p.sites, hop)
			n.Routes = append(n.Routes, node.Route{To: p.top.Sites[other].Underlay, Via: wanAddress(k)})
			if hop == other {
				n.Neighbors = append(n.Neighbors, node.Neighbor{Device: wanDevice, Address: wanAddress(j), MAC: wanMAC(j)})
			}
		}
	}
	n.Daemons = []node.Daemon{{
		Name: "bird",
		// -R, not the first time: what BIRD had put into the kernel stays until the
		// controller has spoken again.
		Argv: []string{"sh", "-c", "test -e /run/bird/ran && recover=-R; touch /run/bird/ran; " +
			"exec bird -f $recover -c /run/lab/bird.conf -s /run/bird/bird.ctl"},
		Ready: []string{"birdc", "show", "status"},
	}}
}

// controller is the node with the controller; its sockets are seen from outside.
func (p *planner) controller() {
	n := p.leaf("controller", KindController, p.top.Controller.Site, p.top.Controller.Address, "eth0")
	n.Trees["/run/heliotrope"] = p.config.layout().controller()
	p.config.stores(n, true)
	n.Daemons = []node.Daemon{{Name: "controller", Argv: p.config.Controller}}
}

// host is a machine with Open vSwitch, libvirt and the agent. Its address is on br-phy:
// the userspace datapath can send its tunnels only through a bridge.
func (p *planner) host(id heliotrope.HostID, h heliotrope.Host) {
	n := p.leaf(string(id), KindHost, h.Site, h.Address, "br-phy")
	n.Host, n.Images = id, p.config.Images
	p.config.stores(n, false)
	p.bypass(n, p.top.Sites[h.Site].Router, h)
	n.Daemons = []node.Daemon{
		{
			Name:   "ovsdb-server",
			Before: [][]string{{"sh", "-c", "test -e /etc/openvswitch/conf.db || ovsdb-tool create /etc/openvswitch/conf.db /usr/share/openvswitch/vswitch.ovsschema"}},
			Argv: []string{"ovsdb-server", "/etc/openvswitch/conf.db", "--pidfile", "--remote=punix:/run/openvswitch/db.sock",
				"--remote=db:Open_vSwitch,Open_vSwitch,manager_options", "-vconsole:info"},
			Ready: []string{"ovs-vsctl", "--no-wait", "--timeout=5", "init"},
		},
		{
			Name: "ovs-vswitchd",
			Argv: []string{"ovs-vswitchd", "unix:/run/openvswitch/db.sock", "--pidfile", "-vconsole:info"},
			Ready: []string{"ovs-vsctl", "--timeout=5",
				"--", "set", "Open_vSwitch", ".", "external-ids:system-id=" + string(id), "external-ids:hostname=" + n.Node,
				"--", "--may-exist", "add-br", "br-phy",
				// Its own MAC: with eth0's, the kernel would take each packet twice.
				"--", "set", "Bridge", "br-phy", "datapath_type=netdev", "fail_mode=standalone", "other-config:hwaddr=" + labMAC(n.Node, "br-phy").String(),
				"--", "--may-exist", "add-port", "br-phy", "eth0"},
		},
	}
	if p.config.WithoutLibvirt {
		return
	}
	n.Daemons = append(n.Daemons, node.Daemon{Name: "virtlogd", Argv: []string{"virtlogd"}}, node.Daemon{
		Name:  "libvirtd",
		Argv:  []string{"libvirtd"},
		Ready: []string{"virsh", "--quiet", "-c", "qemu:///system", "uri"},
	})
}

// bulkDevice is a host's second cable, and bulkTable the routes through it.
const (
	bulkDevice = "eth1"
	bulkTable  = 100
)

// bypass sends what a relay sends around Open vSwitch. A host whose datapath is the
// kernel's has no need of it; here a copy would stand in one slow queue with the agent's
// own words, and the pause would wait for them. What comes in goes through br-phy: nobody
// but br-phy answers ARP for the host, and the router on this cable is known beforehand.
func (p *planner) bypass(n *plan, router netip.Addr, h heliotrope.Host) {
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	n.Routes = append(n.Routes, node.Route{To: all, Via: router, Device: bulkDevice, Source: h.Address, Table: bulkTable})
	n.Rules = []node.Rule{{Port: agentapi.RelayPort, Table: bulkTable}}
	n.Neighbors = append(n.Neighbors, node.Neighbor{Device: bulkDevice, Address: router, MAC: labMAC(p.routerOf(h.Site), "lan")})
}

// routerOf is the name of a site's router; routers are planned first.
func (p *planner) routerOf(site heliotrope.SiteID) string {
	i := slices.IndexFunc(p.plans, func(n plan) bool { return n.Kind == KindRouter && n.Site == site })
	if i < 0 {
		return "" // plans refuses such a topology
	}
	return p.plans[i].Node
}

// agent is the daemon that a host gets once the controller has given a token.
func (c config) agent(controller netip.Addr, token string) node.Daemon {
	at := netip.AddrPortFrom(controller, agentPort).String()
	// All hosts of a lab are one machine: its speed is measured only when somebody asks.
	run := append([]string{c.AgentBinary, "run", "--revocation", "file:" + RevokedFile, "--bench-every", "0"}, c.imageStoreFlag()...)
	if c.WithoutLibvirt {
		run = append(run, "--libvirt", "none")
	}
	return node.Daemon{
		Name: "agent",
		Before: [][]string{{"sh", "-c", `test -e /etc/heliotrope/joined || { "$@" && touch /etc/heliotrope/joined; }`, "join",
			c.AgentBinary, "join", "--controller", at, "--token", token}},
		Argv: run,
	}
}

// RevokedFile is the file in a host's node whose presence tells its agent that the host is
// taken away; its content is when, and why.
const RevokedFile = "/run/heliotrope/revoked"

// agentPort is where the controller waits for agents.
const agentPort = 7443

// leaf is a node with one address on its site's LAN and everything else behind the router.
func (p *planner) leaf(name string, kind Kind, at heliotrope.SiteID, addr netip.Addr, device string) *plan {
	site := p.top.Sites[at]
	n := p.add(name, kind, at, addr)
	n.Addresses = []node.Address{{Device: device, Prefix: netip.PrefixFrom(addr, site.Underlay.Bits())}}
	n.Routes = []node.Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: site.Router}}
	return n
}

// hostsFile resolves the name of every node, or of every VM: neither sees the others'
// addresses. Without it libvirt waits for a resolver that does not exist: a migration took
// 67 s instead of 2.4 s.
func (p *planner) hostsFile(vms bool) string {
	var names []string
	for _, n := range p.plans {
		if (n.Kind == KindVM) == vms {
			names = append(names, fmt.Sprintf("%s %s\n", n.Address, n.Node))
		}
	}
	slices.Sort(names)
	return "127.0.0.1 localhost\n::1 localhost\n" + strings.Join(names, "")
}

// wanAddress is the i-th router's address towards the others.
func wanAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, 0, byte(i + 1)}) }

// wanMAC is the i-th router's MAC on wan0. It is known beforehand: no ARP crosses the WAN.
func wanMAC(i int) heliotrope.MAC { return heliotrope.MAC{0x02, 'w', 'a', 'n', 0, byte(i + 1)} }

// nextHops says, for each site, through which neighbour each other site is reached: over
// the link between them, else on the way of least delay. A site that no chain of links
// reaches is left out.
func nextHops(t heliotrope.Topology) map[heliotrope.SiteID]map[heliotrope.SiteID]heliotrope.SiteID {
	const never = time.Duration(math.MaxInt64 / 4)
	type pair struct{ from, to heliotrope.SiteID }
	sites := slices.Sorted(maps.Keys(t.Sites))
	dist, next := map[pair]time.Duration{}, map[pair]heliotrope.SiteID{}
	for _, a := range sites {
		for _, b := range sites {
			dist[pair{a, b}] = never
		}
	}
	for _, id := range slices.Sorted(maps.Keys(t.Links)) {
		l := t.Links[id]
		for _, p := range []pair{{l.Between[0], l.Between[1]}, {l.Between[1], l.Between[0]}} {
			// A hop costs a little of its own, so that links without delay make no detours.
			if d := time.Duration(l.Delay) + time.Microsecond; d < dist[p] {
				dist[p], next[p] = d, p.to
			}
		}
	}
	for _, via := range sites {
		for _, a := range sites {
			for _, b := range sites {
				if d := dist[pair{a, via}] + dist[pair{via, b}]; a != b && d < dist[pair{a, b}] {
					dist[pair{a, b}], next[pair{a, b}] = d, next[pair{a, via}]
				}
			}
		}
	}
	for _, l := range t.Links { // also where two other links together are quicker
		a, b := l.Between[0], l.Between[1]
		next[pair{a, b}], next[pair{b, a}] = b, a
	}
	hops := map[heliotrope.SiteID]map[heliotrope.SiteID]heliotrope.SiteID{}
	for p, hop := range next {
		if hops[p.from] == nil {
			hops[p.from] = map[heliotrope.SiteID]heliotrope.SiteID{}
		}
		hops[p.from][p.to] = hop
	}
	return hops
}
