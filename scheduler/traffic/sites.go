package traffic

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"heliotrope"
)

// Saving is one proposal: VMs that would cost less elsewhere. It is an estimate: it takes
// traffic to go on as it is, and knows nothing of what a move costs, of CPUs and of memory.
// It holds after those before it in the list.
type Saving struct {
	VMs        []heliotrope.VMID `json:"vms"`
	From       heliotrope.SiteID `json:"from"` // of the first
	To         heliotrope.SiteID `json:"to"`
	USDPerHour float64           `json:"usd_per_hour"`
	Bytes      float64           `json:"bytes_per_second"` // less that cross sites
	Why        string            `json:"why"`
}

// Places is what Savings has to know of the world.
type Places struct {
	Where  func(End) (heliotrope.SiteID, bool)
	Sites  []heliotrope.SiteID
	Price  func(from, to heliotrope.SiteID) float64 // USD per 10^9 bytes; 0 within a site
	Room   func(heliotrope.SiteID) int              // how many more VMs a site takes
	Groups [][]heliotrope.VMID                      // that may move together; each VM may move alone
	Most   int                                      // proposals; 0: 20
}

const leastSaving = 1e-4 // USD per hour

// Savings proposes, greedily, moves of VMs and groups that make traffic across sites
// cheaper, until none does: each is the best that is left after those before it.
func Savings(m Matrix, p Places) []Saving {
	g := newSaver(m, p)
	most := cmp.Or(p.Most, 20)
	var list []Saving
	for len(list) < most {
		best, ok := g.best()
		if !ok {
			break
		}
		g.move(best)
		best.Why = fmt.Sprintf("%s at %s: %.3g bytes/s less would cross sites from %s", name(best.VMs), best.From, best.Bytes, best.To)
		list = append(list, best)
	}
	return list
}

// saver is the state of the search.
type saver struct {
	Places
	at    map[End]heliotrope.SiteID
	talks map[End][]talk
	units [][]heliotrope.VMID
	room  map[heliotrope.SiteID]int
}

// talk is one direction of one end's traffic.
type talk struct {
	other End
	rate  float64 // bytes per second
	out   bool    // to the other
}

func newSaver(m Matrix, p Places) *saver {
	g := &saver{p, map[End]heliotrope.SiteID{}, map[End][]talk{}, nil, map[heliotrope.SiteID]int{}}
	for _, c := range m.Cells {
		from, ok1 := p.Where(c.Src)
		to, ok2 := p.Where(c.Dst)
		if !ok1 || !ok2 || c.Src == c.Dst {
			continue
		}
		g.at[c.Src], g.at[c.Dst] = from, to
		rate := c.Bytes / m.seconds()
		g.talks[c.Src] = append(g.talks[c.Src], talk{c.Dst, rate, true})
		g.talks[c.Dst] = append(g.talks[c.Dst], talk{c.Src, rate, false})
	}
	for _, group := range p.Groups {
		known := slices.DeleteFunc(slices.Clone(group), func(id heliotrope.VMID) bool { return g.at[VM(id)] == "" })
		if len(known) > 1 {
			g.units = append(g.units, known)
		}
	}
	for _, e := range slices.SortedFunc(maps.Keys(g.at), End.Compare) {
		if e.IsVM() {
			g.units = append(g.units, []heliotrope.VMID{e.VM})
		}
	}
	for _, s := range p.Sites {
		g.room[s] = p.Room(s)
	}
	return g
}

func (g *saver) best() (Saving, bool) {
	var best Saving
	for _, unit := range g.units {
		for _, site := range g.Sites {
			s, ok := g.weigh(unit, site)
			// Of two that save the same, the one that moves less.
			if ok && s.USDPerHour > best.USDPerHour+leastSaving {
				best = s
			}
		}
	}
	return best, best.USDPerHour > leastSaving
}

// weigh tells what moving a unit to a site saves; false where it has no room or is all there.
func (g *saver) weigh(unit []heliotrope.VMID, site heliotrope.SiteID) (Saving, bool) {
	moving := make(map[End]bool, len(unit))
	s := Saving{To: site}
	for _, id := range unit {
		if g.at[VM(id)] != site {
			moving[VM(id)] = true
			s.VMs = append(s.VMs, id)
		}
	}
	if len(s.VMs) == 0 || len(s.VMs) > g.room[site] {
		return s, false
	}
	s.From = g.at[VM(s.VMs[0])]
	after := func(e End) heliotrope.SiteID {
		if moving[e] {
			return site
		}
		return g.at[e]
	}
	for _, id := range s.VMs {
		for _, t := range g.talks[VM(id)] {
			if !t.out && moving[t.other] {
				continue // its sender has it
			}
			from, to := g.at[VM(id)], g.at[t.other]
			newFrom, newTo := site, after(t.other)
			if !t.out {
				from, to, newFrom, newTo = to, from, newTo, newFrom
			}
			s.USDPerHour += (g.cost(from, to) - g.cost(newFrom, newTo)) * t.rate
			s.Bytes += crossing(from, to, t.rate) - crossing(newFrom, newTo, t.rate)
		}
	}
	return s, true
}

// cost is what a rate of one byte per second costs, in USD per hour.
func (g *saver) cost(from, to heliotrope.SiteID) float64 {
	if from == to {
		return 0
	}
	return g.Price(from, to) * 3600 / 1e9
}

func crossing(from, to heliotrope.SiteID, rate float64) float64 {
	if from == to {
		return 0
	}
	return rate
}

func (g *saver) move(s Saving) {
	for _, id := range s.VMs {
		g.room[g.at[VM(id)]]++
		g.room[s.To]--
		g.at[VM(id)] = s.To
	}
}

func name(vms []heliotrope.VMID) string {
	const most = 3
	var names []string
	for _, id := range vms[:min(most, len(vms))] {
		names = append(names, string(id))
	}
	if more := len(vms) - most; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}
