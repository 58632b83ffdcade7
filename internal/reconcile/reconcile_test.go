package reconcile

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// shelf is an outside world with state: it can fail, and things happen to it unasked.
type shelf struct {
	mu     sync.Mutex
	have   map[string]int
	fail   int // the next Applys fail
	rounds int
}

func (s *shelf) Observe(context.Context) (map[string]int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rounds++
	return maps.Clone(s.have), nil
}

func (s *shelf) Apply(_ context.Context, changes []Change[string, int]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail > 0 {
		s.fail--
		return errors.New("shelf is locked")
	}
	for _, c := range changes {
		if c.Op == Delete {
			delete(s.have, c.Key)
		} else {
			s.have[c.Key] = c.Want
		}
	}
	return nil
}

func same(a, b int) bool { return a == b }

func TestDiffThenApplyIsWant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.MapOf(rapid.StringMatching(`[a-f]`), rapid.IntRange(0, 3))
		want, s := gen.Draw(t, "want"), &shelf{have: gen.Draw(t, "have")}
		changes := Diff(want, s.have, same)
		if err := s.Apply(t.Context(), changes); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(want, s.have) {
			t.Fatalf("got %v, want %v", s.have, want)
		}
		if again := Diff(want, s.have, same); len(again) != 0 {
			t.Fatalf("a second diff is not empty: %v", again)
		}
	})
}

func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &shelf{have: map[string]int{"old": 1}, fail: 3}
		want := map[string]int{"a": 1}
		rounds := make(chan Round, 10)
		l := New(s, func(context.Context) (map[string]int, error) { return want, nil }, same,
			Options{Resync: time.Minute, Done: func(r Round) { rounds <- r }})
		done := make(chan error)
		began := time.Now() // virtual
		go func() { done <- l.Run(ctx) }()

		for i := range 4 {
			if r := <-rounds; (r.Err != nil) != (i < 3) {
				t.Fatalf("round %d of a shelf that fails three times: %+v", i, r)
			}
		}
		if took := time.Since(began); took != 700*time.Millisecond {
			t.Errorf("three failures took %v, want 100 + 200 + 400 ms", took)
		}
		synctest.Wait()
		s.mu.Lock()
		if !maps.Equal(s.have, want) || len(rounds) != 0 {
			t.Fatalf("after failures: have %v, and %d rounds more", s.have, len(rounds))
		}

		before := s.rounds
		for range 100 {
			l.Kick() // the shelf is locked: no round gets through in between
		}
		s.mu.Unlock()
		synctest.Wait()
		s.mu.Lock()
		if n := s.rounds - before; n < 1 || n > 2 {
			t.Errorf("100 kicks made %d rounds, want 1 or 2", n)
		}

		s.have = map[string]int{} // somebody's reboot that nobody reports
		s.mu.Unlock()
		for len(rounds) > 0 {
			<-rounds
		}
		began = time.Now()
		<-rounds
		if took := time.Since(began); took > time.Minute {
			t.Errorf("it was read anew after %v, want a minute at most", took)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if !maps.Equal(s.have, want) {
			t.Errorf("an unreported change was not put right: %v", s.have)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}
