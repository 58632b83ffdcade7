// Package phases follows groups of VMs over windows of time: which pattern a group kept to
// from when to when, who joined it and who left, each change said once, when it is sure.
package phases

import (
	"cmp"
	"slices"
	"time"

	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
)

// Phase is a time in which a group kept to one pattern.
type Phase struct {
	From  time.Time     `json:"from"`
	To    time.Time     `json:"to"`
	Group pattern.Group `json:"group"`
}

// ChangeOf is what changed of a group.
type ChangeOf string

// What can change.
const (
	GroupAppeared  ChangeOf = "appeared"
	GroupEnded     ChangeOf = "ended"
	PatternChanged ChangeOf = "pattern"
	MembersChanged ChangeOf = "members"
)

// Change is reported once, when it is sure.
type Change struct {
	At     time.Time     `json:"at"` // end of the window in which it became sure
	Group  int           `json:"group"`
	Of     ChangeOf      `json:"change"`
	From   pattern.Kind  `json:"from,omitempty"`
	To     pattern.Kind  `json:"to,omitempty"`
	Joined []traffic.End `json:"joined,omitempty"`
	Left   []traffic.End `json:"left,omitempty"`
}

const (
	patience  = 3    // windows in a row that say a thing for the first time make it sure
	overlap   = 0.3  // least Jaccard index of a group's members with those of a window before
	phaseCap  = 32   // phases that are kept of a group
	knownHalf = 0.98 // of what was once seen, this much counts a window later
)

// Tracker follows groups over windows. Its groups keep their numbers for as long as they
// live. The zero value follows none yet.
//
// A window may be wrong about a group. What a window says against what is settled is
// therefore a doubt, which has to be repeated in windows one after the other. A doubt that
// came up before and came to nothing has to be repeated for longer each time: where two
// patterns are hard to tell apart, a group does not flap between them.
type Tracker struct {
	Live []*Tracked // by ID
	last int        // the newest ID
}

// Tracked is a group over time.
type Tracked struct {
	ID      int
	Members []traffic.End // settled, in order
	Phases  []Phase       // the newest last; its Group is the newest that was seen
	Known   bool          // it was reported

	seen    int // windows in a row with it
	missing int // and without it
	kind    doubts[pattern.Kind]
	member  doubts[traffic.End] // of those that are settled, that they left; of others, that they joined
}

// doubts counts, for each of several things, for how many windows in a row it was said,
// and how often it was said in vain.
type doubts[T comparable] map[T]*doubt

type doubt struct {
	row  int
	vain float64
}

// hear counts that a window said those things, and no others, and returns what is sure now.
func (d doubts[T]) hear(said []T, patience float64) []T {
	var sure []T
	for _, s := range said {
		if d[s] == nil {
			d[s] = &doubt{}
		}
	}
	for s, x := range d {
		if !slices.Contains(said, s) {
			x.vain += float64(x.row)
			x.row = 0
			if x.vain < 0.1 {
				delete(d, s)
			}
		} else if x.row++; float64(x.row) >= patience*(1+x.vain) {
			sure = append(sure, s)
		}
		x.vain *= knownHalf
	}
	return sure
}

// Add takes the analysis of the window that ends at at and began span before, and returns
// what changed, by group. Windows come in order.
func (t *Tracker) Add(at time.Time, span time.Duration, a pattern.Analysis) []Change {
	sets := make([][]traffic.End, len(a.Groups))
	for i, g := range a.Groups {
		sets[i] = slices.SortedFunc(slices.Values(g.Ends), traffic.End.Compare)
	}
	var changes []Change
	found := t.match(sets)
	taken := make([]bool, len(sets))
	for _, x := range t.Live {
		i, ok := found[x]
		if !ok {
			changes = append(changes, x.lose(at)...)
			continue
		}
		taken[i] = true
		changes = append(changes, x.see(at, span, a.Groups[i], sets[i])...)
	}
	t.Live = slices.DeleteFunc(t.Live, func(x *Tracked) bool { return x.missing >= patience || !x.Known && x.missing > 0 })
	for i, g := range a.Groups {
		if !taken[i] {
			t.last++
			x := &Tracked{ID: t.last, Members: sets[i], kind: doubts[pattern.Kind]{}, member: doubts[traffic.End]{}}
			x.Phases = []Phase{{From: at.Add(-span), Group: g}}
			t.Live = append(t.Live, x)
			changes = append(changes, x.see(at, span, g, sets[i])...)
		}
	}
	return changes
}

