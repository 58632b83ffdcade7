package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope/bgp"
	"heliotrope/controller/api"
	"heliotrope/controller/world"
	"heliotrope/internal/reconcile"
)

// speakerID is what a BGP speaker is; another one needs new sessions.
type speakerID struct {
	as       uint32
	routerID netip.Addr
}

// runBGP announces the public address of every VM from the host that owns it.
func (c *Controller) runBGP(ctx context.Context) error {
	identity := func(v *world.View) speakerID {
		return speakerID{v.Topology.Controller.AS, v.Topology.Controller.Address}
	}
	for {
		v, err := c.world.Wait(ctx, func(v *world.View) bool { return identity(v).as != 0 })
		if err != nil {
			return err
		}
		id := identity(v)
		err = c.speak(ctx, id, func(v *world.View) bool { return identity(v) != id })
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && !errors.Is(err, errNewIdentity) {
			c.log.Error("BGP", "err", err)
			if err := pause(ctx, time.Second); err != nil {
				return err
			}
		}
	}
}

var errNewIdentity = errors.New("the controller's AS or address changed")

// speak runs one speaker until ctx ends or other says that it must be another one.
func (c *Controller) speak(ctx context.Context, id speakerID, other func(*world.View) bool) error {
	speaker, err := bgp.New(bgp.Config{AS: id.as, RouterID: id.routerID, LocalAddress: c.cfg.BGPListen.Addr(), ListenPort: int(c.cfg.BGPListen.Port()), Logger: c.log})
	if err != nil {
		return err
	}
	var fabric uint64
	want := func(context.Context) (map[string]bgp.Route, error) {
		v := c.world.View()
		fabric = v.Fabric
		return routesWanted(v), nil
	}
	loop := reconcile.New(speaker.Target(), want, bgp.Equal, reconcile.Options{RetryMin: 20 * time.Millisecond, Done: func(r reconcile.Round) {
		c.metrics.round("routes", r)
		if r.Err != nil {
			c.log.Warn("loop", "loop", "routes", "err", r.Err)
			return
		}
		// Sessions open only now: a router drops what the first announcement lacks.
		speaker.Ready()
		c.world.Update(func(v *world.View) { v.RoutesAt = fabric })
	}})
	c.setSpeaker(speaker)
	defer c.setSpeaker(nil)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return speaker.Run(ctx) })
	g.Go(func() error { return loop.Run(ctx) })
	g.Go(func() error {
		return world.Follow(ctx, c.world, func(v *world.View) uint64 { return v.Fabric }, func(*world.View) { loop.Kick() })
	})
	g.Go(func() error {
		return world.Follow(ctx, c.world, func(v *world.View) int64 { return v.TopologyAt }, func(v *world.View) {
			if err := speaker.SetPeers(ctx, peersWanted(v)); err != nil && ctx.Err() == nil {
				c.log.Error("BGP peers", "err", err)
			}
		})
	})
	g.Go(func() error {
		if _, err := c.world.Wait(ctx, other); err != nil {
			return err
		}
		return errNewIdentity
	})
	return g.Wait()
}

func (c *Controller) setSpeaker(s *bgp.Speaker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.speaker = s
}

// announcing returns the speaker, or nil while another controller has it.
func (c *Controller) announcing() *bgp.Speaker {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.speaker
}

// routesWanted is one /32 for each public address, by its key.
func routesWanted(v *world.View) map[string]bgp.Route {
	want := make(map[string]bgp.Route)
	for _, r := range publics(v) {
		if hop := v.Topology.Hosts[r.Host].Public; hop.IsValid() {
			want[bgp.Key(r.Prefix.Addr())] = bgp.Route{NextHop: hop, Epoch: v.Placements[r.VM].Epoch}
		}
	}
	return want
}

func peersWanted(v *world.View) []bgp.Peer {
	var peers []bgp.Peer
	for _, name := range slices.Sorted(maps.Keys(v.Topology.Peers)) {
		p := v.Topology.Peers[name]
		peers = append(peers, bgp.Peer{Address: p.Address, AS: p.AS, Password: p.Password})
	}
	return peers
}

