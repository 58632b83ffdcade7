// Package bgp announces the /32s of VMs to the sites' routers, each with the underlay
// address of the host that the VM runs on as its next hop.
//
// It is GoBGP inside our process, without its gRPC API. Routers of our own AS are
// route-reflector clients, others plain eBGP neighbours. There is one reflector, the
// controller that leads, and it never peers with another one: two GoBGP reflectors that
// peer as ordinary iBGP leave ghosts of /32s behind (17 of 24 hand-offs, measured), and a
// standby that takes over announces the same routes from the same store anyway.
//
// Nothing that a peer says enters the table we export from: the policy in and out is
// "what we originate, else reject" (RFC 8212). What a peer claims about one of our
// addresses can be seen with Why.
//
// A move is one UPDATE: the route is announced again with the new next hop, which replaces
// the old one in place. Apply announces before it withdraws.
//
// When the controller stops, is killed or loses a peer, the peer keeps our routes: for
// RestartTime as graceful restart, then for StaleTime as long-lived graceful restart
// (RFC 9494). A new process therefore must not open sessions before it knows all routes,
// because the peer drops what the first full announcement lacks. Sessions are held until
// Ready, which the owner calls when the first round of the reconcile loop has succeeded.
package bgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// Config of a Speaker.
type Config struct {
	AS           uint32
	RouterID     netip.Addr    // IPv4; also the reflector's cluster ID, so distinct among controllers
	LocalAddress netip.Addr    // to listen on and to dial from; zero: any
	ListenPort   int           // 179 to accept sessions; zero or negative: dial only
	RestartTime  time.Duration // peers keep routes so long without a word from us; default 120 s, at most 4095 s
	StaleTime    time.Duration // and so much longer as a last resort; default 24 h, at most 194 days
	OnChange     func()        // told when a session opens or closes; must return at once
	Logger       *slog.Logger
}

// Speaker is our end of all BGP sessions. Its methods wait until Run has started it.
type Speaker struct {
	cfg     Config
	log     *quiet
	srv     *server.BgpServer // set before started is closed
	started chan struct{}
	kick    chan struct{}

	mu      sync.Mutex // guards what follows
	ready   bool
	begun   time.Time
	peers   map[netip.Addr]Peer // wanted
	applied map[netip.Addr]Peer // configured in GoBGP
	lost    map[netip.Addr]loss // the last loss of each peer's session
}

// loss is the end of a session. Until it is mended, GoBGP would wait 5 s before it dials
// again; the peer is configured anew instead.
type loss struct {
	at     time.Time
	reason string
	mended bool
}

// New checks c and returns a speaker that does nothing until Run.
func New(c Config) (*Speaker, error) {
	c.RestartTime = cmp.Or(c.RestartTime, 120*time.Second)
	c.StaleTime = cmp.Or(c.StaleTime, 24*time.Hour)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if c.OnChange == nil {
		c.OnChange = func() {}
	}
	if c.ListenPort <= 0 {
		c.ListenPort = -1
	}
	switch {
	case c.AS == 0:
		return nil, errors.New("configure BGP: AS 0 is reserved")
	case !c.RouterID.Is4() || c.RouterID.IsUnspecified():
		return nil, fmt.Errorf("configure BGP: router ID %v is no IPv4 address", c.RouterID)
	case c.RestartTime < time.Second || c.RestartTime > 4095*time.Second:
		return nil, fmt.Errorf("configure BGP: restart time %v is not between 1s and 4095s", c.RestartTime)
	case c.StaleTime < time.Second || c.StaleTime >= 1<<24*time.Second:
		return nil, fmt.Errorf("configure BGP: stale time %v is not between 1s and %v", c.StaleTime, (1<<24-1)*time.Second)
	}
	return &Speaker{
		cfg: c, log: &quiet{Handler: c.Logger.Handler(), closed: new(closedFlag)},
		started: make(chan struct{}), kick: make(chan struct{}, 1),
		peers: map[netip.Addr]Peer{}, applied: map[netip.Addr]Peer{}, lost: map[netip.Addr]loss{},
	}, nil
}

