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
	"context"
	"heliotrope"
	"heliotrope/migration/wan"
	"math/rand/v2"
	"net/netip"
	"sync"
)

// Share knows the streams that a host sends and gets.
type Share struct {
	seed    uint64
	mu      sync.Mutex
	out     map[netip.AddrPort]*outgoing
	in      map[heliotrope.HostID]*incoming
	tenants map[heliotrope.TenantID]*Share
}

// New returns one without any.
func New() *Share {
	return &Share{seed: rand.Uint64(), out: map[netip.AddrPort]*outgoing{}, in: map[heliotrope.HostID]*incoming{}, tenants: map[heliotrope.TenantID]*Share{}}
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
		s.tenants[tenant] = own
	}
	return own
}

const pageBytes = 4096

// Len is to how many destinations streams are under way, and from how many sources.
func (s *Share) Len() (out, in int) {
	if s == nil {
		return 0, 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.out), len(s.in)
}

// Seed is that of pages' hashes.
func (s *Share) Seed() uint64 {
	if s == nil {
		return rand.Uint64()
	}
	return s.seed
}

// outgoing are the streams under way to one destination, with what they, and those that went
// before the last of them, carry.
type outgoing struct {
	mu      sync.Mutex
	streams int
	pages   map[wan.PageHash]carriedPage
	// fresh are not among pages yet: a stream that is alone looks for none, and they lie far apart.
	fresh   []freshPage
	carried int // pages, of all streams
}

// carriedPage is a page of a stream.
type carriedPage struct {
	by     *Sending
	number uint64
}

type freshPage struct {
	hash wan.PageHash
	carriedPage
}

// Sending is a stream as its source knows it. The rest is guarded by the mutex of to.
type Sending struct {
	to   *outgoing
	name uint64
	room int       // pages that the destination keeps of it
	own  int       // of to.carried
	told [2]uint64 // pages that were encoded, by kind
	sent [2]uint64
	over bool // no more will be sent
	// waits says of other streams how many of their pages must be sent before all is that this
	// one has encoded.
	waits map[*Sending][2]uint64
}

// Of a number, the lowest bit is the kind: literal or noise.
func kindOf(number uint64) (kind, n uint64) { return number & 1, number >> 1 }

// Send begins a stream to addr, by a name that no other has, of which the destination keeps no
// more than room pages. It is nil if there is nothing to share.
func (s *Share) Send(addr netip.AddrPort, name uint64, room int) *Sending {
	if s == nil || room == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.out[addr]
	if o == nil {
		o = &outgoing{pages: map[wan.PageHash]carriedPage{}}
		s.out[addr] = o
	}
	o.streams++
	return &Sending{to: o, name: name, room: room, waits: map[*Sending][2]uint64{}}
}

// SentAll ends a stream.
func (s *Share) SentAll(addr netip.AddrPort, m *Sending) {
	if m == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m.to.mu.Lock()
	m.over = true
	m.to.mu.Unlock()
	if m.to.streams--; m.to.streams == 0 {
		delete(s.out, addr)
	}
}

// Find implements wan.Carrying.
func (m *Sending) Find(page wan.PageHash) (stream, number uint64, ok bool) {
	m.to.mu.Lock()
	defer m.to.mu.Unlock()
	o := m.to
	if m.own == o.carried {
		return 0, 0, false
	}
	for _, f := range o.fresh {
		o.pages[f.hash] = f.carriedPage
	}
	o.fresh = o.fresh[:0]
	c, ok := o.pages[page]
	if !ok || !c.comes(m) {
		return 0, 0, false
	}
	return c.by.name, c.number, true
}

// comes says whether the stream m may wait for the page.
func (c carriedPage) comes(m *Sending) bool {
	kind, n := kindOf(c.number)
	switch {
	case c.by == m || n < c.by.sent[kind]:
		return true
	case c.by.over || c.by.waitsFor(m):
		return false
	}
	need := m.waits[c.by]
	need[kind] = max(need[kind], n+1)
	m.waits[c.by] = need
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
		m.to.fresh = append(m.to.fresh, freshPage{page, carriedPage{m, number}})
		m.to.carried++
		m.own++
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
}

// incoming are the streams from one source.
type incoming struct {
	mu      sync.Mutex
	streams int
	pages   int // that all of them may keep
	by      map[uint64]*Getting
	grown   chan struct{} // closed when a stream has more, or has come to its end
}

// Getting is a stream as its destination knows it. The rest is guarded by the mutex of from.
type Getting struct {
	from  *incoming
	room  int // pages that are kept
	kept  [2][]*[4096]byte
	lost  bool // of those that came later nothing is kept
	ended bool
}

// Get begins a stream from a source, of which no more than room pages are kept. It is nil if there
// is nothing to share.
func (s *Share) Get(from heliotrope.HostID, name uint64, room int) *Getting {
	if s == nil || room == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.in[from]
	if in == nil {
		in = &incoming{by: map[uint64]*Getting{}, grown: make(chan struct{})}
		s.in[from] = in
	}
	g := &Getting{from: in, room: room}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.streams++
	in.pages += room
	in.by[name] = g
	return g
}

// GotAll ends a stream. What it carried stays for the others; with the last of them all pages
// that were given to them are free again.
func (s *Share) GotAll(from heliotrope.HostID, g *Getting) (free int) {
	if g == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	in := g.from
	in.mu.Lock()
	defer in.mu.Unlock()
	g.ended = true
	in.grow()
	if in.streams--; in.streams > 0 {
		return 0
	}
	delete(s.in, from)
	return in.pages
}

func (in *incoming) grow() {
	close(in.grown)
	in.grown = make(chan struct{})
}

// Keep keeps what a batch carries.
func (g *Getting) Keep(b *wan.Batch) {
	if g == nil {
		return
	}
	literal, noisy := b.Bodies()
	n := (len(literal) + len(noisy)) / pageBytes
	if n == 0 {
		return
	}
	copied := make([]byte, len(literal)+len(noisy))
	copy(copied[copy(copied, literal):], noisy)
	g.from.mu.Lock()
	defer g.from.mu.Unlock()
	if g.lost = g.lost || n > g.room; g.lost {
		g.from.grow()
		return
	}
	g.room -= n
	for i := range n {
		kind := 0
		if i*pageBytes >= len(literal) {
			kind = 1
		}
		g.kept[kind] = append(g.kept[kind], (*[4096]byte)(copied[i*pageBytes:]))
	}
	g.from.grow()
}

// carriedPages gives out what streams of a source carry, until a context ends.
type carriedPages struct {
	ctx  context.Context
	from *incoming
}

// During gives out what the streams of the same source carry, until ctx ends.
func (g *Getting) During(ctx context.Context) wan.CarriedPages { return carriedPages{ctx, g.from} }

// CarriedPage implements wan.CarriedPages.
func (c carriedPages) CarriedPage(stream, number uint64, dst *[4096]byte) (bool, error) {
	kind, n := kindOf(number)
	for {
		page, grown, wait := c.from.find(stream, kind, n)
		if page != nil {
			*dst = *page
			return true, nil
		}
		if !wait {
			return false, nil
		}
		select {
		case <-grown:
		case <-c.ctx.Done():
			return false, context.Cause(c.ctx)
		}
	}
}

// find returns a page, or what to wait for.
func (in *incoming) find(stream, kind, n uint64) (page *[4096]byte, grown <-chan struct{}, wait bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	g := in.by[stream]
	if g == nil {
		return nil, nil, false
	}
	if n < uint64(len(g.kept[kind])) {
		return g.kept[kind][n], nil, false
	}
	return nil, in.grown, !g.ended && !g.lost
}
