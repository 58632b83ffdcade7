// Package leader says at which of its replicas a replicated service ought to be led.
//
// Replicas stay where they are, and hold the state already: another leads after an election,
// and nothing is copied. But whatever clients ask is answered by the leader, wherever they
// ask, and only once a majority of the replicas has what it says. So clients are as far from
// an answer as the leader is from them, and as the replicas that it must hear from are from
// it.
//
// To the scheduler such a leader is a VM, which can be at its replicas' hosts only, is small,
// and pauses for an election when it moves. Then all holds for it that holds for VMs: the
// price of distance, the pace, and that it moves only for what is no matter of chance
// (trial.Trial).
package leader

import (
	"fmt"
	"maps"
	"slices"

	"heliotrope"
	"heliotrope/scheduler"
)

const (
	// ID is the leader among the VMs of a Snapshot.
	ID heliotrope.VMID = "leader"

	electionMs = 2000 // in which nobody leads; that distance adds to it is the plan's matter
)

// Snapshot is s as the question at which of some replicas, VMs or stubs, their leader ought
// to be. What is asked of it is what all replicas send to others than themselves.
func Snapshot(s scheduler.Snapshot, replicas []heliotrope.VMID, leads heliotrope.VMID) (scheduler.Snapshot, error) {
	g := ground{s: s, at: map[heliotrope.VMID]heliotrope.SiteID{}, rtt: distances(s)}
	q := scheduler.Snapshot{At: s.At}
	home, err := g.place(&q, replicas, leads)
	if err != nil {
		return q, fmt.Errorf("place leader: %w", err)
	}
	q.VMs = []scheduler.VM{{ID: ID, Host: home, VCPUs: 1, MemoryMiB: 1, PauseMs: electionMs}}
	asked := g.asked(&q, replicas)
	for _, from := range slices.Sorted(maps.Keys(asked)) {
		q.Demands = append(q.Demands, scheduler.Demand{VM: ID, Region: from, BytesPerSecond: asked[from]})
	}
	return q, nil
}

// Replica is the one at a host.
func Replica(s scheduler.Snapshot, replicas []heliotrope.VMID, host heliotrope.HostID) heliotrope.VMID {
	for _, v := range s.VMs {
		if v.Host == host && slices.Contains(replicas, v.ID) {
			return v.ID
		}
	}
	return ""
}

// ground is what a leader's snapshot is made of.
type ground struct {
	s   scheduler.Snapshot
	at  map[heliotrope.VMID]heliotrope.SiteID
	rtt map[[2]heliotrope.SiteID]float64 // ms, both ways round, and within a site
}

// distances are those of a snapshot's paths: the mean where both ways give one.
func distances(s scheduler.Snapshot) map[[2]heliotrope.SiteID]float64 {
	rtt := map[[2]heliotrope.SiteID]float64{}
	for _, p := range s.Paths {
		there, back := [2]heliotrope.SiteID{p.From, p.To}, [2]heliotrope.SiteID{p.To, p.From}
		ms := p.RTTMs
		if other, ok := rtt[there]; ok {
			ms = (ms + other) / 2
		}
		rtt[there], rtt[back] = ms, ms
	}
	for _, site := range s.Sites {
		rtt[[2]heliotrope.SiteID{site.ID, site.ID}] = site.LANRTTMs
	}
	return rtt
}

// place lays out the hosts and sites at which the leader can be, and says where it is.
func (g *ground) place(q *scheduler.Snapshot, replicas []heliotrope.VMID, leads heliotrope.VMID) (home heliotrope.HostID, err error) {
	sites, hosts := map[heliotrope.HostID]heliotrope.SiteID{}, map[heliotrope.VMID]heliotrope.HostID{}
	for _, h := range g.s.Hosts {
		sites[h.ID] = h.Site
	}
	for _, v := range g.s.VMs {
		hosts[v.ID], g.at[v.ID] = v.Host, sites[v.Host]
	}
	taken := map[heliotrope.HostID]heliotrope.VMID{}
	for _, r := range replicas {
		host := hosts[r]
		if g.at[r] == "" {
			return "", fmt.Errorf("replica %s is no VM or stub at a known host", r)
		}
		if other, ok := taken[host]; ok {
			return "", fmt.Errorf("%s and %s are both at %s: which of the two leads makes no difference", other, r, host)
		}
		taken[host] = r
		q.Hosts = append(q.Hosts, scheduler.Host{ID: host, Site: g.at[r], VCPUs: 1, MemoryMiB: 1})
	}
	if !slices.Contains(replicas, leads) {
		return "", fmt.Errorf("%q leads, which is none of the replicas %v", leads, replicas)
	}
	for _, site := range g.s.Sites {
		if slices.ContainsFunc(q.Hosts, func(h scheduler.Host) bool { return h.Site == site.ID }) {
			q.Sites = append(q.Sites, scheduler.Site{ID: site.ID, LANRTTMs: site.LANRTTMs})
		}
	}
	for _, p := range g.s.Paths {
		known := func(id heliotrope.SiteID) bool {
			return slices.ContainsFunc(q.Sites, func(site scheduler.Site) bool { return site.ID == id })
		}
		if p.USDPerGB = 0; known(p.From) && known(p.To) { // what clients get they get from a replica, whoever leads
			q.Paths = append(q.Paths, p)
		}
	}
	return hosts[leads], nil
}

// asked is how much askers get, and adds how far they are from an answer with the leader at
// each site.
func (g *ground) asked(q *scheduler.Snapshot, replicas []heliotrope.VMID) map[scheduler.RegionID]float64 {
	asked, reach := map[scheduler.RegionID]float64{}, map[scheduler.RegionID]map[heliotrope.SiteID]float64{}
	for _, f := range g.s.Flows {
		if !slices.Contains(replicas, f.Src) || slices.Contains(replicas, f.Dst) || g.at[f.Dst] == "" {
			continue
		}
		from := scheduler.RegionID("VMs at " + string(g.at[f.Dst]))
		asked[from] += f.BytesPerSecond
		reach[from] = map[heliotrope.SiteID]float64{}
		for _, site := range q.Sites {
			reach[from][site.ID] = g.rtt[[2]heliotrope.SiteID{g.at[f.Dst], site.ID}]
		}
	}
	for _, d := range g.s.Demands {
		if slices.Contains(replicas, d.VM) {
			asked[d.Region] += d.BytesPerSecond
			reach[d.Region] = map[heliotrope.SiteID]float64{}
		}
	}
	for _, r := range g.s.Reaches {
		if ways := reach[r.Region]; ways != nil {
			ways[r.Site] = r.RTTMs
		}
	}
	for _, from := range slices.Sorted(maps.Keys(asked)) {
		for _, site := range q.Sites {
			q.Reaches = append(q.Reaches, scheduler.Reach{Region: from, Site: site.ID, RTTMs: reach[from][site.ID] + g.answer(site.ID, replicas)})
		}
	}
	return asked
}

// answer is how long a leader at a site waits for its majority, itself included.
func (g *ground) answer(site heliotrope.SiteID, replicas []heliotrope.VMID) float64 {
	var ms []float64
	itself := false
	for _, r := range replicas {
		if g.at[r] == site && !itself {
			itself = true // further ones there are as near as its LAN
			continue
		}
		ms = append(ms, g.rtt[[2]heliotrope.SiteID{site, g.at[r]}])
	}
	slices.Sort(ms)
	if needed := len(replicas) / 2; needed > 0 {
		return ms[needed-1]
	}
	return 0
}
