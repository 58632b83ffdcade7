package scheduler

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"heliotrope"
	"heliotrope/scheduler/licence"
)

const (
	none = -1 // no host, no site

	usualBitsPerSecond = 1e9
	usualHours         = 24

	// The pause of a move has its last words in it: the disk's, the stream's, the answer, and
	// half a round trip for the commit.
	pauseRoundTrips = 3.5
)

// model is a snapshot and a policy with numbers instead of names. It knows what is where
// and what is how far, not what anything costs.
type model struct {
	s       *Snapshot
	p       Policy
	vmOf    map[heliotrope.VMID]int
	hostOf  map[heliotrope.HostID]int
	siteOf  map[heliotrope.SiteID]int
	site    []int       // of each host
	home    []int       // host of each VM now, or none
	rttMs   [][]float64 // site, site
	usdGB   [][]float64 // from site, to site
	bits    [][]float64 // per second, from site, to site
	reachMs [][]float64 // region, site
	regions []RegionID
	allowed [][]bool // VM, site: by the VM, the policy, and the pause

	flows      []flow
	demands    []demand
	flowsOf    [][]int // of each VM, both directions
	demandsOf  [][]int
	apart      []crowd
	together   []crowd
	limits     []limit
	limitsOf   [][]int // of each VM
	apartOf    [][]int
	togetherOf [][]int

	licence []heliotrope.LicenceID // by number
	seats   *licence.Pools         // nil: no licence can be short
	short   []licence.Lack         // now
}

type flow struct {
	src, dst  int
	gbPerHour float64
}

type demand struct {
	vm, region                      int
	gbPerHour, millionRequestsPerHr float64
}

// crowd is a Group in numbers.
type crowd struct {
	name  string
	vms   []int
	scope Scope
}

type limit struct {
	name string
	side map[int]int // 1: in A, 2: in B, 3: in both
	vms  []int
	ms   float64
}

// binds says whether the limit holds between two VMs.
func (l limit) binds(i, j int) bool {
	a, b := l.side[i], l.side[j]
	return i != j && (a&1 != 0 && b&2 != 0 || a&2 != 0 && b&1 != 0)
}

func newModel(s *Snapshot, p Policy) (*model, error) {
	if p.AmortisationHours == 0 {
		p.AmortisationHours = usualHours
	}
	m := &model{s: s, p: p, vmOf: map[heliotrope.VMID]int{}, hostOf: map[heliotrope.HostID]int{}, siteOf: map[heliotrope.SiteID]int{}}
	var bad problems
	m.places(&bad)
	m.licences(&bad)
	m.distances(&bad)
	m.talk(&bad)
	m.groups(&bad)
	if err := errors.Join(bad...); err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	m.short = m.seats.Lacks(m.home)
	m.allow()
	return m, nil
}

// problems is all that is wrong, not only the first.
type problems []error

func (b *problems) say(format string, args ...any) { *b = append(*b, fmt.Errorf(format, args...)) }

// number gives a name its number.
func number[K ~string](known map[K]int, id K, kind string, bad *problems) {
	if _, twice := known[id]; twice || id == "" {
		bad.say("%s %q is there twice, or has no name", kind, id)
	}
	known[id] = len(known)
}

// find looks a name up; 0 and a problem where there is none.
func find[K ~string](known map[K]int, id K, kind, where string, bad *problems) int {
	i, ok := known[id]
	if !ok {
		bad.say("%s: there is no %s %q", where, kind, id)
	}
	return i
}

func (m *model) places(bad *problems) {
	for _, s := range m.s.Sites {
		number(m.siteOf, s.ID, "site", bad)
	}
	for _, h := range m.s.Hosts {
		number(m.hostOf, h.ID, "host", bad)
		m.site = append(m.site, find(m.siteOf, h.Site, "site", "host "+string(h.ID), bad))
	}
	for _, v := range m.s.VMs {
		number(m.vmOf, v.ID, "vm", bad)
		if v.VCPUs < 0 || v.MemoryMiB < 0 {
			bad.say("vm %s: a size is negative", v.ID)
		}
		home := none
		if v.Host != "" {
			home = find(m.hostOf, v.Host, "host", "vm "+string(v.ID), bad)
		}
		m.home = append(m.home, home)
	}
}

