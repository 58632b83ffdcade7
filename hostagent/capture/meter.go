package capture

import (
	"heliotrope/scheduler/traffic"
)

const (
	defaultKeys = 20_000
	openTallies = 8 // seconds of packets that a stalled reader finds and that are told apart
)

// meter makes bins of packets. It does no I/O and has no clock.
type meter struct {
	book  *book
	most  int // keys of a bin
	conns *connections

	tallies []*tally // open, by second, without a gap
	free    []*tally
	number  uint32
}

// port is a VM's, that packets pass.
type port struct {
	traffic.Port
	number uint32
}

func newMeter() *meter { return &meter{conns: newConnections(), book: newBook(traffic.Orders{})} }

// order takes another book. The places that connections remember are forgotten.
func (m *meter) order(o traffic.Orders) {
	m.book, m.most = newBook(o), o.MaxKeys
	if m.most == 0 {
		m.most = defaultKeys
	}
	for _, t := range m.tallies {
		m.number++
		t.number, t.most = m.number, max(m.most, 16)
	}
}

// begin opens the bin of a second, and forgets the ones that are open.
func (m *meter) begin(second int64) {
	m.free = append(m.free, m.tallies...)
	m.tallies = m.tallies[:0]
	m.open(second)
}

func (m *meter) open(second int64) {
	t := &tally{}
	if n := len(m.free); n > 0 {
		t, m.free = m.free[n-1], m.free[:n-1]
	}
	m.number++
	t.reset(m.number, second, m.most)
	m.tallies = append(m.tallies, t)
}

// at is the open tally of a time; a time before or far after them belongs to the nearest.
func (m *meter) at(nanos int64) *tally {
	i := max(int(nanos/1e9-m.tallies[0].second), 0)
	for i >= len(m.tallies) && len(m.tallies) < openTallies {
		m.open(m.tallies[len(m.tallies)-1].second + 1)
	}
	return m.tallies[min(i, len(m.tallies)-1)]
}

// end closes the oldest tally and makes a bin of it; the tally is good until the next begin
// or open.
func (m *meter) end() (*tally, traffic.Bin) {
	t := m.tallies[0]
	if len(m.tallies) == 1 {
		m.open(t.second + 1)
	}
	m.tallies = append(m.tallies[:0], m.tallies[1:]...)
	m.free = append(m.free, t)
	return t, t.bin()
}

// connection finds the connection of a packet and the packet's direction's place.
func (m *meter) connection(t *tally, p *port, h *header, direction int, at int64) *connection {
	f := flow{port: p.number, protocol: h.protocol, local: h.src, remote: h.dst, localPort: h.srcPort, remotePort: h.dstPort}
	if direction == toVM {
		f.local, f.remote, f.localPort, f.remotePort = f.remote, f.local, f.remotePort, f.localPort
	}
	c := m.conns.find(&f)
	c.note(h, at)
	if c.tally != t.number {
		c.tally, c.places = t.number, [2]place{}
	}
	return c
}

// place is where t counts what c sends in a direction.
func (m *meter) place(t *tally, p *port, c *connection, direction int) place {
	if c.places[direction] == unknown {
		c.places[direction] = nowhere
		if key, ok := m.key(p, c, direction); ok {
			c.places[direction] = t.find(key)
		}
	}
	return c.places[direction]
}

// key is what packets of c are counted by, and whether they are to be counted at p.
func (m *meter) key(p *port, c *connection, direction int) (traffic.Key, bool) {
	us, remote := traffic.VM(p.VM), m.book.who(p.Domain, c.remote)
	if remote.off {
		return traffic.Key{}, false
	}
	if direction == fromVM {
		s, reply := service(c.protocol, c.localPort, c.remotePort, c.server)
		return traffic.Key{Src: us, Dst: remote.end, Service: s, Reply: reply}, true
	}
	if remote.counted {
		return traffic.Key{}, false // where it is sent
	}
	if local := m.book.who(p.Domain, c.local).end; local.IsVM() && local != us {
		return traffic.Key{}, false // flooded: it is for another VM, and counted there
	}
	s, reply := service(c.protocol, c.remotePort, c.localPort, c.server)
	return traffic.Key{Src: remote.end, Dst: us, Service: s, Reply: reply}, true
}

// packet counts one that was looked at, and stands for weight ones.
func (m *meter) packet(p *port, h *header, direction int, at int64, weight uint32) {
	t := m.at(at)
	t.looked++
	t.passed += uint64(weight)
	t.sampling = max(t.sampling, weight)
	c := m.connection(t, p, h, direction, at)
	where := m.place(t, p, c, direction)
	t.add(where, h.length, weight, at)
	m.begun(t, c, direction, where)
	if weight == 1 && h.protocol == traffic.TCP { // an answer may not be among the sampled
		m.roundTrip(t, p, c, h, direction, at)
	}
}

// many counts what the kernel has of one flow and direction in a second, of each weight
// packets one.
func (m *meter) many(p *port, h *header, direction int, at int64, n kernelValue, weight uint32) {
	t := m.at(at)
	t.passed += uint64(weight) * n.Packets
	t.sampling = max(t.sampling, weight)
	c := m.connection(t, p, h, direction, at)
	where := m.place(t, p, c, direction)
	t.addMany(where, n, weight)
	m.begun(t, c, direction, where)
}

// handshake takes in a SYN or SYN-ACK that the kernel counts for weight packets. The ACK
// after it is not seen, so a SYN-ACK has no round trip.
func (m *meter) handshake(p *port, h *header, direction int, at int64, weight uint32) {
	t := m.at(at)
	t.looked++
	c := m.connection(t, p, h, direction, at)
	if weight == 1 && (direction == toVM || h.flags&ack == 0) { // an answer may not be among the sampled
		m.roundTrip(t, p, c, h, direction, at)
	}
}

func (m *meter) begun(t *tally, c *connection, direction int, where place) {
	if c.begun[direction] {
		return
	}
	c.begun[direction] = true
	if where != nowhere {
		t.cells[where.cell()].Flows++
	}
}

func (m *meter) roundTrip(t *tally, p *port, c *connection, h *header, direction int, at int64) {
	if rtt, ok := c.roundTrip(h, direction, at); ok {
		t.addRoundTrip(m.place(t, p, c, fromVM), rtt)
	}
}
