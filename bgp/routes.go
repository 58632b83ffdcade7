package bgp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"heliotrope/internal/reconcile"
)

// Route is where packets to a public /32 go. Epoch is the VM's, and travels in large
// communities AS:1:low and, above 32 bits, AS:2:high. Zero LocalPref means 100.
type Route struct {
	NextHop   netip.Addr
	Epoch     uint64
	LocalPref uint32
}

// The middle words of our large communities.
const (
	epochLow  = 1
	epochHigh = 2
)

const defaultLocalPref = 100

// Equal says whether have needs no change to become want.
func Equal(want, have Route) bool { return want.normal() == have.normal() }

func (r Route) normal() Route {
	if r.LocalPref == 0 {
		r.LocalPref = defaultLocalPref
	}
	return r
}

// Target is a Speaker's table as reconcile.Target. Its keys are /32 prefixes as text,
// because keys must be ordered; Key and ParseKey convert.
type Target struct{ s *Speaker }

// Target returns the speaker's own routes as a target of the reconcile loop.
func (s *Speaker) Target() Target { return Target{s} }

// Key is the Target's key of a VM's public address.
func Key(public netip.Addr) string { return netip.PrefixFrom(public, public.BitLen()).String() }

// ParseKey is Key's inverse. Only IPv4 /32s are announced.
func ParseKey(key string) (netip.Addr, error) {
	p, err := netip.ParsePrefix(key)
	if err != nil || !p.Addr().Is4() || p.Bits() != 32 {
		return netip.Addr{}, fmt.Errorf("parse route %q: it is no IPv4 /32", key)
	}
	return p.Addr(), nil
}

// Observe returns the routes that we originate.
func (t Target) Observe(ctx context.Context) (map[string]Route, error) {
	held, err := t.s.Routes(ctx)
	if err != nil {
		return nil, err
	}
	routes := make(map[string]Route, len(held))
	for _, h := range held {
		routes[Key(h.Public)] = h.Route
	}
	return routes, nil
}

// Apply announces what is new or moved, and withdraws the rest only then.
func (t Target) Apply(ctx context.Context, changes []reconcile.Change[string, Route]) error {
	srv, err := t.s.server(ctx)
	if err != nil {
		return err
	}
	var add, withdraw []*apiutil.Path
	var errs []error
	for _, c := range changes {
		public, err := ParseKey(c.Key)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r := c.Want
		if c.Op == reconcile.Delete {
			r = c.Have
		}
		path, err := t.s.path(public, r)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("announce %s: %w", c.Key, err))
		case c.Op == reconcile.Delete:
			withdraw = append(withdraw, path)
		default:
			add = append(add, path)
		}
	}
	if len(add) > 0 {
		if _, err := srv.AddPath(apiutil.AddPathRequest{Paths: add}); err != nil {
			return errors.Join(append(errs, fmt.Errorf("announce routes: %w", err))...)
		}
	}
	if len(withdraw) > 0 {
		if err := srv.DeletePath(apiutil.DeletePathRequest{Paths: withdraw}); err != nil {
			errs = append(errs, fmt.Errorf("withdraw routes: %w", err))
		}
	}
	return errors.Join(errs...)
}

// path is a route in GoBGP's words.
func (s *Speaker) path(public netip.Addr, r Route) (*apiutil.Path, error) {
	r = r.normal()
	if !r.NextHop.Is4() || r.NextHop.IsUnspecified() {
		return nil, fmt.Errorf("next hop %v is no IPv4 address", r.NextHop)
	}
	nlri, err := bgp.NewIPAddrPrefix(netip.PrefixFrom(public, 32))
	if err != nil {
		return nil, fmt.Errorf("make prefix: %w", err)
	}
	nextHop, err := bgp.NewPathAttributeNextHop(r.NextHop)
	if err != nil {
		return nil, fmt.Errorf("make next hop: %w", err)
	}
	marks := []*bgp.LargeCommunity{{ASN: s.cfg.AS, LocalData1: epochLow, LocalData2: uint32(r.Epoch & math.MaxUint32)}}
	if high := uint32(r.Epoch >> 32); high != 0 {
		marks = append(marks, &bgp.LargeCommunity{ASN: s.cfg.AS, LocalData1: epochHigh, LocalData2: high})
	}
	return &apiutil.Path{
		Family: bgp.RF_IPv4_UC, Nlri: nlri, Age: time.Now().Unix(),
		Attrs: []bgp.PathAttributeInterface{
			bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP),
			bgp.NewPathAttributeAsPath(nil),
			nextHop,
			bgp.NewPathAttributeLocalPref(r.LocalPref),
			bgp.NewPathAttributeLargeCommunities(marks),
		},
	}, nil
}

