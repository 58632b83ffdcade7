package bgp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// Peer is a BGP neighbour: a site's router. Equal AS makes it a route-reflector client.
type Peer struct {
	Address  netip.Addr
	AS       uint32
	Password string // TCP MD5; empty: none
	Passive  bool   // it dials us; needs Config.ListenPort
}

// PeerState is what a session has come to.
type PeerState struct {
	Address    netip.Addr
	AS         uint32
	State      string        // held (until Ready), idle, active, opensent, openconfirm, established
	Since      time.Time     // when it was established, or lost; zero when it never was
	Uptime     time.Duration // zero unless established; whole seconds
	RouterID   string        // the peer's own, once it told
	Advertised int           // routes that we sent and it holds
	Received   int           // routes that it sent; none is taken
	Reason     string        // why the session was last lost
}

// SetPeers makes peers the only ones wanted. One that is gone is told so, and drops our
// routes; one that changed starts a new session.
func (s *Speaker) SetPeers(ctx context.Context, peers []Peer) error {
	want := map[netip.Addr]Peer{}
	for _, p := range peers {
		switch _, twice := want[p.Address]; {
		case !p.Address.IsValid() || p.Address.IsUnspecified():
			return fmt.Errorf("set peer: address %v is none", p.Address)
		case twice:
			return fmt.Errorf("set peer %v: it is there twice", p.Address)
		case p.AS == 0:
			return fmt.Errorf("set peer %v: AS 0 is reserved", p.Address)
		case p.Passive && s.cfg.ListenPort <= 0:
			return fmt.Errorf("set peer %v: it is to dial us, and we do not listen", p.Address)
		}
		want[p.Address] = p
	}
	s.mu.Lock()
	s.peers = want
	s.mu.Unlock()
	select {
	case <-s.started:
		return s.reconcilePeers(ctx)
	default: // Run will
		return nil
	}
}

// reconcilePeers makes GoBGP's neighbours those that are wanted.
func (s *Speaker) reconcilePeers(ctx context.Context) error {
	srv, err := s.server(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ready {
		return nil
	}
	var errs []error
	for _, addr := range slices.SortedFunc(maps.Keys(s.applied), netip.Addr.Compare) {
		if l, lost := s.lost[addr]; s.applied[addr] == s.peers[addr] && (!lost || l.mended) {
			continue
		}
		if err := srv.DeletePeer(ctx, &api.DeletePeerRequest{Address: addr.String()}); err != nil {
			errs = append(errs, fmt.Errorf("delete peer %v: %w", addr, err))
			continue
		}
		delete(s.applied, addr)
		if _, wanted := s.peers[addr]; !wanted {
			delete(s.lost, addr)
		}
	}
	for _, addr := range slices.SortedFunc(maps.Keys(s.peers), netip.Addr.Compare) {
		if _, ok := s.applied[addr]; ok {
			continue
		}
		// A peer that may hold routes from before our restart is told that we kept forwarding;
		// without that it would drop them when the session opens. A session that was lost
		// since is more likely the peer's restart, and it must wait for our routes.
		l, lost := s.lost[addr]
		restarting := !lost && time.Since(s.begun) < s.cfg.RestartTime
		if err := srv.AddPeer(ctx, &api.AddPeerRequest{Peer: s.neighbour(s.peers[addr], restarting)}); err != nil {
			errs = append(errs, fmt.Errorf("add peer %v: %w", addr, err))
			continue
		}
		s.applied[addr] = s.peers[addr]
		if lost {
			l.mended = true
			s.lost[addr] = l
		}
	}
	return errors.Join(errs...)
}

// neighbour is p in GoBGP's words.
func (s *Speaker) neighbour(p Peer, restarting bool) *api.Peer {
	n := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: p.Address.String(), PeerAsn: p.AS, AuthPassword: p.Password},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry: 1, IdleHoldTimeAfterReset: 1, HoldTime: 30, KeepaliveInterval: 10, // seconds
		}},
		Transport: &api.Transport{PassiveMode: p.Passive},
		GracefulRestart: &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(s.cfg.RestartTime / time.Second), LonglivedEnabled: true,
			LocalRestarting: restarting,
			// How long to wait for routes that peers have for us. We take none, and an
			// unreachable router must not delay the others.
			DeferralTime: 1,
		},
		AfiSafis: []*api.AfiSafi{{
			Config:            &api.AfiSafiConfig{Family: &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
			LongLivedGracefulRestart: &api.LongLivedGracefulRestart{Config: &api.LongLivedGracefulRestartConfig{
				Enabled: true, RestartTime: uint32(s.cfg.StaleTime / time.Second)}},
		}},
	}
	if s.cfg.LocalAddress.IsValid() {
		n.Transport.LocalAddress = s.cfg.LocalAddress.String()
	}
	if p.AS == s.cfg.AS {
		n.RouteReflector = &api.RouteReflector{RouteReflectorClient: true, RouteReflectorClusterId: s.cfg.RouterID.String()}
	} else {
		n.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: 64}
	}
	return n
}

// Peers returns the state of every wanted peer, ordered by address.
func (s *Speaker) Peers(ctx context.Context) ([]PeerState, error) {
	srv, err := s.server(ctx)
	if err != nil {
		return nil, err
	}
	states := map[netip.Addr]PeerState{}
	s.mu.Lock()
	for a, p := range s.peers {
		l := s.lost[a]
		states[a] = PeerState{Address: a, AS: p.AS, State: "held", Since: l.at, Reason: l.reason}
	}
	s.mu.Unlock()
	err = srv.ListPeer(ctx, &api.ListPeerRequest{EnableAdvertised: true}, func(p *api.Peer) {
		addr, err := netip.ParseAddr(p.GetConf().GetNeighborAddress())
		if st, wanted := states[addr]; err == nil && wanted {
			states[addr] = st.with(p)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list peers: %w", err)
	}
	return slices.SortedFunc(maps.Values(states), func(a, b PeerState) int { return a.Address.Compare(b.Address) }), nil
}

// with adds what GoBGP knows of the peer.
func (st PeerState) with(p *api.Peer) PeerState {
	st.State = strings.ToLower(strings.TrimPrefix(p.GetState().GetSessionState().String(), "SESSION_STATE_"))
	st.RouterID = p.GetState().GetRouterId()
	for _, f := range p.GetAfiSafis() {
		st.Advertised += int(f.GetState().GetAdvertised())
		st.Received += int(f.GetState().GetReceived())
	}
	if p.GetState().GetSessionState() == api.PeerState_SESSION_STATE_ESTABLISHED {
		st.Since = p.GetTimers().GetState().GetUptime().AsTime()
		st.Uptime = time.Since(st.Since).Truncate(time.Second)
	}
	return st
}

// established says whether srv has a session with addr.
func established(ctx context.Context, srv *server.BgpServer, addr netip.Addr) (up bool, err error) {
	err = srv.ListPeer(ctx, &api.ListPeerRequest{Address: addr.String()}, func(p *api.Peer) {
		up = p.GetState().GetSessionState() == api.PeerState_SESSION_STATE_ESTABLISHED
	})
	if err != nil {
		return false, fmt.Errorf("list peer %v: %w", addr, err)
	}
	return up, nil
}
