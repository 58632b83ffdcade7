package share

import (
	"context"
	"heliotrope"
	"heliotrope/migration/wan"
	"sync"
	"time"
)

// Patience is how long a destination waits for a page of a stream from another source than that of the stream
// which refers to it, and for another host: it is on the wire, and may be behind others there.
const Patience = 5 * time.Second

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
	share *Share
	from  *incoming
	seed  uint64 // of its pages' hashes
	room  int    // pages that are kept
	kept  [2][]*[4096]byte
	lost  bool // of those that came later nothing is kept
	ended bool
}

// Get begins a stream from a source, of which no more than room pages are kept. It is nil if there
// is nothing to share. Seed is that of its pages' hashes.
func (s *Share) Get(from heliotrope.HostID, name, seed uint64, room int) *Getting {
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
	g := &Getting{share: s, from: in, seed: seed, room: room}
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

// carriedPages gives out what streams carry that come here, until a context ends.
type carriedPages struct {
	ctx context.Context
	to  *Getting
}

// During gives out what other streams carry that come here, until ctx ends.
func (g *Getting) During(ctx context.Context) wan.CarriedPages { return carriedPages{ctx, g} }

// CarriedPage implements wan.CarriedPages.
func (c carriedPages) CarriedPage(ref wan.Ref, dst *[4096]byte) (bool, error) {
	one := c.to.from.stream(ref.Stream)
	if one == nil {
		return c.to.share.Give(c.ctx, c.to.seed, ref, dst)
	}
	return one.page(c.ctx, ref.Number, dst)
}

// Give writes a page into dst that a stream carries whose name and seed are known to who asks. It waits
// for a while if the page has yet to come. It is not ok if it is not to be had.
func (s *Share) Give(ctx context.Context, seed uint64, ref wan.Ref, dst *[4096]byte) (ok bool, err error) {
	one := s.held(ref.Stream)
	if one == nil || one.seed != seed {
		return false, nil
	}
	limited, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	if ok, err = one.page(limited, ref.Number, dst); err != nil && ctx.Err() == nil {
		return false, nil
	}
	return ok, err
}

// held is a stream whose pages are here, or nil.
func (s *Share) held(name uint64) *Getting {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, in := range s.in {
		if g := in.stream(name); g != nil {
			return g
		}
	}
	return nil
}

func (in *incoming) stream(name uint64) *Getting {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.by[name]
}

// page writes one into dst, and waits for it if it has yet to come.
func (g *Getting) page(ctx context.Context, number uint64, dst *[4096]byte) (bool, error) {
	kind, n := kindOf(number)
	for {
		page, grown, wait := g.find(kind, n)
		if page != nil {
			*dst = *page
			return true, nil
		}
		if !wait {
			return false, nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// find returns a page, or what to wait for.
func (g *Getting) find(kind, n uint64) (page *[4096]byte, grown <-chan struct{}, wait bool) {
	g.from.mu.Lock()
	defer g.from.mu.Unlock()
	if n < uint64(len(g.kept[kind])) {
		return g.kept[kind][n], nil, false
	}
	return nil, g.from.grown, !g.ended && !g.lost
}
