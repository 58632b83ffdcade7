package collector

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/flows"
	"heliotrope/flows/openflow"
	"heliotrope/scheduler/traffic"
)

const (
	// frameHeader is what a frame's bytes have beyond its IP packet's: VMs send no VLAN tags.
	frameHeader = 14

	// longestGap is the time between two readings that is still told as what happened in it.
	longestGap = time.Minute
)

// switchReader reads what a switch has counted: openflow.Conn.
type switchReader interface {
	ReadCounters(context.Context) ([]openflow.Reading, error)
}

// names tells which VM has an address of a domain; public addresses are in domain 0.
type names func(domain uint32, a netip.Addr) (heliotrope.VMID, bool)

// namesOf are the names that t gives.
func namesOf(t heliotrope.Topology) names {
	type place struct {
		domain  uint32
		address netip.Addr
	}
	all := make(map[place]heliotrope.VMID)
	for _, n := range (flows.View{Topology: t}).NICs() {
		all[place{n.Domain, n.Address}] = n.VM
		if n.Public.IsValid() {
			all[place{0, n.Public}] = n.VM
		}
	}
	return func(domain uint32, a netip.Addr) (heliotrope.VMID, bool) {
		vm, ok := all[place{domain, a}]
		return vm, ok
	}
}

// key is what a counter's packets are counted by. A switch's counters know of no services.
func (f names) key(c flows.Counter) traffic.Key {
	end := func(p netip.Prefix) traffic.End {
		if p.IsSingleIP() {
			if vm, ok := f(c.Domain, p.Addr()); ok {
				return traffic.VM(vm)
			}
		}
		return traffic.Outside(p)
	}
	return traffic.Key{Src: end(c.Src), Dst: end(c.Dst)}
}

// ServeSwitch takes in what the flows of h's switch count (flows.View.Counters), until ctx
// ends. What is counted from the end of one call to the beginning of the next is lost.
func (c *Collector) ServeSwitch(ctx context.Context, h heliotrope.HostID, reader switchReader) error {
	var who names
	var stale atomic.Bool
	stale.Store(true)
	s := counters{meter: meter{host: h, boot: c.now().UTC().Format(time.RFC3339Nano)}, reader: reader, put: c.Take, log: c.log,
		wanted: func() bool { return traffic.Source(c.world.Fabric().Topology.Capture.Source) == traffic.SourceCounters },
		names: func() names {
			if stale.Swap(false) {
				who = namesOf(c.world.Fabric().Topology)
			}
			return who
		}}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.world.Follow(ctx, h, func() { stale.Store(true) }) })
	g.Go(func() error { return s.Run(ctx) })
	return g.Wait()
}

// counters makes bins of what the flows of one host's switch have counted, one a second.
type counters struct {
	meter  meter
	reader switchReader
	wanted func() bool  // whether the switch is to count now
	names  func() names // those of now
	put    func(traffic.Bin)
	log    *slog.Logger
}

// Run reads at the turn of every second until ctx ends. While the switch cannot be read it
// goes on trying; what was counted meanwhile is told afterwards.
func (c *counters) Run(ctx context.Context) error {
	failing := false
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Until(time.Now().Truncate(traffic.BinLength).Add(traffic.BinLength))):
		}
		if !c.wanted() {
			continue
		}
		asked := time.Now()
		readings, err := c.reader.ReadCounters(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && !failing {
			c.log.Warn("switch does not tell its counters", "host", c.meter.host, "err", err)
		}
		if failing = err != nil; failing {
			continue
		}
		for _, bin := range c.meter.read(asked, time.Now(), readings, c.names()) {
			c.put(bin)
		}
	}
}

// meter turns the readings of one switch into bins. The first one is where it begins: what
// was counted before is not told.
type meter struct {
	host     heliotrope.HostID
	boot     string // of the bins, which are numbered from 1 on
	seq      uint64
	at       time.Time // of the reading before, to the second; zero: there was none
	answered time.Time // when it was there
	seen     map[flows.Counter]openflow.Reading
}

// read returns the bins of the seconds since the reading before, none if that was in this
// second. Where they are several, each gets an equal share. The switch was asked and has
// answered at these times.
func (m *meter) read(asked, answered time.Time, readings []openflow.Reading, who names) []traffic.Bin {
	at := asked.Round(traffic.BinLength)
	gap := at.Sub(m.at)
	if gap == 0 || gap == -traffic.BinLength {
		return nil
	}
	apart := asked.Sub(m.answered)
	apart -= apart/1000 + 2*time.Millisecond // clocks differ, and ages are told to the millisecond
	from, before := m.at, m.seen
	if gap < 0 || gap > longestGap { // also the first: the zero time is long ago
		before = nil
	}
	m.at, m.answered, m.seen = at, answered, make(map[flows.Counter]openflow.Reading, len(readings))
	var ports int
	var grown []openflow.Reading
	for _, r := range readings {
		m.seen[r.Counter] = r
		if r.Dst.Bits() == 0 {
			ports++ // each has one of these
		}
		if d := since(before[r.Counter], r, apart); d.Packets > 0 {
			grown = append(grown, d)
		}
	}
	if before == nil {
		return nil
	}
	bins := make([]traffic.Bin, gap/traffic.BinLength)
	for i := range bins {
		m.seq++
		bins[i] = traffic.Bin{Host: m.host, Boot: m.boot, Seq: m.seq, Start: from.Add(time.Duration(i) * traffic.BinLength),
			Source: traffic.SourceCounters, Sampling: 1, Ports: ports}
		fill(&bins[i], grown, uint64(i), uint64(len(bins)), who)
	}
	return bins
}

// since is what was counted between two readings that were at least so far apart. A flow
// whose counts have shrunk, or that is younger than it was or than that, was made in
// between, and its counts began at zero.
func since(before, now openflow.Reading, apart time.Duration) openflow.Reading {
	if now.Packets < before.Packets || now.Bytes < before.Bytes || now.Age < before.Age || now.Age < apart {
		return now
	}
	now.Packets -= before.Packets
	now.Bytes -= before.Bytes
	return now
}

// fill adds the i-th of n shares of what was counted to the bin.
func fill(bin *traffic.Bin, grown []openflow.Reading, i, n uint64, who names) {
	share := func(total uint64) uint64 { return nths(total, i+1, n) - nths(total, i, n) }
	index := make(map[traffic.Key]int, len(grown)) // a VM may have several addresses
	for _, d := range grown {
		packets, bytes := share(d.Packets), share(d.Bytes-min(d.Bytes, frameHeader*d.Packets))
		if packets == 0 && bytes == 0 {
			continue
		}
		key := who.key(d.Counter)
		at, ok := index[key]
		if !ok {
			at, index[key] = len(bin.Counts), len(bin.Counts)
			bin.Counts = append(bin.Counts, traffic.Count{Key: key})
		}
		bin.Counts[at].Packets += packets
		bin.Counts[at].Bytes += bytes
		if !d.Dst.IsSingleIP() && d.Dst.Bits() > 0 {
			bin.Crowded += packets // a network as a whole
		}
	}
}

// nths is i n-ths of total, without the overflow that total*i may have.
func nths(total, i, n uint64) uint64 { return total/n*i + total%n*i/n }
