package scheduler

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"heliotrope/scheduler/licence"
)

// reason is what one VM's move is for.
type reason struct {
	gain Cost    // its share: what is between two that both move counts half for each
	ms   float64 // that its traffic is nearer, by its bytes; of requests where it has no bytes
	peer int     // VM with which the most is gained, or none
	usd  float64 // gained with it
	gb   float64 // per hour, with it
}

// reasons tells for each VM what going from one placement to another is for. All shares
// add up to the difference, hosts in use aside.
func (m *model) reasons(before, after []int) []reason {
	list := make([]reason, len(before))
	for v := range list {
		list[v].peer = none
		if before[v] != after[v] && before[v] != none && after[v] != none {
			list[v] = m.reason(v, before, after)
		}
	}
	for v, usd := range m.seats.Shares(before, after) {
		list[v].gain.Licences -= usd
	}
	return list
}

func (m *model) reason(v int, before, after []int) reason {
	a, b := m.site[before[v]], m.site[after[v]]
	r := reason{peer: none, gain: m.standing(v, a).plus(m.standing(v, b).times(-1))}
	r.gain = r.gain.plus(m.moving(v, before[v])).plus(m.moving(v, after[v]).times(-1))
	var old, now, weight, requests float64
	for _, i := range m.demandsOf[v] {
		d := m.demands[i]
		r.gain = r.gain.plus(m.serving(d, a)).plus(m.serving(d, b).times(-1))
		old += d.gbPerHour * m.reachMs[d.region][a]
		now += d.gbPerHour * m.reachMs[d.region][b]
		weight += d.gbPerHour
		requests += d.millionRequestsPerHr
	}
	peers := map[int]*[2]float64{} // USD gained, GB per hour
	for _, i := range m.flowsOf[v] {
		f := m.flows[i]
		other := f.src + f.dst - v
		if before[other] == none || after[other] == none {
			continue
		}
		was := m.talking(f, m.site[before[f.src]], m.site[before[f.dst]])
		is := m.talking(f, m.site[after[f.src]], m.site[after[f.dst]])
		diff := was.plus(is.times(-1))
		if before[other] != after[other] {
			diff = diff.times(0.5)
		}
		r.gain = r.gain.plus(diff)
		if peers[other] == nil {
			peers[other] = &[2]float64{}
		}
		peers[other][0] += diff.Total()
		peers[other][1] += f.gbPerHour
		if p := peers[other]; p[0] > r.usd {
			r.peer, r.usd, r.gb = other, p[0], p[1]
		}
		old += f.gbPerHour * m.rttMs[a][m.site[before[other]]]
		now += f.gbPerHour * m.rttMs[b][m.site[after[other]]]
		weight += f.gbPerHour
	}
	if weight == 0 && requests > 0 {
		weight = requests
		for _, i := range m.demandsOf[v] {
			d := m.demands[i]
			old += d.millionRequestsPerHr * m.reachMs[d.region][a]
			now += d.millionRequestsPerHr * m.reachMs[d.region][b]
		}
	}
	if weight > 0 {
		r.ms = (old - now) / weight
	}
	return r
}

// Evidence is one thing that speaks for a move, or against it.
type Evidence struct {
	USDPerHour float64 `json:"gain_usd_per_hour"` // negative: it costs that
	Text       string  `json:"text"`
}

// why tells in one sentence why a VM goes from one host to another, and all that speaks for
// and against it, the weightiest first.
func (m *model) why(v, from, to int, r reason) (string, []Evidence) {
	list := m.evidence(v, from, to, r)
	if forced := m.forced(v, from); forced != "" {
		return forced, list
	}
	if i := slices.IndexFunc(list, func(e Evidence) bool { return e.USDPerHour > 0 }); i >= 0 {
		return list[i].Text, list
	}
	return fmt.Sprintf("room at %s is for what costs less there", m.s.Hosts[from].ID), list
}

