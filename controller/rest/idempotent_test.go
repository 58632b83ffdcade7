package rest

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"heliotrope"
	"heliotrope/controller/api"
)

// 50 identical requests at once: one effect, and each gets the same answer or is told to wait.
func TestIdempotencyConcurrent(t *testing.T) {
	s := serve(t, Options{})
	s.example(t)
	s.memory.slow = make(chan struct{})
	c := s.client(t)
	var mu sync.Mutex
	ids := map[heliotrope.MoveID]int{}
	busy := 0
	var g errgroup.Group
	for range 50 {
		g.Go(func() error {
			m, err := c.StartMigration(t.Context(), api.MigrationRequest{VM: "web", To: "eu"}, "key-1")
			var p *api.Problem
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				ids[m.ID]++
			case errors.As(err, &p) && p.Type == api.TypeKeyBusy:
				busy++
				if busy == 49 { // all others are answered: now the first may go on
					close(s.memory.slow)
				}
			default:
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(ids) != 1 || busy != 49 || len(s.memory.migrations) != 1 {
		t.Errorf("answers %v, %d busy, %d migrations", ids, busy, len(s.memory.migrations))
	}
	again, err := c.StartMigration(t.Context(), api.MigrationRequest{VM: "web", To: "eu"}, "key-1")
	if err != nil || ids[again.ID] != 1 {
		t.Errorf("later: %v, %v", again.ID, err)
	}
}

func TestIdempotency(t *testing.T) {
	s := serve(t, Options{})
	yaml := s.example(t)
	start := func(key, body string) answer {
		return s.ask(t, "POST", "/v1/migrations", map[string]string{"Content-Type": asJSON, "Idempotency-Key": key}, strings.NewReader(body))
	}
	first := start("k", `{"vm":"web","to":"eu"}`)
	s.memory.advance("PreCopy", 0.3)
	second := start("k", `{"vm":"web","to":"eu"}`)
	if first.StatusCode != 202 || second.StatusCode != 202 || string(first.body) != string(second.body) ||
		first.Header.Get("Location") == "" || first.Header.Get("Location") != second.Header.Get("Location") {
		t.Errorf("first %d %s\nsecond %d %s", first.StatusCode, first.body, second.StatusCode, second.body)
	}
	if second.Header.Get("Idempotency-Replayed") != "true" {
		t.Error("a replay does not say so")
	}
	wantProblem(t, start("k", `{"vm":"web","to":"asia"}`), 422, api.TypeKeyReused)
	wantProblem(t, start("other", `{"vm":"web","to":"eu"}`), 409, api.TypeConflict)

	// The controller died between effect and answer: the claim is gone, the effect is found.
	clear(s.memory.answers)
	third := start("k", `{"vm":"web","to":"eu"}`)
	if third.Header.Get("Location") != first.Header.Get("Location") || len(s.memory.migrations) != 1 {
		t.Errorf("after a crash: %s", third.body)
	}
	// What failed had no effect, and its key is free.
	s.memory.advance(api.PhaseSucceeded, 1)
	if a := start("other", `{"vm":"web","to":"eu"}`); a.StatusCode != 202 {
		t.Errorf("a failed request's key: %d %s", a.StatusCode, a.body)
	}

	c := s.client(t)
	one, err1 := c.CreateToken(t.Context(), "us-1", "tok")
	two, err2 := c.CreateToken(t.Context(), "us-1", "tok")
	if err1 != nil || err2 != nil || one.Token != two.Token || s.memory.tokens != 1 {
		t.Errorf("tokens %v %v, %v %v, %d made", one, two, err1, err2, s.memory.tokens)
	}
	put := func() answer {
		return s.ask(t, "PUT", "/v1/topology", map[string]string{"Content-Type": asYAML, "If-Match": "*", "Idempotency-Key": "k"}, strings.NewReader(string(yaml)))
	}
	if a, b := put(), put(); a.StatusCode != 200 || a.Header.Get("ETag") != b.Header.Get("ETag") {
		t.Errorf("%d, ETags %s and %s", a.StatusCode, a.Header.Get("ETag"), b.Header.Get("ETag"))
	}
}
