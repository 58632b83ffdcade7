package assign

import (
	"math"
	"slices"
)

// Shelf is the bins of one site, and items that are to get into them. An item is what must
// be in one bin: a unit, or a part of one.
type Shelf struct {
	Site               int
	Bins               []int     // those that may be filled
	FreeVCPUs, FreeMiB []float64 // of every bin; Seat and Unseat keep them
	VCPUs, MiB         []float64 // of each item
	Unit               []int     // of each item
	At                 []int     // bin of each item, or None: it is not here, or not to be moved
	Home               []int     // bin of each item now, or None

	Suits  func(item, bin int) bool // may it be there, room aside?
	Seat   func(item, bin int)
	Unseat func(item int)
}

// squeeze is a shelf being packed: bins may be overfull while items change places. Bins have
// the numbers that they have in Bins.
type squeeze struct {
	*Shelf
	here   [][]int // items in each bin that may move
	place  []int   // bin of each item, or None
	until  []int   // of each item: the step before which it may not move again
	perCPU float64 // what a vCPU over a bin's room counts: its share of the site's
	perMiB float64
}

const (
	squeezeSteps = 60  // for each item that had no bin, at most in all
	mostSqueezes = 600 // at a site
	rest         = 12  // steps for which an item that moved stays
	homesickness = 1e-3
)

// Squeeze seats items at a site though no bin has room for them, and exchanges what is there
// until all have it (a tabu search). It returns those that had to be taken out again.
func (s *State) Squeeze(b *Shelf, items []int) (out []int) {
	q := &squeeze{Shelf: b, here: make([][]int, len(b.Bins)), place: slices.Repeat([]int{None}, len(b.At)), until: make([]int, len(b.At)),
		perCPU: 1 / max(s.f.RoomVCPUs[b.Site], 1), perMiB: 1 / max(s.f.RoomMiB[b.Site], 1)}
	q.open()
	for _, it := range items {
		if !q.force(it) {
			out = append(out, it)
		}
	}
	best, least := slices.Clone(q.place), q.over()
	for n := 1; least > 0 && n <= min(mostSqueezes, squeezeSteps*len(items)); n++ {
		if !q.step(n) {
			break
		}
		if over := q.over(); over < least {
			best, least = slices.Clone(q.place), over
		}
	}
	q.restore(best)
	return append(out, q.evict(s)...)
}

// open takes stock of what is there and may move.
func (q *squeeze) open() {
	number := make(map[int]int, len(q.Bins))
	for n, bin := range q.Bins {
		number[bin] = n
	}
	for it, bin := range q.At {
		if n, ok := number[bin]; ok {
			q.place[it] = n
			q.here[n] = append(q.here[n], it)
		}
	}
}

// excess is how much a bin would be overfull with so much more, as a share of the site's room.
func (q *squeeze) excess(n int, vcpus, mib float64) float64 {
	bin := q.Bins[n]
	return q.perCPU*max(0, vcpus-q.FreeVCPUs[bin]-slack) + q.perMiB*max(0, mib-q.FreeMiB[bin]-slack)
}

func (q *squeeze) over() float64 {
	var all float64
	for n := range q.Bins {
		all += q.excess(n, 0, 0)
	}
	return all
}

// force seats an item where it adds least to what is overfull.
func (q *squeeze) force(item int) bool {
	best, least := None, math.Inf(1)
	for n, bin := range q.Bins {
		if more := q.excess(n, q.VCPUs[item], q.MiB[item]) - q.excess(n, 0, 0); more < least && q.Suits(item, bin) {
			best, least = n, more
		}
	}
	if best != None {
		q.enter(item, best)
	}
	return best != None
}

func (q *squeeze) enter(item, n int) {
	q.Seat(item, q.Bins[n])
	q.place[item] = n
	q.here[n] = append(q.here[n], item)
}

