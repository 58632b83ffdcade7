package images

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
)

var noon = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC) // a Monday

const size = 1 << 20

// has is a host's store with some versions, all of them or a part.
func has(caches ...agentapi.ImageCache) *agentapi.ImageStatus {
	return &agentapi.ImageStatus{Caches: caches}
}

func cache(ref string, here int64) agentapi.ImageCache {
	return agentapi.ImageCache{Image: ref, Bytes: size, Here: here}
}

// What policies have hosts told follows from the snapshot alone.
func TestNeeds(t *testing.T) {
	host := func(id heliotrope.HostID, s *agentapi.ImageStatus) Host {
		return Host{ID: id, Site: heliotrope.SiteID(id[:1]), Agent: &agent{}, Images: s, Local: id[0] == 'c'}
	}
	away := host("d-1", has())
	away.Agent = nil
	hosts := []Host{host("a-1", has()), host("a-2", has(cache("web@2", size))), host("b-1", has(cache("web@1", size))), host("b-2", has(cache("web@2", size/2))),
		host("c-1", has()), away, host("e-1", nil)}
	night := heliotrope.Hours{From: 22 * 60, To: 6 * 60}
	policy := func(policy string, sites ...heliotrope.SiteID) heliotrope.ImagePolicy {
		return heliotrope.ImagePolicy{Policy: policy, Sites: sites}
	}
	atNight := func(p heliotrope.ImagePolicy) heliotrope.ImagePolicy {
		p.Windows = []heliotrope.Hours{night}
		return p
	}
	small := func(budget int64, caches ...agentapi.ImageCache) Host {
		h := host("a-1", has(caches...))
		h.Images.Budget = budget
		return h
	}
	const all = "a-1 absent now, a-2 here, b-1 absent now, b-2 coming now, c-1 absent now, d-1 away, e-1 no-store"
	lately := map[order]time.Time{{"a-1", "web@2"}: noon.Add(-time.Minute), {"b-1", "web@2"}: noon.Add(-orderAgain), {"c-1", "web@1"}: noon}
	for _, c := range []struct {
		name     string
		policies map[heliotrope.ImageID]heliotrope.ImagePolicy
		uses     []Use
		hosts    []Host
		ordered  map[order]time.Time
		want     string
	}{
		{name: "no policy"},
		{name: "on demand", policies: map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": policy("on-demand")}},
		{name: "not said", policies: map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": policy("")}},
		{name: "an image that is not there", policies: map[heliotrope.ImageID]heliotrope.ImagePolicy{"nix": policy("everywhere")}},
		{name: "everywhere", policies: map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": policy("everywhere")}, want: all},
		{name: "everywhere at two sites", policies: map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": policy("everywhere", "a", "d")}, want: "a-1 absent now, a-2 here, d-1 away"},
		{name: "follow, of which there are no VMs", policies: map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": policy("follow")}, uses: []Use{{"db", "a", "db runs there"}}},
		{name: "follow", policies: map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": policy("follow")}, uses: []Use{{"web", "b", "web runs there"}, {"web", "b", "web was there"}}, want: "b-1 absent now, b-2 coming now"},
		{name: "follow at another site", policies: map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": policy("follow", "a")}, uses: []Use{{"web", "b", "web runs there"}}},
		{name: "in its window only, but where no WAN is crossed", policies: map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": atNight(policy("everywhere", "a", "c"))}, want: "a-1 absent 22:00, a-2 here, c-1 absent now"},
		{name: "those that were told lately are left alone", policies: map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": policy("everywhere", "a", "b", "c")}, ordered: lately,
			want: "a-1 absent 12:09, a-2 here, b-1 absent now, b-2 coming now, c-1 absent now"},
		{name: "no more than there is room for", policies: map[heliotrope.ImageID]heliotrope.ImagePolicy{"db": policy("everywhere"), "web": policy("everywhere")}, hosts: []Host{small(3 * size / 2)},
			want: "a-1 absent now, a-1 full"},
		{name: "beside what disks stand on", policies: map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": policy("everywhere")},
			hosts: []Host{small(3*size/2, agentapi.ImageCache{Image: "db@1", Bytes: size, Here: size, Volumes: 1})}, want: "a-1 full"},
		{name: "others go for it", policies: map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": policy("everywhere")}, hosts: []Host{small(3*size/2, cache("db@1", size))}, want: "a-1 absent now"},
	} {
		s := snapshot{now: noon, Policies: Policies{Images: c.policies, Uses: c.uses}, hosts: hosts, ordered: c.ordered, newest: map[heliotrope.ImageID]api.Image{
			"web": {Image: "web", Version: 2, ContentBytes: size}, "db": {Image: "db", Version: 1, ContentBytes: size}}}
		if c.hosts != nil {
			s.hosts = c.hosts
		}
		var got []string
		for _, n := range s.needs() {
			said := string(n.host.ID) + " " + n.place.State
			if n.due(noon) {
				said += " now"
			} else if !n.at.IsZero() {
				said += n.at.Format(" 15:04")
			}
			got = append(got, said)
		}
		if got := strings.Join(got, ", "); got != c.want {
			t.Errorf("%s: got %s\nwant %s", c.name, got, c.want)
		}
	}
}

// Whatever hosts have: who is told can have it, lacks it, is in a window, and holds all that it is given.
func TestNeedsAreSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(most int64, what string) int64 { return rapid.Int64Range(0, most).Draw(t, what) }
		s := snapshot{now: noon.Add(time.Duration(draw(7*24*60, "minutes")) * time.Minute), newest: map[heliotrope.ImageID]api.Image{}, ordered: map[order]time.Time{}}
		s.Images = map[heliotrope.ImageID]heliotrope.ImagePolicy{}
		for k := range draw(4, "images") {
			id := heliotrope.ImageID(fmt.Sprint("i", k))
			p := heliotrope.ImagePolicy{Policy: rapid.SampledFrom([]string{"", "everywhere", "follow", "on-demand"}).Draw(t, "policy")}
			if rapid.Bool().Draw(t, "windows") {
				p.Windows = []heliotrope.Hours{{From: heliotrope.DayTime(draw(1440, "from")), To: heliotrope.DayTime(draw(1440, "to"))}}
			}
			s.Images[id] = p
			s.newest[id] = api.Image{Image: string(id), Version: 1, ContentBytes: draw(size, "bytes")}
			s.Uses = append(s.Uses, Use{id, heliotrope.SiteID(fmt.Sprint("s", draw(3, "site"))), "x"})
		}
		for k := range draw(6, "hosts") {
			h := Host{ID: heliotrope.HostID(fmt.Sprint("h", k)), Site: heliotrope.SiteID(fmt.Sprint("s", k%3)), Local: k%3 == 0}
			if rapid.Bool().Draw(t, "connected") {
				h.Agent = &agent{}
			}
			if rapid.Bool().Draw(t, "store") {
				h.Images = has(cache("i0@1", draw(size, "here")))
				h.Images.Budget = draw(3*size, "budget")
			}
			s.hosts = append(s.hosts, h)
			if rapid.Bool().Draw(t, "told") {
				s.ordered[order{h.ID, "i0@1"}] = s.now.Add(-time.Duration(draw(30, "ago")) * time.Minute)
			}
		}
		given := map[heliotrope.HostID]int64{}
		for _, n := range s.needs() {
			p := s.Images[n.image]
			open, _ := p.Open(s.now)
			switch {
			case !n.due(s.now):
			case n.host.Agent == nil || n.host.Images == nil || !n.lacks() || onDemand(p):
				t.Fatalf("%+v is told", n)
			case !open && !n.host.Local:
				t.Fatalf("%+v is told outside of its window", n)
			}
			if n.due(s.now) || n.place.State == api.PlaceHere {
				given[n.host.ID] += s.newest[n.image].ContentBytes
			}
			if n.due(s.now) && n.host.Images.Budget > 0 && given[n.host.ID] > n.host.Images.Budget {
				t.Fatalf("%s is given %d bytes, and has room for %d", n.host.ID, given[n.host.ID], n.host.Images.Budget)
			}
		}
	})
}

// Hosts are told what policies give them, once, and when a window opens; what that takes is said before.
func TestDistribute(t *testing.T) {
	r := newRig(t)
	r.send(api.UploadRequest{Image: "web"}, random(7, size))
	agents := map[heliotrope.HostID]*agent{}
	for _, id := range []heliotrope.HostID{"a-1", "a-2", "b-1"} {
		agents[id] = &agent{}
		r.hosts = append(r.hosts, Host{ID: id, Site: heliotrope.SiteID(id[:1]), Agent: agents[id], Images: has(), Link: heliotrope.Link{Rate: 8_000_000, PricePerGB: 100}})
	}
	agents["b-1"].fails = errors.New("the line is cut")
	r.told = nil
	now := noon
	round := func() string {
		t.Helper()
		for _, a := range agents {
			a.orders = nil
		}
		r.images.round(t.Context(), now)
		var got []string
		for id, a := range agents {
			for _, o := range a.orders {
				got = append(got, fmt.Sprintf("%s %s", id, o.Image))
			}
		}
		slices.Sort(got)
		return strings.Join(got, ", ")
	}
	everywhere := map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": {Policy: "everywhere"}, "nix": {Policy: "everywhere"}}
	for _, c := range []struct {
		name     string
		after    time.Duration
		term     uint64
		policies map[heliotrope.ImageID]heliotrope.ImagePolicy
		want     string
	}{
		{"who does not lead", 0, 0, everywhere, ""},
		{"nothing is to be anywhere", 0, 1, nil, ""},
		{"everywhere", 0, 1, everywhere, "a-1 web@1, a-2 web@1, b-1 web@1"},
		{"all were told", time.Minute, 1, everywhere, ""},
		{"nobody has it", orderAgain, 1, everywhere, "a-1 web@1, a-2 web@1, b-1 web@1"},
	} {
		now, r.term, r.policies.Images = now.Add(c.after), c.term, c.policies
		if got := round(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if len(r.told) != 1 || r.told[0] != "web: version 1 comes to 3 hosts of a, b by its policy (everywhere): 3.1 MB from the store, 0.3146 USD" {
		t.Errorf("told %q", r.told)
	}
	hosts, given, failed := r.images.Distribution()
	if hosts[api.PlaceAbsent] != 3 || given != 6 || failed != 2 {
		t.Errorf("%v, %d orders, %d of them not taken", hosts, given, failed)
	}
	if !strings.Contains(r.images.spreads.trouble, "nix") || !strings.Contains(r.images.spreads.trouble, "the line is cut") {
		t.Errorf("trouble: %q", r.images.spreads.trouble)
	}

	r.send(api.UploadRequest{Image: "web"}, random(8, size))
	night := []heliotrope.Hours{{From: 22 * 60, To: 6 * 60}}
	r.policies.Images = map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": {Policy: "everywhere", Sites: []heliotrope.SiteID{"a"}, Windows: night}}
	now = noon
	if got := round(); got != "" {
		t.Errorf("outside of its window: %s", got)
	}
	now = noon.Add(10 * time.Hour)
	if got := round(); got != "a-1 web@2, a-2 web@2" {
		t.Errorf("in it: %s", got)
	}
	if o := agents["a-1"].orders; len(o) != 1 || len(o[0].Windows) != 1 || o[0].Windows[0].From != night[0].From {
		t.Errorf("got %+v", o)
	}
}

// That a host has no room for a version is shown, and told once; who could never keep it is not told to get it.
func TestNoRoom(t *testing.T) {
	r := newRig(t)
	r.send(api.UploadRequest{Image: "web"}, random(7, size))
	small, dropped := near("a-1", has()), near("a-2", has(agentapi.ImageCache{Image: "web@1", Bytes: size, Full: true, Note: "the host keeps at most 9 MB"}))
	small.Images.Budget = size / 2
	r.hosts, r.term, r.told = []Host{small, dropped}, 1, nil
	r.policies.Images = map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": {Policy: "everywhere"}}
	for range 2 {
		r.images.round(t.Context(), noon)
	}
	want := "web: version 1 does not come to a-1: the host keeps at most 0.5 MB of images (--image-cache), and needs that for others; " +
		"web: version 1 does not come to a-2: the host keeps at most 9 MB"
	if got := strings.Join(r.told, "; "); got != want {
		t.Errorf("told %s\nwant %s", got, want)
	}
	if a, b := small.Agent.(*agent), dropped.Agent.(*agent); len(a.orders) != 0 || len(b.orders) != 1 {
		t.Errorf("orders: %+v, %+v", a.orders, b.orders)
	}
	for _, dry := range []bool{true, false} {
		places, err := r.api.PushImage(t.Context(), "web", api.PushRequest{DryRun: dry})
		if err != nil || places[0].State != api.PlaceFull || places[0].Note == "" || places[0].WireBytes != 0 {
			t.Errorf("dry run %v: got %+v, %v", dry, places, err)
		}
	}
	if places, err := r.api.ImagePlaces(t.Context(), "web"); err != nil || places[1].State != api.PlaceFull || places[1].Note != "the host keeps at most 9 MB" {
		t.Errorf("got %+v, %v", places, err)
	}
}

// Over REST policies are shown with what they would have come, and others are tried; what cannot be
// asked is refused in words.
func TestPoliciesOverREST(t *testing.T) {
	r := newRig(t)
	r.send(api.UploadRequest{Image: "web"}, random(7, size))
	far := heliotrope.Link{Rate: 8_000_000, PricePerGB: 100}
	r.hosts = []Host{{ID: "a-1", Site: "a", Agent: &agent{}, Images: has(), Link: far}, {ID: "a-2", Site: "a", Agent: &agent{}, Images: has(cache("web@1", size))},
		{ID: "b-1", Site: "b", Agent: &agent{}, Images: has(), Link: far}, {ID: "b-2", Site: "b"}}
	r.policies = Policies{Images: map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": {Policy: "follow"}, "nix": {Policy: "everywhere"}}, Uses: []Use{{"web", "b", "web runs there"}}}
	if _, err := r.api.ImagePolicies(t.Context(), api.ImagePolicyQuery{}); status(err) != http.StatusServiceUnavailable {
		t.Errorf("who does not lead: %v", err)
	}
	r.term = 1
	all, err := r.api.ImagePolicies(t.Context(), api.ImagePolicyQuery{})
	if err != nil || len(all) != 2 || all[0].Image != "nix" || all[0].Note != `there is no image "nix"` || len(all[0].Comes) != 0 || all[1].Version != 1 || len(all[1].Comes) != 1 || !all[1].Open || !all[1].Until.IsZero() {
		t.Fatalf("got %+v, %v", all, err)
	}
	if c := all[1].Comes[0]; c.Site != "b" || c.Why != "web runs there" || c.Hosts != 2 || c.Away != 1 || c.At.IsZero() || c.MissingBytes != size || c.WireBytes < size || c.ETAS < 1 || c.CostUSD < 0.1 {
		t.Errorf("got %+v", c)
	}
	all, err = r.api.ImagePolicies(t.Context(), api.ImagePolicyQuery{Image: "web", Policy: "everywhere", Sites: []heliotrope.SiteID{"a"}})
	if err != nil || len(all) != 1 || len(all[0].Comes) != 1 || all[0].Comes[0].Site != "a" || all[0].Comes[0].Here != 1 || all[0].Comes[0].MissingBytes != size {
		t.Errorf("got %+v, %v", all, err)
	}
	later := heliotrope.DayTime((time.Now().UTC().Hour()*60 + 120) % 1440)
	planned := map[heliotrope.ImageID]heliotrope.ImagePolicy{"web": {Policy: "everywhere", Windows: []heliotrope.Hours{{From: later, To: later + 30}}}, "nix": {Policy: "follow"}, "db": {Policy: "on-demand"}}
	if got := r.images.Foretell(t.Context(), planned, []heliotrope.ImageID{"db", "nix", "web"}); len(got) != 2 || !strings.Contains(got[0], `nix is not known`) ||
		!strings.HasPrefix(got[1], "image web@1 comes to 2 hosts: 2.1 MB from the store, 0.2097 USD; its window opens ") {
		t.Errorf("foretold %q", got)
	}
	for _, c := range []struct {
		q    api.ImagePolicyQuery
		want int
		says string
	}{
		{api.ImagePolicyQuery{Image: "db"}, http.StatusNotFound, "policy=everywhere"},
		{api.ImagePolicyQuery{Policy: "everywhere"}, http.StatusUnprocessableEntity, "query.image"},
		{api.ImagePolicyQuery{Image: "web", Sites: []heliotrope.SiteID{"a"}}, http.StatusUnprocessableEntity, "query.policy"},
		{api.ImagePolicyQuery{Image: "web", Policy: "sometimes"}, http.StatusUnprocessableEntity, "policy"},
		{api.ImagePolicyQuery{Image: "web", Policy: "follow", Sites: []heliotrope.SiteID{"mars"}}, http.StatusUnprocessableEntity, "mars"},
	} {
		_, err := r.api.ImagePolicies(t.Context(), c.q)
		var p *api.Problem
		if status(err) != c.want || !errors.As(err, &p) || !strings.Contains(fmt.Sprint(*p), c.says) {
			t.Errorf("%+v: got %+v, want %d with %q", c.q, err, c.want, c.says)
		}
	}

	// A push keeps to the windows only if it is told to.
	a := r.hosts[0].Agent.(*agent)
	if _, err := r.api.PushImage(t.Context(), "web", api.PushRequest{InWindow: true}); status(err) != http.StatusUnprocessableEntity {
		t.Errorf("an image without windows: %v", err)
	}
	r.policies.Images["web"] = heliotrope.ImagePolicy{Windows: []heliotrope.Hours{{From: later, To: later + 30}}}
	for _, in := range []bool{false, true} {
		a.orders = nil
		places, err := r.api.PushImage(t.Context(), "web", api.PushRequest{Sites: []heliotrope.SiteID{"a"}, InWindow: in})
		if err != nil || len(a.orders) != 1 || (len(a.orders[0].Windows) > 0) != in || strings.Contains(places[0].Note, "its window opens") != in {
			t.Errorf("in window %v: got %+v, %+v, %v", in, places, a.orders, err)
		}
	}
}
