package webreport

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/phases"
	"heliotrope/scheduler/traffic/report"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

const window = 5 * time.Minute

// sampler makes a matrix and what a report says of it.
type sampler struct {
	cells map[[2]traffic.End]*traffic.Cell
	sites map[traffic.End]heliotrope.SiteID
	noise uint64
}

func newSampler() *sampler {
	return &sampler{map[[2]traffic.End]*traffic.Cell{}, map[traffic.End]heliotrope.SiteID{}, 1}
}

// vary is between 0.7 and 1.3, and the same in every run.
func (s *sampler) vary() float64 {
	s.noise = s.noise*6364136223846793005 + 1442695040888963407
	return 0.7 + 0.6*float64(s.noise>>40)/float64(1<<24)
}

func (s *sampler) vm(site heliotrope.SiteID, format string, n int) []traffic.End {
	var all []traffic.End
	for i := range n {
		e := traffic.VM(heliotrope.VMID(fmt.Sprintf(format, i+1)))
		s.sites[e] = site
		all = append(all, e)
	}
	return all
}

func (s *sampler) send(a, b traffic.End, perSecond float64, service traffic.Service, reply bool) {
	bytes := math.Round(perSecond * s.vary() * window.Seconds())
	c := &traffic.Cell{Src: a, Dst: b, Bytes: bytes, Packets: math.Round(bytes / 900), Flows: 12, Low: bytes, High: bytes,
		Services: []traffic.ServiceShare{{Service: service, Reply: reply, Bytes: bytes}}}
	if s.sites[a] == "paris" {
		c.Low, c.High = 0.94*bytes, 1.06*bytes
	}
	if s.sites[a] != s.sites[b] {
		c.RTT, c.RTTMin = 212*time.Millisecond, 208*time.Millisecond
	}
	s.cells[[2]traffic.End{a, b}] = c
}

// both is a request's way and its answer's.
func (s *sampler) both(a, b traffic.End, there, back float64, service traffic.Service) {
	s.send(a, b, there, service, false)
	s.send(b, a, back, service, true)
}

func (s *sampler) matrix() traffic.Matrix {
	m := traffic.Matrix{From: noon.Add(-window), To: noon}
	for _, c := range s.cells {
		m.Cells = append(m.Cells, *c)
	}
	slices.SortFunc(m.Cells, func(a, b traffic.Cell) int { return cmp.Or(a.Src.Compare(b.Src), a.Dst.Compare(b.Dst)) })
	return m
}

