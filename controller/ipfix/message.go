package ipfix

import (
	"encoding/binary"
	"net/netip"
	"time"

	"heliotrope"
)

// Numbers of RFC 7011.
const (
	protocolVersion = 10
	messageHeader   = 16
	setHeader       = 4
	templateSet     = 2
	optionsSet      = 3
	variable        = 0xffff // length of a field whose records say their own
)

// Information elements of IANA's registry "IPFIX Entities".
const (
	octetDeltaCount             = 1
	packetDeltaCount            = 2
	protocolIdentifier          = 4
	sourceTransportPort         = 7
	sourceIPv4Address           = 8
	sourceIPv4PrefixLength      = 9
	destinationTransportPort    = 11
	destinationIPv4Address      = 12
	destinationIPv4PrefixLength = 13
	sourceIPv6Address           = 27
	destinationIPv6Address      = 28
	sourceIPv6PrefixLength      = 29
	destinationIPv6PrefixLength = 30
	flowStartMilliseconds       = 152
	flowEndMilliseconds         = 153
	virtualStationName          = 350
)

// element is an information element and its length in a record.
type element struct{ id, length uint16 }

// template says what a kind of record consists of; the first scope elements of an options
// template are what its records are about.
type template struct {
	id       uint16
	scope    uint16
	elements []element
}

var (
	flow4 = template{256, 0, []element{
		{sourceIPv4Address, 4}, {destinationIPv4Address, 4}, {sourceIPv4PrefixLength, 1}, {destinationIPv4PrefixLength, 1},
		{protocolIdentifier, 1}, {sourceTransportPort, 2}, {destinationTransportPort, 2},
		{octetDeltaCount, 8}, {packetDeltaCount, 8}, {flowStartMilliseconds, 8}, {flowEndMilliseconds, 8}}}
	flow6 = template{257, 0, []element{
		{sourceIPv6Address, 16}, {destinationIPv6Address, 16}, {sourceIPv6PrefixLength, 1}, {destinationIPv6PrefixLength, 1},
		{protocolIdentifier, 1}, {sourceTransportPort, 2}, {destinationTransportPort, 2},
		{octetDeltaCount, 8}, {packetDeltaCount, 8}, {flowStartMilliseconds, 8}, {flowEndMilliseconds, 8}}}
	name4 = template{258, 1, []element{{sourceIPv4Address, 4}, {virtualStationName, variable}}}
	name6 = template{259, 1, []element{{sourceIPv6Address, 16}, {virtualStationName, variable}}}

	templates = []template{flow4, flow6, name4, name6}
)

// append writes the template as a set.
func (t template) append(b []byte) []byte {
	start := len(b)
	kind := uint16(templateSet)
	if t.scope > 0 {
		kind = optionsSet
	}
	b = binary.BigEndian.AppendUint16(b, kind)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, t.id)
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.elements)))
	if t.scope > 0 {
		b = binary.BigEndian.AppendUint16(b, t.scope)
	}
	for _, e := range t.elements {
		b = binary.BigEndian.AppendUint16(b, e.id)
		b = binary.BigEndian.AppendUint16(b, e.length)
	}
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	return b
}

// append writes the record after one of the flow templates.
func (r *Record) append(b []byte) []byte {
	b = append(b, r.Src.Addr().AsSlice()...)
	b = append(b, r.Dst.Addr().AsSlice()...)
	b = append(b, byte(r.Src.Bits()), byte(r.Dst.Bits()), r.Service.Protocol)
	from, to := uint16(0), r.Service.Port
	if r.Reply {
		from, to = to, from
	}
	b = binary.BigEndian.AppendUint16(b, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint64(b, r.Bytes)
	b = binary.BigEndian.AppendUint64(b, r.Packets)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Start.UnixMilli()))
	return binary.BigEndian.AppendUint64(b, uint64(r.End.UnixMilli()))
}

// appendName writes which VM has an address, after one of the name templates. A VM's name
// is shorter than 255 bytes.
func appendName(b []byte, a netip.Addr, id heliotrope.VMID) []byte {
	b = append(b, a.AsSlice()...)
	b = append(b, byte(len(id)))
	return append(b, id...)
}

// messages packs sets and records into messages of limited size.
type messages struct {
	limit    int
	domain   uint32
	sequence uint32 // data records before this message
	at       time.Time
	done     [][]byte
	counts   []uint32 // data records of each that is done

	now     []byte
	records uint32 // in it
	set     int    // where the open set begins; 0: none is open
	setID   uint16
}

// sets adds a set that is whole, such as a template.
func (m *messages) sets(set []byte) {
	m.room(len(set))
	m.closeSet()
	m.now = append(m.now, set...)
}

// data adds a record of a template.
func (m *messages) data(id uint16, record []byte) {
	m.room(len(record) + setHeader)
	if m.set == 0 || m.setID != id {
		m.closeSet()
		m.set, m.setID = len(m.now), id
		m.now = binary.BigEndian.AppendUint16(m.now, id)
		m.now = append(m.now, 0, 0)
	}
	m.now = append(m.now, record...)
	m.records++
}

// room begins a new message where the present one cannot take n bytes more.
func (m *messages) room(n int) {
	if len(m.now)+n > m.limit {
		m.flush()
	}
	if len(m.now) == 0 {
		m.now = make([]byte, messageHeader, m.limit)
	}
}

func (m *messages) closeSet() {
	if m.set > 0 {
		binary.BigEndian.PutUint16(m.now[m.set+2:], uint16(len(m.now)-m.set))
		m.set = 0
	}
}

// flush ends the present message: RFC 7011 §3.1.
func (m *messages) flush() {
	if len(m.now) <= messageHeader {
		return
	}
	m.closeSet()
	binary.BigEndian.PutUint16(m.now, protocolVersion)
	binary.BigEndian.PutUint16(m.now[2:], uint16(len(m.now)))
	binary.BigEndian.PutUint32(m.now[4:], uint32(m.at.Unix()))
	binary.BigEndian.PutUint32(m.now[8:], m.sequence)
	binary.BigEndian.PutUint32(m.now[12:], m.domain)
	m.done, m.counts = append(m.done, m.now), append(m.counts, m.records)
	m.sequence += m.records
	m.now, m.records = nil, 0
}
