package images

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/controller/api"
)

// orderAgain is how long a host is left alone that was told to get a version, and lacks some of it.
// An order that it has already costs nothing.
const orderAgain = 10 * time.Minute

// Policies are those of the topology, and what they rest on.
type Policies struct {
	Images map[heliotrope.ImageID]heliotrope.ImagePolicy
	Uses   []Use
}

// Use is why an image that follows its VMs is to be at a site.
type Use struct {
	Image heliotrope.ImageID
	Site  heliotrope.SiteID
	Why   string // for people: "web runs there"
}

// snapshot is what is decided on.
type snapshot struct {
	now time.Time
	Policies
	newest  map[heliotrope.ImageID]api.Image // a policy's image that is not in it is not in the store
	hosts   []Host                           // by site and name
	ordered map[order]time.Time              // lately
	ways    map[order]how                    // of those
}

// order is that a host gets a version.
type order struct {
	host heliotrope.HostID
	ref  string
}

func (o order) compare(p order) int {
	return cmp.Or(cmp.Compare(o.ref, p.ref), cmp.Compare(o.host, p.host))
}

// need is a host that is to have the newest version of an image.
type need struct {
	image heliotrope.ImageID
	ref   string
	host  Host
	place api.ImagePlace // what it has of the version
	why   string
	told  bool // lately
	// at is when the host is to be told; zero: never, since it lacks nothing or cannot have it, or no
	// window opens. What was told is told again.
	at time.Time
}

// due says whether the host is to be told now.
func (n need) due(now time.Time) bool { return !n.at.IsZero() && !n.at.After(now) }

// lacks says whether something is to come.
func (n need) lacks() bool {
	return n.place.State == api.PlaceAbsent || n.place.State == api.PlaceComing || n.place.State == api.PlaceWaits
}

// needs are the hosts that policies give an image, by image, site and host. It is a function of the
// snapshot alone: a host is told again what was forgotten, and never to get what it would
// have to drop something for that another policy gives it.
func (s snapshot) needs() (all []need) {
	used := map[heliotrope.HostID]int64{} // bytes that policies' images take of a host's cache
	for _, id := range slices.Sorted(maps.Keys(s.Images)) {
		i, there := s.newest[id]
		if !there {
			continue
		}
		for _, h := range s.hosts {
			if why := s.why(id, h.Site); why != "" {
				all = append(all, s.need(id, i, h, why, used))
			}
		}
	}
	return all
}

// why an image is to be at a site; empty: it is not.
func (s snapshot) why(id heliotrope.ImageID, site heliotrope.SiteID) string {
	p := s.Images[id]
	if len(p.Sites) > 0 && !slices.Contains(p.Sites, site) {
		return ""
	}
	switch p.Policy {
	case heliotrope.ImageEverywhere:
		return "everywhere"
	case heliotrope.ImageFollow:
		for _, u := range s.Uses {
			if u.Image == id && u.Site == site {
				return u.Why
			}
		}
	}
	return ""
}

func (s snapshot) need(id heliotrope.ImageID, i api.Image, h Host, why string, used map[heliotrope.HostID]int64) need {
	n := need{image: id, ref: i.Ref(), host: h, place: place(h, i), why: why}
	if h.Images != nil && h.Agent != nil {
		used[h.ID] += i.ContentBytes
		if n.place.State == api.PlaceFull { // it may drop something meanwhile
			n.place.State = api.PlaceComing
		}
		if n.lacks() && !fits(h, i, used[h.ID]) {
			n.place = noRoom(n.place, h)
		}
	}
	if !n.lacks() {
		return n
	}
	open, until := s.Images[id].Open(s.now)
	last, told := s.ordered[order{h.ID, i.Ref()}]
	n.told = told
	way, known := s.ways[order{h.ID, i.Ref()}]
	asTold := !known || way.equal(howOf(s.Images[id])) || last.After(s.now) // by hand, which counts for more
	switch {
	case told && s.now.Sub(last) < orderAgain && asTold:
		n.at = last.Add(orderAgain)
	case open || h.Local:
		n.at = s.now
	default:
		n.at = until
	}
	return n
}

// fits says whether a host may keep a version, and so many bytes of policies' images with it, beside
// what its VMs' disks stand on.
func fits(h Host, i api.Image, bytes int64) bool {
	if h.Images == nil || h.Images.Budget == 0 {
		return true
	}
	for _, c := range h.Images.Caches {
		if c.Volumes > 0 && c.Image != i.Ref() {
			bytes += c.Here
		}
	}
	return bytes <= h.Images.Budget
}

// noRoom is the place of a host that cannot keep a version.
func noRoom(p api.ImagePlace, h Host) api.ImagePlace {
	p.State, p.Note = api.PlaceFull, fmt.Sprintf("the host keeps at most %.1f MB of images (--image-cache), and needs that for others", float64(h.Images.Budget)/1e6)
	return p
}

// is says whether it is the same host.
func (h Host) is(o Host) bool { return o.ID == h.ID }

// bySite orders hosts by site and name.
func bySite(a, b Host) int { return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.ID, b.ID)) }