func grid(rows, columns int, value float64) [][]float64 {
	g := make([][]float64, rows)
	for i := range g {
		g[i] = slices.Repeat([]float64{value}, columns)
	}
	return g
}

func (m *model) distances(bad *problems) {
	n := len(m.s.Sites)
	m.rttMs, m.usdGB, m.bits = grid(n, n, none), grid(n, n, none), grid(n, n, usualBitsPerSecond)
	for i, s := range m.s.Sites {
		m.rttMs[i][i], m.usdGB[i][i] = s.LANRTTMs, 0
		m.bits[i][i] = cmp.Or(s.LANBitsPerSecond, usualBitsPerSecond)
	}
	for _, p := range m.s.Paths {
		from, to := find(m.siteOf, p.From, "site", "path", bad), find(m.siteOf, p.To, "site", "path", bad)
		if from == to {
			continue
		}
		m.rttMs[from][to], m.usdGB[from][to] = p.RTTMs, p.USDPerGB
		m.bits[from][to] = cmp.Or(p.BitsPerSecond, usualBitsPerSecond)
	}
	for a := range n {
		for b := range a {
			switch {
			case m.rttMs[a][b] < 0 && m.rttMs[b][a] < 0:
				bad.say("there is no path between %s and %s", m.s.Sites[a].ID, m.s.Sites[b].ID)
			case m.rttMs[a][b] < 0:
				m.rttMs[a][b], m.usdGB[a][b], m.bits[a][b] = m.rttMs[b][a], m.usdGB[b][a], m.bits[b][a]
			case m.rttMs[b][a] < 0:
				m.rttMs[b][a], m.usdGB[b][a], m.bits[b][a] = m.rttMs[a][b], m.usdGB[a][b], m.bits[a][b]
			}
			mean := (m.rttMs[a][b] + m.rttMs[b][a]) / 2
			m.rttMs[a][b], m.rttMs[b][a] = mean, mean
		}
	}
}

const gbPerHour = 3600 / 1e9 // of one byte per second

func (m *model) talk(bad *problems) {
	m.flowsOf, m.demandsOf = make([][]int, len(m.s.VMs)), make([][]int, len(m.s.VMs))
	m.flows = make([]flow, 0, len(m.s.Flows))
	n := make([]int, len(m.s.VMs)) // flows of each VM
	for _, f := range m.s.Flows {
		src, dst := find(m.vmOf, f.Src, "vm", "flow", bad), find(m.vmOf, f.Dst, "vm", "flow", bad)
		if src == dst {
			continue
		}
		n[src]++
		n[dst]++
		m.flows = append(m.flows, flow{src, dst, f.BytesPerSecond * gbPerHour})
	}
	all := make([]int, 2*len(m.flows)) // one piece of memory, not one for each VM
	for v, size := range n {
		m.flowsOf[v], all = all[:0:size], all[size:]
	}
	for i, f := range m.flows {
		m.flowsOf[f.src] = append(m.flowsOf[f.src], i)
		m.flowsOf[f.dst] = append(m.flowsOf[f.dst], i)
	}
	regions := map[RegionID]int{}
	for _, r := range m.s.Reaches {
		if _, ok := regions[r.Region]; !ok {
			regions[r.Region] = len(regions)
			m.regions = append(m.regions, r.Region)
			m.reachMs = append(m.reachMs, slices.Repeat([]float64{none}, len(m.s.Sites)))
		}
		m.reachMs[regions[r.Region]][find(m.siteOf, r.Site, "site", "reach of "+string(r.Region), bad)] = r.RTTMs
	}
	for id, r := range regions {
		if slices.Contains(m.reachMs[r], none) {
			bad.say("region %s has no round trip to every site", id)
		}
	}
	for _, d := range m.s.Demands {
		v := find(m.vmOf, d.VM, "vm", "demand", bad)
		m.demandsOf[v] = append(m.demandsOf[v], len(m.demands))
		m.demands = append(m.demands, demand{v, find(regions, d.Region, "region", "demand on "+string(d.VM), bad),
			d.BytesPerSecond * gbPerHour, d.RequestsPerSecond * 3600 / 1e6})
	}
}