// Run speaks until ctx ends, and returns its cause, or an error if it cannot start. It may
// be called once. Sessions are then closed without a notification, as graceful restart asks.
func (s *Speaker) Run(ctx context.Context) error {
	srv := server.NewBgpServer(server.LoggerOption(slog.New(s.log), nil))
	served := make(chan struct{})
	go func() { defer close(served); srv.Serve() }()
	defer func() {
		s.mu.Lock()
		s.log.closed.Store(true) // GoBGP calls its own shutdown an error
		s.mu.Unlock()
		_ = srv.StopBgp(context.WithoutCancel(ctx), &api.StopBgpRequest{AllowGracefulRestart: true})
		<-served
		srv.Stop() // its BFD server
	}()
	if err := s.start(ctx, srv); err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Second) // a round that failed is tried again
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.kick:
		case <-tick.C:
		}
		if err := s.reconcilePeers(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Warn("BGP peers not as wanted", "error", err)
		}
	}
}

func (s *Speaker) start(ctx context.Context, srv *server.BgpServer) error {
	global := &api.Global{Asn: s.cfg.AS, RouterId: s.cfg.RouterID.String(), ListenPort: int32(s.cfg.ListenPort)}
	if s.cfg.LocalAddress.IsValid() {
		global.ListenAddresses = []string{s.cfg.LocalAddress.String()}
	}
	if err := srv.StartBgp(ctx, &api.StartBgpRequest{Global: global}); err != nil {
		return fmt.Errorf("start BGP: %w", err)
	}
	if err := onlyOurOwn(ctx, srv); err != nil {
		return err
	}
	if err := s.watch(ctx, srv); err != nil {
		return err
	}
	s.mu.Lock()
	s.begun = time.Now()
	s.mu.Unlock()
	s.srv = srv
	close(s.started)
	s.wake()
	return nil
}

// watch logs sessions that open and close, has lost ones mended, and tells OnChange.
func (s *Speaker) watch(ctx context.Context, srv *server.BgpServer) error {
	up := map[netip.Addr]bool{}
	seen := func(e *apiutil.WatchEventMessage_PeerEvent, _ time.Time) {
		addr := e.Peer.Conf.NeighborAddress
		now := e.Peer.State.SessionState == bgp.BGP_FSM_ESTABLISHED
		if e.Type != apiutil.PEER_EVENT_STATE || now == up[addr] {
			return
		}
		up[addr] = now
		if s.note(addr, now, cmp.Or(e.Peer.State.DisconnectMessage, "removed")) {
			s.wake()
			s.cfg.OnChange()
		}
	}
	if err := srv.WatchEvent(ctx, server.WatchEventMessageCallbacks{OnPeerUpdate: seen}, server.WatchPeer()); err != nil {
		return fmt.Errorf("watch peers: %w", err)
	}
	return nil
}

// note records that a session opened or closed; it says false when Run is over.
func (s *Speaker) note(addr netip.Addr, up bool, reason string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.log.closed.Load() {
		return false
	}
	if up {
		s.cfg.Logger.Info("BGP session up", "peer", addr)
		return true
	}
	s.cfg.Logger.Info("BGP session down", "peer", addr, "reason", reason)
	s.lost[addr] = loss{at: time.Now(), reason: reason}
	return true
}

// onlyOurOwn makes GoBGP reject, in both directions, all that we did not originate.
func onlyOurOwn(ctx context.Context, srv *server.BgpServer) error {
	own := &api.Policy{Name: "own", Statements: []*api.Statement{{
		Name:       "originated-here",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}
	if err := srv.AddPolicy(ctx, &api.AddPolicyRequest{Policy: own}); err != nil {
		return fmt.Errorf("add policy: %w", err)
	}
	for _, d := range []api.PolicyDirection{api.PolicyDirection_POLICY_DIRECTION_IMPORT, api.PolicyDirection_POLICY_DIRECTION_EXPORT} {
		err := srv.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
			Name: "global", Direction: d, Policies: []*api.Policy{own}, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
		}})
		if err != nil {
			return fmt.Errorf("assign policy: %w", err)
		}
	}
	return nil
}

// server waits until Run has started GoBGP.
func (s *Speaker) server(ctx context.Context) (*server.BgpServer, error) {
	select {
	case <-s.started:
		return s.srv, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for BGP to start: %w", context.Cause(ctx))
	}
}

// Ready says that all routes are in the table: sessions may open. Further calls do nothing.
func (s *Speaker) Ready() {
	s.mu.Lock()
	s.ready = true
	s.mu.Unlock()
	s.wake()
}

func (s *Speaker) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}
