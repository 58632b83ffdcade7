package bench

import (
	"fmt"
	"maps"
	"net/netip"

	"heliotrope"
	"heliotrope/ovsdb"
	"heliotrope/topologies"
)

const (
	hostsPerSite = 5 // so that all nodes' neighbours fit the kernel's one table of 1,024
	vmsPerHost   = 10
	networks     = 4 // routed to each other
)

// fabric is a topology of n hosts in sites of five, each site linked with every other, and
// ten VMs for each host; one of the ten has a public address.
func fabric(n int) heliotrope.Topology {
	t := heliotrope.Topology{
		Version: 1, Name: fmt.Sprintf("fabric-%d", n),
		Controller: heliotrope.Controller{Site: site(0), Address: addr(10, 100, 0, 5), AS: 64512},
		Sites:      map[heliotrope.SiteID]heliotrope.Site{},
		Links:      map[heliotrope.LinkID]heliotrope.Link{},
		Hosts:      map[heliotrope.HostID]heliotrope.Host{},
		Networks:   map[heliotrope.NetworkID]heliotrope.Network{},
		VMs:        map[heliotrope.VMID]heliotrope.VM{},
		Peers:      map[heliotrope.PeerID]heliotrope.Peer{},
	}
	for k := range (n + hostsPerSite - 1) / hostsPerSite {
		router := addr(10, 100+k, 0, 1)
		t.Sites[site(k)] = heliotrope.Site{Underlay: netip.PrefixFrom(addr(10, 100+k, 0, 0), 16), Router: router}
		t.Peers[heliotrope.PeerID(site(k))] = heliotrope.Peer{Site: site(k), Address: router, AS: 64512}
		for other := range k {
			t.Links[heliotrope.LinkID(site(other)+"-"+site(k))] = heliotrope.Link{Between: [2]heliotrope.SiteID{site(other), site(k)}}
		}
	}
	for k := range networks {
		t.Networks[network(k)] = heliotrope.Network{VNI: uint32(100 + k), Group: "all",
			Subnet: netip.PrefixFrom(addr(10, k+1, 0, 0), 16), Gateway: addr(10, k+1, 0, 1)}
	}
	for i := range n {
		t.Hosts[host(i)] = heliotrope.Host{Site: site(i / hostsPerSite), Address: addr(10, 100+i/hostsPerSite, 0, 11+i%hostsPerSite),
			Public: addr(10, 100+i/hostsPerSite, 0, 111+i%hostsPerSite)}
	}
	for i := range n * vmsPerHost {
		nic := heliotrope.NIC{Network: network(i % networks), Address: addr(10, i%networks+1, 1+i/250, 1+i%250)}
		if i%vmsPerHost == 0 {
			nic.Public = addr(198, 18, i/250, 1+i%250)
		}
		t.VMs[vm(i)] = heliotrope.VM{Image: "none", Host: host(i / vmsPerHost), NICs: []heliotrope.NIC{nic}}
	}
	return topologies.Complete(t)
}

// seed is t without VMs, and with hosts in a site that the lab lacks, so many that all tunnels
// of a host share one port: those who join have no mesh yet.
func seed(t heliotrope.Topology) heliotrope.Topology {
	const nowhere = "nowhere"
	t.Sites, t.Links, t.Hosts, t.VMs = maps.Clone(t.Sites), maps.Clone(t.Links), maps.Clone(t.Hosts), nil
	t.Sites[nowhere] = heliotrope.Site{Underlay: netip.PrefixFrom(addr(10, 99, 0, 0), 16), Router: addr(10, 99, 0, 1)}
	t.Links[nowhere] = heliotrope.Link{Between: [2]heliotrope.SiteID{site(0), nowhere}}
	for i := range ovsdb.MaxTunnels + 2 {
		t.Hosts[heliotrope.HostID(fmt.Sprintf("nobody-%d", i))] = heliotrope.Host{Site: nowhere, Address: addr(10, 99, 1, 1+i), Public: addr(10, 99, 2, 1+i)}
	}
	return t
}

func host(i int) heliotrope.HostID       { return heliotrope.HostID(fmt.Sprintf("h%03d", i+1)) }
func vm(i int) heliotrope.VMID           { return heliotrope.VMID(fmt.Sprintf("vm-%05d", i+1)) }
func site(k int) heliotrope.SiteID       { return heliotrope.SiteID(fmt.Sprintf("s%02d", k+1)) }
func network(k int) heliotrope.NetworkID { return heliotrope.NetworkID(fmt.Sprintf("net-%d", k+1)) }

func addr(a, b, c, d int) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(a), byte(b), byte(c), byte(d)})
}