// Held is a route in our table, or one that a peer told us of.
type Held struct {
	Public netip.Addr
	Route  Route
	Since  time.Time // last announced, to the second
}

// held is path as it came out of GoBGP, which may be a peer's and say anything.
func (s *Speaker) held(public netip.Addr, path *apiutil.Path) Held {
	h := Held{Public: public, Since: time.Unix(path.Age, 0)}
	for _, a := range path.Attrs {
		switch a := a.(type) {
		case *bgp.PathAttributeNextHop:
			h.Route.NextHop = a.Value
		case *bgp.PathAttributeLocalPref:
			h.Route.LocalPref = a.Value
		case *bgp.PathAttributeLargeCommunities:
			h.Route.Epoch = epochOf(s.cfg.AS, a.Values)
		}
	}
	return h
}

func epochOf(as uint32, marks []*bgp.LargeCommunity) (epoch uint64) {
	for _, m := range marks {
		switch {
		case m == nil || m.ASN != as:
		case m.LocalData1 == epochLow:
			epoch = epoch&^math.MaxUint32 | uint64(m.LocalData2)
		case m.LocalData1 == epochHigh:
			epoch = epoch&math.MaxUint32 | uint64(m.LocalData2)<<32
		}
	}
	return epoch
}

// Routes returns all routes that we originate, ordered by address.
func (s *Speaker) Routes(ctx context.Context) ([]Held, error) {
	routes, err := s.list(ctx, apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: bgp.RF_IPv4_UC})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(routes, func(a, b Held) int { return a.Public.Compare(b.Public) })
	return routes, nil
}

// list returns the /32s of one of GoBGP's tables.
func (s *Speaker) list(ctx context.Context, req apiutil.ListPathRequest) ([]Held, error) {
	srv, err := s.server(ctx)
	if err != nil {
		return nil, err
	}
	var routes []Held
	err = srv.ListPath(req, func(nlri bgp.NLRI, paths []*apiutil.Path) {
		p, ok := nlri.(*bgp.IPAddrPrefix)
		if !ok || p.Prefix.Bits() != 32 {
			return
		}
		for _, path := range paths {
			if !path.Withdrawal {
				routes = append(routes, s.held(p.Prefix.Addr(), path))
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

// Explanation is what is known of one public address.
type Explanation struct {
	Originated *Held  // what we announce; nil when nothing
	Peers      []View // of each peer, ordered by address
}

// View is what one peer was told of an address and what it claims itself.
type View struct {
	Peer  netip.Addr
	State string
	Sent  *Held // nil when the peer was told nothing
	Heard *Held // the peer's own claim; one for our address is a ghost or a thief
}

// Why says what we originate for public, and what stands between us and each peer.
func (s *Speaker) Why(ctx context.Context, public netip.Addr) (Explanation, error) {
	srv, err := s.server(ctx)
	if err != nil {
		return Explanation{}, err
	}
	only := []*apiutil.LookupPrefix{{Prefix: Key(public)}}
	ask := func(table api.TableType, peer string) (*Held, error) {
		found, err := s.list(ctx, apiutil.ListPathRequest{TableType: table, Name: peer, Family: bgp.RF_IPv4_UC, Prefixes: only})
		if err != nil || len(found) == 0 {
			return nil, err
		}
		return &found[0], nil
	}
	var e Explanation
	if e.Originated, err = ask(api.TableType_TABLE_TYPE_GLOBAL, ""); err != nil {
		return Explanation{}, err
	}
	peers, err := s.Peers(ctx)
	if err != nil {
		return Explanation{}, err
	}
	for _, p := range peers {
		v := View{Peer: p.Address, State: p.State}
		if up, err := established(ctx, srv, p.Address); err != nil {
			return Explanation{}, err
		} else if up {
			var errSent, errHeard error
			v.Sent, errSent = ask(api.TableType_TABLE_TYPE_ADJ_OUT, p.Address.String())
			v.Heard, errHeard = ask(api.TableType_TABLE_TYPE_ADJ_IN, p.Address.String())
			if err := errors.Join(errSent, errHeard); err != nil {
				return Explanation{}, err
			}
		}
		e.Peers = append(e.Peers, v)
	}
	return e, nil
}
