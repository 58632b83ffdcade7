package bgp

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"heliotrope/internal/reconcile"
)

func TestWrongConfigIsRefused(t *testing.T) {
	for _, c := range []Config{
		{RouterID: controllerAddr}, {AS: as}, {AS: as, RouterID: netip.MustParseAddr("2001:db8::1")},
		{AS: as, RouterID: controllerAddr, RestartTime: 2 * time.Hour}, {AS: as, RouterID: controllerAddr, StaleTime: 1},
	} {
		if _, err := New(c); err == nil || !strings.HasPrefix(err.Error(), "configure BGP: ") {
			t.Errorf("%+v: got %v", c, err)
		}
	}
	s, err := New(Config{AS: as, RouterID: controllerAddr})
	if err != nil {
		t.Fatal(err)
	}
	for _, peers := range [][]Peer{
		{{AS: as}}, {{Address: routerAddr}}, {{Address: routerAddr, AS: as, Passive: true}},
		{{Address: routerAddr, AS: as}, {Address: routerAddr, AS: as}},
	} {
		if err := s.SetPeers(t.Context(), peers); err == nil {
			t.Errorf("%+v: accepted", peers)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Routes(ctx); err == nil {
		t.Error("Routes before Run: no error")
	}
}

func TestWrongRoutesDoNotStopTheOthers(t *testing.T) {
	s, _ := speak(t, Config{})
	err := s.Target().Apply(t.Context(), []reconcile.Change[string, Route]{
		{Op: reconcile.Create, Key: "198.51.100.0/24", Want: Route{NextHop: hostHere}},
		{Op: reconcile.Create, Key: Key(public), Want: Route{NextHop: hostHere, Epoch: 1}},
		{Op: reconcile.Create, Key: "198.51.100.9/32", Want: Route{}},
	})
	if err == nil || !strings.Contains(err.Error(), `"198.51.100.0/24": it is no IPv4 /32`) || !strings.Contains(err.Error(), "198.51.100.9/32: next hop") {
		t.Errorf("got %v", err)
	}
	if held, err := s.Routes(t.Context()); err != nil || len(held) != 1 || held[0].Public != public {
		t.Errorf("routes: got %+v, %v", held, err)
	}
}

func TestEqualTakesDefaultPreference(t *testing.T) {
	a := Route{NextHop: hostHere, Epoch: 1}
	b := a
	if b.LocalPref = 100; !Equal(a, b) {
		t.Error("default preference differs from 100")
	}
	if b.Epoch = 2; Equal(a, b) {
		t.Error("another epoch is equal")
	}
}

// What a peer sends reaches us through GoBGP's decoder as attributes of any content.
func FuzzHeld(f *testing.F) {
	add := func(attrs ...bgp.PathAttributeInterface) {
		b, err := bgp.NewBGPUpdateMessage(nil, attrs, nil).Serialize()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	add(bgp.NewPathAttributeLocalPref(7), bgp.NewPathAttributeLargeCommunities([]*bgp.LargeCommunity{{ASN: as, LocalData1: 1, LocalData2: 5}}))
	add()
	s, err := New(Config{AS: as, RouterID: controllerAddr})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := bgp.ParseBGPMessage(in)
		if err != nil {
			return
		}
		if u, ok := m.Body.(*bgp.BGPUpdate); ok {
			s.held(public, &apiutil.Path{Attrs: u.PathAttributes})
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add("198.51.100.7/32")
	f.Add("::ffff:198.51.100.7/128")
	f.Fuzz(func(t *testing.T, key string) {
		if a, err := ParseKey(key); err == nil && Key(a) != key {
			t.Errorf("ParseKey(%q) = %v, whose key is %q", key, a, Key(a))
		}
	})
}

func FuzzEpoch(f *testing.F) {
	f.Add(uint64(1), uint32(as))
	f.Add(uint64(1)<<63, uint32(1))
	f.Fuzz(func(t *testing.T, epoch uint64, asn uint32) {
		s := &Speaker{cfg: Config{AS: asn}}
		p, err := s.path(public, Route{NextHop: hostHere, Epoch: epoch})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.held(public, p).Route; got.Epoch != epoch || got.NextHop != hostHere || got.LocalPref != defaultLocalPref {
			t.Errorf("epoch %d of AS %d comes back as %+v", epoch, asn, got)
		}
	})
}
