// Package share lets memory streams that leave a host for another at the same time send a page once, as
// Shrinker does for virtual clusters (Riteau et al., Euro-Par 2011): VMs of one image have most of
// it in common. Both ends number the pages that a stream carries itself; another stream names one
// by that number, and the destination gives it out from there.
//
// VMs that begin together come by the same pages at the same time, so a stream refers to what
// another has encoded but not sent yet, and its batch then waits for that at the destination. So
// that no two wait for each other, which would hold up both, a stream does not refer to what is
// unsent of one that waits for it. What does not come, because a stream broke off or the
// destination had no room for it, is asked for.
//
// Pages are told apart by 128 bits of XXH3, with a seed that no guest knows. Should two be taken
// for one, a move ends: the stream's own hash says so before the guest is given anything.
package share

import (
	"heliotrope"
	"heliotrope/migration/wan"
	"math/rand/v2"
	"net/netip"
	"sync"
)

// Share knows the streams that a host sends and gets.
type Share struct {
	seed    uint64
	tenant  heliotrope.TenantID
	mu      sync.Mutex
	out     map[group]*Group
	in      map[heliotrope.HostID]*incoming
	tenants map[heliotrope.TenantID]*Share
}

// New returns one without any.
func New() *Share {
	return &Share{seed: rand.Uint64(), out: map[group]*Group{}, in: map[heliotrope.HostID]*incoming{}, tenants: map[heliotrope.TenantID]*Share{}}
}

