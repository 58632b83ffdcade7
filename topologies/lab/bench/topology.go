package bench

import (
	"fmt"
	"net/netip"

	"heliotrope"
	"heliotrope/topologies"
)

const (
	vmsPerHost = 10
	networks   = 4 // routed to each other
)

// fabric is a topology of one site with n hosts and ten VMs for each; one of the ten has
// a public address.
func fabric(n int) heliotrope.Topology {
	t := heliotrope.Topology{
		Version: 1, Name: fmt.Sprintf("fabric-%d", n),
		Controller: heliotrope.Controller{Site: "dc", Address: addr(10, 200, 0, 5), AS: 64512},
		Sites:      map[heliotrope.SiteID]heliotrope.Site{"dc": {Underlay: netip.MustParsePrefix("10.200.0.0/16"), Router: addr(10, 200, 0, 1)}},
		Hosts:      map[heliotrope.HostID]heliotrope.Host{},
		Networks:   map[heliotrope.NetworkID]heliotrope.Network{},
		VMs:        map[heliotrope.VMID]heliotrope.VM{},
		Peers:      map[heliotrope.PeerID]heliotrope.Peer{"dc": {Site: "dc", Address: addr(10, 200, 0, 1), AS: 64512}},
	}
	for k := range networks {
		t.Networks[network(k)] = heliotrope.Network{VNI: uint32(100 + k), Group: "all",
			Subnet: netip.PrefixFrom(addr(10, k+1, 0, 0), 16), Gateway: addr(10, k+1, 0, 1)}
	}
	for i := range n {
		t.Hosts[host(i)] = heliotrope.Host{Site: "dc", Address: addr(10, 200, 1+i/200, 1+i%200), Public: addr(10, 200, 101+i/200, 1+i%200)}
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

// seed is t with its first host only and no VMs: hosts that joined have no tunnels then.
func seed(t heliotrope.Topology) heliotrope.Topology {
	t.Hosts = map[heliotrope.HostID]heliotrope.Host{host(0): t.Hosts[host(0)]}
	t.VMs = nil
	return t
}

func host(i int) heliotrope.HostID       { return heliotrope.HostID(fmt.Sprintf("h%03d", i+1)) }
func vm(i int) heliotrope.VMID           { return heliotrope.VMID(fmt.Sprintf("vm-%05d", i+1)) }
func network(k int) heliotrope.NetworkID { return heliotrope.NetworkID(fmt.Sprintf("net-%d", k+1)) }

func addr(a, b, c, d int) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(a), byte(b), byte(c), byte(d)})
}
