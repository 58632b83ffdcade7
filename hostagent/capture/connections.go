package capture

import (
	"hash/maphash"
	"math/rand/v2"
	"time"

	"heliotrope/scheduler/traffic"
)

const (
	connectionSets = 1 << 13
	connectionWays = 8
	datagramIdle   = 2 * time.Minute  // after which the same 5-tuple of UDP is another connection (RFC 4787, 4.3)
	handshakeLong  = 10 * time.Second // an answer after that is not to the first SYN
)

// flow is a 5-tuple at a port. The local side is the VM's.
type flow struct {
	local, remote         address
	port                  uint32 // number, from 1 on
	localPort, remotePort uint16
	protocol              uint8
}

// Directions of a packet.
const (
	fromVM = iota
	toVM
)

// connection is what is remembered of a flow. It has no pointers: the collector of
// garbage does not look at the table.
type connection struct {
	flow
	begun  [2]bool // packets were seen, by direction
	closed bool    // by FIN or RST
	server uint16  // port that a SYN was sent to; 0: none was seen
	seen   int64   // when the last packet was

	tally  uint32 // that places are of
	places [2]place

	// Of the VM's packets whose answer is awaited, and when they passed; 0: none.
	synAt, stampAt int64
	synAck         bool
	stamp          uint32
}

// connections are the latest, in sets within which a random one gives way: a table that
// strangers can fill keeps its size, and nobody can choose who is forgotten.
type connections struct {
	seed maphash.Seed
	rand *rand.Rand
	sets [][connectionWays]connection
}

func newConnections() *connections {
	return &connections{maphash.MakeSeed(), rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), make([][connectionWays]connection, connectionSets)}
}

// find returns the connection of f, a new one if it is not known.
func (t *connections) find(f *flow) *connection {
	set := &t.sets[maphash.Comparable(t.seed, *f)%connectionSets]
	free := -1
	for i := range set {
		if set[i].flow == *f {
			return &set[i]
		}
		if set[i].port == 0 && free < 0 {
			free = i
		}
	}
	if free < 0 {
		free = t.rand.IntN(connectionWays)
	}
	set[free] = connection{flow: *f}
	return &set[free]
}

// note takes in that a packet passed at a time.
func (c *connection) note(h *header, at int64) {
	switch {
	case h.protocol != traffic.TCP:
		if at-c.seen > int64(datagramIdle) {
			c.begun = [2]bool{}
		}
	case h.flags&(syn|ack) == syn && c.closed:
		*c = connection{flow: c.flow}
	case h.flags&(fin|rst) != 0:
		c.closed = true
	}
	c.seen = at
	if h.flags&syn == 0 {
		return
	}
	server := h.dstPort
	if h.flags&ack != 0 {
		server = h.srcPort
	}
	if c.server != server {
		c.server, c.places = server, [2]place{}
	}
}

// roundTrip is the time from a packet of the VM to this answer to it: of SYN to SYN-ACK,
// SYN-ACK to ACK, and of a TCP timestamp to its echo, as Kathleen Nichols' pping does.
// Only timestamps of packets that carry something count: others are answered when the
// other side has something to say.
func (c *connection) roundTrip(h *header, direction int, at int64) (rtt time.Duration, ok bool) {
	if direction == fromVM {
		c.await(h, at)
		return 0, false
	}
	if h.flags&ack == 0 {
		return 0, false
	}
	if c.synAt != 0 && c.synAck == (h.flags&syn == 0) {
		rtt, ok = time.Duration(at-c.synAt), c.synAt > 0 && at-c.synAt < int64(handshakeLong)
		c.synAt = 0
	}
	if h.stamped && c.stampAt != 0 {
		if later := int32(h.tsEcr - c.stamp); later >= 0 {
			if later == 0 {
				rtt, ok = time.Duration(at-c.stampAt), true
			}
			c.stampAt = 0
		}
	}
	return rtt, ok && rtt > 0
}

func (c *connection) await(h *header, at int64) {
	if h.flags&syn != 0 {
		if c.synAt != 0 {
			c.synAt = -1 // sent again: nobody knows which one is answered (Karn)
			return
		}
		c.synAt, c.synAck = at, h.flags&ack != 0
	}
	if h.stamped && h.carries && c.stampAt == 0 {
		c.stamp, c.stampAt = h.tsVal, at
	}
}
