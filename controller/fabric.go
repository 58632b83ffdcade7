package controller

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/controller/world"
	"heliotrope/flows"
	"heliotrope/flows/openflow"
	"heliotrope/hostagent/agentapi"
)

// meshes answers for the overlay.
type meshes struct{ *Controller }

// Mesh is every tunnel from both ends, with what the agents measured.
func (c meshes) Mesh(context.Context) (api.Mesh, error) {
	v := c.world.View()
	m := api.Mesh{Hosts: slices.Sorted(maps.Keys(v.Topology.Hosts))}
	for _, from := range m.Hosts {
		for _, to := range m.Hosts {
			if from != to {
				m.Links = append(m.Links, meshLink(v, from, to))
			}
		}
	}
	return m, nil
}

func meshLink(v *world.View, from, to heliotrope.HostID) api.MeshLink {
	facts := v.Hosts[from]
	l := api.MeshLink{From: from, To: to, State: "missing"}
	t, ok := facts.Tunnel(to)
	switch {
	case !facts.OVSDB:
		l.State = "unknown"
	case ok && t.Up():
		l.State = "up"
	case ok:
		l.State, l.Error = "down", t.Words()
	}
	if ok && t.BFD != nil {
		l.BFD = t.BFD.State
	}
	if ok && t.Peer == to {
		l.RxBytes, l.TxBytes = uint64(t.Statistics["rx_bytes"]), uint64(t.Statistics["tx_bytes"])
	}
	for _, p := range facts.Status.Paths {
		if p.Peer == to {
			l.RTTMs, l.Loss, l.MTU = milliseconds(p.RTT), p.Loss, max(0, p.MTU-vxlanOverhead)
		}
	}
	return l
}

// vxlanOverhead is what a tunnel over IPv4 adds to the inner IP packet: Ethernet 14, VXLAN
// 8, UDP 8, IP 20 (RFC 7348 §5).
const vxlanOverhead = 50