// report counts the matrix together; groups, events and hosts are the caller's.
func (s *sampler) report(m traffic.Matrix) report.Report {
	r := report.Report{At: noon.Add(3 * time.Second), From: m.From, To: m.To, Topology: "three-clouds"}
	talkers := map[traffic.End]*report.Talker{}
	services := map[traffic.Service]*report.Service{}
	sites := map[[2]heliotrope.SiteID]*report.Site{}
	for _, c := range m.Cells {
		v := c.Bytes / window.Seconds()
		r.Total.BytesPerSecond += v
		r.Total.PacketsPerSecond += c.Packets / window.Seconds()
		r.Total.FlowsPerSecond += c.Flows / window.Seconds()
		for _, e := range []traffic.End{c.Src, c.Dst} {
			if talkers[e] == nil {
				talkers[e] = &report.Talker{End: e, Site: s.sites[e]}
				if e.IsVM() {
					talkers[e].Host = heliotrope.HostID(s.sites[e] + "-1")
				}
			}
		}
		talkers[c.Src].Sent += v
		talkers[c.Src].Ends++
		talkers[c.Dst].Got += v
		share := c.Services[0]
		w := services[share.Service]
		if w == nil {
			w = &report.Service{Service: share.Service}
			services[share.Service] = w
		}
		w.Rate += v
		if share.Reply && !slices.Contains(w.Servers, c.Src) {
			w.Servers = append(w.Servers, c.Src)
		} else if !share.Reply {
			w.Clients++
		}
		from, to := s.sites[c.Src], s.sites[c.Dst]
		if from != "" && to != "" {
			way := [2]heliotrope.SiteID{from, to}
			if sites[way] == nil {
				sites[way] = &report.Site{From: from, To: to, Priced: from != "paris"}
			}
			sites[way].Rate += v
			if from != to && sites[way].Priced {
				sites[way].USDPerHour += v * 3600 / 1e9 * 0.09
			}
		}
		r.Pairs = append(r.Pairs, report.Pair{Src: c.Src, Dst: c.Dst, Rate: v, Low: c.Low / window.Seconds(), High: c.High / window.Seconds(),
			Packets: c.Packets / window.Seconds(), Flows: c.Flows / window.Seconds(), Service: share.Service, Reply: share.Reply,
			RTTMs: c.RTT.Seconds() * 1e3, RTTMinMs: c.RTTMin.Seconds() * 1e3, Burst: 3.2, From: from, To: to})
	}
	for _, t := range talkers {
		r.Talkers = append(r.Talkers, *t)
		if t.End.IsVM() {
			r.Total.VMs++
		} else {
			r.Total.Outside++
		}
	}
	for _, w := range services {
		r.Services = append(r.Services, *w)
	}
	for _, w := range sites {
		r.Sites = append(r.Sites, *w)
	}
	r.Total.Pairs = len(r.Pairs)
	slices.SortFunc(r.Talkers, func(a, b report.Talker) int {
		return cmp.Or(cmp.Compare(b.Sent+b.Got, a.Sent+a.Got), a.End.Compare(b.End))
	})
	slices.SortStableFunc(r.Pairs, func(a, b report.Pair) int { return cmp.Compare(b.Rate, a.Rate) })
	slices.SortFunc(r.Services, func(a, b report.Service) int { return cmp.Compare(b.Rate, a.Rate) })
	slices.SortFunc(r.Sites, func(a, b report.Site) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	return r
}

func group(id string, kind pattern.Kind, ends []traffic.End, shape ...int) report.Group {
	return report.Group{ID: id, Group: pattern.Group{Ends: ends, Kind: kind, Shape: shape, Confidence: 0.97, Coverage: 0.93, Bytes: 40e6, Outside: 1.2e6}}
}

// sample is a report of 24 VMs in 4 groups at 3 sites, and of what is around them.
func sample() (report.Report, traffic.Matrix) {
	s := newSampler()
	mpi := traffic.Service{Protocol: traffic.TCP, Port: 1024}
	db := traffic.Service{Protocol: traffic.TCP, Port: 5432}
	web := traffic.Service{Protocol: traffic.TCP, Port: 443}
	shuffle := traffic.Service{Protocol: traffic.TCP, Port: 13562}

	ring := s.vm("paris", "ring-%d", 5)
	for i, a := range ring {
		s.both(a, ring[(i+1)%len(ring)], 22e6, 3e5, mpi)
	}
	grid := s.vm("frankfurt", "ocean-%02d", 8)
	for i, a := range grid {
		if i%4 < 3 {
			s.both(a, grid[i+1], 6e6, 6e6, mpi)
		}
		if i < 4 {
			s.both(a, grid[i+4], 6e6, 6e6, mpi)
		}
	}
	mappers, reducers := s.vm("frankfurt", "map-%d", 4), s.vm("oslo", "reduce-%d", 3)
	for _, a := range reducers {
		for _, b := range mappers {
			s.both(a, b, 40e3, 2.5e6, shuffle)
		}
	}
	shop := append(s.vm("paris", "shop-db", 1), s.vm("paris", "shop-web-%d", 3)...)
	shop[0] = traffic.VM("shop-db")
	s.sites[shop[0]] = "paris"
	s.sites[shop[3]] = "oslo"
	for _, a := range shop[1:] {
		s.both(a, shop[0], 90e3, 1.4e6, db)
		s.both(traffic.Outside(netip.MustParsePrefix("198.51.100.0/24")), a, 20e3, 600e3, web)
	}
	s.both(traffic.Outside(netip.MustParsePrefix("2001:db8:7::/48")), shop[1], 9e3, 200e3, web)
	lone := traffic.VM("backup")
	s.sites[lone] = "oslo"
	s.both(lone, shop[0], 4e3, 800e3, traffic.Service{Protocol: traffic.TCP, Port: 22})
	for _, a := range []traffic.End{ring[0], grid[0], mappers[0]} {
		s.both(lone, a, 120, 900, traffic.Service{Protocol: traffic.ICMP})
	}

	m := s.matrix()
	m.Shed = 48213
	m.Missing = map[heliotrope.HostID]float64{"oslo-1": 0.08}
	r := s.report(m)
	r.Groups = []report.Group{
		group("ocean", pattern.Stencil2D, grid, 2, 4), group("rings", pattern.Ring, ring),
		group("sort", pattern.Shuffle, append(slices.Clone(mappers), reducers...), 4, 3), group("shop", pattern.Star, shop),
	}
	tell(r.Groups, mappers, reducers, shop, db, shuffle)
	for i := range 120 {
		v := r.Total.BytesPerSecond * (0.55 + 0.1*math.Sin(float64(i)/5)) * s.vary()
		if i > 70 {
			v *= 1.7
		}
		if i < 95 || i > 103 { // the controller was away
			r.History = append(r.History, report.Volume{At: noon.Add(time.Duration(i-119) * 30 * time.Second), Rate: v})
		}
	}
	r.Events = []report.Event{
		{At: noon.Add(-2 * time.Minute), Kind: "members", Group: "shop", What: "shop-web-3 joined."},
		{At: noon.Add(-24 * time.Minute), Kind: "volume", Group: "sort", What: "Traffic rose from 3.1 to 33 MB/s."},
		{At: noon.Add(-24*time.Minute - 20*time.Second), Kind: "pattern", Group: "sort", What: "From all-to-all to shuffle."},
		{At: noon.Add(-41 * time.Minute), Kind: "appeared", Group: "ocean", What: "A new group of 8 VMs."},
	}
	r.Savings = []traffic.Saving{{VMs: []heliotrope.VMID{"reduce-1", "reduce-2", "reduce-3"}, From: "oslo", To: "frankfurt", USDPerHour: 9.02, Bytes: 27.9e6,
		Why: "Nine tenths of what they get comes from map-1 to map-4 in frankfurt."}}
	r.Notes = []string{
		"oslo-1 did not count in 8 % of the window: what its VMs sent then is missing, or counted where it arrived",
		"paris-1 looks at 1 of 16 packets: its figures are estimates, the truth is between the bounds with 95 % confidence",
		"48213 packets of the window were not looked at: the hosts' budget or rings were full",
	}
	r.Sources = []report.Source{
		{Host: "frankfurt-1", Source: traffic.SourcePackets, Sampling: 1, Ports: 12, CPU: 0.118, LastBin: noon, Crowded: 310},
		{Host: "oslo-1", Source: traffic.SourceEBPF, Sampling: 1, Ports: 5, CPU: 0.013, LastBin: noon.Add(-2 * time.Second), Missing: 0.08},
		{Host: "paris-1", Source: traffic.SourcePackets, Sampling: 16, Ports: 8, CPU: 0.196, LastBin: noon, Shed: 48213},
	}
	return r, m
}

// tell gives the groups what the classifier would say.
func tell(groups []report.Group, mappers, reducers, shop []traffic.End, db, shuffle traffic.Service) {
	g := groups
	g[0].Second, g[0].Since, g[0].Sites = pattern.Torus2D, noon.Add(-41*time.Minute), []heliotrope.SiteID{"frankfurt"}
	g[0].Evidence = []string{"8 VMs fill a grid of 2 × 4; 20 of 20 directed neighbour pairs talk, and 0 other pairs do.", "No pair joins the first column with the last: it is no torus."}
	g[1].Second, g[1].Since, g[1].Sites = pattern.Torus1D, noon.Add(-58*time.Minute), []heliotrope.SiteID{"paris"}
	g[1].Evidence = []string{"Each of 5 VMs sends 98 % of its bytes to one other, and gets from one other.", "Back goes 1.4 %: acknowledgements, not data."}
	g[2].Second, g[2].Since, g[2].Sites, g[2].Confidence = pattern.MasterWorker, noon.Add(-24*time.Minute), []heliotrope.SiteID{"frankfurt", "oslo"}, 0.88
	g[2].Phases = []phases.Phase{{From: noon.Add(-58 * time.Minute), To: noon.Add(-44 * time.Minute), Group: pattern.Group{Kind: pattern.Unknown}},
		{From: noon.Add(-40 * time.Minute), To: noon.Add(-24 * time.Minute), Group: pattern.Group{Kind: pattern.AllToAll}}}
	g[2].Evidence = []string{"4 VMs send to each of 3 others; 12 of 12 pairs between the sides talk, and none within a side."}
	g[2].Tiers = []pattern.Tier{{Name: "tcp/13562 servers", Members: mappers, Serves: []traffic.Service{shuffle}, Confidence: 0.96},
		{Name: "clients of tcp/13562", Members: reducers, Uses: []traffic.Service{shuffle}, Confidence: 0.96}}
	g[3].Since, g[3].Sites, g[3].Bytes = noon.Add(-58*time.Minute), []heliotrope.SiteID{"oslo", "paris"}, 4.5e6
	g[3].Evidence = []string{"shop-db answers on tcp/5432; no two of the other 3 VMs talk."}
	g[3].Tiers = []pattern.Tier{{Name: "tcp/5432 server", Members: shop[:1], Confidence: 0.99}, {Name: "clients of tcp/5432, tcp/443 servers", Members: shop[1:], Confidence: 0.99}}
}
