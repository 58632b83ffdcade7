package spread

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"heliotrope"
)

const (
	lineRate = 12.5e6 // bytes a second: 100 Mbit/s
	overhead = 1.02   // of what may cross for each byte of content
)

func names(site byte, n int) (list []heliotrope.HostID) {
	for i := range n {
		list = append(list, heliotrope.HostID(fmt.Sprintf("%c%02d", site, i)))
	}
	return list
}

// What the package is for: the time of many hosts is that of one, and each sends it once.
func TestManyHostsTakeTheTimeOfOne(t *testing.T) {
	took := map[int]time.Duration{}
	for _, n := range []int{1, 4, 16} {
		synctest.Test(t, func(t *testing.T) {
			c := even(t, 1, 16, 2<<20)
			hosts := names('a', n+1)
			w := newWorld(t, lineRate, hosts...)
			for id, r := range w.spread(c, hosts...) {
				r.mustSucceed(t)
				if took[n] = max(took[n], r.took); w.dialled(id) != 1 {
					t.Errorf("%s dialled %d times", id, w.dialled(id))
				}
			}
			for i := range hosts[1:] {
				if got, most := w.bytes(hosts[i], hosts[i+1]), int64(overhead*float64(c.outline.Bytes())); got > most {
					t.Errorf("from %s to %s %d bytes crossed, there should be at most %d", hosts[i], hosts[i+1], got, most)
				}
			}
		})
	}
	t.Log(took)
	for n, d := range took {
		if d > took[1]*115/100 {
			t.Errorf("%d hosts take %v, one takes %v", n, d, took[1])
		}
	}
}

func TestEachWANLinkIsCrossedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 2, 9, 300_000)
		hosts := slices.Concat(names('a', 3), names('b', 4), names('c', 2))
		w := newWorld(t, lineRate, hosts...)
		for _, r := range w.spread(c, hosts...) {
			r.mustSucceed(t)
		}
		for _, site := range []heliotrope.SiteID{"b", "c"} {
			if got := w.into(site); got < c.outline.Bytes() || got > int64(overhead*float64(c.outline.Bytes())) {
				t.Errorf("%d bytes went into site %s, the content has %d", got, site, c.outline.Bytes())
			}
		}
	})
}

func TestPiecesThatAreThereAreNotFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 3, 20, 200_000)
		w := newWorld(t, lineRate, "a0", "a1")
		w.offer("a0", c, true)
		st := newShelf(c, true)
		for _, i := range []int{3, 4, 5, 19} {
			st.has[i] = false
		}
		s, err := w.members["a1"].node.Offer(c.outline, st)
		if err != nil {
			t.Fatal(err)
		}
		if p := s.Progress(); p.Pieces != 16 {
			t.Fatalf("%d pieces are there", p.Pieces)
		}
		w.receiveInto(w.plan("a0", "a1")[0], s, st, Demand).mustSucceed(t)
		if got := w.bytes("a0", "a1"); got > 4*204_000 {
			t.Errorf("%d bytes crossed for 4 pieces of 200,000", got)
		}
		if err := s.Receive(t.Context(), nil, Demand); err != nil {
			t.Errorf("receive what is all there: %v", err)
		}
	})
}

func TestTwoContentsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lineRate, "a0", "a1", "a2", "b0")
		one, other := even(t, 4, 10, 500_000), newContent(t, 5, 1, 4<<20, 128<<10, 7)
		first := w.spread(one, "a0", "a1", "a2", "b0")
		second := w.spread(other, "b0", "a2", "a1", "a0")
		for _, all := range []map[heliotrope.HostID]*receiving{first, second} {
			for _, r := range all {
				r.mustSucceed(t)
			}
		}
	})
}

// death is a host that ends when it has so much.
type death struct {
	host   heliotrope.HostID
	pieces int
	mute   bool // it does not tell
}

