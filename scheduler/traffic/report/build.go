package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

// Input is what a report is made of.
type Input struct {
	Now      time.Time
	Matrix   traffic.Matrix
	Topology heliotrope.Topology
	HostOf   map[heliotrope.VMID]heliotrope.HostID // where each VM is now
	Groups   []Group
	Events   []Event // the newest first
	Savings  []traffic.Saving
	Sources  []Source
	History  []Volume
}

const (
	defaultTop  = 20
	serversSaid = 8
)

// Build makes a report. It is a function of its input alone.
func Build(in Input, o Options) Report {
	top := cmp.Or(o.Top, defaultTop)
	b := builder{in, make(map[traffic.End]*Talker), max(in.Matrix.To.Sub(in.Matrix.From).Seconds(), 1e-9)}
	r := Report{
		At: in.Now, From: in.Matrix.From, To: in.Matrix.To, Topology: in.Topology.Name,
		Pairs: []Pair{}, Groups: in.Groups, Events: in.Events, Savings: in.Savings, Sources: in.Sources, History: in.History,
	}
	for _, c := range in.Matrix.Cells {
		p := b.pair(c)
		r.Pairs = append(r.Pairs, p)
		r.Total.BytesPerSecond += p.Rate
		r.Total.PacketsPerSecond += p.Packets
		r.Total.FlowsPerSecond += p.Flows
		src, dst := b.talker(c.Src), b.talker(c.Dst)
		src.Sent, dst.Got = src.Sent+p.Rate, dst.Got+p.Rate
	}
	r.Total.Pairs = len(r.Pairs)
	r.Sites = b.sites(r.Pairs)
	r.Talkers = b.talkers(&r.Total)
	r.Services = b.services()
	slices.SortStableFunc(r.Pairs, func(p, q Pair) int { return cmp.Compare(q.Rate, p.Rate) })
	r.Notes = b.notes()
	r.Pairs, r.Talkers, r.Services = first(r.Pairs, top), first(r.Talkers, top), first(r.Services, top)
	return r
}

func first[T any](all []T, n int) []T { return all[:min(n, len(all))] }

type builder struct {
	Input
	ends    map[traffic.End]*Talker
	seconds float64
}

// site is where an end is; nothing for what is outside.
func (b *builder) site(e traffic.End) heliotrope.SiteID {
	return b.Topology.Hosts[b.HostOf[e.VM]].Site
}