// match gives groups of a window to those that are followed, the most alike first.
func (t *Tracker) match(sets [][]traffic.End) map[*Tracked]int {
	type fit struct {
		x     *Tracked
		set   int
		alike float64
	}
	in := make(map[traffic.End]int)
	for i, s := range sets {
		for _, e := range s {
			in[e] = i
		}
	}
	var fits []fit
	for _, x := range t.Live {
		common := make(map[int]float64)
		for _, e := range x.Members {
			if i, ok := in[e]; ok {
				common[i]++
			}
		}
		for i, n := range common {
			if alike := n / (float64(len(x.Members)+len(sets[i])) - n); alike >= overlap {
				fits = append(fits, fit{x, i, alike})
			}
		}
	}
	slices.SortFunc(fits, func(a, b fit) int {
		return cmp.Or(cmp.Compare(b.alike, a.alike), a.x.ID-b.x.ID, a.set-b.set)
	})
	found, taken := make(map[*Tracked]int), make(map[int]bool)
	for _, f := range fits {
		if _, ok := found[f.x]; !ok && !taken[f.set] {
			found[f.x], taken[f.set] = f.set, true
		}
	}
	return found
}

// Find returns the group that is followed and is most like these members, or nil where none
// shares half of them.
func (t *Tracker) Find(members []traffic.End) *Tracked {
	const half = 0.5
	set := slices.SortedFunc(slices.Values(members), traffic.End.Compare)
	var best *Tracked
	most := half
	for _, x := range t.Live {
		common := 0
		for _, e := range x.Members {
			if _, ok := slices.BinarySearchFunc(set, e, traffic.End.Compare); ok {
				common++
			}
		}
		if alike := float64(common) / float64(len(set)+len(x.Members)-common); alike >= most {
			best, most = x, alike
		}
	}
	return best
}

// lose counts a window without the group. A short gap is none.
func (x *Tracked) lose(at time.Time) []Change {
	x.seen = 0
	if x.missing++; x.missing < patience || !x.Known {
		return nil
	}
	return []Change{{At: at, Group: x.ID, Of: GroupEnded, From: x.Phases[len(x.Phases)-1].Group.Kind}}
}

// see counts a window with the group.
func (x *Tracked) see(at time.Time, span time.Duration, g pattern.Group, set []traffic.End) []Change {
	x.seen++
	x.missing = 0
	phase := &x.Phases[len(x.Phases)-1]
	var changes []Change
	if x.turned(g) {
		changes = append(changes, Change{At: at, Group: x.ID, Of: PatternChanged, From: phase.Group.Kind, To: g.Kind})
		began := at.Add(-span * time.Duration(x.kind[g.Kind].row))
		clear(x.kind)
		phase.To = began
		x.Phases = append(x.Phases, Phase{From: began, Group: g})
		x.Phases = x.Phases[max(0, len(x.Phases)-phaseCap):]
		phase = &x.Phases[len(x.Phases)-1]
	}
	phase.To = at
	if g.Kind == phase.Group.Kind {
		phase.Group = g
	}
	if c, ok := x.gather(set); ok {
		c.At, c.Group = at, x.ID
		changes = append(changes, c)
	}
	if x.Known {
		return changes
	}
	if x.seen < patience {
		return nil
	}
	x.Known = true
	x.Phases = x.Phases[len(x.Phases)-1:]
	return []Change{{At: at, Group: x.ID, Of: GroupAppeared, To: phase.Group.Kind, Joined: slices.Clone(x.Members)}}
}

// patience is for how many windows in a row a doubt is heard before it is sure. Until the
// group is reported, most of its windows have it.
func (x *Tracked) patience() float64 {
	if x.Known {
		return patience
	}
	return patience - 1
}

// turned says whether g's pattern has become the group's. A window that cannot tell says
// nothing for or against.
func (x *Tracked) turned(g pattern.Group) bool {
	switch g.Kind {
	case pattern.Unknown:
		return false
	case x.Phases[len(x.Phases)-1].Group.Kind:
		x.kind.hear(nil, 0)
		return false
	}
	return len(x.kind.hear([]pattern.Kind{g.Kind}, x.patience())) > 0
}

// gather settles who joined and who left.
func (x *Tracked) gather(set []traffic.End) (Change, bool) {
	var said []traffic.End
	has := func(s []traffic.End, e traffic.End) bool {
		_, ok := slices.BinarySearchFunc(s, e, traffic.End.Compare)
		return ok
	}
	for _, e := range set {
		if !has(x.Members, e) {
			said = append(said, e)
		}
	}
	for _, e := range x.Members {
		if !has(set, e) {
			said = append(said, e)
		}
	}
	c := Change{Of: MembersChanged}
	sure := slices.SortedFunc(slices.Values(x.member.hear(said, x.patience())), traffic.End.Compare)
	for _, e := range sure {
		delete(x.member, e)
		if i, ok := slices.BinarySearchFunc(x.Members, e, traffic.End.Compare); ok {
			c.Left = append(c.Left, e)
			x.Members = slices.Delete(x.Members, i, i+1)
		} else {
			c.Joined = append(c.Joined, e)
			x.Members = slices.Insert(x.Members, i, e)
		}
	}
	return c, len(sure) > 0
}