// chainOfDeaths brings c to hosts of which some die, and says what is wrong with how that went.
func chainOfDeaths(t *testing.T, c content, hosts []heliotrope.HostID, deaths []death) (wrong []error) {
	w := newWorld(t, lineRate, hosts...)
	all := w.spread(c, hosts...)
	lost := map[heliotrope.SiteID]int64{} // what only the dead had got over the WAN
	for _, d := range deaths {
		r := all[d.host]
		for r.Progress().Pieces < d.pieces {
			r.mu.Lock()
			changed := r.changed
			r.mu.Unlock()
			<-changed
		}
		if d.mute {
			w.members[d.host].vanish()
		} else {
			w.members[d.host].crash()
		}
		most := int64(0)
		for id, o := range all {
			dead := slices.ContainsFunc(deaths, func(d death) bool { return d.host == id })
			if w.members[id].site == w.members[d.host].site && !dead {
				most = max(most, o.Progress().Bytes)
			}
		}
		lost[w.members[d.host].site] += max(0, r.Progress().Bytes-most)
	}
	for id, r := range all {
		if slices.ContainsFunc(deaths, func(d death) bool { return d.host == id }) {
			continue
		}
		if <-r.done; r.err != nil || !r.shelf.full() {
			wrong = append(wrong, fmt.Errorf("%s has not all: %w, %+v", id, r.err, r.Progress()))
		}
	}
	inFlight := int64(MaxPiece/16 + 3*fragment) // the piece, what is held back, what is in buffers
	for site, l := range lost {
		if site == w.members[hosts[0]].site {
			continue
		}
		most := int64(overhead*float64(c.outline.Bytes())) + l + inFlight*int64(len(deaths)) + 100_000
		if got := w.into(site); got > most {
			wrong = append(wrong, fmt.Errorf("%d bytes went into site %s: of %d bytes, %d were lost with dead hosts", got, site, c.outline.Bytes(), l))
		}
	}
	return wrong
}

func TestSurvivorsOfAnyDeathsGetAll(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		hosts := []heliotrope.HostID{"s0"}
		for _, site := range []byte{'s', 'a', 'b'}[:rapid.IntRange(1, 3).Draw(rt, "sites")] {
			chain := names(site, rapid.IntRange(1, 6).Draw(rt, "hosts"))
			hosts = append(hosts, chain...)
		}
		lengths := rapid.SliceOfN(rapid.IntRange(1, MaxPiece/16), 1, 12).Draw(rt, "pieces")
		c := newContent(rt, 6, lengths...)
		var deaths []death
		for _, id := range rapid.SliceOfNDistinct(rapid.SampledFrom(hosts[1:]), 0, min(4, len(hosts)-1), rapid.ID).Draw(rt, "dead") {
			deaths = append(deaths, death{id, rapid.IntRange(0, len(lengths)).Draw(rt, "at piece"), rapid.Bool().Draw(rt, "mute")})
		}
		// In the order of what they have, else the test would wait for what never comes.
		slices.SortStableFunc(deaths, func(a, b death) int { return a.pieces - b.pieces })
		var wrong []error
		synctest.Test(t, func(t *testing.T) { wrong = chainOfDeaths(t, c, hosts, deaths) })
		if len(wrong) > 0 {
			rt.Fatal(errors.Join(wrong...))
		}
	})
}

func TestHeadOfASiteDies(t *testing.T) {
	for _, mute := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			hosts := []heliotrope.HostID{"s0", "a0", "a1", "a2", "a3"}
			for _, err := range chainOfDeaths(t, even(t, 7, 40, 300_000), hosts, []death{{"a0", 20, mute}}) {
				t.Error(err)
			}
		})
	}
}

// When the source dies, its site may have all already.
func TestSourceDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 2.5e6
		c := even(t, 19, 40, 500_000)
		hosts := []heliotrope.HostID{"s0", "s1", "s2", "a0", "a1", "b0"}
		w := newWorld(t, rate, hosts...)
		w.members["s0"].rate = 3 * rate
		w.members["a0"].disk = time.Second
		all := w.spread(c, hosts...)
		all["s1"].mustSucceed(t)
		w.members["s0"].vanish()
		for _, r := range all {
			r.mustSucceed(t)
		}
		if got := w.bytes("s1", "a0"); got == 0 {
			t.Error("the slow head was not fed by the source's site")
		}
	})
}

