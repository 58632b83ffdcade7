package share

import (
	"heliotrope/migration/wan"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// sourceHost is a host with streams, and what it has told.
type sourceHost struct {
	*Share
	streams []*farModel
	link    *Link
	told    []Told
}

// farModel is a stream and what it carries.
type farModel struct {
	*Sending
	carries [2][]wan.PageHash
	open    [2]uint64 // carried, and not sent yet
	ended   bool
}

func (h *sourceHost) next() {
	told, _, _ := h.link.Next()
	h.told = append(h.told, told...)
}

// TestOnlyWhatIsSentIsNamed: of two hosts that tell each other, now or later, a stream of one names pages of the other's
// that are on the wire, and the right ones, and nothing of a destination that has kept nothing.
func TestOnlyWhatIsSentIsNamed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hosts := []*sourceHost{{Share: New()}, {Share: New()}}
		all := map[uint64]*farModel{}
		begin := func(h *sourceHost, near bool) {
			name := uint64(len(all))
			m := &farModel{Sending: h.Send(ways[rapid.IntRange(0, 2).Draw(t, "way")], name, 1<<20, near)}
			h.streams, all[name] = append(h.streams, m), m
		}
		for i, h := range hosts {
			begin(h, true)
			h.link = h.streams[0].Group().Link(i == 1)
		}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			i := rapid.IntRange(0, 1).Draw(t, "host")
			h, other := hosts[i], hosts[1-i]
			m := h.streams[rapid.IntRange(0, len(h.streams)-1).Draw(t, "stream")]
			switch what := rapid.IntRange(0, 20).Draw(t, "what"); {
			case what == 0:
				begin(h, rapid.IntRange(0, 9).Draw(t, "near") > 0)
			case what == 1 && m != h.streams[0] && !m.ended:
				m.ended = true
				h.SentAll(m.Sending)
			case what < 5:
				h.next()
			case what < 8:
				for len(h.told) > 0 {
					if err := other.link.Hear(&h.told[0]); err != nil {
						t.Fatal(err)
					}
					h.told = h.told[1:]
				}
			case what < 11 && !m.ended:
				var s wan.Stats
				s.Pages[wan.Literal], s.Pages[wan.Noise] = m.open[0], m.open[1]
				m.Sent(&s)
				m.open = [2]uint64{}
			case !m.ended:
				k := rapid.IntRange(0, 40).Draw(t, "page")
				p := hash(page(k))
				if ref, ok := m.Find(p); ok {
					one := all[ref.Stream]
					kind, n := kindOf(ref.Number)
					mine := one.to == m.to
					switch {
					case n >= uint64(len(one.carries[kind])) || one.carries[kind][n] != p:
						t.Fatalf("it is another page")
					case !mine && n >= one.sent[kind]:
						t.Fatalf("it is not sent")
					case one.way.Addr == m.way.Addr && ref.At != "" || one.way.Addr != m.way.Addr && ref.At != one.way.at():
						t.Fatalf("it is said to be at %q", ref.At)
					case (!mine || one.way.Addr != m.way.Addr) && (!m.near || !one.near):
						t.Fatal("an older destination is to ask, or to be asked")
					}
					continue
				}
				kind := k % 2
				m.Carries(p, kind == 1)
				m.carries[kind] = append(m.carries[kind], p)
				m.open[kind]++
			}
		}
		for _, h := range hosts {
			h.link.Drop()
			for _, m := range h.streams {
				if len(m.to.far) > 0 || m.to.room != farPages {
					t.Fatalf("%d streams and %d pages of a host that has gone are left", len(m.to.far), farPages-m.to.room)
				}
				if !m.ended {
					h.SentAll(m.Sending)
				}
			}
			if out, _ := h.Len(); out != 0 {
				t.Fatal("a group is left")
			}
		}
	})
}

// pages are hashes of so many, from one on.
func hashes(from, n int) (all []wan.PageHash) {
	for i := range n {
		all = append(all, hash(page(from+i)))
	}
	return all
}

