package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

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
}

// Hosts are those of the topology, and the term under which they may be given orders; 0: another
// controller leads.
type Hosts interface {
	ImageHosts() (hosts []Host, term uint64)
}

// pullsAtOnce bounds the orders that are under way; each is answered before anything has come.
const pullsAtOnce = 32

// PushImage lets a version come to all hosts of some sites, or of all; api.Images says more.
func (m *Images) PushImage(ctx context.Context, ref string, r api.PushRequest) ([]api.ImagePlace, error) {
	i, err := m.Image(ctx, ref)
	if err != nil {
		return nil, err
	}
	hosts, term, err := m.hosts(r.Sites)
	if err != nil {
		return nil, err
	}
	if r.DryRun {
		return m.foresee(ctx, i, hosts)
	}
	places := make([]api.ImagePlace, len(hosts))
	var all sync.WaitGroup
	slots := make(chan struct{}, pullsAtOnce)
	for k, h := range hosts {
		places[k] = place(h, i)
		if h.Agent == nil || places[k].State == api.PlaceHere {
			continue
		}
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			c, err := h.Agent.PullImage(ctx, agentapi.PullOrder{Term: term, Image: i.Ref()})
			switch {
			case err == nil:
				places[k] = told(places[k], c)
			case errors.Is(err, agentapi.ErrInvalid) && h.Images == nil:
				places[k].State = api.PlaceNoStore
			default:
				places[k].State, places[k].Note = api.PlaceFailed, err.Error()
			}
		})
	}
	all.Wait()
	if len(hosts) > 0 {
		m.cfg.Tell(i.Image, fmt.Sprintf("version %d is pushed to %d hosts", i.Version, len(hosts)))
	}
	return places, nil
}

// ImagePlaces says where a version is, and how much of it.
func (m *Images) ImagePlaces(ctx context.Context, ref string) ([]api.ImagePlace, error) {
	i, err := m.Image(ctx, ref)
	if err != nil {
		return nil, err
	}
	hosts, _, err := m.hosts(nil)
	if err != nil {
		return nil, err
	}
	places := make([]api.ImagePlace, len(hosts))
	for k, h := range hosts {
		places[k] = place(h, i)
	}
	return places, nil
}

// hosts are those of the sites, by site and name; none: of all sites.
func (m *Images) hosts(sites []heliotrope.SiteID) ([]Host, uint64, error) {
	all, term := m.cfg.Hosts.ImageHosts()
	if term == 0 {
		return nil, 0, api.Unavailable("another controller leads, and knows the hosts")
	}
	var wrong []api.FieldProblem
	for k, site := range sites {
		if !slices.ContainsFunc(all, func(h Host) bool { return h.Site == site }) {
			wrong = append(wrong, api.FieldProblem{Pointer: fmt.Sprintf("/sites/%d", k), Detail: fmt.Sprintf("there is no site %q with hosts", site), Hint: "heliotrope site list shows what there is"})
		}
	}
	if len(wrong) > 0 {
		return nil, 0, api.Invalid("the image cannot be pushed", wrong...)
	}
	if len(sites) > 0 {
		all = slices.DeleteFunc(all, func(h Host) bool { return !slices.Contains(sites, h.Site) })
	}
	slices.SortFunc(all, func(a, b Host) int { return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.ID, b.ID)) })
	return all, term, nil
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
	p.HereBytes, p.Disks = min(c.Here, c.Bytes), c.Volumes
	if p.State = api.PlaceComing; c.Here >= c.Bytes {
		p.State = api.PlaceHere
	}
	return p
}
