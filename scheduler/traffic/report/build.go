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
	b := builder{Input: in, numbers: make(map[traffic.End]int), seconds: max(in.Matrix.To.Sub(in.Matrix.From).Seconds(), 1e-9)}
	b.count()
	r := Report{
		At: in.Now, From: in.Matrix.From, To: in.Matrix.To, Topology: in.Topology.Name,
		Pairs: []Pair{}, Groups: in.Groups, Events: in.Events, Savings: in.Savings, Sources: in.Sources, History: in.History,
	}
	// The largest, in the cells' order where they are alike: of very many, few are told.
	order := make([]int, len(in.Matrix.Cells))
	for i, c := range in.Matrix.Cells {
		order[i] = i
		r.Total.BytesPerSecond += c.Bytes / b.seconds
		r.Total.PacketsPerSecond += c.Packets / b.seconds
		r.Total.FlowsPerSecond += c.Flows / b.seconds
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(in.Matrix.Cells[j].Bytes, in.Matrix.Cells[i].Bytes) })
	for _, i := range first(order, top) {
		r.Pairs = append(r.Pairs, b.pair(in.Matrix.Cells[i]))
	}
	r.Total.Pairs = len(in.Matrix.Cells)
	r.Sites = b.sites()
	r.Talkers = b.talkers(&r.Total)
	r.Services = b.services()
	r.Notes = b.notes()
	r.Talkers, r.Services = first(r.Talkers, top), first(r.Services, top)
	return r
}

func first[T any](all []T, n int) []T { return all[:min(n, len(all))] }

// builder has a number for each end, so that the cells' names are looked at once.
type builder struct {
	Input
	numbers map[traffic.End]int
	ends    []Talker
	cells   [][2]int // of each cell, the numbers of its ends
	seconds float64
}

// count numbers the ends and sums what each sends and gets.
func (b *builder) count() {
	b.cells = make([][2]int, len(b.Matrix.Cells))
	for i := range b.Matrix.Cells {
		c := &b.Matrix.Cells[i]
		src, dst := b.number(c.Src), b.number(c.Dst)
		b.cells[i] = [2]int{src, dst}
		b.ends[src].Sent += c.Bytes / b.seconds
		b.ends[dst].Got += c.Bytes / b.seconds
	}
	others := make(map[[2]int]bool, len(b.cells))
	for _, c := range b.cells {
		if pair := [2]int{min(c[0], c[1]), max(c[0], c[1])}; !others[pair] {
			others[pair] = true
			b.ends[pair[0]].Ends++
			if pair[0] != pair[1] {
				b.ends[pair[1]].Ends++
			}
		}
	}
}

func (b *builder) number(e traffic.End) int {
	n, ok := b.numbers[e]
	if !ok {
		n = len(b.ends)
		b.numbers[e] = n
		b.ends = append(b.ends, Talker{End: e, Site: b.site(e), Host: b.HostOf[e.VM]})
	}
	return n
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

// talkers are all ends, the largest first.
func (b *builder) talkers(total *Total) []Talker {
	for _, t := range b.ends {
		if t.End.IsVM() {
			total.VMs++
		} else {
			total.Outside++
		}
	}
	list := slices.Clone(b.ends)
	slices.SortFunc(list, func(t, u Talker) int {
		return cmp.Or(cmp.Compare(u.Sent+u.Got, t.Sent+t.Got), t.End.Compare(u.End))
	})
	return list
}

func (b *builder) services() []Service {
	type tally struct {
		rate    float64
		servers map[int]float64
		clients map[int]bool
	}
	tallies := map[traffic.Service]*tally{}
	for i := range b.Matrix.Cells {
		for _, s := range b.Matrix.Cells[i].Services {
			t := tallies[s.Service]
			if t == nil {
				t = &tally{servers: map[int]float64{}, clients: map[int]bool{}}
				tallies[s.Service] = t
			}
			client, server := b.cells[i][0], b.cells[i][1]
			if s.Reply {
				client, server = server, client
			}
			t.rate += s.Bytes / b.seconds
			t.servers[server] += s.Bytes
			t.clients[client] = true
		}
	}
	list := make([]Service, 0, len(tallies))
	for s, t := range tallies {
		svc := Service{Service: s, Rate: t.rate, Clients: len(t.clients)}
		if s.Port != 0 { // without a port nobody knows who answers
			order := slices.SortedFunc(maps.Keys(t.servers), func(x, y int) int {
				return cmp.Or(cmp.Compare(t.servers[y], t.servers[x]), b.ends[x].End.Compare(b.ends[y].End))
			})
			for _, n := range first(order, serversSaid) {
				svc.Servers = append(svc.Servers, b.ends[n].End)
			}
		}
		list = append(list, svc)
	}
	slices.SortFunc(list, func(s, t Service) int {
		return cmp.Or(cmp.Compare(t.Rate, s.Rate), cmp.Compare(s.Service.Protocol, t.Service.Protocol), cmp.Compare(s.Service.Port, t.Service.Port))
	})
	return list
}

// sites sums what goes between sites, at the price of the cheapest way over links.
func (b *builder) sites() []Site {
	rates := map[[2]heliotrope.SiteID]float64{}
	for i := range b.Matrix.Cells {
		from, to := b.ends[b.cells[i][0]].Site, b.ends[b.cells[i][1]].Site
		if from != "" && to != "" && from != to {
			rates[[2]heliotrope.SiteID{from, to}] += b.Matrix.Cells[i].Bytes / b.seconds
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

// Prices are those of the way between every two sites, in USD per 10^9 bytes.
func Prices(t heliotrope.Topology) map[[2]heliotrope.SiteID]float64 {
	ways := traffic.Ways(t)
	prices := make(map[[2]heliotrope.SiteID]float64, len(ways))
	for k, w := range ways {
		prices[k] = w.PricePerGB
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