// publics are all public addresses with the VM and host that have them, by prefix.
func publics(v *world.View) []api.Route {
	var all []api.Route
	for vm, spec := range v.Topology.VMs {
		for _, nic := range spec.NICs {
			if host := v.Placements[vm].Host; nic.Public.IsValid() && host != "" {
				all = append(all, api.Route{Prefix: netip.PrefixFrom(nic.Public, nic.Public.BitLen()), VM: vm, Private: nic.Address,
					Host: host, Site: v.Topology.Hosts[host].Site})
			}
		}
	}
	slices.SortFunc(all, func(a, b api.Route) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
	return all
}

// routes answers for the public routes.
type routes struct{ *Controller }

// Routes are the public addresses and what is announced of them.
func (c routes) Routes(ctx context.Context) ([]api.Route, error) {
	all := publics(c.world.View())
	speaker := c.announcing()
	if speaker == nil {
		return all, nil
	}
	held, err := speaker.Routes(ctx)
	if err != nil {
		return nil, err
	}
	peers, err := speaker.Peers(ctx)
	if err != nil {
		return nil, err
	}
	established := 0
	for _, p := range peers {
		if p.State == "established" {
			established++
		}
	}
	for i := range all {
		for _, h := range held {
			if h.Public == all[i].Prefix.Addr() {
				all[i].Announced, all[i].NextHop, all[i].Peers = true, h.Route.NextHop, established
			}
		}
	}
	return all, nil
}

// WhyRoute tells where an address goes, who was told so, and who says otherwise.
func (c routes) WhyRoute(ctx context.Context, a netip.Addr) (api.RouteWhy, error) {
	v := c.world.View()
	out := api.RouteWhy{Address: a, Verdict: "unknown-address", Peers: []api.RouteAtPeer{}}
	for vm, spec := range v.Topology.VMs {
		for _, nic := range spec.NICs {
			if nic.Public == a || nic.Address == a {
				p := v.Placements[vm]
				out.VM, out.Network, out.Private, out.Public = vm, nic.Network, nic.Address, nic.Public
				out.Host, out.Site, out.Epoch, out.NextHop = p.Host, v.Topology.Hosts[p.Host].Site, p.Epoch, v.Topology.Hosts[p.Host].Public
			}
		}
	}
	say := func(format string, args ...any) {
		out.Explanation = append(out.Explanation, fmt.Sprintf(format, args...))
	}
	if out.VM == "" {
		say("%s is the address of no VM in the topology.", a)
		return out, nil
	}
	out.Verdict = "ok"
	say("%s belongs to VM %s in network %s, which %s at site %s owns in epoch %d.", a, out.VM, out.Network, out.Host, out.Site, out.Epoch)
	if m, ok := v.Moving(out.VM); ok {
		out.Verdict = "moving"
		say("It is on the move from %s to %s: %s.", m.From, m.To, m.Phase)
	}
	if !out.Public.IsValid() {
		say("It has no public address: it is reached inside its network group only, through the mesh.")
		return out, nil
	}
	return out, c.whyPublic(ctx, v, &out, say)
}

// whyPublic asks the speaker who was told of a public address and who claims it.
func (c routes) whyPublic(ctx context.Context, v *world.View, out *api.RouteWhy, say func(string, ...any)) error {
	speaker := c.announcing()
	if speaker == nil {
		return api.Unavailable("this controller does not lead, and announces nothing")
	}
	why, err := speaker.Why(ctx, out.Public)
	if err != nil {
		return err
	}
	switch {
	case why.Originated == nil:
		out.Verdict = "missing"
		say("We do not announce %s/32.", out.Public)
	case why.Originated.Route.NextHop != out.NextHop:
		out.Verdict = "wrong-next-hop"
		say("We announce %s/32 with next hop %s; it should be %s.", out.Public, why.Originated.Route.NextHop, out.NextHop)
	default:
		say("We announce %s/32 with next hop %s, the public side of %s.", out.Public, out.NextHop, out.Host)
	}
	for _, seen := range why.Peers {
		peer := peerAt(v, seen)
		out.Peers = append(out.Peers, peer)
		if peer.Heard.IsValid() {
			out.Verdict = "ghost"
			say("%s itself claims it, with next hop %s: a ghost.", peer.Peer, peer.Heard)
		}
	}
	say("%d of %d routers have been told.", len(slices.DeleteFunc(slices.Clone(out.Peers), func(p api.RouteAtPeer) bool { return !p.Told })), len(v.Topology.Peers))
	return nil
}

func peerAt(v *world.View, seen bgp.View) api.RouteAtPeer {
	out := api.RouteAtPeer{Session: seen.State}
	for name, p := range v.Topology.Peers {
		if p.Address == seen.Peer {
			out.Peer, out.Site = name, p.Site
		}
	}
	if seen.Sent != nil {
		out.Told, out.NextHop = true, seen.Sent.Route.NextHop
		out.AgeS = time.Since(seen.Sent.Since).Seconds()
	}
	if seen.Heard != nil {
		out.Heard = seen.Heard.Route.NextHop
	}
	if out.Session != "established" {
		out.Explanation = "the session is " + out.Session
	}
	return out
}
