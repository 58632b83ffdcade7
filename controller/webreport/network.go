package webreport

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/report"
)

// view is the matrix with numbers for names: what all pictures are drawn from.
type view struct {
	ends     []traffic.End // by section, in the section's own order
	section  []int         // of each end
	sites    []string      // of each end, empty where not told
	volume   []float64     // of each end: what it sends and gets, per second
	flows    []flow
	sections []section
	index    map[traffic.End]int
}

type flow struct {
	from, to int
	rate     float64
}

// section is a group of the report, or one of the two that it does not have: VMs in no
// group, and what is outside.
type section struct {
	name, title string
	class       string
}

const loose = "gx" // the class of a section that is no group

func newView(r report.Report, m traffic.Matrix) *view {
	v := &view{index: map[traffic.End]int{}}
	found := v.count(m)
	order := make([]int, len(found)) // an end's new number, by the one that it was found under
	placed := make([]bool, len(found))
	add := func(e traffic.End, section int) {
		if at, ok := v.index[e]; ok && !placed[at] {
			order[at], placed[at] = len(v.ends), true
			v.ends = append(v.ends, e)
			v.section = append(v.section, section)
		}
	}
	for i, g := range r.Groups {
		name := clip(g.ID, 24)
		title := name
		if g.Kind != "" {
			title += " · " + clean(g.Kind)
		}
		v.sections = append(v.sections, section{name, title, "g" + strconv.Itoa(i%8)})
		for _, e := range g.Ends {
			add(e, i)
		}
	}
	v.sections = append(v.sections, section{"no group", "no group", loose}, section{"outside", "outside", loose})
	slices.SortFunc(found, traffic.End.Compare)
	for _, e := range found {
		if e.IsVM() {
			add(e, len(r.Groups))
		} else {
			add(e, len(r.Groups)+1)
		}
	}
	v.volume = make([]float64, len(v.ends))
	for i, f := range v.flows {
		f.from, f.to = order[f.from], order[f.to]
		v.volume[f.from] += f.rate
		v.volume[f.to] += f.rate
		v.flows[i] = f
	}
	for i, e := range v.ends {
		v.index[e] = i
	}
	v.place(r)
	return v
}

// count makes the cells flows between ends that are numbered as they come.
func (v *view) count(m traffic.Matrix) (found []traffic.End) {
	number := func(e traffic.End) int {
		i, ok := v.index[e]
		if !ok {
			i = len(found)
			v.index[e] = i
			found = append(found, e)
		}
		return i
	}
	window := m.To.Sub(m.From).Seconds()
	if window <= 0 {
		window = 1
	}
	from := -1
	for _, c := range m.Cells {
		if from < 0 || found[from] != c.Src { // they are ordered by Src
			from = number(c.Src)
		}
		to := number(c.Dst)
		if rate := finite(c.Bytes) / window; rate > 0 {
			v.flows = append(v.flows, flow{from, to, rate})
		}
	}
	return found
}

const (
	outside  = "outside"
	notTold  = "site not told"
	manySite = "several sites"
)

// place finds the sites of the ends.
func (v *view) place(r report.Report) {
	v.sites = make([]string, len(v.ends))
	for i, e := range v.ends {
		v.sites[i] = notTold
		if !e.IsVM() {
			v.sites[i] = outside
		}
	}
	put := func(e traffic.End, site heliotrope.SiteID) {
		if i, ok := v.index[e]; ok && site != "" && v.sites[i] == notTold {
			v.sites[i] = clip(string(site), longest)
		}
	}
	for _, t := range r.Talkers {
		put(t.End, t.Site)
	}
	for _, p := range r.Pairs {
		put(p.Src, p.From)
		put(p.Dst, p.To)
	}
}

// network is a view with few enough nodes to draw.
type network struct {
	nodes    []node
	sections []section
	rates    [][]float64 // from node, to node, bytes per second
	crossing [][]float64 // what of it goes from one site to another
}

// node is one end or, where there are too many, what is left of a section.
type node struct {
	name    string
	section int
	site    string
	ends    int
	volume  float64
}

// network gives each end its node where they are not more than limit. Else it does so for
// the largest talkers only, and makes the rest of each section one node; of the sections,
// the smallest are one together.
func (v *view) network(limit int) network {
	const talkers, most = 20, 30
	n := network{sections: v.sections}
	alone := make([]bool, len(v.ends))
	if len(v.ends) > limit {
		limit = talkers
	}
	first, _ := cut(largest(v.volume), limit)
	for _, i := range first {
		alone[i] = true
	}
	sectionOf := v.fold(&n, most)
	nodeOf, rest := make([]int, len(v.ends)), map[int]int{}
	order := numbers(len(v.ends))
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(sectionOf[v.section[a]], sectionOf[v.section[b]]) })
	for _, i := range order {
		section := sectionOf[v.section[i]]
		at, ok := rest[section]
		if alone[i] || !ok {
			at = len(n.nodes)
			n.nodes = append(n.nodes, node{name: endName(v.ends[i]), section: section, site: v.sites[i]})
			if !alone[i] {
				rest[section] = at
			}
		}
		nodeOf[i] = at
		w := &n.nodes[at]
		w.ends++
		w.volume += v.volume[i]
		if w.site != v.sites[i] {
			w.site = manySite
		}
	}
	for _, at := range rest {
		if w := &n.nodes[at]; w.ends > 1 {
			w.name = fmt.Sprintf("%d of %s", w.ends, n.sections[w.section].name)
		}
	}
	n.rates, n.crossing = square(len(n.nodes)), square(len(n.nodes))
	for _, f := range v.flows {
		from, to := nodeOf[f.from], nodeOf[f.to]
		n.rates[from][to] += f.rate
		if a, b := v.sites[f.from], v.sites[f.to]; a != b && isSite(a) && isSite(b) {
			n.crossing[from][to] += f.rate
		}
	}
	return n
}

func square(n int) [][]float64 {
	rows := make([][]float64, n)
	for i := range rows {
		rows[i] = make([]float64, n)
	}
	return rows
}

// isSite says whether a node's site is one.
func isSite(site string) bool { return siteRank(site) == 0 }

// fold keeps the largest sections and makes the others one; it returns the new number of
// each.
func (v *view) fold(n *network, most int) []int {
	sectionOf := numbers(len(v.sections))
	if len(v.sections) <= most {
		return sectionOf
	}
	volume := make([]float64, len(v.sections))
	for i, s := range v.section {
		volume[s] += v.volume[i]
	}
	kept, _ := cut(largest(volume), most)
	slices.Sort(kept)
	n.sections = nil
	for i := range sectionOf {
		sectionOf[i] = len(kept)
	}
	for to, from := range kept {
		sectionOf[from] = to
		n.sections = append(n.sections, v.sections[from])
	}
	n.sections = append(n.sections, section{"small groups", "small groups", loose})
	return sectionOf
}

// largest are the numbers of all, the largest first.
func largest(all []float64) []int {
	order := numbers(len(all))
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(all[b], all[a]) })
	return order
}

// numbers are 0 to n-1.
func numbers(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}
