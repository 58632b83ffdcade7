// Package ipfix tells who talks to whom to a collector of the engineer's, by IPFIX
// (RFC 7011) over UDP or TCP: one flow record a second for each pair of ends, service and
// direction.
//
// The octets and packets of a record are estimates of the truth where a host samples; they
// are scaled up already, and no sampling interval is told, or a collector would scale them
// again. Octets are IP octets. The side that answers has the service's port, the other has
// port 0: a record is of all conversations of a pair. An end outside is a prefix: its
// network address and the prefix's length. Which VM has an address is told in options
// records, with the address as the scope, where that is wanted.
//
// The encoder is our own: VMware's go-ipfix sends refreshed templates from a goroutine of
// its own, unsynchronised with the sequence number, and logs by klog.
package ipfix

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/scheduler/traffic"
)

// Record is what went from Src to Dst in a time.
type Record struct {
	Src, Dst       netip.Prefix // whole addresses of VMs, networks of what is outside
	SrcVM, DstVM   heliotrope.VMID
	Service        traffic.Service
	Reply          bool // Src is the side that answers
	Bytes, Packets uint64
	Start, End     time.Time
}

// Options of an exporter; zero values are defaults.
type Options struct {
	Domain    uint32        // observation domain ID
	Templates time.Duration // between two times that templates and names are sent over UDP; 0: a minute
	Payload   int           // bytes of a message; 0: 1400 over UDP, 16 KiB over TCP
	Names     bool          // tell which VM has an address; nfdump sees gaps in the sequence numbers then, as it does not count options records
	Log       *slog.Logger

	// Address is a VM's address of a family; Take needs it.
	Address func(id heliotrope.VMID, six bool) (netip.Addr, bool)
}

const (
	leastPayload = 512 // any record fits
	dialWait     = 5 * time.Second
	writeWait    = 5 * time.Second
	queued       = 1024 // bins
)

// Exporter sends to one collector. Make it with Dial. It connects again where a connection
// fails.
type Exporter struct {
	network, address string
	Options
	now   func() time.Time
	queue chan traffic.Bin

	mu       sync.Mutex
	conn     net.Conn // nil: connect
	sequence uint32
	told     time.Time // when templates were sent
	names    map[netip.Addr]heliotrope.VMID
	fresh    map[netip.Addr]heliotrope.VMID // not told yet
	dropped  uint64
}

// Dial connects to a collector: host:port for UDP, or udp://host:port, or tcp://host:port.
func Dial(ctx context.Context, addr string, o Options) (*Exporter, error) {
	network, address, ok := strings.Cut(addr, "://")
	if !ok {
		network, address = "udp", addr
	}
	if network != "udp" && network != "tcp" {
		return nil, fmt.Errorf("collector %s: neither udp nor tcp", addr)
	}
	if o.Templates == 0 {
		o.Templates = time.Minute
	}
	if o.Payload == 0 {
		o.Payload = map[string]int{"udp": 1400, "tcp": 16 << 10}[network]
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Payload < leastPayload || o.Payload > 0xffff {
		return nil, fmt.Errorf("collector %s: messages of %d bytes", addr, o.Payload)
	}
	e := &Exporter{network: network, address: address, Options: o, now: time.Now, queue: make(chan traffic.Bin, queued),
		names: map[netip.Addr]heliotrope.VMID{}, fresh: map[netip.Addr]heliotrope.VMID{}}
	return e, e.connect(ctx)
}

// connect begins a new session: RFC 7011 §8 has templates and sequence numbers begin anew.
func (e *Exporter) connect(ctx context.Context) error {
	if e.conn != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, e.network, e.address)
	if err != nil {
		return fmt.Errorf("dial collector: %w", err)
	}
	e.conn, e.sequence, e.told = conn, 0, time.Time{}
	return nil
}

