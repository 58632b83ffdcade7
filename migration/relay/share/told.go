package share

import (
	"errors"
	"heliotrope/migration/wan"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

const (
	// ToldMost is how many pages are told at once.
	ToldMost   = 2048
	farStreams = 256     // of other hosts, that a group knows of
	farPages   = 1 << 19 // of theirs: 2 GiB, for some 40 MB
)

// Told is what a host tells others of one of its streams.
type Told struct {
	Stream uint64
	At     string // of a stream that is named for the first time: where its pages are
	// Pages go to the wire as its next ones of a kind, from First on.
	Noise bool
	First uint64
	Pages []wan.PageHash
	Gone  bool // it carries nothing any more, and what it carried is not to be had
}

// telling is what of a group is told to other hosts, and what was told by them.
type telling struct {
	all   []*Sending          // of which something may be to be had
	far   map[uint64]*Sending // streams of other hosts
	grown chan struct{}       // closed when there is something new
	ended bool
	room  int // pages of other hosts that it may yet know of
}

func newTelling() telling {
	return telling{far: map[uint64]*Sending{}, grown: make(chan struct{}), room: farPages}
}

func (g *Group) grow() {
	close(g.grown)
	g.grown = make(chan struct{})
}

// tell takes a stream up.
func (g *Group) tell(m *Sending) {
	if m.way.Site != "" {
		g.all = append(g.all, m)
	}
}

// note takes note of a page that a stream carries.
func (m *Sending) note(kind uint64, page wan.PageHash) {
	if m.at != "" {
		m.log[kind] = append(m.log[kind], page)
	}
}

// untell forgets streams to a destination that no stream goes to any more: it has kept nothing of them.
func (g *Group) untell(addr netip.AddrPort) {
	for m := range g.streams {
		if m.way.Addr == addr {
			return
		}
	}
	g.forget(func(m *Sending) bool { return m.far == nil && m.way.Addr == addr })
}

// forget forgets the streams of which lost says that nothing of them is to be had.
func (g *Group) forget(lost func(*Sending) bool) {
	g.settle()
	for _, m := range g.all {
		if lost(m) {
			m.gone, m.log = true, [2][]wan.PageHash{}
		}
	}
	for name, m := range g.far {
		if lost(m) {
			m.gone = true
			delete(g.far, name)
		}
	}
	maps.DeleteFunc(g.pages, func(_ wan.PageHash, c carriedPage) bool {
		if c.by.gone && c.by.far != nil {
			g.room++
		}
		return c.by.gone
	})
	g.all = slices.DeleteFunc(g.all, func(m *Sending) bool { return m.gone })
}

// Group is that of the stream; nil of one that shares nothing with other hosts'.
func (m *Sending) Group() *Group {
	if m == nil || m.at == "" {
		return nil
	}
	return m.to
}

// Way is where the stream goes.
func (m *Sending) Way() Way { return m.way }

// Meeting is the group of streams that go to a site, with this seed; nil if none is under way.
func (s *Share) Meeting(w Way) *Group {
	if s == nil || w.Site == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out[w.group()]
}

// Link is a group's connection to that of another host.
type Link struct {
	g     *Group
	leads bool
	at    map[*Sending]*[2]uint64 // how much was told
	total uint64                  // pages that the other has told of
	still bool                    // it has told nothing while one waited for it, since
}

// Link begins to tell another host what there is, and to hear it. Of two hosts, one leads: the other's streams
// fall behind its own where they would go abreast.
func (g *Group) Link(leads bool) *Link {
	return &Link{g: g, leads: leads, at: map[*Sending]*[2]uint64{}}
}

// Next is what there is to tell; if that is nothing, news is closed when there may be. It is ended when the
// last stream is.
func (l *Link) Next() (told []Told, news <-chan struct{}, ended bool) {
	l.g.mu.Lock()
	defer l.g.mu.Unlock()
	for m := range l.at {
		if m.gone {
			told = append(told, Told{Stream: m.name, Gone: true})
			delete(l.at, m)
		}
	}
	for _, m := range l.g.all {
		if m.at == "" {
			continue
		}
		at := l.at[m]
		for kind := range m.log {
			for n := min(m.sent[kind], uint64(len(m.log[kind]))); at == nil && n > 0 || at != nil && at[kind] < n; {
				t := Told{Stream: m.name, Noise: kind == 1}
				if at == nil {
					at = new([2]uint64)
					l.at[m], t.At = at, m.at
				}
				t.First = at[kind]
				at[kind] = min(n, t.First+ToldMost)
				t.Pages = m.log[kind][t.First:at[kind]]
				told = append(told, t)
			}
		}
	}
	return told, l.g.grown, l.g.ended
}

// Hear takes note of what the other host tells.
func (l *Link) Hear(t *Told) error {
	l.g.mu.Lock()
	defer l.g.mu.Unlock()
	g := l.g
	m := g.far[t.Stream]
	switch {
	case t.Gone && m != nil && m.far == l:
		g.forget(func(one *Sending) bool { return one == m })
		return nil
	case t.Gone || m == nil && (t.At == "" || len(g.far) == farStreams):
		return nil
	case m == nil:
		_, addr, ok := strings.Cut(t.At, " ")
		where, err := netip.ParseAddrPort(addr)
		if !ok || err != nil || len(t.At) > 255 {
			return errors.New("a stream goes to no host")
		}
		m = &Sending{to: g, way: Way{Addr: where}, at: t.At, name: t.Stream, near: true, far: l}
		g.far[t.Stream] = m
	}
	if m.far != l {
		return nil // another link tells of it as well
	}
	kind := uint64(0)
	if t.Noise {
		kind = 1
	}
	if t.First != m.sent[kind] {
		return errors.New("some of a stream is left out")
	}
	g.settle()
	for i, page := range t.Pages {
		g.hear(page, carriedPage{m, (t.First+uint64(i))<<1 | kind, l.total})
		l.total++
	}
	m.sent[kind] += uint64(len(t.Pages))
	l.still = false
	g.grow()
	return nil
}

// settle puts all pages among those that are found.
func (g *Group) settle() {
	for _, f := range g.fresh {
		g.put(f.hash, f.carriedPage)
	}
	g.fresh = g.fresh[:0]
}

// put has a page found where c says.
func (g *Group) put(page wan.PageHash, c carriedPage) {
	if had, ok := g.pages[page]; ok && had.by.far != nil {
		g.room++
	}
	if c.by.far != nil {
		g.room--
	}
	g.pages[page] = c
}

// hear takes note of a page that a stream of another host carries.
func (g *Group) hear(page wan.PageHash, c carriedPage) {
	has, ok := g.pages[page]
	switch {
	case ok && has.by.far == nil && !has.by.over:
		// Both carry it.
		has.by.fallBehind(c.by.far, c.pos+g.own-has.pos+lead)
	case g.room > 0 && (!ok || has.by.over):
		g.carried++
		g.put(page, c)
	}
}

// Drop forgets what was told over a link that has ended.
func (l *Link) Drop() {
	l.g.mu.Lock()
	defer l.g.mu.Unlock()
	l.still = true
	l.g.forget(func(m *Sending) bool { return m.far == l })
	l.g.grow()
}
