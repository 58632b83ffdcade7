package survey

import (
	"math"
	"slices"
	"time"

	"heliotrope"
)

const (
	looksKept    = time.Hour       // of measurements that a distance is made of
	youngest     = 5 * time.Minute // of measurements before which none is believed
	fewestLooks  = 10
	longestMs    = 2000 // that an agent waits for an answer
	steadyShare  = 0.25 // of the median, that the middle half of the looks may be wide
	followShare  = 0.1  // of what is believed, that a change has to be: distances wander by that much
	followMs     = 1.0
	lightKmPerMs = 299.792458 / 2 // of round trip, in vacuum: nothing is faster
	earthKm      = 6371.0
)

// Sample is a round trip that a host at one site measured to a host at another.
type Sample struct {
	From, To heliotrope.SiteID
	Ms       float64
}

// Distances learn how far sites are from each other from what their hosts measure, look by
// look. What a look says of two sites is the median of their hosts; what is believed of them
// is the median of an hour of looks, and only once the middle half of these agrees. It is
// followed no closer than by a tenth, the least that distances between clouds vary by anyway.
//
// So a way that is another for less than three quarters of an hour, or to and fro within
// them, changes nothing; nor does a host that measures nonsense as long as others do not,
// nor what light could not do, where the topology says on which coordinates sites are.
//
// It is a value that grows by Learn; the zero value knows nothing.
type Distances struct {
	ways map[[2]heliotrope.SiteID]*measured
}

// measured is what is known of two sites.
type measured struct {
	looks    []look // the oldest first
	believed float64
}

type look struct {
	at time.Time
	ms float64
}

// pairOf is two sites in one order.
func pairOf(a, b heliotrope.SiteID) [2]heliotrope.SiteID {
	return [2]heliotrope.SiteID{min(a, b), max(a, b)}
}

// Learn takes in one look: what hosts measured lately. Samples within a site, and those that
// cannot be, are left out.
func (d *Distances) Learn(now time.Time, t heliotrope.Topology, samples []Sample) {
	seen := map[[2]heliotrope.SiteID][]float64{}
	for _, s := range samples {
		pair := pairOf(s.From, s.To)
		if s.From != s.To && s.Ms > 0 && s.Ms <= longestMs && s.Ms >= leastMs(t.Sites[s.From], t.Sites[s.To]) {
			seen[pair] = append(seen[pair], s.Ms)
		}
	}
	if d.ways == nil {
		d.ways = map[[2]heliotrope.SiteID]*measured{}
	}
	for pair, list := range seen {
		if d.ways[pair] == nil {
			d.ways[pair] = &measured{}
		}
		slices.Sort(list)
		d.ways[pair].looks = append(d.ways[pair].looks, look{now, quantile(list, 0.5)})
	}
	for pair, w := range d.ways {
		w.looks = slices.DeleteFunc(w.looks, func(l look) bool { return now.Sub(l.at) > looksKept })
		if w.learn(now); len(w.looks) == 0 {
			delete(d.ways, pair)
		}
	}
}

func (w *measured) learn(now time.Time) {
	if len(w.looks) < fewestLooks || now.Sub(w.looks[0].at) < youngest {
		return
	}
	list := make([]float64, len(w.looks))
	for i, l := range w.looks {
		list[i] = l.ms
	}
	slices.Sort(list)
	mid := quantile(list, 0.5)
	steady := quantile(list, 0.75)-quantile(list, 0.25) <= max(steadyShare*mid, followMs)
	if steady && (w.believed == 0 || math.Abs(mid-w.believed) > max(followShare*w.believed, followMs)) {
		w.believed = mid
	}
}

// Believed are the round trips in milliseconds of the pairs of sites, in the order of their
// names, of which enough is known.
func (d *Distances) Believed() map[[2]heliotrope.SiteID]float64 {
	ms := map[[2]heliotrope.SiteID]float64{}
	for pair, w := range d.ways {
		if w.believed > 0 {
			ms[pair] = w.believed
		}
	}
	return ms
}

// quantile is the lower one of a sorted list.
func quantile(sorted []float64, share float64) float64 {
	return sorted[int(share*float64(len(sorted)-1))]
}

// leastMs is what light would take there and back, where both sites say where they are.
func leastMs(a, b heliotrope.Site) float64 {
	if a.Latitude == 0 && a.Longitude == 0 || b.Latitude == 0 && b.Longitude == 0 {
		return 0
	}
	rad := func(degrees float64) float64 { return degrees * math.Pi / 180 }
	half := func(x float64) float64 { return math.Pow(math.Sin(rad(x)/2), 2) }
	h := half(b.Latitude-a.Latitude) + math.Cos(rad(a.Latitude))*math.Cos(rad(b.Latitude))*half(b.Longitude-a.Longitude)
	return 2 * earthKm * math.Asin(math.Sqrt(min(1, h))) / lightKmPerMs
}
