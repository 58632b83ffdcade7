package scheduler

import "heliotrope"

// Cost is what a placement costs, in USD per hour, by what it is for.
type Cost struct {
	Compute  float64 `json:"compute_usd_per_hour"`
	Hosts    float64 `json:"hosts_usd_per_hour"`    // in use
	Licences float64 `json:"licences_usd_per_hour"` // seats that are rented
	Egress   float64 `json:"egress_usd_per_hour"`
	Clients  float64 `json:"clients_usd_per_hour"`   // their distance
	EastWest float64 `json:"east_west_usd_per_hour"` // distance between VMs
	Carbon   float64 `json:"carbon_usd_per_hour"`
	Risk     float64 `json:"risk_usd_per_hour"`  // of interruptions
	Moves    float64 `json:"moves_usd_per_hour"` // from where VMs are now, spread
}

// Total is the objective.
func (c Cost) Total() float64 {
	return c.Compute + c.Hosts + c.Licences + c.Egress + c.Clients + c.EastWest + c.Carbon + c.Risk + c.Moves
}

func (c Cost) plus(d Cost) Cost {
	return Cost{c.Compute + d.Compute, c.Hosts + d.Hosts, c.Licences + d.Licences, c.Egress + d.Egress, c.Clients + d.Clients,
		c.EastWest + d.EastWest, c.Carbon + d.Carbon, c.Risk + d.Risk, c.Moves + d.Moves}
}

func (c Cost) times(x float64) Cost {
	return Cost{c.Compute * x, c.Hosts * x, c.Licences * x, c.Egress * x, c.Clients * x, c.EastWest * x, c.Carbon * x, c.Risk * x, c.Moves * x}
}

// Evaluate tells what a placement costs. VMs that are nowhere cost nothing.
func Evaluate(s Snapshot, p Policy, where Placement) (Cost, error) {
	m, err := newModel(&s, p)
	if err != nil {
		return Cost{}, err
	}
	at, err := m.hosts(where)
	if err != nil {
		return Cost{}, err
	}
	return m.cost(at), nil
}

// Share is what one VM's being elsewhere gains.
type Share struct {
	USDPerHour float64 `json:"gain_usd_per_hour"` // what is between two VMs that both moved counts half for each
	Ms         float64 `json:"gain_ms"`           // that its traffic, by bytes, is nearer
}

// Compare tells what two placements cost in a snapshot, in which VMs are where they were
// before, and what each VM that is elsewhere after adds to the difference.
func Compare(s Snapshot, p Policy, before, after Placement) (was, is Cost, shares map[heliotrope.VMID]Share, err error) {
	m, err := newModel(&s, p)
	if err != nil {
		return was, is, nil, err
	}
	a, err := m.hosts(before)
	if err != nil {
		return was, is, nil, err
	}
	b, err := m.hosts(after)
	if err != nil {
		return was, is, nil, err
	}
	shares = map[heliotrope.VMID]Share{}
	for v, r := range m.reasons(a, b) {
		if a[v] != b[v] {
			shares[s.VMs[v].ID] = Share{r.gain.Total(), r.ms}
		}
	}
	return m.cost(a), m.cost(b), shares, nil
}

// cost adds up the terms below.
func (m *model) cost(at []int) Cost {
	sum := Cost{Licences: m.seats.Rent(at)}
	used := make([]bool, len(m.s.Hosts))
	for i, h := range at {
		if h == none {
			continue
		}
		sum = sum.plus(m.standing(i, m.site[h])).plus(m.moving(i, h))
		used[h] = true
		for _, d := range m.demandsOf[i] {
			sum = sum.plus(m.serving(m.demands[d], m.site[h]))
		}
	}
	for _, f := range m.flows {
		if at[f.src] != none && at[f.dst] != none {
			sum = sum.plus(m.talking(f, m.site[at[f.src]], m.site[at[f.dst]]))
		}
	}
	for _, u := range used {
		if u {
			sum.Hosts += m.p.HostUSDPerHour
		}
	}
	return sum
}

// standing is what a VM costs at a site by itself.
func (m *model) standing(vm, site int) Cost {
	v, s := &m.s.VMs[vm], &m.s.Sites[site]
	return Cost{
		Compute: v.VCPUs*s.USDPerVCPUHour + v.MemoryMiB/1024*s.USDPerGiBHour,
		Carbon:  v.VCPUs * s.GramsCO2PerVCPUHour / 1e6 * m.p.USDPerTonneCO2,
		Risk:    s.InterruptionsPerHour * v.InterruptionUSD,
	}
}

// moving is what a VM's move to a host costs, spread over the hours that it has to pay for.
func (m *model) moving(vm, host int) Cost {
	if home := m.home[vm]; home == none || home == host {
		return Cost{}
	}
	return m.going(vm, m.site[host])
}

// going is what it costs a VM to go to another host of a site.
func (m *model) going(vm, to int) Cost {
	from := m.site[m.home[vm]]
	usd := m.p.MoveUSD + m.s.VMs[vm].CopyBytes/1e9*m.usdGB[from][to] + m.pauseMs(vm, from, to)/1e3*m.p.PauseUSDPerSecond + m.idle(vm, to).usd
	return Cost{Moves: usd / m.p.AmortisationHours}
}

// serving is what a demand costs whose VM is at a site.
func (m *model) serving(d demand, site int) Cost {
	ms := m.reachMs[d.region][site]
	return Cost{
		Egress:  d.gbPerHour * m.s.Sites[site].InternetUSDPerGB,
		Clients: ms * (d.gbPerHour*m.p.ClientUSDPerGBMs + d.millionRequestsPerHr*m.p.ClientUSDPerMillionRequestsMs),
	}
}

// talking is what a flow costs whose ends are at two sites.
func (m *model) talking(f flow, from, to int) Cost {
	return Cost{
		Egress:   f.gbPerHour * m.usdGB[from][to],
		EastWest: f.gbPerHour * m.rttMs[from][to] * m.p.EastWestUSDPerGBMs,
	}
}