func (b *builder) pair(c traffic.Cell) Pair {
	p := Pair{Src: c.Src, Dst: c.Dst, Rate: c.Bytes / b.seconds, Low: c.Low / b.seconds, High: c.High / b.seconds,
		Services: c.Services, Packets: c.Packets / b.seconds, Flows: c.Flows / b.seconds, Burst: c.Burst,
		RTTMs: ms(c.RTT), RTTMinMs: ms(c.RTTMin), From: b.site(c.Src), To: b.site(c.Dst)}
	if len(c.Services) > 0 {
		p.Service, p.Reply = c.Services[0].Service, c.Services[0].Reply
	}
	return p
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (b *builder) talker(e traffic.End) *Talker {
	t, ok := b.ends[e]
	if !ok {
		t = &Talker{End: e, Site: b.site(e), Host: b.HostOf[e.VM]}
		b.ends[e] = t
	}
	return t
}

// talkers counts with how many others each end talks, and the ends.
func (b *builder) talkers(total *Total) []Talker {
	others := make(map[[2]traffic.End]bool, len(b.Matrix.Cells))
	for _, c := range b.Matrix.Cells {
		if others[[2]traffic.End{c.Src, c.Dst}] {
			continue
		}
		others[[2]traffic.End{c.Src, c.Dst}], others[[2]traffic.End{c.Dst, c.Src}] = true, true
		b.ends[c.Src].Ends++
		if c.Dst != c.Src {
			b.ends[c.Dst].Ends++
		}
	}
	list := make([]Talker, 0, len(b.ends))
	for _, t := range b.ends {
		if t.End.IsVM() {
			total.VMs++
		} else {
			total.Outside++
		}
		list = append(list, *t)
	}
	slices.SortFunc(list, func(t, u Talker) int {
		return cmp.Or(cmp.Compare(u.Sent+u.Got, t.Sent+t.Got), t.End.Compare(u.End))
	})
	return list
}

func (b *builder) services() []Service {
	type ends map[traffic.End]float64
	rates, servers, clients := map[traffic.Service]float64{}, map[traffic.Service]ends{}, map[traffic.Service]ends{}
	for _, c := range b.Matrix.Cells {
		for _, s := range c.Services {
			if servers[s.Service] == nil {
				servers[s.Service], clients[s.Service] = ends{}, ends{}
			}
			server, client := c.Dst, c.Src
			if s.Reply {
				server, client = c.Src, c.Dst
			}
			rates[s.Service] += s.Bytes / b.seconds
			servers[s.Service][server] += s.Bytes
			clients[s.Service][client] += s.Bytes
		}
	}
	list := make([]Service, 0, len(rates))
	for s, rate := range rates {
		svc := Service{Service: s, Rate: rate, Clients: len(clients[s])}
		if s.Port != 0 { // without a port nobody knows who answers
			by := servers[s]
			svc.Servers = first(slices.SortedFunc(maps.Keys(by), func(x, y traffic.End) int {
				return cmp.Or(cmp.Compare(by[y], by[x]), x.Compare(y))
			}), serversSaid)
		}
		list = append(list, svc)
	}
	slices.SortFunc(list, func(s, t Service) int {
		return cmp.Or(cmp.Compare(t.Rate, s.Rate), cmp.Compare(s.Service.String(), t.Service.String()))
	})
	return list
}

// sites sums what goes between sites, at the price of the cheapest way over links.
func (b *builder) sites(pairs []Pair) []Site {
	rates := map[[2]heliotrope.SiteID]float64{}
	for _, p := range pairs {
		if p.From != "" && p.To != "" && p.From != p.To {
			rates[[2]heliotrope.SiteID{p.From, p.To}] += p.Rate
		}
	}
	prices := Prices(b.Topology)
	var list []Site
	for way, rate := range rates {
		price, priced := prices[way]
		list = append(list, Site{From: way[0], To: way[1], Rate: rate, USDPerHour: USDPerHour(rate, price), Priced: priced && price > 0})
	}
	slices.SortFunc(list, func(s, t Site) int {
		return cmp.Or(cmp.Compare(t.USDPerHour, s.USDPerHour), cmp.Compare(t.Rate, s.Rate), cmp.Compare(s.From, t.From), cmp.Compare(s.To, t.To))
	})
	return list
}

// USDPerHour is what a rate in bytes per second costs at a price per 10^9 bytes.
func USDPerHour(rate, pricePerGB float64) float64 { return rate * 3600 / 1e9 * pricePerGB }

// Prices are those of the way between every two sites, in USD per 10^9 bytes: the sum over
// the links of the way with the least delay, which is the way that packets take.
func Prices(t heliotrope.Topology) map[[2]heliotrope.SiteID]float64 {
	type way struct {
		delay time.Duration
		price float64
	}
	ways := map[[2]heliotrope.SiteID]way{}
	for _, id := range slices.Sorted(maps.Keys(t.Links)) {
		l := t.Links[id]
		w := way{time.Duration(l.Delay), l.PricePerGB}
		ways[l.Between], ways[[2]heliotrope.SiteID{l.Between[1], l.Between[0]}] = w, w
	}
	sites := slices.Sorted(maps.Keys(t.Sites))
	for _, over := range sites { // Floyd and Warshall
		for _, a := range sites {
			for _, z := range sites {
				x, ok1 := ways[[2]heliotrope.SiteID{a, over}]
				y, ok2 := ways[[2]heliotrope.SiteID{over, z}]
				now, ok := ways[[2]heliotrope.SiteID{a, z}]
				if a != z && ok1 && ok2 && (!ok || x.delay+y.delay < now.delay) {
					ways[[2]heliotrope.SiteID{a, z}] = way{x.delay + y.delay, x.price + y.price}
				}
			}
		}
	}
	prices := make(map[[2]heliotrope.SiteID]float64, len(ways))
	for k, w := range ways {
		prices[k] = w.price
	}
	return prices
}

// notes say what the report does not know.
func (b *builder) notes() []string {
	var notes []string
	for _, h := range slices.Sorted(maps.Keys(b.Matrix.Missing)) {
		if share := b.Matrix.Missing[h]; share > 0 {
			notes = append(notes, fmt.Sprintf("%s did not count in %.0f %% of the window: what its VMs sent then is missing, or counted where it arrived", h, 100*share))
		}
	}
	for _, s := range b.Sources {
		if s.Sampling > 1 {
			notes = append(notes, fmt.Sprintf("%s looks at 1 of %d packets: its figures are estimates, the truth is between the bounds with 95 %% confidence", s.Host, s.Sampling))
		}
		if s.Crowded > 0 {
			notes = append(notes, fmt.Sprintf("%s had too many pairs: %d packets are counted with their neighbours", s.Host, s.Crowded))
		}
	}
	if b.Matrix.Shed > 0 {
		notes = append(notes, fmt.Sprintf("%d packets of the window were not looked at: the hosts' budget or rings were full", b.Matrix.Shed))
	}
	for _, id := range slices.Sorted(maps.Keys(b.Topology.Networks)) {
		if b.Topology.Networks[id].Capture == heliotrope.CaptureOff {
			notes = append(notes, fmt.Sprintf("network %s is not counted: capture is off", id))
		}
	}
	return notes
}
