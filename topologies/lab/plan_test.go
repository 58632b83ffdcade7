package lab

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/topologies"
)

func TestNextHopsTakeTheLinkElseTheShortestWay(t *testing.T) {
	site := func(octet byte) heliotrope.Site {
		return heliotrope.Site{Underlay: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, octet, 0}), 24)}
	}
	link := func(a, b heliotrope.SiteID, delay time.Duration) heliotrope.Link {
		return heliotrope.Link{Between: [2]heliotrope.SiteID{a, b}, Delay: heliotrope.Duration(delay)}
	}
	top := heliotrope.Topology{
		Sites: map[heliotrope.SiteID]heliotrope.Site{"a": site(1), "b": site(2), "c": site(3), "d": site(4), "alone": site(5)},
		Links: map[heliotrope.LinkID]heliotrope.Link{
			"ab": link("a", "b", 10*time.Millisecond), "bc": link("b", "c", 10*time.Millisecond),
			"ac": link("a", "c", 50*time.Millisecond), "cd": link("c", "d", 0),
		},
	}
	hops := nextHops(top)
	want := map[heliotrope.SiteID]heliotrope.SiteID{"b": "b", "c": "c", "d": "b"}
	if !maps.Equal(hops["a"], want) {
		t.Errorf("from a: %v, want %v", hops["a"], want)
	}
	if got := hops["d"]["a"]; got != "c" {
		t.Errorf("from d to a by %q, want c", got)
	}
	if len(hops["alone"]) != 0 {
		t.Errorf("a site without links reaches %v", hops["alone"])
	}
}

// What is reckoned of ways (topologies.Ways) is what the lab's routers do.
func TestWaysAreThoseOfTheRouters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		top := heliotrope.Topology{Sites: map[heliotrope.SiteID]heliotrope.Site{}, Links: map[heliotrope.LinkID]heliotrope.Link{}}
		delay := time.Millisecond
		for _, a := range "abcdef" {
			for _, b := range slices.Sorted(maps.Keys(top.Sites)) {
				if rapid.Bool().Draw(t, "linked") { // no two ways take equally long
					delay *= 2
					site := heliotrope.SiteID(a)
					top.Links[heliotrope.LinkID(fmt.Sprint(b, site))] = heliotrope.Link{Between: [2]heliotrope.SiteID{b, site}, Delay: heliotrope.Duration(delay)}
				}
			}
			top.Sites[heliotrope.SiteID(a)] = heliotrope.Site{}
		}
		hops := nextHops(top)
		for from := range top.Sites {
			for to, way := range topologies.Ways(top, from) {
				at := from
				for _, id := range way {
					l, next := top.Links[id], hops[at][to]
					if l.Between != [2]heliotrope.SiteID{at, next} && l.Between != [2]heliotrope.SiteID{next, at} {
						t.Fatalf("from %s to %s by %v; the router of %s takes %s", from, to, way, at, next)
					}
					at = next
				}
				if at != to {
					t.Fatalf("the way from %s to %s, %v, ends at %s", from, to, way, at)
				}
			}
		}
	})
}

func TestPlansOfThreeClouds(t *testing.T) {
	top, err := topologies.LoadFile("../three-clouds.yaml", topologies.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ps, err := plans(config{Name: "x", Dir: "/x", Topology: top, Binary: "/bin/heliotrope"})
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]plan{}
	for _, p := range ps {
		byName[p.Node] = p
	}
	for name, kind := range map[string]Kind{
		"router-us": KindRouter, "router-internet": KindRouter, "controller": KindController,
		"us-1": KindHost, "asia-1": KindHost, "visitor": KindClient, "scanner": KindVM,
	} {
		if byName[name].Kind != kind {
			t.Errorf("node %s is a %q, want %s", name, byName[name].Kind, kind)
		}
	}
	if len(ps) != 4+1+3+1+1 {
		t.Errorf("%d nodes, want 10", len(ps))
	}
	// What is behind a stub's port answers on port 7, and is no neighbour of its host.
	s := byName["scanner"]
	if s.Host != "asia-1" || s.VM != "scanner" || len(s.Daemons) != 1 || !slices.Equal(s.Daemons[0].Argv, []string{"/bin/heliotrope", "lab", "echo", "10.1.0.200:7"}) ||
		strings.Contains(byName["asia-1"].Hosts, "scanner") {
		t.Errorf("%+v", s)
	}
	if cards := vmCards(top, "scanner"); len(cards) != 1 || cards[0].Tap != "scan0" || cards[0].ID != heliotrope.InterfaceID("scanner", 0) {
		t.Errorf("%+v", cards)
	}
	if r := byName["router-us"]; len(r.Routes) != 3 || len(r.Neighbors) != 3 {
		t.Errorf("routes of router-us: %v, neighbours %v", r.Routes, r.Neighbors)
	}
	if !strings.Contains(byName["eu-1"].Hosts, "10.255.3.11 asia-1\n") {
		t.Errorf("hosts file:\n%s", byName["eu-1"].Hosts)
	}
}

func TestPlansKeepNamesApart(t *testing.T) {
	prefix := netip.MustParsePrefix("10.0.0.0/24")
	top := heliotrope.Topology{
		Sites:   map[heliotrope.SiteID]heliotrope.Site{"s": {Underlay: prefix, Router: netip.MustParseAddr("10.0.0.1")}},
		Hosts:   map[heliotrope.HostID]heliotrope.Host{"x": {Site: "s"}, "router-s": {Site: "s"}},
		Clients: map[heliotrope.ClientID]heliotrope.Client{"x": {Site: "s"}, "controller": {Site: "s"}},
	}
	top.Controller.Site = "s"
	ps, err := plans(config{Dir: "/x", Topology: top})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range ps {
		if seen[p.Node] {
			t.Errorf("two nodes are named %s", p.Node)
		}
		seen[p.Node] = true
	}
	top.Clients["lost"] = heliotrope.Client{Site: "nowhere"}
	if _, err := plans(config{Dir: "/x", Topology: top}); err == nil {
		t.Error("a client in a site that is not there was planned")
	}
}