// For are the streams of one tenant's VMs, which share nothing with others.
func (s *Share) For(tenant heliotrope.TenantID) *Share {
	if s == nil || tenant == "" {
		return s
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	own := s.tenants[tenant]
	if own == nil {
		own = New()
		own.tenant = tenant
		s.tenants[tenant] = own
	}
	return own
}

// Of is what For has returned for a tenant, or nil: another host asks.
func (s *Share) Of(tenant heliotrope.TenantID) *Share {
	if s == nil || tenant == "" {
		return s
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tenants[tenant]
}

// Tenant is whose VMs' streams they are.
func (s *Share) Tenant() heliotrope.TenantID { return s.tenant }

const pageBytes = 4096

// Len is in how many groups streams are under way, and from how many sources.
func (s *Share) Len() (out, in int) {
	if s == nil {
		return 0, 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.out), len(s.in)
}

// Way is where a stream goes.
type Way struct {
	Addr netip.AddrPort // the destination's relay
	// What follows is known of moves between sites by an order that says so. Streams to hosts of one site are then
	// a group.
	Host heliotrope.HostID // the destination
	Site heliotrope.SiteID // its site
	Seed uint64            // of pages' hashes, of all streams of the VMs of a tenant from the source's site to that one
}

// group is what streams have in common that share pages.
type group struct {
	addr netip.AddrPort // of a way that says no site
	site heliotrope.SiteID
	seed uint64
}

func (w Way) group() group {
	if w.Site == "" {
		return group{addr: w.Addr}
	}
	return group{site: w.Site, seed: w.Seed}
}

// at is what other destinations are told of where to find what streams to this one carry.
func (w Way) at() string {
	if w.Site == "" || w.Host == "" {
		return ""
	}
	return string(w.Host) + " " + w.Addr.String()
}

// Seed is that of pages' hashes of a stream.
func (s *Share) Seed(w Way) uint64 {
	switch {
	case w.Site != "":
		return w.Seed
	case s == nil:
		return rand.Uint64()
	}
	return s.seed
}

// Group are the streams under way to one destination, or to hosts of one site, with what they, and those
// that went before the last of them, carry.
type Group struct {
	mu      sync.Mutex
	streams map[*Sending]bool // under way
	pages   map[wan.PageHash]carriedPage
	// fresh are not among pages yet: a stream that is alone looks for none, and they lie far apart.
	fresh   []freshPage
	carried int    // pages, of all streams
	own     uint64 // of those under way from here
	telling
}

// carriedPage is a page of a stream.
type carriedPage struct {
	by     *Sending
	number uint64
	// pos is how many pages the group's streams here had carried before it, or the other host had told of.
	pos uint64
}

type freshPage struct {
	hash wan.PageHash
	carriedPage
}

// Sending is a stream as its source knows it. The rest is guarded by the mutex of to.
type Sending struct {
	to   *Group
	way  Way
	at   string // where another destination finds its pages; "": nowhere
	name uint64
	room int  // pages that the destination keeps of it
	near bool // the destination gives pages to its neighbours, and asks them
	own  int  // of to.carried
	disk bool
	told [2]uint64 // pages that were encoded, by kind
	sent [2]uint64
	over bool // no more will be sent
	gone bool // nothing of it is at its destination any more
	late bool // it refers to what is on its own way only
	// waits says of other streams how many of their pages must be sent before all is that this
	// one has encoded.
	waits   map[*Sending][2]uint64
	without map[uint64]bool // streams that it refers to no more
	far     *Link           // of a stream of another source

	log    [2][]wan.PageHash // what it carries, for others to be told
	follow following
}

// Of a number, the lowest bit is the kind: literal or noise.
func kindOf(number uint64) (kind, n uint64) { return number & 1, number >> 1 }

// Send begins a stream by a name that no other has, of which the destination keeps no more than room
// pages; near says that it gives them to its neighbours and asks those. It is nil if there is nothing to share.
func (s *Share) Send(w Way, name uint64, room int, near bool) *Sending {
	if s == nil || room == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.out[w.group()]
	if g == nil {
		g = newGroup()
		s.out[w.group()] = g
	}
	m := &Sending{to: g, way: w, name: name, room: room, near: near, waits: map[*Sending][2]uint64{}, without: map[uint64]bool{}}
	if near {
		m.at = w.at()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.streams[m] = true
	g.tell(m)
	return m
}

func newGroup() *Group {
	return &Group{streams: map[*Sending]bool{}, pages: map[wan.PageHash]carriedPage{}, telling: newTelling()}
}

// SentAll ends a stream.
func (s *Share) SentAll(m *Sending) {
	if m == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := m.to
	g.mu.Lock()
	defer g.mu.Unlock()
	m.over = true
	delete(g.streams, m)
	if g.ended = len(g.streams) == 0; g.ended {
		delete(s.out, m.way.group())
	} else {
		g.untell(m.way.Addr)
	}
	g.grow()
}

// Disk says that the stream is a disk's. It has no mirror, so Find looks for its own pages as well. And somebody
// waits for its writes, so it does not wait for what a stream of memory has yet to send.
func (m *Sending) Disk() *Sending {
	m.to.mu.Lock()
	defer m.to.mu.Unlock()
	m.disk = true
	return m
}

// Find implements wan.Carrying.
func (m *Sending) Find(page wan.PageHash) (wan.Ref, bool) {
	m.to.mu.Lock()
	defer m.to.mu.Unlock()
	g := m.to
	if m.own == g.carried && !m.disk {
		return wan.Ref{}, false
	}
	g.settle()
	c, ok := g.pages[page]
	if !ok || !c.comes(m) {
		return wan.Ref{}, false
	}
	ref := wan.Ref{Stream: c.by.name, Number: c.number}
	if c.by.way.Addr != m.way.Addr {
		ref.At = c.by.at
	}
	m.stayBehind(c)
	return ref, true
}

// comes says whether the stream m may refer to the page, and wait for it.
func (c carriedPage) comes(m *Sending) bool {
	kind, n := kindOf(c.number)
	by := c.by
	switch here := by.way.Addr == m.way.Addr; {
	case by == m:
		return true
	case by.gone || m.without[by.name]:
		return false
	case (!here || by.far != nil) && (!m.near || m.late || by.at == ""):
		return false
	case n < by.sent[kind]:
		return true
	case by.over || m.disk && !by.disk || by.far != nil || by.waitsFor(m):
		return false
	}
	need := m.waits[by]
	need[kind] = max(need[kind], n+1)
	m.waits[by] = need
	return true
}

// waitsFor says whether something of one must be sent before this stream can be rebuilt as far as
// it is encoded.
func (m *Sending) waitsFor(one *Sending) bool {
	for other, need := range m.waits {
		switch {
		case need[0] <= other.sent[0] && need[1] <= other.sent[1]:
			delete(m.waits, other)
		case other == one || other.waitsFor(one):
			return true
		}
	}
	return false
}

// Carries implements wan.Carrying.
func (m *Sending) Carries(page wan.PageHash, noise bool) {
	m.to.mu.Lock()
	defer m.to.mu.Unlock()
	kind := uint64(0)
	if noise {
		kind = 1
	}
	number := m.told[kind]<<1 | kind
	m.told[kind]++
	// The destination keeps whole batches.
	if m.told[0]+m.told[1]+wan.BatchBytes/pageBytes <= uint64(m.room) {
		m.to.fresh = append(m.to.fresh, freshPage{page, carriedPage{m, number, m.to.own}})
		m.to.own++
		m.to.carried++
		m.own++
		m.note(kind, page)
	}
}

// Sent takes note that a batch of so many pages goes to the wire.
func (m *Sending) Sent(s *wan.Stats) {
	if m == nil {
		return
	}
	m.to.mu.Lock()
	defer m.to.mu.Unlock()
	m.sent[0] += s.Pages[wan.Literal]
	m.sent[1] += s.Pages[wan.Noise]
	m.to.grow()
}

// Without has the stream refer no more to what another one carries: it is not to be had.
func (m *Sending) Without(stream uint64) {
	if m == nil {
		return
	}
	m.to.mu.Lock()
	defer m.to.mu.Unlock()
	m.without[stream] = true
}

// Late has the stream refer to nothing more that is not on its own way, and follow nobody.
func (m *Sending) Late() {
	if m == nil {
		return
	}
	m.to.mu.Lock()
	defer m.to.mu.Unlock()
	m.late = true
}
