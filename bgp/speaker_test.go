package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func apply(t *testing.T, s *Speaker, routes map[string]Route, changes int) {
	t.Helper()
	if n, err := want(t.Context(), s, routes); err != nil || n != changes {
		t.Fatalf("round: got %d changes, %v; want %d", n, err, changes)
	}
}

// never fails the test if the kernel deleted a route to one of our /32s.
func never(t *testing.T, events []string) {
	t.Helper()
	for _, e := range events {
		if strings.Contains(e, "Deleted") && strings.Contains(e, "198.51.100.") {
			t.Errorf("route was absent: %s", e)
		}
	}
}

func TestRouteReachesTheKernelMovesAndGoes(t *testing.T) {
	r := startRouter(t, as, "passive yes;", "none")
	s, _ := speak(t, Config{})
	if err := s.SetPeers(t.Context(), []Peer{{Address: routerAddr, AS: as}}); err != nil {
		t.Fatal(err)
	}
	if peers, err := s.Peers(t.Context()); err != nil || len(peers) != 1 || peers[0].State != "held" {
		t.Errorf("before Ready: got %+v, %v; want one peer held", peers, err)
	}
	apply(t, s, map[string]Route{Key(public): {NextHop: hostHere, Epoch: 1}}, 1)
	t.Logf("session up and /32 in the kernel: %v", r.reaches(public, hostHere.String()))
	if out := r.birdc("show route all " + Key(public)); !strings.Contains(out, "BGP.large_community: (65000, 1, 1)") || !strings.Contains(out, "BGP.local_pref: 100") {
		t.Errorf("route in BIRD:\n%s", out)
	}

	stop := r.events()
	var took, ask []time.Duration
	for i := range 50 {
		hop, gateway := hostThere, "10.1.0.254"
		if i%2 == 1 {
			hop, gateway = hostHere, hostHere.String()
		}
		start := time.Now()
		apply(t, s, map[string]Route{Key(public): {NextHop: hop, Epoch: uint64(i + 2)}}, 1)
		r.reaches(public, gateway)
		took = append(took, time.Since(start))
		start = time.Now()
		r.via(public)
		ask = append(ask, time.Since(start))
	}
	events := stop()
	never(t, events)
	if len(events) != len(took) {
		t.Errorf("%d moves made %d changes in the kernel: %q", len(took), len(events), events)
	}
	slices.Sort(took)
	slices.Sort(ask)
	t.Logf("50 moves until the kernel says it has them: median %v, max %v; asking alone: median %v", took[25], took[49], ask[25])

	second := netip.MustParseAddr("198.51.100.8")
	two := map[string]Route{Key(second): {NextHop: hostThere, Epoch: 1<<32 + 9, LocalPref: 200}}
	start := time.Now()
	apply(t, s, two, 2)
	r.reaches(public, "")
	t.Logf("withdrawn: %v", time.Since(start))
	r.reaches(second, "10.1.0.254")
	apply(t, s, two, 0)
	held, err := s.Routes(t.Context())
	if err != nil || len(held) != 1 || held[0].Public != second || held[0].Route != two[Key(second)] || time.Since(held[0].Since) > time.Minute {
		t.Errorf("routes: got %+v, %v", held, err)
	}
	if err := s.SetPeers(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	t.Logf("peer removed, its routes gone: %v", r.reaches(second, ""))
}

func TestThousandRoutes(t *testing.T) {
	r := startRouter(t, as, "passive yes;", "none")
	s, _ := speak(t, Config{})
	if err := s.SetPeers(t.Context(), []Peer{{Address: routerAddr, AS: as}}); err != nil {
		t.Fatal(err)
	}
	apply(t, s, map[string]Route{Key(public): {NextHop: hostHere}}, 1)
	r.reaches(public, hostHere.String())
	many := map[string]Route{}
	for i := range 1000 {
		many[Key(netip.AddrFrom4([4]byte{198, 18, byte(i / 250), byte(i % 250)}))] = Route{NextHop: hostThere, Epoch: uint64(i)}
	}
	start := time.Now()
	apply(t, s, many, 1001)
	t.Logf("1000 routes into GoBGP: %v", time.Since(start))
	eventually(t, "1000 routes in the kernel", func() error {
		out := run(t, "ip", "-n", r.ns, "route", "show", "root", "198.18.0.0/15")
		if n := strings.Count(out, "198.18."); n != 1000 {
			return fmt.Errorf("%d routes", n)
		}
		return nil
	})
	t.Logf("and in the router's kernel: %v", time.Since(start))
}

func TestKilledSpeakerLeavesTheRoutes(t *testing.T) {
	r := startRouter(t, as, "passive yes;", "none")
	first := startSpeaker(t)
	t.Logf("session up, other peer unreachable: %v", r.reaches(public, hostHere.String()))
	stop := r.events()
	if err := first.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	kill(first)
	eventually(t, "BIRD notices", func() error {
		if out := r.birdc("show protocols heliotrope"); strings.Contains(out, "Established") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if got := r.via(public); got != hostHere.String() {
		t.Errorf("while the speaker is dead: route via %q, want %v", got, hostHere)
	}
	start := time.Now()
	startSpeaker(t)
	r.fresh()
	t.Logf("speaker back, routes fresh: %v", time.Since(start))
	never(t, stop())
	if got := r.via(public); got != hostHere.String() {
		t.Errorf("after the speaker came back: route via %q, want %v", got, hostHere)
	}
}

// fresh waits until BIRD's session is up and no route of it is stale.
func (r *router) fresh() {
	r.t.Helper()
	eventually(r.t, "session up and routes fresh", func() error {
		out := r.birdc("show protocols all heliotrope") + r.birdc("show route all protocol heliotrope")
		if !strings.Contains(out, "BGP state:          Established") || strings.Contains(out, "Neighbor graceful restart active") || strings.Contains(out, "s]") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}

func TestStoppedSpeakerLeavesTheRoutesBeyondRestartTime(t *testing.T) {
	r := startRouter(t, as, "passive yes;", "none")
	routes := map[string]Route{Key(public): {NextHop: hostHere, Epoch: 1}}
	c := Config{RestartTime: time.Second}
	s, stopSpeaker := speak(t, c)
	apply(t, s, routes, 1)
	if err := s.SetPeers(t.Context(), []Peer{{Address: routerAddr, AS: as}}); err != nil {
		t.Fatal(err)
	}
	r.reaches(public, hostHere.String())
	stop := r.events()
	stopSpeaker()
	took := eventually(t, "route is kept as long-lived stale", func() error {
		if out := r.birdc("show route all protocol heliotrope"); !strings.Contains(out, "BGP.community: (65535,6)") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	t.Logf("restart time is over: %v", took)
	s, _ = speak(t, c)
	if err := s.SetPeers(t.Context(), []Peer{{Address: routerAddr, AS: as}}); err != nil {
		t.Fatal(err)
	}
	apply(t, s, routes, 1)
	r.fresh()
	never(t, stop())
	if got := r.via(public); got != hostHere.String() {
		t.Errorf("route via %q, want %v", got, hostHere)
	}
}

func TestKilledRouterGetsTheRoutesAgain(t *testing.T) {
	r := startRouter(t, as, "passive yes;", "none")
	s, _ := speak(t, Config{})
	apply(t, s, map[string]Route{Key(public): {NextHop: hostHere, Epoch: 1}}, 1)
	if err := s.SetPeers(t.Context(), []Peer{{Address: routerAddr, AS: as}, {Address: netip.MustParseAddr("10.99.0.77"), AS: as}}); err != nil {
		t.Fatal(err)
	}
	r.reaches(public, hostHere.String())
	stop := r.events()
	kill(r.bird)
	eventually(t, "speaker notices", func() error {
		if p, err := s.Peers(t.Context()); err != nil || p[0].State == "established" {
			return fmt.Errorf("%+v, %v", p, err)
		}
		return nil
	})
	start := time.Now()
	r.startBIRD()
	eventually(t, "session up again", func() error {
		if out := r.birdc("show route protocol heliotrope"); !strings.Contains(out, hostHere.String()) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	t.Logf("BIRD started to BIRD has the route: %v", time.Since(start))
	r.reaches(public, hostHere.String())
	never(t, stop())
	p, err := s.Peers(t.Context())
	if err != nil || len(p) != 2 || p[0].State != "established" || p[0].Advertised != 1 || p[0].RouterID != "10.99.0.2" || p[0].Since.IsZero() {
		t.Errorf("peers: got %+v, %v", p, err)
	}
}

func TestPassword(t *testing.T) {
	r := startRouter(t, as, `passive yes; password "right";`, "none")
	s, _ := speak(t, Config{})
	apply(t, s, map[string]Route{Key(public): {NextHop: hostHere, Epoch: 1}}, 1)
	if err := s.SetPeers(t.Context(), []Peer{{Address: routerAddr, AS: as, Password: "wrong"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a SYN with the wrong signature arrives", func() error {
		if out := run(t, "ip", "netns", "exec", r.ns, "nstat", "-az", "TcpExtTCPMD5Failure", "TcpExtTCPMD5NotFound"); !strings.Contains(out, "TcpExtTCPMD5Failure             ") || strings.Contains(out, "TcpExtTCPMD5Failure             0 ") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if got := r.via(public); got != "" {
		t.Errorf("wrong password: route via %q", got)
	}
	if err := s.SetPeers(t.Context(), []Peer{{Address: routerAddr, AS: as, Password: "right"}}); err != nil {
		t.Fatal(err)
	}
	t.Logf("right password: %v", r.reaches(public, hostHere.String()))
}

func TestNothingIsTakenFromPeers(t *testing.T) {
	r := startRouter(t, as, "passive yes;", "all")
	s, _ := speak(t, Config{ListenPort: 179, LocalAddress: controllerAddr})
	apply(t, s, map[string]Route{Key(public): {NextHop: hostHere, Epoch: 3}}, 1)
	if err := s.SetPeers(t.Context(), []Peer{{Address: routerAddr, AS: as}}); err != nil {
		t.Fatal(err)
	}
	r.reaches(public, hostHere.String())
	eventually(t, "peer's own routes arrive", func() error {
		if p, err := s.Peers(t.Context()); err != nil || p[0].Received < 3 {
			return fmt.Errorf("%+v, %v", p, err)
		}
		return nil
	})
	if held, err := s.Routes(t.Context()); err != nil || len(held) != 1 {
		t.Errorf("routes: got %+v, %v; want our own alone", held, err)
	}
	e, err := s.Why(t.Context(), public)
	if err != nil || e.Originated == nil || e.Originated.Route.Epoch != 3 || len(e.Peers) != 1 || e.Peers[0].Sent == nil || e.Peers[0].Sent.Route.NextHop != hostHere {
		t.Errorf("why %v: got %+v, %v", public, e, err)
	}
	if e, err := s.Why(t.Context(), netip.MustParseAddr("198.51.100.99")); err != nil || e.Originated != nil || e.Peers[0].Sent != nil || e.Peers[0].Heard != nil {
		t.Errorf("why of an unknown address: got %+v, %v", e, err)
	}
}

func TestExternalPeerKeepsNextHop(t *testing.T) {
	r := startRouter(t, as+1, "passive yes; multihop;", "none")
	s, err := New(Config{AS: as + 1, RouterID: controllerAddr})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	t.Cleanup(func() { <-done })
	apply(t, s, map[string]Route{Key(public): {NextHop: hostThere, Epoch: 1}}, 1)
	if err := s.SetPeers(t.Context(), []Peer{{Address: routerAddr, AS: as}}); err != nil {
		t.Fatal(err)
	}
	r.reaches(public, "10.1.0.254")
}

func TestRouterDials(t *testing.T) {
	r := startRouter(t, as, "connect delay time 1; connect retry time 1;", "none")
	s, _ := speak(t, Config{ListenPort: 179, LocalAddress: controllerAddr})
	apply(t, s, map[string]Route{Key(public): {NextHop: hostHere, Epoch: 1}}, 1)
	if err := s.SetPeers(t.Context(), []Peer{{Address: routerAddr, AS: as, Passive: true}}); err != nil {
		t.Fatal(err)
	}
	t.Logf("session up and /32 in the kernel: %v", r.reaches(public, hostHere.String()))
}