// One death makes one host look for another feeder, and costs no more than it takes to see it.
func TestOneDeathMovesOneHost(t *testing.T) {
	for _, mute := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := even(t, 8, 50, 500_000)
			hosts := names('a', 9)
			w := newWorld(t, lineRate, hosts...)
			all := w.spread(c, hosts...)
			time.Sleep(time.Second)
			if mute {
				w.members["a04"].vanish()
			} else {
				w.members["a04"].crash()
			}
			for i, id := range hosts[1:] {
				if id == "a04" {
					continue
				}
				all[id].mustSucceed(t)
				want := 1
				if id == "a05" {
					want = 2 + btoi(!mute) // a connection that breaks is dialled again first
				}
				if got := w.dialled(id); got != want {
					t.Errorf("host %d dialled %d times, it should %d", i+1, got, want)
				}
				if limit := 2*time.Second*110/100 + 3*time.Second; all[id].took > limit {
					t.Errorf("%s took %v", id, all[id].took)
				}
			}
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A head that was silent for a while is gone back to, so that the WAN is not crossed twice for the rest.
func TestReturnToFeederThatLivesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 2.5e6
		c := even(t, 9, 160, 500_000) // 32 s
		hosts := []heliotrope.HostID{"s0", "a0", "a1", "a2"}
		w := newWorld(t, rate, hosts...)
		w.members["s0"].rate = 2 * rate
		all := w.spread(c, hosts...)
		time.Sleep(3 * time.Second)
		w.members["a0"].vanish()
		time.Sleep(4 * time.Second)
		w.members["a0"].unmute()
		for _, r := range all {
			r.mustSucceed(t)
		}
		if got := w.bytes("s0", "a1"); got == 0 || got > 40_000_000 { // for 8 s
			t.Errorf("%d bytes went from the source to the second host", got)
		}
		if got := w.bytes("a0", "a1"); got < 20_000_000 {
			t.Errorf("%d bytes went from the first to the second host: it did not return", got)
		}
		if w.dialled("a2") != 1 {
			t.Error("the third host has changed its feeder, too")
		}
	})
}

// A feeder without a feeder of its own is waited for, but not for ever.
func TestOrphanedFeederIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 10, 10, 100_000)
		w := newWorld(t, lineRate, "a0", "a1", "a2")
		w.offer("a0", c, true)
		w.offer("a1", c, false) // and does not receive
		r := w.receive(w.plan("a0", "a1", "a2")[1], c)
		r.mustSucceed(t)
		if r.took < 8*time.Second || r.took > 15*time.Second {
			t.Errorf("it took %v", r.took)
		}
	})
}

func TestFeederIsToldLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 11, 10, 100_000)
		w := newWorld(t, lineRate, "s0", "a0", "a1")
		w.offer("s0", c, true)
		hops := w.plan("s0", "a0", "a1")
		second := w.receive(hops[1], c)
		time.Sleep(5 * time.Second)
		first := w.receive(hops[0], c)
		first.mustSucceed(t)
		second.mustSucceed(t)
		if n := w.bytes("s0", "a1"); n > 0 {
			t.Errorf("%d bytes went over the WAN a second time", n)
		}
	})
}

// A host whose feeder withdraws goes to the next one at once, also when it asks only then.
func TestWithdrawnContentIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 12, 30, 500_000)
		w := newWorld(t, lineRate, "a0", "a1", "a2")
		w.offer("a0", c, true)
		first, _ := w.offer("a1", c, true)
		hop := w.plan("a0", "a1", "a2")[1]
		r := w.receive(hop, c)
		time.Sleep(500 * time.Millisecond)
		first.Close()
		r.mustSucceed(t)
		if r.took > 2*time.Second {
			t.Errorf("it took %v", r.took)
		}
		if got := w.bytes("a0", "a2"); got == 0 || got > c.outline.Bytes() {
			t.Errorf("%d bytes came from the second feeder", got)
		}
		r.Close()
		again := w.receive(hop, c)
		if again.mustSucceed(t); again.took > 2*time.Second {
			t.Errorf("the second time it took %v", again.took)
		}
	})
}

// A slow host in the middle of a chain makes those behind it wait for a while, and not for all that it needs.
func TestSlowHostIsPassedOver(t *testing.T) {
	for _, slow := range []string{"line", "disk"} {
		t.Run(slow, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const rate = 2.5e6
				c := even(t, 13, 64, 1<<20) // 27 s
				hosts := names('a', 6)
				w := newWorld(t, rate, hosts...)
				if slow == "line" {
					w.members["a02"].rate = rate / 10
				} else {
					w.members["a02"].disk = 4 * time.Second
				}
				all := w.spread(c, hosts...)
				for _, id := range []heliotrope.HostID{"a01", "a03", "a04", "a05"} {
					if all[id].mustSucceed(t); all[id].took > 75*time.Second {
						t.Errorf("%s took %v", id, all[id].took)
					}
				}
				t.Log(all["a01"].took, all["a03"].took, all["a05"].took)
				if w.dialled("a04") != 1 || w.dialled("a05") != 1 {
					t.Error("the hosts behind have changed their feeders, too")
				}
				all["a02"].mustSucceed(t)
			})
		})
	}
}

