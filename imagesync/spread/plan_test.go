package spread

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"heliotrope"
)

// shown is a plan as text: each host and whom it gets from, those across a WAN with a star.
func shown(hops []Hop) string {
	var lines []string
	for _, h := range hops {
		line := string(h.Host) + ":"
		for _, f := range h.From {
			line += " " + string(f.Host)
			if f.Remote {
				line += "*"
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, ", ")
}

func TestPlan(t *testing.T) {
	host := func(name heliotrope.HostID, rate float64) Host {
		return Host{ID: name, Site: heliotrope.SiteID(name[:1]), Rate: rate}
	}
	hosts := func(list string) (all []Host) {
		for _, n := range strings.Fields(list) {
			all = append(all, host(heliotrope.HostID(n), 0))
		}
		return all
	}
	for _, c := range []struct {
		name  string
		hosts []Host
		feeds map[heliotrope.SiteID]heliotrope.SiteID
		want  string // an error's begins with !
	}{
		{"nobody", nil, nil, ""},
		{"one site", hosts("s1 s2 s3"), nil, "s1: s0, s2: s1 s0, s3: s2 s1 s0"},
		{"two sites", hosts("a1 s1 a2 s2"), nil, "s1: s0, s2: s1 s0, a1: s0* s1* s2*, a2: a1 s0* s1* s2*"},
		{"three sites", hosts("a1 b1 a2 a3"), nil, "a1: s0*, a2: a1 s0*, a3: a2 a1 s0*, b1: s0* a1* a2*"},
		{"by another site", hosts("a1 b1 b2"), map[heliotrope.SiteID]heliotrope.SiteID{"a": "b"}, "b1: s0*, b2: b1 s0*, a1: b2* b1* s0*"},
		{"by the source's site", hosts("a1 s1"), map[heliotrope.SiteID]heliotrope.SiteID{"a": "s"}, "s1: s0, a1: s1* s0*"},
		{"by a site without hosts", hosts("a1"), map[heliotrope.SiteID]heliotrope.SiteID{"a": "c"}, "a1: s0*"},
		{"ring", hosts("a1 b1"), map[heliotrope.SiteID]heliotrope.SiteID{"a": "b", "b": "a"}, "!plan spread: sites feed each other in a ring: [a b a]"},
		{"twice", hosts("a1 a1"), nil, "!plan spread: host a1 is there twice"},
		{"the source", hosts("s0"), nil, "!plan spread: host s0 is there twice"},
		{"slow", []Host{host("a1", 10), host("a2", 4), host("a3", 0), host("a4", 10), host("a5", 5)}, nil,
			"a1: s0*, a3: a1 s0*, a4: a3 a1 s0*, a5: a4 a3 a1 s0*, a2: a5 a4 a3 a1 s0*"},
	} {
		hops, err := Plan(host("s0", 0), c.hosts, c.feeds)
		got := shown(hops)
		if err != nil {
			got = "!" + err.Error()
		}
		if got != c.want {
			t.Errorf("%s: got %s\nwant %s", c.name, got, c.want)
		}
	}
}

// Whatever hosts there are, each is fed by those that precede it, at last by the source, and
// one of a site from outside.
func TestPlanIsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var hosts []Host
		for i := range rapid.IntRange(0, 30).Draw(t, "hosts") {
			site := rapid.SampledFrom([]heliotrope.SiteID{"s", "a", "b", "c"}).Draw(t, "site")
			hosts = append(hosts, Host{heliotrope.HostID(fmt.Sprint(site, i)), site, float64(rapid.IntRange(0, 9).Draw(t, "rate"))})
		}
		feeds := map[heliotrope.SiteID]heliotrope.SiteID{}
		if rapid.Bool().Draw(t, "feeds") {
			feeds = map[heliotrope.SiteID]heliotrope.SiteID{"a": "s", "b": "a", "c": "b"}
		}
		hops, err := Plan(Host{ID: "source", Site: "s"}, hosts, feeds)
		if err != nil {
			t.Fatal(err)
		}
		again, _ := Plan(Host{ID: "source", Site: "s"}, hosts, feeds)
		if len(hops) != len(hosts) || !reflect.DeepEqual(hops, again) {
			t.Fatalf("%d hops for %d hosts", len(hops), len(hosts))
		}
		known, heads := map[heliotrope.HostID]bool{"source": true}, map[heliotrope.SiteID]int{}
		for _, h := range hops {
			for _, f := range h.From {
				if !known[f.Host] {
					t.Fatalf("%s is fed by %s, which is behind it", h.Host, f.Host)
				}
			}
			known[h.Host] = true
			if !slices.ContainsFunc(h.From, func(f Feeder) bool { return f.Host == "source" }) {
				t.Fatalf("%s does not have the source in its list", h.Host)
			}
			if h.From[0].Remote {
				heads[h.Site]++
			}
		}
		for site, n := range heads {
			if n > 1 || site == "s" {
				t.Fatalf("site %s has %d hosts that are fed across the WAN", site, n)
			}
		}
	})
}