func (q *squeeze) leave(item int) {
	n := q.place[item]
	q.Unseat(item)
	q.here[n] = slices.DeleteFunc(q.here[n], func(it int) bool { return it == item })
	q.place[item] = None
}

// change is an item that goes to another bin, and one, or None, that comes from there.
type change struct {
	item, back, to int
	more           float64 // what it adds to what is overfull
}

// step makes the best change there is for the bin that is the most overfull.
func (q *squeeze) step(now int) bool {
	full, most := None, 0.0
	for n := range q.Bins {
		if x := q.excess(n, 0, 0); x > most {
			full, most = n, x
		}
	}
	if full == None {
		return false
	}
	c := q.choose(full, now)
	if c.item == None {
		return false
	}
	q.leave(c.item)
	if c.back != None {
		q.leave(c.back)
		q.enter(c.back, full)
		q.until[c.back] = now + rest
	}
	q.enter(c.item, c.to)
	q.until[c.item] = now + rest
	return true
}

// choose is the best change for a bin: of its items, or one for another bin's, but for those
// that rest.
func (q *squeeze) choose(full, now int) change {
	best := change{item: None, more: math.Inf(1)}
	for _, it := range q.here[full] {
		if q.until[it] > now {
			continue
		}
		for n, bin := range q.Bins {
			if n == full || !q.Suits(it, bin) {
				continue
			}
			if more := q.exchange(it, None, full, n); more < best.more {
				best = change{it, None, n, more}
			}
			for _, other := range q.here[n] {
				if more := q.exchange(it, other, full, n); more < best.more && q.until[other] <= now && q.Suits(other, q.Bins[full]) {
					best = change{it, other, n, more}
				}
			}
		}
	}
	return best
}

// exchange is what it adds to what is overfull when an item goes from one bin to another,
// and another, or None, comes back. Items had better stay where they are now.
func (q *squeeze) exchange(item, other, from, to int) float64 {
	vcpus, mib := q.VCPUs[item], q.MiB[item]
	more := homesickness * (q.homesick(item, to) - q.homesick(item, from))
	if other != None {
		vcpus -= q.VCPUs[other]
		mib -= q.MiB[other]
		more += homesickness * (q.homesick(other, from) - q.homesick(other, to))
	}
	return more + q.excess(to, vcpus, mib) - q.excess(to, 0, 0) + q.excess(from, -vcpus, -mib) - q.excess(from, 0, 0)
}

// homesick is the room, as a share of the site's, of an item that would not be at home.
func (q *squeeze) homesick(item, n int) float64 {
	if q.Home[item] == q.Bins[n] {
		return 0
	}
	return q.perCPU*q.VCPUs[item] + q.perMiB*q.MiB[item]
}

func (q *squeeze) restore(place []int) {
	var moved []int
	for it, n := range place {
		if q.place[it] != n {
			q.leave(it)
			moved = append(moved, it)
		}
	}
	for _, it := range moved {
		q.enter(it, place[it])
	}
}

// evict takes items from bins that are overfull yet: of each those whose units lose least
// elsewhere for the room that they take too much.
func (q *squeeze) evict(s *State) (out []int) {
	for n := range q.Bins {
		for q.excess(n, 0, 0) > 0 {
			best, least := None, math.Inf(1)
			for _, it := range q.here[n] {
				relief := q.excess(n, 0, 0) - q.excess(n, -q.VCPUs[it], -q.MiB[it])
				if usd := s.loss(q.Unit[it]) / relief; relief > 0 && (best == None || usd < least) {
					best, least = it, usd
				}
			}
			if best == None {
				break
			}
			q.leave(best)
			out = append(out, best)
		}
	}
	return out
}

// loss is what a unit loses at the best other site that has room.
func (s *State) loss(u int) float64 {
	least := math.Inf(1)
	for k := range s.f.Sites {
		if k != s.At[u] && s.Fits(u, k) {
			least = min(least, s.Gain(u, k))
		}
	}
	return least
}
