package images

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/hostagent/agentapi"
	"heliotrope/imagesync"
	"heliotrope/imagesync/manifest"
)

// foresee says what would come to each host, in what time and for how much. What a host of its site passes on costs nothing.
func (m *Images) foresee(ctx context.Context, s snapshot, i api.Image, hosts []Host, way how) ([]api.ImagePlace, error) {
	places := make([]api.ImagePlace, len(hosts))
	f, err := m.forecast(i)
	if err != nil {
		return nil, err
	}
	crosses, content, chains := map[heliotrope.SiteID]int64{}, map[heliotrope.SiteID]int64{}, s.chains(i, hosts)
	var from []Host // that get it from the store over links that images share
	var lack []float64
	for k, h := range hosts {
		places[k] = place(h, i)
		if s := places[k].State; s == api.PlaceHere || s == api.PlaceAway || s == api.PlaceNoStore {
			continue
		}
		if !fits(h, i, i.ContentBytes) {
			places[k] = noRoom(places[k], h)
			continue
		}
		l, err := f.lack(ctx, h, i)
		if err != nil {
			return nil, fmt.Errorf("foresee push of %s: %w", i.Ref(), err)
		}
		places[k].MissingBytes = l.Content
		if from := carrier(chains, h); from != "" && l.Content > 0 {
			places[k].Note = "from " + string(from)
			continue
		}
		places[k].WireBytes = l.Stored
		places[k].CostUSD = float64(l.Stored) / 1e9 * h.Link.PricePerGB
		crosses[h.Site], content[h.Site] = crosses[h.Site]+l.Stored, content[h.Site]+l.Content
		if len(h.Shared) > 0 && l.Content > 0 {
			from, lack = append(from, h), append(lack, float64(l.Content)*8)
		}
	}
	shared := m.beside(s, i.Ref(), from, lack, way)
	for k, h := range hosts { // those of a site share the link
		if places[k].MissingBytes == 0 {
			continue
		}
		if h.Link.Rate > 0 {
			places[k].ETAS = float64(crosses[h.Site]) * 8 / float64(h.Link.Rate)
		}
		if way.rate > 0 && !h.Local { // what crosses a second is of content
			places[k].ETAS = max(places[k].ETAS, float64(content[h.Site])*8/float64(way.rate))
		}
		places[k].ETAS = max(places[k].ETAS, shared[h.Site])
	}
	return places, nil
}

// beside says after how many seconds each site has a version of which these hosts lack so many bits, beside all
// that comes over their links now.
func (m *Images) beside(s snapshot, ref string, from []Host, lack []float64, way how) map[heliotrope.SiteID]float64 {
	single := map[heliotrope.SiteID]heliotrope.BitRate{}
	for _, h := range from {
		single[h.Site]++
	}
	var flows []flow
	for _, h := range from {
		flows = append(flows, flow{slices.Sorted(maps.Keys(h.Shared)), rank(way.priority), way.rate / single[h.Site]})
	}
	at := map[heliotrope.SiteID]float64{}
	for k, seconds := range m.foretold(s.hosts, from, ref, flows, lack) {
		if !math.IsInf(seconds, 1) {
			at[from[k].Site] = max(at[from[k].Site], seconds)
		}
	}
	return at
}

// Lacks is what a host lacks of a version; all of it where it has no image store.
func (m *Images) Lacks(ctx context.Context, h Host, ref string) (imagesync.Lack, error) {
	i, err := m.Image(ctx, ref)
	if err != nil {
		return imagesync.Lack{}, err
	}
	f, err := m.forecast(i)
	if err != nil {
		return imagesync.Lack{}, err
	}
	return f.lack(ctx, h, i)
}

// forecast is what hosts lack of a version.
type forecast struct {
	images *Images
	root   manifest.ID
	known  map[manifest.ID]imagesync.Lack // by what somebody has
	roots  map[string]manifest.ID         // of versions, by IMAGE@VERSION; zero: the store has it no more
}

func (m *Images) forecast(i api.Image) (*forecast, error) {
	root, err := manifest.ParseID(i.Root)
	if err != nil {
		return nil, fmt.Errorf("foresee what comes of %s: %w", i.Ref(), err)
	}
	return &forecast{images: m, root: root, known: map[manifest.ID]imagesync.Lack{}, roots: map[string]manifest.ID{}}, nil
}

// lack is what a host has to get. Of a version that is only partly there it is not known which part
// that is: what it spares is taken for as large a part.
func (f *forecast) lack(ctx context.Context, h Host, i api.Image) (imagesync.Lack, error) {
	least, err := f.without(ctx, manifest.ID{})
	if err != nil {
		return least, err
	}
	all := least
	var has []agentapi.ImageCache
	if h.Images != nil {
		has = h.Images.Caches
	}
	for _, c := range has {
		root := f.root
		if c.Image != i.Ref() {
			if root, err = f.rootOf(ctx, c.Image); err != nil {
				return least, err
			}
		}
		if root.IsZero() || c.Bytes <= 0 {
			continue
		}
		l, err := f.without(ctx, root)
		if err != nil {
			return least, err
		}
		share := min(float64(c.Here)/float64(c.Bytes), 1)
		l.Content = all.Content - int64(share*float64(all.Content-l.Content))
		l.Stored = all.Stored - int64(share*float64(all.Stored-l.Stored))
		if l.Stored < least.Stored {
			least = l
		}
	}
	return least, nil
}

// without is what is missing of the version to who has another one.
func (f *forecast) without(ctx context.Context, has manifest.ID) (imagesync.Lack, error) {
	if l, ok := f.known[has]; ok {
		return l, nil
	}
	s, err := f.images.open(ctx)
	if err != nil {
		return imagesync.Lack{}, err
	}
	l, err := s.Lacks(ctx, f.root, has)
	if err == nil {
		f.known[has] = l
	}
	return l, err
}

func (f *forecast) rootOf(ctx context.Context, ref string) (manifest.ID, error) {
	if root, ok := f.roots[ref]; ok {
		return root, nil
	}
	s, err := f.images.open(ctx)
	if err != nil {
		return manifest.ID{}, err
	}
	v, err := s.Version(ctx, ref)
	if err != nil && !errors.Is(err, imagesync.ErrNotFound) {
		return manifest.ID{}, err
	}
	f.roots[ref] = v.Root
	return v.Root, nil
}