// A host that stood still for a while was taken for slow, and gets its place in the chain back.
func TestStallIsForgiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 2.5e6
		c := even(t, 43, 80, 1<<20) // 34 s
		hosts := names('a', 5)
		w := newWorld(t, rate, hosts...)
		w.members["a02"].rate = rate / 100
		all := w.spread(c, hosts...)
		time.Sleep(8 * time.Second)
		w.members["a02"].setRate(rate)
		for id, r := range all {
			if r.mustSucceed(t); r.took > 55*time.Second {
				t.Errorf("%s took %v", id, r.took)
			}
		}
		if got := all["a03"].Progress().Feeders; got != 3 {
			t.Errorf("the host behind had %d feeders, there should be the slow one, the one before, the slow one", got)
		}
	})
}

// A host that was asleep does not take the others for dead.
func TestSleeperFindsItsFeederAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		asleep := make(chan struct{})
		go func() { <-asleep; far.Write([]byte("x")) }()
		// The deadline of the first read has passed when the data is looked at.
		time.AfterFunc(1800*time.Millisecond, func() { close(asleep) })
		if n, err := (impatient{near, 2 * time.Second}).Read(make([]byte, 9)); n != 1 || err != nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
		began := time.Now()
		if _, err := (impatient{near, 2 * time.Second}).Read(make([]byte, 9)); !isTimeout(err) || time.Since(began) != 2*time.Second {
			t.Errorf("silence ends after %v with %v", time.Since(began), err)
		}
	})
}

// A stalled host accepts and says nothing.
func TestStalledFeederIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 14, 10, 100_000)
		w := newWorld(t, lineRate, "a0", "a2")
		w.offer("a0", c, true)
		w.members["a2"].node.dial = w.liar(w.members["a2"].dial, "a1", nil)
		r := w.receive(Hop{Host: "a2", From: []Feeder{{Host: "a1"}, {Host: "a0"}}}, c)
		r.mustSucceed(t)
		if r.took < 2*time.Second || r.took > 3*time.Second {
			t.Errorf("it took %v", r.took)
		}
	})
}

// A feeder whose disk hangs goes on saying that it lives.
func TestFeederWithoutADiskIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 18, 10, 100_000)
		w := newWorld(t, lineRate, "a0", "a1", "a2")
		w.offer("a0", c, true)
		_, st := w.offer("a1", c, true)
		healed := make(chan struct{})
		defer close(healed)
		st.fault = func(int) error { <-healed; return nil }
		r := w.receive(w.plan("a0", "a1", "a2")[1], c)
		r.mustSucceed(t)
		if r.took < 29*time.Second || r.took > 32*time.Second {
			t.Errorf("it took %v", r.took)
		}
	})
}

// With nobody there it is tried until somebody is.
func TestNobodyThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 15, 10, 100_000)
		w := newWorld(t, lineRate, "a0", "a1", "a2")
		w.offer("a0", c, true)
		w.members["a0"].vanish()
		w.members["a1"].crash()
		r := w.receive(w.plan("a0", "a1", "a2")[1], c)
		time.Sleep(time.Hour)
		if p := r.Progress(); p.Pieces != 0 || p.LastError == nil || p.From != "" {
			t.Errorf("after an hour: %+v", p)
		}
		if n := w.dialled("a2"); n > 3600 {
			t.Errorf("it dialled %d times", n)
		}
		w.members["a0"].unmute()
		r.mustSucceed(t)
		s, _ := w.offer("a2", even(t, 16, 1, 1), false)
		if err := s.Receive(t.Context(), nil, Demand); err == nil {
			t.Error("it was received from nobody")
		}
	})
}

func TestTwiceIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 17, 3, 10)
		w := newWorld(t, 0, "a0", "a1")
		w.members["a0"].vanish()
		r := w.receive(w.plan("a0", "a1")[0], c)
		synctest.Wait()
		if err := r.Receive(t.Context(), []Feeder{{Host: "a0"}}, Demand); err == nil {
			t.Error("it is received twice at once")
		}
		if _, err := w.members["a1"].node.Offer(c.outline, newShelf(c, true)); !errors.Is(err, ErrOffered) {
			t.Errorf("offer it twice: %v", err)
		}
	})
}