// TestFollowing: a stream that goes abreast with a host's that leads falls behind it.
func TestFollowing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New()
		m := s.Send(ways[0], 1, 1<<20, true)
		leader := m.Group().Link(true)
		tell := func(first, n int) {
			t.Helper()
			if err := leader.Hear(&Told{Stream: 2, At: "b 192.0.2.2:7444", First: uint64(first), Pages: hashes(first, n)}); err != nil {
				t.Fatal(err)
			}
		}
		waits := func() time.Duration {
			begun := time.Now()
			m.Wait(t.Context())
			return time.Since(begun)
		}
		for _, p := range hashes(0, 500) {
			m.Carries(p, false)
		}
		if took := waits(); took != 0 {
			t.Errorf("it waits %v for nobody", took)
		}
		// The leader is found out to be 500 pages behind.
		tell(0, 1)
		go func() {
			for i := 1; i < 20*50; i += 50 {
				time.Sleep(100 * time.Millisecond)
				tell(i, 50)
			}
		}()
		// Of the second that it may wait at once, and half of its time.
		if took := waits(); took < time.Second || took > 2*time.Second+500*time.Millisecond {
			t.Errorf("it waits %v", took)
		}
		time.Sleep(10 * time.Second) // in which it could have waited
		if ref, ok := m.Find(hash(page(990))); !ok || ref.At != "b 192.0.2.2:7444" {
			t.Errorf("what the leader carries is not found: %+v", ref)
		}
		if took := waits(); took != silence {
			t.Errorf("it waits %v for one that tells nothing", took)
		}
		m.Find(hash(page(990)))
		if took := waits(); took != 0 {
			t.Errorf("it waits %v again for one that tells nothing", took)
		}
		tell(1001, 1)
		m.Find(hash(page(1001)))
		m.Late()
		if took := waits(); took != 0 {
			t.Errorf("it waits %v, though it may stand still soon", took)
		}
		if _, ok := m.Find(hash(page(1001))); ok {
			t.Error("it refers to what another host has, though it may stand still soon")
		}
		s.SentAll(m)
	})
}

// TestNotFollowing: a stream that may not name another host's pages has nothing to wait for: a disk's, whose writes
// somebody waits for, and one to an older destination.
func TestNotFollowing(t *testing.T) {
	for name, begin := range map[string]func(*Share) *Sending{
		"a disk":               func(s *Share) *Sending { return s.Send(ways[0], 2, 1<<20, false).Disk() },
		"an older destination": func(s *Share) *Sending { return s.Send(ways[0], 2, 1<<20, false) },
	} {
		synctest.Test(t, func(t *testing.T) {
			s := New()
			memory, m := s.Send(ways[0], 1, 1<<20, true), begin(s)
			leader := memory.Group().Link(true)
			for _, p := range hashes(0, 500) {
				m.Carries(p, false)
			}
			if err := leader.Hear(&Told{Stream: 3, At: "b 192.0.2.2:7444", Pages: hashes(0, 1)}); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			if m.Wait(t.Context()); time.Since(begun) > 0 {
				t.Errorf("%s waits %v for another host", name, time.Since(begun))
			}
		})
	}
}

// TestTellingLeavesNothingOut: what is told of a stream has no holes, and what is wrong is refused.
func TestTellingLeavesNothingOut(t *testing.T) {
	s := New()
	m := s.Send(ways[0], 1, 1<<20, true)
	l := m.Group().Link(false)
	for name, c := range map[string]struct {
		told  Told
		wrong bool
	}{
		"a hole":              {Told{Stream: 5, At: "b 192.0.2.2:7444", First: 3, Pages: hashes(0, 1)}, true},
		"no host":             {Told{Stream: 6, At: "b", Pages: hashes(0, 1)}, true},
		"an unnamed stream":   {Told{Stream: 7, Pages: hashes(0, 1)}, false},
		"one that is no more": {Told{Stream: 8, Gone: true}, false},
	} {
		if err := l.Hear(&c.told); (err != nil) != c.wrong {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, ok := m.Find(hash(page(0))); ok {
		t.Error("a page that nobody carries is found")
	}
	s.SentAll(m)
	if _, _, ended := l.Next(); !ended {
		t.Error("a group without streams goes on")
	}
}
