package schedbench

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"

	"heliotrope"
	"heliotrope/scheduler"
)

// shape says what kind of instance to make.
type shape struct {
	vms, sites int
	hosts      int     // at each site
	load       float64 // share of all room that is asked for
}

// maker makes one instance.
type maker struct {
	r *rand.Rand
	w *world
	s scheduler.Snapshot
	shape
	pick []int // regions of the world
	app  [][]int
}

// instance makes applications of a few VMs each, whose VMs talk by a pattern with rates over
// two decades, a little noise between them, clients for some, and a placement that was
// right for something else.
func instance(w *world, sh shape, seed uint64) scheduler.Snapshot {
	m := &maker{r: rand.New(rand.NewPCG(seed, 7)), w: w, shape: sh}
	m.pick = m.r.Perm(len(w.regions))[:sh.sites]
	m.sites()
	m.vmsOf()
	m.hostsOf()
	m.traffic()
	m.clients()
	m.rules()
	m.place()
	return m.s
}

func siteID(k int) heliotrope.SiteID { return heliotrope.SiteID(fmt.Sprintf("site-%d", k)) }
func vmID(i int) heliotrope.VMID     { return heliotrope.VMID(fmt.Sprintf("vm-%d", i)) }

func (m *maker) sites() {
	for k, a := range m.pick {
		usd := m.w.usdPerVC[a]
		s := scheduler.Site{ID: siteID(k), USDPerVCPUHour: usd * 0.6, USDPerGiBHour: usd * 0.1,
			InternetUSDPerGB: 0.05 + 0.1*m.r.Float64(), LANRTTMs: 0.2}
		if spot := m.w.spotPerVC[a]; spot > 0 && m.r.IntN(3) == 0 {
			s.USDPerVCPUHour, s.USDPerGiBHour, s.InterruptionsPerHour = spot*0.6, spot*0.1, 0.002+0.01*m.r.Float64()
		}
		m.s.Sites = append(m.s.Sites, s)
		for l, b := range m.pick {
			if k != l {
				m.s.Paths = append(m.s.Paths, scheduler.Path{From: siteID(k), To: siteID(l), RTTMs: m.w.rttMs[a][b], USDPerGB: m.w.usdPerGB[a][b]})
			}
			m.s.Reaches = append(m.s.Reaches, scheduler.Reach{Region: scheduler.RegionID(siteID(k)), Site: siteID(l), RTTMs: m.w.rttMs[a][b] + 8})
		}
	}
}

func (m *maker) vmsOf() {
	for i := 0; i < m.vms; {
		size := min(m.vms-i, int(3*math.Exp(m.r.Float64()*math.Log(min(40, float64(m.vms)/4)/3))))
		var app []int
		for range max(size, 1) {
			vcpus := float64(int(1) << m.r.IntN(4))
			m.s.VMs = append(m.s.VMs, scheduler.VM{ID: vmID(i), VCPUs: vcpus, MemoryMiB: vcpus * 1024 * float64(2+m.r.IntN(5)),
				CopyBytes: vcpus * 3e9, PauseMs: 50, InterruptionUSD: 2 * m.r.Float64()})
			app = append(app, i)
			i++
		}
		m.app = append(m.app, app)
	}
}

// hostsOf gives each site its room: some have more than others.
func (m *maker) hostsOf() {
	var vcpus, mib, shares float64
	for _, v := range m.s.VMs {
		vcpus += v.VCPUs
		mib += v.MemoryMiB
	}
	share := make([]float64, m.shape.sites)
	for k := range share {
		share[k] = 0.5 + m.r.Float64()
		shares += share[k]
	}
	for k := range share {
		part := share[k] / shares / m.load / float64(m.hosts)
		for h := range m.hosts {
			m.s.Hosts = append(m.s.Hosts, scheduler.Host{ID: heliotrope.HostID(fmt.Sprintf("host-%d-%d", k, h)), Site: siteID(k),
				VCPUs: math.Ceil(vcpus * part), MemoryMiB: math.Ceil(mib * part)})
		}
	}
}

// traffic gives each application one of a few patterns.
func (m *maker) traffic() {
	flow := func(a, b int, scale float64) {
		rate := scale * 2e5 * math.Exp(1.5*m.r.NormFloat64())
		m.s.Flows = append(m.s.Flows, scheduler.Flow{Src: vmID(a), Dst: vmID(b), BytesPerSecond: rate},
			scheduler.Flow{Src: vmID(b), Dst: vmID(a), BytesPerSecond: rate * m.r.Float64()})
	}
	for _, app := range m.app {
		n := len(app)
		kind := m.r.IntN(4)
		for i, v := range app {
			switch {
			case kind == 0 && n > 2: // ring
				flow(v, app[(i+1)%n], 1)
				flow(v, app[(i+2)%n], 0.5)
			case kind == 1 && i > 0: // star
				flow(v, app[0], 1)
			case kind == 2: // three tiers
				for j := i % 3; j < n; j += 3 {
					if i%3 < 2 && m.r.IntN(1+n/9) == 0 && j+1 < n {
						flow(v, app[j+1], 1)
					}
				}
			case i > 0: // whoever
				for range min(i, 3) {
					flow(v, app[m.r.IntN(i)], 1)
				}
			}
		}
	}
	for range m.vms / 2 {
		if a, b := m.r.IntN(m.vms), m.r.IntN(m.vms); a != b {
			flow(a, b, 0.05)
		}
	}
}

func (m *maker) clients() {
	for _, app := range m.app {
		if m.r.IntN(3) != 0 {
			continue
		}
		for range 1 + m.r.IntN(2) {
			m.s.Demands = append(m.s.Demands, scheduler.Demand{VM: vmID(app[0]), Region: scheduler.RegionID(siteID(m.r.IntN(m.shape.sites))),
				BytesPerSecond: 1e6 * math.Exp(m.r.NormFloat64()), RequestsPerSecond: 100 * m.r.Float64()})
		}
	}
}

// rules binds some to places: data that may not leave, devices that cannot.
func (m *maker) rules() {
	for _, app := range m.app {
		if m.r.IntN(10) == 0 {
			pick := m.r.Perm(m.shape.sites)[:cmp.Or(m.shape.sites/2, 1)]
			for _, i := range app {
				for _, k := range pick {
					m.s.VMs[i].Allowed = append(m.s.VMs[i].Allowed, siteID(k))
				}
			}
		}
	}
	for i := range m.s.VMs {
		if m.r.IntN(30) == 0 {
			m.s.VMs[i].Allowed = []heliotrope.SiteID{siteID(m.r.IntN(m.shape.sites))}
		}
	}
}

// place puts most of an application at one site, wherever there is room.
func (m *maker) place() {
	vcpus, mib := make([]float64, len(m.s.Hosts)), make([]float64, len(m.s.Hosts))
	for _, app := range m.app {
		site := m.r.IntN(m.shape.sites)
		for _, i := range app {
			v := &m.s.VMs[i]
			k := site
			if m.r.IntN(5) == 0 {
				k = m.r.IntN(m.shape.sites)
			}
			for n := range m.s.Hosts {
				h := (k*m.hosts + n) % len(m.s.Hosts)
				if host := m.s.Hosts[h]; vcpus[h]+v.VCPUs <= host.VCPUs && mib[h]+v.MemoryMiB <= host.MemoryMiB {
					vcpus[h] += v.VCPUs
					mib[h] += v.MemoryMiB
					v.Host = host.ID
					break
				}
			}
		}
	}
}