// VerifyMesh has every host send one packet of the size to every other, not to be fragmented.
func (c meshes) VerifyMesh(ctx context.Context, size int) (api.MeshVerification, error) {
	v := c.world.View()
	out := api.MeshVerification{PacketSize: size, OK: true}
	hosts := slices.Sorted(maps.Keys(v.Topology.Hosts))
	results := make([][]api.MeshProbe, len(hosts))
	var g errgroup.Group
	for i, from := range hosts {
		g.Go(func() error {
			results[i] = probeFrom(ctx, v, from, hosts, size)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return out, err
	}
	for _, probes := range results {
		for _, p := range probes {
			out.OK = out.OK && p.OK
			out.Links = append(out.Links, p)
		}
	}
	return out, nil
}

func probeFrom(ctx context.Context, v *world.View, from heliotrope.HostID, hosts []heliotrope.HostID, size int) []api.MeshProbe {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	order := agentapi.ProbeOrder{Size: size + vxlanOverhead, Peers: peersOf(v, from)}
	var results map[heliotrope.HostID]agentapi.Path
	agent := v.Hosts[from].Agent
	problem := ""
	if agent == nil {
		problem = fmt.Sprintf("%s is not connected", from)
	} else if r, err := agent.Probe(ctx, order); err != nil {
		problem = err.Error()
	} else {
		results = make(map[heliotrope.HostID]agentapi.Path)
		for _, p := range r {
			results[p.Peer] = p
		}
	}
	var probes []api.MeshProbe
	for _, to := range hosts {
		if to == from {
			continue
		}
		p := api.MeshProbe{From: from, To: to, Error: problem}
		if r, ok := results[to]; ok {
			p.OK, p.RTTMs, p.Error = r.Error == "", milliseconds(r.RTT), r.Error
		} else if problem == "" {
			p.Error = "was not probed"
		}
		probes = append(probes, p)
	}
	return probes
}

// peersOf are the underlay addresses of all hosts but h.
func peersOf(v *world.View, h heliotrope.HostID) map[heliotrope.HostID]netip.Addr {
	peers := make(map[heliotrope.HostID]netip.Addr)
	for other, spec := range v.Topology.Hosts {
		if other != h {
			peers[other] = spec.Address
		}
	}
	return peers
}

// pipelines answers for the flows in the hosts' switches.
type pipelines struct{ *Controller }

func (c pipelines) facts(h heliotrope.HostID) (*world.View, world.Host, error) {
	v := c.world.View()
	if _, ok := v.Topology.Hosts[h]; !ok {
		return v, world.Host{}, api.NotFound("host", string(h))
	}
	f := v.Hosts[h]
	if f.Flows == nil {
		return v, f, api.Unavailable(fmt.Sprintf("br-int of %s is not connected", h))
	}
	return v, f, nil
}

// WaitFlows waits until the switch of every host has flows made from the store at
// revision or later, or until ctx ends, and says which have not.
func (c pipelines) WaitFlows(ctx context.Context, revision int64) (api.FlowsReached, error) {
	v, err := c.world.Wait(ctx, func(v *world.View) bool { return v.Revision >= revision })
	if err == nil {
		fabric := v.Fabric
		v, _ = c.world.Wait(ctx, func(v *world.View) bool { return len(v.Behind(fabric)) == 0 })
		return reachedView(v, revision, v.Behind(fabric)), nil
	}
	return reachedView(v, revision, slices.Sorted(maps.Keys(v.Topology.Hosts))), nil
}

func reachedView(v *world.View, revision int64, behind []heliotrope.HostID) api.FlowsReached {
	return api.FlowsReached{Revision: revision, Reached: len(behind) == 0, Hosts: len(v.Topology.Hosts), Behind: behind}
}

// Flows are those installed.
func (c pipelines) Flows(ctx context.Context, h heliotrope.HostID) (api.FlowList, error) {
	_, facts, err := c.facts(h)
	if err != nil {
		return api.FlowList{}, err
	}
	entries, err := facts.Flows.Dump(ctx)
	if err != nil {
		return api.FlowList{}, err
	}
	list := api.FlowList{Host: h}
	for _, e := range entries {
		list.Flows = append(list.Flows, entryView(e))
	}
	return list, nil
}

// FlowDiff is what is wanted minus what is installed.
func (c pipelines) FlowDiff(ctx context.Context, h heliotrope.HostID) (api.FlowDiff, error) {
	v, facts, err := c.facts(h)
	if err != nil {
		return api.FlowDiff{}, err
	}
	want, err := flowsWanted(v, h)
	if err != nil {
		return api.FlowDiff{}, err
	}
	entries, err := facts.Flows.Dump(ctx)
	if err != nil {
		return api.FlowDiff{}, err
	}
	d := api.FlowDiff{Host: h}
	for _, e := range entries {
		w, wanted := want[e.Flow.Key()]
		switch {
		case !flows.Owned(e.Flow.Cookie):
			d.Foreign = append(d.Foreign, entryView(e))
		case wanted && e.Unreadable == nil && w.Equal(e.Flow):
			delete(want, e.Flow.Key())
		default:
			d.Extra = append(d.Extra, entryView(e))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		d.Missing = append(d.Missing, flowView(want[key]))
	}
	return d, nil
}

func entryView(e openflow.Entry) api.Flow {
	out := flowView(e.Flow)
	out.Packets, out.Bytes = e.Hits.Packets, e.Hits.Bytes
	if e.Unreadable != nil {
		out.Match = fmt.Sprintf("(%v)", e.Unreadable)
	}
	return out
}

func flowView(f flows.Flow) api.Flow {
	actions := make([]string, len(f.Actions))
	for i, a := range f.Actions {
		actions[i] = a.String()
	}
	return api.Flow{Table: f.Table.String(), Priority: int(f.Priority), Match: strings.TrimPrefix(f.Match.String(), ","),
		Actions: cmp.Or(strings.Join(actions, ","), "drop"), Cookie: fmt.Sprintf("%#x", f.Cookie)}
}
