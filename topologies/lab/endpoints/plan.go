package endpoints

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/pattern"
	"heliotrope/scheduler/traffic/synth"
)

// Plan says who sends what to whom, and for how long.
type Plan struct {
	For   time.Duration
	Talks []Talk
}

// Talk is one conversation: From connects to Service at To and sends, To answers. Rates are
// of the payload.
type Talk struct {
	From    heliotrope.VMID
	To      heliotrope.VMID
	Service traffic.Service    // over TCP or UDP
	Rate    heliotrope.BitRate // From to To
	Back    heliotrope.BitRate // To to From, acknowledgements not counted
	Size    int                // payload of a UDP datagram; zero: 1,000 bytes
}

// Bounds of a plan: a test's machine has other things to do.
const (
	maxFor   = 10 * time.Minute
	maxRate  = heliotrope.BitRate(2e9) // of all talks together
	maxTalks = 8192

	defaultSize = 1000
	maxSize     = 1372 // the datagram fits a network of 1,420 bytes, IPv6 included
)

func (p Plan) check(places []Place) error {
	if p.For <= 0 || p.For > maxFor || len(p.Talks) == 0 || len(p.Talks) > maxTalks {
		return fmt.Errorf("check plan: want 1 to %d talks for at most %v, got %d for %v", maxTalks, maxFor, len(p.Talks), p.For)
	}
	var sum heliotrope.BitRate
	for _, t := range p.Talks {
		known := func(vm heliotrope.VMID) bool {
			return slices.ContainsFunc(places, func(at Place) bool { return at.VM == vm })
		}
		switch {
		case !known(t.From) || !known(t.To) || t.From == t.To:
			return fmt.Errorf("check plan: %s to %s: want two different VMs with endpoints", t.From, t.To)
		case t.Service.Protocol != traffic.TCP && t.Service.Protocol != traffic.UDP || t.Service.Port == 0:
			return fmt.Errorf("check plan: %s to %s over %v: want a port of TCP or UDP", t.From, t.To, t.Service)
		case t.Size < 0 || t.Size > maxSize:
			return fmt.Errorf("check plan: %s to %s: want datagrams of at most %d bytes", t.From, t.To, maxSize)
		}
		sum += t.Rate + t.Back
	}
	if sum > maxRate {
		return fmt.Errorf("check plan: all talks together have %v, at most %v is allowed", sum, maxRate)
	}
	return nil
}

// services are those that a VM has to offer.
func (p Plan) services(vm heliotrope.VMID) []traffic.Service {
	var all []traffic.Service
	for _, t := range p.Talks {
		if t.To == vm && !slices.Contains(all, t.Service) {
			all = append(all, t.Service)
		}
	}
	return all
}

// talks are those that a VM begins.
func (p Plan) talks(vm heliotrope.VMID, places []Place) []talk {
	var all []talk
	for _, t := range p.Talks {
		if t.From != vm {
			continue
		}
		i := slices.IndexFunc(places, func(at Place) bool { return at.VM == t.To })
		all = append(all, talk{Peer: t.To, Address: places[i].Address, Service: t.Service,
			Rate: float64(t.Rate) / 8, Back: float64(t.Back) / 8, Size: t.Size})
	}
	return all
}

// Pattern says which pattern VMs are to talk in.
type Pattern struct {
	Kind  pattern.Kind
	VMs   []heliotrope.VMID  // members in the pattern's order; those beyond its size only make noise
	Size  int                // about how many members; zero: all
	Rate  heliotrope.BitRate // mean of all edges, each of which has one direction
	Skew  float64            // σ of the log-normal factor between edges
	Noise float64            // background between random pairs, as a share of the pattern's bytes
	UDP   float64            // share of the talks that are over UDP
	For   time.Duration
	Seed  uint64
}

// Plan returns the plan of a pattern and the members' VMs in the pattern's own order.
// Where the pattern has no graph of that size it takes another (synth.Make).
func (p Pattern) Plan() (Plan, []heliotrope.VMID, error) {
	size := p.Size
	if size == 0 {
		size = len(p.VMs)
	}
	if size < 2 || p.Rate <= 0 {
		return Plan{}, nil, fmt.Errorf("plan pattern %s: want two VMs or more, and a rate", p.Kind)
	}
	r := rand.New(rand.NewPCG(p.Seed, 0x7461))
	app, edges := synth.Make(p.Kind, size, p.Skew, r)
	if len(app.Members) > len(p.VMs) {
		return Plan{}, nil, fmt.Errorf("plan pattern %s: it needs %d VMs here, there are %d", p.Kind, len(app.Members), len(p.VMs))
	}
	plan := Plan{For: p.For, Talks: p.talks(edges, r)}
	plan.Talks = append(plan.Talks, p.noise(plan.Talks, r)...)
	return plan, p.VMs[:len(app.Members)], nil
}

// ackSize is above the mean size of packets that only acknowledge; TCP sends those by itself.
const ackSize = 64

// talks joins the two edges between each pair to one talk, begun by the side that asks.
func (p Pattern) talks(edges []pattern.Edge, r *rand.Rand) []Talk {
	var sum float64
	count := 0
	for _, e := range edges {
		if !acknowledges(e) {
			sum, count = sum+e.Bytes, count+1
		}
	}
	scale := float64(p.Rate) / (sum / float64(max(count, 1)))
	var all []Talk
	for _, e := range edges {
		if e.Reply {
			continue
		}
		t := Talk{From: p.VMs[e.From], To: p.VMs[e.To], Service: e.Service, Rate: heliotrope.BitRate(e.Bytes * scale)}
		if i := slices.IndexFunc(edges, func(b pattern.Edge) bool { return b.Reply && b.From == e.To && b.To == e.From }); i >= 0 && !acknowledges(edges[i]) {
			t.Back = heliotrope.BitRate(edges[i].Bytes * scale)
		}
		if r.Float64() < p.UDP {
			t.Service.Protocol = traffic.UDP
		}
		all = append(all, t)
	}
	return all
}

func acknowledges(e pattern.Edge) bool { return e.Packets > 0 && e.Bytes/e.Packets <= ackSize }

const noiseRate = 0.02 // of one pair's background, as a share of the pattern's mean rate

// noise is short datagrams between pairs that have nothing else to say.
func (p Pattern) noise(talks []Talk, r *rand.Rand) []Talk {
	var left float64
	for _, t := range talks {
		left += p.Noise * float64(t.Rate+t.Back)
	}
	taken := make(map[[2]heliotrope.VMID]bool)
	for _, t := range talks {
		taken[[2]heliotrope.VMID{t.From, t.To}], taken[[2]heliotrope.VMID{t.To, t.From}] = true, true
	}
	var all []Talk
	for range 4 * len(p.VMs) * len(p.VMs) { // pairs are drawn; some are taken
		if left <= 0 {
			break
		}
		a, b := p.VMs[r.IntN(len(p.VMs))], p.VMs[r.IntN(len(p.VMs))]
		if a == b || taken[[2]heliotrope.VMID{a, b}] {
			continue
		}
		taken[[2]heliotrope.VMID{a, b}], taken[[2]heliotrope.VMID{b, a}] = true, true
		rate := min(left, float64(p.Rate)*noiseRate*(0.5+r.Float64()))
		left -= rate
		all = append(all, Talk{From: a, To: b, Rate: heliotrope.BitRate(rate), Size: 64 + r.IntN(256),
			Service: traffic.Service{Protocol: traffic.UDP, Port: uint16(20_000 + r.IntN(8))}})
	}
	return all
}