func (m *model) evidence(v, from, to int, r reason) []Evidence {
	a, b := m.s.Sites[m.site[from]], m.s.Sites[m.site[to]]
	list := []Evidence{
		{r.gain.Compute, fmt.Sprintf("its vCPUs and memory cost USD %.4g/h %s at %s than at %s", math.Abs(r.gain.Compute), less(r.gain.Compute), b.ID, a.ID)},
		{r.gain.Carbon, fmt.Sprintf("%s emits %s for its vCPUs than %s, which is worth USD %.3g/h", b.ID, less(r.gain.Carbon), a.ID, math.Abs(r.gain.Carbon))},
		{r.gain.Risk, fmt.Sprintf("interruptions are %s likely at %s than at %s, which is worth USD %.3g/h", less(r.gain.Risk), b.ID, a.ID, math.Abs(r.gain.Risk))},
		{r.gain.Licences, fmt.Sprintf("seats of licences are rented for USD %.4g/h %s if it is at %s", math.Abs(r.gain.Licences), less(r.gain.Licences), b.ID)},
	}
	idle := m.idle(v, m.site[to])
	lost := idle.usd / m.p.AmortisationHours
	list = append(list, Evidence{r.gain.Moves + lost, fmt.Sprintf("the move itself, spread over %.3g hours, costs USD %.3g/h", m.p.AmortisationHours, -r.gain.Moves-lost)})
	if lost > 0 {
		list = append(list, Evidence{-lost, idle.says(m, m.site[from])})
	}
	if r.peer != none {
		list = append(list, Evidence{r.usd, fmt.Sprintf("it exchanges %s with %s, for USD %.3g/h less from %s", perSecond(r.gb), m.s.VMs[r.peer].ID, r.usd, b.ID)})
	}
	list = append(list, m.clients(v, m.site[from], m.site[to]))
	list = slices.DeleteFunc(list, func(e Evidence) bool { return math.Abs(e.USDPerHour) < 1e-9 })
	slices.SortStableFunc(list, func(x, y Evidence) int { return cmp.Compare(math.Abs(y.USDPerHour), math.Abs(x.USDPerHour)) })
	return list
}

// less says how what is gained differs.
func less(gain float64) string {
	if gain < 0 {
		return "more"
	}
	return "less"
}

// forced says why a VM cannot stay, or nothing.
func (m *model) forced(v, from int) string {
	h := m.s.Hosts[from]
	switch {
	case h.Drained:
		return fmt.Sprintf("%s is drained", h.ID)
	case !m.allowed[v][m.site[from]]:
		return fmt.Sprintf("it may not be at %s", h.Site)
	case slices.ContainsFunc(m.short, func(x licence.Lack) bool { return x.Site == m.site[from] && m.seats.Licensed(v) }):
		return m.unlicensed(m.home, v, from)
	}
	return ""
}

// clients is the region whose clients gain the most.
func (m *model) clients(v, from, to int) Evidence {
	best := Evidence{}
	for _, i := range m.demandsOf[v] {
		d := m.demands[i]
		usd := m.serving(d, from).Total() - m.serving(d, to).Total()
		if usd > best.USDPerHour {
			ms := m.reachMs[d.region][from] - m.reachMs[d.region][to]
			asked := perSecond(d.gbPerHour)
			if d.millionRequestsPerHr > 0 {
				asked = fmt.Sprintf("%.3g requests/s", d.millionRequestsPerHr*1e6/3600)
			}
			best = Evidence{usd, fmt.Sprintf("clients in %s, who get %s, are %.3g ms nearer, for USD %.3g/h less", m.regions[d.region], asked, ms, usd)}
			if ms <= 0 {
				best.Text = fmt.Sprintf("what clients in %s get, %s, costs USD %.3g/h less from %s", m.regions[d.region], asked, usd, m.s.Sites[to].ID)
			}
		}
	}
	return best
}

// perSecond writes a rate as people read it.
func perSecond(gbPerHr float64) string {
	bytes := gbPerHr / gbPerHour
	for _, unit := range []string{"B/s", "kB/s", "MB/s"} {
		if bytes < 1000 {
			return fmt.Sprintf("%.3g %s", bytes, unit)
		}
		bytes /= 1000
	}
	return fmt.Sprintf("%.3g GB/s", bytes)
}
