package images

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
)

// near is a host that others can ask.
func near(id heliotrope.HostID, s *agentapi.ImageStatus) Host {
	return Host{ID: id, Site: heliotrope.SiteID(id[:1]), Agent: &agent{}, Images: s, Link: heliotrope.Link{Rate: 8_000_000, PricePerGB: 100},
		Relay: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), agentapi.RelayPort)}
}

// A site's hosts get a version from each other: those that have it stand first, the others by name; whoever
// cannot be asked, or has no part in it, does not stand there.
func TestChains(t *testing.T) {
	away, mute := near("a-6", has()), near("a-7", has())
	away.Agent, mute.Relay = nil, netip.AddrPort{}
	all := []Host{near("a-1", has()), near("a-2", has(cache("web@1", size/2))), near("a-3", has(cache("web@1", size))), near("a-4", has(cache("web@1", size))), near("a-5", has(cache("web@1", size))),
		away, mute, near("a-8", nil), near("a-9", has()), near("b-1", has()), near("b-2", has()), near("c-1", has()), near("d-1", has(cache("web@1", size))), near("d-2", has())}
	i := api.Image{Image: "web", Version: 1, ContentBytes: size}
	pick := func(ids ...heliotrope.HostID) (to []Host) {
		for _, id := range ids {
			for _, h := range all {
				if h.ID == id {
					to = append(to, h)
				}
			}
		}
		return to
	}
	for _, c := range []struct {
		name string
		to   []Host
		told map[order]time.Time
		want string
	}{
		{"nobody", nil, nil, ""},
		{"one at its site, another beside two that have it", pick("a-1", "c-1"), nil, "a-3 a-4 a-1"},
		{"two", pick("b-2", "b-1"), nil, "b-1 b-2"},
		{"all", all, nil, "a-3 a-4 a-5 a-1 a-2 a-9; b-1 b-2; d-1 d-2"},
		{"who was told before", pick("a-1"), map[order]time.Time{{"a-9", "web@1"}: noon, {"a-2", "web@2"}: noon}, "a-3 a-4 a-1 a-9"},
		{"who cannot be asked", pick("a-6", "a-7", "a-8"), nil, ""},
		{"who has it", pick("a-3", "d-1"), nil, ""},
	} {
		s := snapshot{now: noon, hosts: all, ordered: c.told}
		chains := s.chains(i, c.to)
		var got []string
		for _, site := range []heliotrope.SiteID{"a", "b", "c", "d"} {
			var names []string
			for _, h := range chains[site] {
				names = append(names, string(h.ID))
			}
			if names != nil {
				got = append(got, strings.Join(names, " "))
			}
		}
		if got := strings.Join(got, "; "); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

// Of two chains that are in force together no two hosts that lack something wait for each other.
func TestChainsMakeNoRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []Host
		for k := range 8 {
			all = append(all, near(heliotrope.HostID(fmt.Sprint("a-", k)), has(cache("web@1", rapid.SampledFrom([]int64{0, size / 2, size}).Draw(t, "here")))))
		}
		place := map[[2]heliotrope.HostID]bool{} // the first stands before the second somewhere
		lacks := map[heliotrope.HostID]bool{}
		for _, h := range all {
			lacks[h.ID] = h.Images.Caches[0].Here < size
		}
		for range 3 {
			var to []Host
			for _, h := range all {
				if rapid.Bool().Draw(t, "asked") {
					to = append(to, h)
				}
			}
			chain := snapshot{now: noon, hosts: all}.chains(api.Image{Image: "web", Version: 1}, to)["a"]
			for k, h := range chain {
				for _, o := range chain[:k] {
					place[[2]heliotrope.HostID{o.ID, h.ID}] = true
				}
			}
		}
		for pair := range place {
			if lacks[pair[0]] && lacks[pair[1]] && place[[2]heliotrope.HostID{pair[1], pair[0]}] {
				t.Fatalf("%s and %s wait for each other", pair[0], pair[1])
			}
		}
	})
}

// A push tells the hosts of a site of each other, and those that are to lend what they have; only what the first
// of them lacks crosses the WAN.
func TestPushAlongChains(t *testing.T) {
	r := newRig(t)
	r.send(api.UploadRequest{Image: "web"}, random(7, size))
	r.hosts = []Host{near("a-1", has()), near("a-2", has()), near("a-3", has()), near("b-1", has()), near("b-2", has(cache("web@1", size))), near("c-1", has()), near("c-2", has())}
	for k := range 2 { // these cannot be asked by others
		r.hosts[5+k].Relay = netip.AddrPort{}
	}
	r.term = 1
	places, err := r.api.PushImage(t.Context(), "web", api.PushRequest{DryRun: true, RateBitsPerS: 4_000_000})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range places {
		got = append(got, fmt.Sprintf("%s %d %v %.1f s %s", p.Host, p.MissingBytes/size, p.WireBytes > 0, p.ETAS, p.Note))
	}
	if got, want := strings.Join(got, "; "), "a-1 1 true 2.1 s ; a-2 1 false 2.1 s from a-1; a-3 1 false 2.1 s from a-2; b-1 1 false 0.0 s from b-2; b-2 0 false 0.0 s ; c-1 1 true 4.2 s ; c-2 1 true 4.2 s "; got != want {
		t.Errorf("foreseen %s\nwant %s", got, want)
	}
	if places, err = r.api.PushImage(t.Context(), "web", api.PushRequest{RateBitsPerS: 8_000}); err != nil || len(places) != len(r.hosts) {
		t.Fatal(places, err)
	}
	got = nil
	for _, h := range r.hosts {
		for _, o := range h.Agent.(*agent).orders {
			var chain []string
			for _, p := range o.Chain {
				chain = append(chain, string(p.Host))
			}
			got = append(got, fmt.Sprintf("%s by %s lend %v at %v", h.ID, strings.Join(chain, ","), o.Lend, uint64(o.Rate)))
		}
	}
	want := "a-1 by a-1,a-2,a-3 lend false at 8000; a-2 by a-1,a-2,a-3 lend false at 8000; a-3 by a-1,a-2,a-3 lend false at 8000; " +
		"b-1 by b-2,b-1 lend false at 8000; b-2 by b-2,b-1 lend true at 0; c-1 by  lend false at 4000; c-2 by  lend false at 4000"
	if got := strings.Join(got, "; "); got != want {
		t.Errorf("ordered %s\nwant %s", got, want)
	}
}