func (m *model) groups(bad *problems) {
	members := func(name string, ids []heliotrope.VMID) []int {
		var list []int
		for _, id := range ids {
			if v := find(m.vmOf, id, "vm", "group "+name, bad); !slices.Contains(list, v) {
				list = append(list, v)
			}
		}
		return list
	}
	m.apartOf, m.togetherOf, m.limitsOf = make([][]int, len(m.s.VMs)), make([][]int, len(m.s.VMs)), make([][]int, len(m.s.VMs))
	for _, g := range m.s.Apart {
		c := crowd{g.Name, members(g.Name, g.VMs), g.Scope}
		for _, v := range c.vms {
			m.apartOf[v] = append(m.apartOf[v], len(m.apart))
		}
		m.apart = append(m.apart, c)
	}
	for _, g := range m.s.Together {
		c := crowd{g.Name, members(g.Name, g.VMs), g.Scope}
		for _, v := range c.vms {
			m.togetherOf[v] = append(m.togetherOf[v], len(m.together))
		}
		m.together = append(m.together, c)
	}
	for _, g := range slices.Concat(m.s.Apart, m.s.Together) {
		if g.Scope != AtHost && g.Scope != AtSite {
			bad.say("group %s: scope is %q, must be %s or %s", g.Name, g.Scope, AtHost, AtSite)
		}
	}
	for _, l := range m.p.RTTLimits {
		side := map[int]int{}
		for _, v := range members(l.Name, l.A) {
			side[v] |= 1
		}
		for _, v := range members(l.Name, l.B) {
			side[v] |= 2
		}
		all := members(l.Name, slices.Concat(l.A, l.B))
		for _, v := range all {
			m.limitsOf[v] = append(m.limitsOf[v], len(m.limits))
		}
		m.limits = append(m.limits, limit{l.Name, side, all, l.Ms})
	}
}

// allow fills in at which sites each VM may be. It may stay where it is pinned, and a pause
// that is too long forbids going, not staying.
func (m *model) allow() {
	for i, v := range m.s.VMs {
		row := make([]bool, len(m.s.Sites))
		for k, s := range m.s.Sites {
			from := m.siteAt(m.home[i])
			row[k] = (len(v.Allowed) == 0 || slices.Contains(v.Allowed, s.ID)) &&
				!slices.Contains(v.Forbidden, s.ID) && !slices.Contains(m.p.ForbiddenSites, s.ID) &&
				(from == k || from == none || m.soon(i, from, k))
			if v.Pinned && m.home[i] != none {
				row[k] = from == k
			}
		}
		m.allowed = append(m.allowed, row)
	}
}

// siteAt is the site of a host, or none.
func (m *model) siteAt(host int) int {
	if host == none {
		return none
	}
	return m.site[host]
}

// pauseMs predicts the pause of a VM that goes from a host of a site to another of a site.
func (m *model) pauseMs(vm, from, to int) float64 {
	return m.s.VMs[vm].PauseMs + pauseRoundTrips*m.rttMs[from][to]
}

// moveSeconds predicts how long that move takes.
func (m *model) moveSeconds(vm, from, to int) float64 {
	return m.s.VMs[vm].CopyBytes*8/m.bits[from][to] + m.pauseMs(vm, from, to)/1e3
}

// soon says whether the pause of that move may be as long as it is.
func (m *model) soon(vm, from, to int) bool {
	return m.p.MaxPauseMs == 0 || m.pauseMs(vm, from, to) <= m.p.MaxPauseMs
}

// mustLeave says whether a VM may not stay where it is.
func (m *model) mustLeave(vm int) bool {
	h := m.home[vm]
	if m.s.VMs[vm].Pinned && h != none {
		return false
	}
	return h == none || m.s.Hosts[h].Drained || !m.allowed[vm][m.site[h]]
}

// hosts turns a placement into numbers. VMs and hosts that are not known are a problem.
func (m *model) hosts(p Placement) ([]int, error) {
	at := slices.Repeat([]int{none}, len(m.s.VMs))
	var bad problems
	for id, host := range p {
		v, ok := m.vmOf[id]
		h, ok2 := m.hostOf[host]
		if !ok || !ok2 {
			bad.say("there is no vm %q or no host %q", id, host)
			continue
		}
		at[v] = h
	}
	if err := errors.Join(bad...); err != nil {
		return nil, fmt.Errorf("read placement: %w", err)
	}
	return at, nil
}
