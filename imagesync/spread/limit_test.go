package spread

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimitHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 30, 8, 1_000_000)
		w := newWorld(t, 0, "a0", "a1", "a2")
		w.members["a0"].limit = NewLimit(1_000_000)
		all := w.spread(c, "a0", "a1", "a2")
		all["a1"].mustSucceed(t)
		all["a2"].mustSucceed(t)
		if all["a1"].took < 7900*time.Millisecond || all["a1"].took > 8100*time.Millisecond {
			t.Errorf("8 MB at 1 MB/s took %v", all["a1"].took)
		}
		if w.dialled("a1") != 1 {
			t.Error("a limit was taken for a death")
		}
	})
}

// A limit so low that a fragment takes longer than a silence is no death.
func TestLowLimitIsNoDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := even(t, 31, 2, 500_000)
		w := newWorld(t, 0, "a0", "a1")
		w.members["a0"].limit = NewLimit(10_000)
		r := w.spread(c, "a0", "a1")["a1"]
		time.Sleep(20 * time.Second)
		w.members["a0"].limit.Set(20_000)
		r.mustSucceed(t)
		if w.dialled("a1") != 1 || r.took < 45*time.Second || r.took > 65*time.Second {
			t.Errorf("it dialled %d times and took %v", w.dialled("a1"), r.took)
		}
	})
}

// A Limit of Nothing holds all back until it is another, and what was given back is there for others.
func TestLimitOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimit(Nothing)
		began, done := time.Now(), make(chan time.Duration, 3)
		for range 3 {
			go func() {
				if err := l.Wait(t.Context(), 1000, Background); err != nil {
					t.Error(err)
				}
				done <- time.Since(began)
			}()
		}
		time.Sleep(time.Hour)
		if len(done) != 0 {
			t.Fatal("something passed")
		}
		l.Set(1000)
		first, second := <-done, <-done
		l.Set(Nothing)
		time.Sleep(time.Hour)
		if len(done) != 0 || first != time.Hour || second-first < 900*time.Millisecond || second-first > 1100*time.Millisecond {
			t.Errorf("they passed after %v, %v, %d more", first, second, len(done))
		}
		l.Set(1000)
		l.Return(1000) // what the second has waited for
		if third := <-done; third-second-time.Hour > 100*time.Millisecond {
			t.Errorf("the last one passed after %v", third)
		}
	})
}

// Demand gets all that there is; Background what is left.
func TestDemandGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimit(1000)
		var mu sync.Mutex
		var order []Priority
		var all sync.WaitGroup
		take := func(p Priority) {
			all.Go(func() {
				if err := l.Wait(t.Context(), 1000, p); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, p)
			})
			synctest.Wait()
		}
		began := time.Now()
		for _, p := range []Priority{Background, Background, Background, Demand, Demand} {
			take(p)
		}
		all.Wait()
		if want := []Priority{Background, Demand, Demand, Background, Background}; !slices.Equal(order, want) {
			t.Errorf("they went as %v, not %v", order, want)
		}
		if took := time.Since(began); took < 3900*time.Millisecond || took > 4100*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}

// Over one link, what somebody waits for takes the time that it takes alone.
func TestDemandIsNotHeldUpByBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0, "a0", "a1")
		w.members["a0"].limit = NewLimit(1_000_000)
		some, urgent := even(t, 32, 10, 1_000_000), even(t, 33, 3, 1_000_000)
		w.offer("a0", some, true)
		w.offer("a0", urgent, true)
		hop := w.plan("a0", "a1")[0]
		s, st := w.offer("a1", some, false)
		background := w.receiveInto(hop, s, st, Background)
		time.Sleep(2 * time.Second)
		s, st = w.offer("a1", urgent, false)
		demand := w.receiveInto(hop, s, st, Demand)
		demand.mustSucceed(t)
		background.mustSucceed(t)
		if demand.took > 3300*time.Millisecond || background.took < 12900*time.Millisecond || w.dialled("a1") != 2 {
			t.Errorf("demand took %v, background %v, of %d feeders", demand.took, background.took, w.dialled("a1"))
		}
	})
}

func TestLimitChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimit(10)
		wait := func(n int) time.Duration {
			began := time.Now()
			if err := l.Wait(t.Context(), n, Demand); err != nil {
				t.Error(err)
			}
			return time.Since(began)
		}
		if d := wait(1000); d != 0 {
			t.Errorf("the first waited %v", d)
		}
		var all sync.WaitGroup
		all.Go(func() {
			if d := wait(1); d < 10*time.Second || d > 11*time.Second {
				t.Errorf("the second waited %v", d)
			}
		})
		time.Sleep(9 * time.Second)
		l.Set(900)
		all.Wait()
		l.Set(0)
		if d := wait(1<<30) + wait(1<<30); d != 0 {
			t.Errorf("without a limit they waited %v", d)
		}
		if err := (*Limit)(nil).Wait(t.Context(), 1<<30, Demand); err != nil {
			t.Error(err)
		}
	})
}

// Who gives up takes nothing with him.
func TestGivingUpOnALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimit(1000)
		if err := l.Wait(t.Context(), 1000, Demand); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if l.Wait(ctx, 1<<30, Demand) == nil {
			t.Error("it got what there was not")
		}
		began := time.Now()
		if err := l.Wait(t.Context(), 1, Background); err != nil || time.Since(began) > 600*time.Millisecond {
			t.Errorf("the next one waited %v: %v", time.Since(began), err)
		}
		if l.Wait(ctx, 1, Demand) == nil {
			t.Error("a context that has ended got something")
		}
	})
}
