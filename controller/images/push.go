package images

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
)

// Puller lets images come to a host; *agentapi.Agent is one.
type Puller interface {
	PullImage(ctx context.Context, order agentapi.PullOrder) (agentapi.ImageCache, error)
}

// Host is a host that may have images.
type Host struct {
	ID     heliotrope.HostID
	Site   heliotrope.SiteID
	Agent  Puller                // nil: it is not connected
	Images *agentapi.ImageStatus // nil: it has no image store
	Link   heliotrope.Link       // from the store's site; zero where there is none, or it is the same site
	Relay  netip.AddrPort        // where other hosts ask its agent; zero: they do not
	Local  bool                  // it is at the store's site: nothing that comes crosses a WAN
	// Shared are links on the way from the store that images share, and what they may take of each; none: none is shared.
	Shared map[heliotrope.LinkID]heliotrope.BitRate
}

// Hosts are those of the topology, and the term under which they may be given orders; 0: another
// controller leads.
type Hosts interface {
	ImageHosts() (hosts []Host, term uint64)
	// ImagePolicies are the topology's. They are the caller's own.
	ImagePolicies() Policies
}

// PushImage lets a version come to all hosts of some sites, or of all; api.Images says more.
func (m *Images) PushImage(ctx context.Context, ref string, r api.PushRequest) ([]api.ImagePlace, error) {
	i, err := m.Image(ctx, ref)
	if err != nil {
		return nil, err
	}
	s, hosts, term, err := m.hosts(r.Sites, "/sites/%d")
	if err != nil {
		return nil, err
	}
	policy := m.cfg.Hosts.ImagePolicies().Images[heliotrope.ImageID(i.Image)]
	way := how{rate: heliotrope.BitRate(r.RateBitsPerS), priority: cmp.Or(r.Priority, policy.Priority)}
	if r.InWindow {
		if way.windows = policy.Windows; len(way.windows) == 0 {
			return nil, api.Invalid("the image cannot be pushed", api.FieldProblem{Pointer: "/in_window", Detail: "the topology has no windows for " + i.Image,
				Hint: "leave it out to push at once, or give the topology's images." + i.Image + " windows"})
		}
	}
	if r.DryRun {
		return m.foresee(ctx, s, i, hosts, way)
	}
	places := m.order(ctx, s, i, hosts, term, way, byHand)
	m.explain(i.Ref(), places)
	if open, until := heliotrope.InHours(way.windows, time.Now()); !open {
		for k, p := range places {
			if (p.State == api.PlaceComing || p.State == api.PlaceWaits) && !hosts[k].Local {
				places[k].Note = opens(until)
			}
		}
	}
	if len(hosts) > 0 {
		m.cfg.Tell(i.Image, fmt.Sprintf("version %d is pushed to %d hosts", i.Version, len(hosts)))
	}
	return places, nil
}

// opens says when a window does.
func opens(at time.Time) string {
	if at.IsZero() {
		return "its window never opens"
	}
	return "its window opens " + at.UTC().Format("Mon 15:04") + " UTC"
}

// ImagePlaces says where a version is, and how much of it.
func (m *Images) ImagePlaces(ctx context.Context, ref string) ([]api.ImagePlace, error) {
	i, err := m.Image(ctx, ref)
	if err != nil {
		return nil, err
	}
	_, hosts, _, err := m.hosts(nil, "")
	if err != nil {
		return nil, err
	}
	places := make([]api.ImagePlace, len(hosts))
	for k, h := range hosts {
		places[k] = place(h, i)
	}
	m.explain(i.Ref(), places)
	return places, nil
}

// hosts are those of the sites, by site and name, and what is known of all; no sites: all of them. pointer is
// where a site stands.
func (m *Images) hosts(sites []heliotrope.SiteID, pointer string) (s snapshot, hosts []Host, term uint64, err error) {
	s, term = m.state(time.Now())
	all := slices.Clone(s.hosts)
	if term == 0 {
		return s, nil, 0, api.Unavailable("another controller leads, and knows the hosts")
	}
	var wrong []api.FieldProblem
	for k, site := range sites {
		if !slices.ContainsFunc(all, func(h Host) bool { return h.Site == site }) {
			wrong = append(wrong, api.FieldProblem{Pointer: strings.ReplaceAll(pointer, "%d", strconv.Itoa(k)), Detail: fmt.Sprintf("there is no site %q with hosts", site), Hint: "heliotrope site list shows what there is"})
		}
	}
	if len(wrong) > 0 {
		return s, nil, 0, api.Invalid("no such site", wrong...)
	}
	if len(sites) > 0 {
		all = slices.DeleteFunc(all, func(h Host) bool { return !slices.Contains(sites, h.Site) })
	}
	return s, all, term, nil
}

// place is what a host told lately of a version.
func place(h Host, i api.Image) api.ImagePlace {
	p := api.ImagePlace{Host: h.ID, Site: h.Site, State: api.PlaceAbsent, ContentBytes: i.ContentBytes}
	switch {
	case h.Agent == nil:
		p.State = api.PlaceAway
	case h.Images == nil:
		p.State = api.PlaceNoStore
	default:
		for _, c := range h.Images.Caches {
			if c.Image == i.Ref() {
				p = told(p, c)
			}
		}
	}
	return p
}

// told is a place of which a host says what it has.
func told(p api.ImagePlace, c agentapi.ImageCache) api.ImagePlace {
	p.HereBytes, p.Disks, p.Note = min(c.Here, c.Bytes), c.Volumes, c.Note
	switch {
	case c.Here >= c.Bytes:
		p.State, p.Note = api.PlaceHere, ""
	case c.Full:
		p.State = api.PlaceFull
	case c.Waits:
		p.State = api.PlaceWaits
	default:
		p.State = api.PlaceComing
	}
	return p
}