// Export sends records. Over UDP a collector that is not there is an error of a later call.
func (e *Exporter) Export(ctx context.Context, records []Record) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.connect(ctx); err != nil {
		return err
	}
	m := e.encode(records)
	stop := context.AfterFunc(ctx, func() { _ = e.conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := e.conn.SetWriteDeadline(time.Now().Add(writeWait)); err != nil {
		return fmt.Errorf("send records: %w", err)
	}
	for i, data := range m.done {
		if _, err := e.conn.Write(data); err != nil {
			// A stream is broken in the midst of a message; the next is of a new session.
			e.conn.Close()
			e.conn = nil
			return fmt.Errorf("send records: %w", err)
		}
		e.sequence += m.counts[i]
	}
	return nil
}

// encode makes messages of what is due: templates, names, records.
func (e *Exporter) encode(records []Record) *messages {
	m := &messages{limit: e.Payload, domain: e.Domain, sequence: e.sequence, at: e.now()}
	for i := range records {
		e.learn(records[i].Src, records[i].SrcVM)
		e.learn(records[i].Dst, records[i].DstVM)
	}
	names := e.fresh
	if e.told.IsZero() || e.network == "udp" && m.at.Sub(e.told) >= e.Templates {
		for _, t := range templates {
			m.sets(t.append(nil))
		}
		e.told, names = m.at, e.names
	}
	for a, id := range names {
		t := name4
		if a.Is6() {
			t = name6
		}
		m.data(t.id, appendName(nil, a, id))
	}
	e.fresh = map[netip.Addr]heliotrope.VMID{}
	for i := range records {
		r := &records[i]
		if r.Src.Addr().BitLen() != r.Dst.Addr().BitLen() || !r.Src.IsValid() {
			e.dropped++ // no packet has addresses of two families
			continue
		}
		t := flow4
		if r.Src.Addr().Is6() {
			t = flow6
		}
		m.data(t.id, r.append(nil))
	}
	m.flush()
	return m
}

func (e *Exporter) learn(p netip.Prefix, id heliotrope.VMID) {
	if a := p.Addr(); e.Names && id != "" && len(id) < 255 && e.names[a] != id {
		e.names[a], e.fresh[a] = id, id
	}
}

// Take queues a bin for Run. It never waits: where the collector cannot follow, bins are
// dropped and counted.
func (e *Exporter) Take(b traffic.Bin) {
	select {
	case e.queue <- b:
	default:
		e.mu.Lock()
		e.dropped += uint64(len(b.Counts))
		e.mu.Unlock()
	}
}

// Dropped is how many records were not sent.
func (e *Exporter) Dropped() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.dropped
}

// Run sends the bins that Take took until ctx ends.
func (e *Exporter) Run(ctx context.Context) error {
	for {
		select {
		case b := <-e.queue:
			records := e.records(b)
			if err := e.Export(ctx, records); err != nil && ctx.Err() == nil {
				e.Log.Warn("export flows", "collector", e.address, "error", err)
				e.mu.Lock()
				e.dropped += uint64(len(records))
				e.mu.Unlock()
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// records are those of a bin's counts whose VMs have addresses of one family.
func (e *Exporter) records(b traffic.Bin) []Record {
	list := make([]Record, 0, len(b.Counts))
	for _, c := range b.Counts {
		for _, six := range []bool{false, true} {
			src, ok1 := e.prefix(c.Src, six)
			dst, ok2 := e.prefix(c.Dst, six)
			if ok1 && ok2 {
				list = append(list, Record{Src: src, Dst: dst, SrcVM: c.Src.VM, DstVM: c.Dst.VM, Service: c.Service, Reply: c.Reply,
					Bytes: c.Bytes, Packets: c.Packets, Start: b.Start, End: b.Start.Add(traffic.BinLength - time.Millisecond)})
				break
			}
		}
	}
	return list
}

func (e *Exporter) prefix(end traffic.End, six bool) (netip.Prefix, bool) {
	if !end.IsVM() {
		return end.Prefix, end.Prefix.Addr().Is6() == six
	}
	a, ok := e.Address(end.VM, six)
	if !ok {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, a.BitLen()), true
}

// Close ends the session.
func (e *Exporter) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == nil {
		return nil
	}
	return e.conn.Close()
}
