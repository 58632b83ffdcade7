package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"heliotrope"
)

func topology(name string, vms ...heliotrope.VMID) heliotrope.Topology {
	t := heliotrope.Topology{Version: 1, Name: name,
		Peers: map[heliotrope.PeerID]heliotrope.Peer{"r1": {Address: netip.MustParseAddr("10.0.0.1"), Password: "secret"}},
		VMs:   map[heliotrope.VMID]heliotrope.VM{}}
	for _, vm := range vms {
		t.VMs[vm] = heliotrope.VM{Image: "tiny", Host: "h1"}
	}
	return t
}

// lead runs fn while it leads.
func lead(t *testing.T, s *Store, fn func(ctx context.Context, term uint64)) {
	t.Helper()
	done := errors.New("done")
	wantErr(t, s.Lead(t.Context(), func(ctx context.Context, term uint64) error { fn(ctx, term); return done }), done)
}

func TestApplyTopology(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	_, _, err := s.Topology(ctx)
	wantErr(t, err, ErrNotFound)
	_, err = s.ApplyTopology(ctx, topology("a"), 7)
	wantErr(t, err, ErrConflict)

	rev := must[int64](t)(s.ApplyTopology(ctx, topology("a", "web", "db"), 0))
	got, gotRev, err := s.Topology(ctx)
	if err != nil || gotRev != rev || !reflect.DeepEqual(got, topology("a", "web", "db")) {
		t.Errorf("read back %+v at %d, %v", got, gotRev, err)
	}
	if again := must[int64](t)(s.ApplyTopology(ctx, topology("a", "web", "db"), 3)); again != rev {
		t.Errorf("the same topology again made revision %d of %d", again, rev)
	}
	_, err = s.ApplyTopology(ctx, topology("a"), rev-1)
	wantErr(t, err, ErrConflict)
	places, at, err := s.Placements(ctx)
	want := heliotrope.Placement{VM: "web", Host: "h1", Epoch: 1}
	if err != nil || len(places) != 2 || at != rev || !reflect.DeepEqual(places["web"].Value, want) || places["web"].Rev != rev {
		t.Errorf("placements are %+v at %d, %v", places, at, err)
	}
}

// The epoch of a VM that goes and comes back is never used twice.
func TestEpochsNeverReused(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	must[int64](t)(s.ApplyTopology(ctx, topology("a", "web"), Any))
	for round := range uint64(3) {
		must[int64](t)(s.ApplyTopology(ctx, topology("a"), Any))
		if dead := must[map[heliotrope.VMID]KV[heliotrope.Placement]](t)(s.Tombstones(ctx)); dead["web"].Value.Epoch != round+1 {
			t.Errorf("tombstone is %+v", dead)
		}
		must[int64](t)(s.ApplyTopology(ctx, topology("a", "web"), Any))
		places, _, err := s.Placements(ctx)
		if err != nil || places["web"].Value.Epoch != round+2 {
			t.Errorf("back with %+v, %v", places, err)
		}
		if dead := must[map[heliotrope.VMID]KV[heliotrope.Placement]](t)(s.Tombstones(ctx)); len(dead) != 0 {
			t.Errorf("tombstones left: %+v", dead)
		}
	}
}

func TestTopologyHistory(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	for i := range 15 {
		must[int64](t)(s.ApplyTopology(ctx, topology(fmt.Sprint("t", i)), Any))
	}
	old := must[[]KV[Applied]](t)(s.TopologyHistory(ctx))
	if len(old) != historyKept || old[0].Value.Topology.Name != "t13" || old[9].Value.Topology.Name != "t4" {
		t.Errorf("%d kept, newest %s, oldest %s", len(old), old[0].Value.Topology.Name, old[len(old)-1].Value.Topology.Name)
	}
	if old[0].Value.Full().Peers["r1"].Password != "secret" {
		t.Error("the password of a past topology is lost")
	}
}

// Of many that apply at the same revision one wins; with Any all do, one after the other.
func TestApplyRaces(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	rev := must[int64](t)(s.ApplyTopology(ctx, topology("start"), 0))
	var won atomic.Int32
	var g errgroup.Group
	for i := range 8 {
		g.Go(func() error {
			_, err := s.ApplyTopology(ctx, topology(fmt.Sprint("t", i), heliotrope.VMID(fmt.Sprint("vm", i))), rev)
			if err == nil {
				won.Add(1)
			} else if !errors.Is(err, ErrConflict) {
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil || won.Load() != 1 {
		t.Fatalf("%d won, %v", won.Load(), err)
	}
	for i := range 8 {
		g.Go(func() error {
			_, err := s.ApplyTopology(ctx, topology("x", heliotrope.VMID(fmt.Sprint("vm", i))), Any)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	places, _, err := s.Placements(ctx)
	last, _, _ := s.Topology(ctx)
	if err != nil || len(places) != 1 || len(last.VMs) != 1 {
		t.Errorf("placements %v, VMs %v, %v", places, last.VMs, err)
	}
}

type move struct{ Phase string }

func TestMove(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	must[int64](t)(s.ApplyTopology(ctx, topology("a", "web"), Any))
	_, err := s.StartMove(ctx, "nobody", "m0", move{"Pending"})
	wantErr(t, err, ErrNotFound)
	rev := must[int64](t)(s.StartMove(ctx, "web", "m1", move{"Pending"}))
	_, err = s.StartMove(ctx, "web", "m1", move{"Pending"})
	wantErr(t, err, ErrConflict)
	_, err = s.StartMove(ctx, "web", "m2", move{"Pending"})
	wantErr(t, err, ErrMoving)
	_, err = s.ApplyTopology(ctx, topology("a"), Any)
	wantErr(t, err, ErrMoving)

	_, err = s.ChangeOwner(ctx, 1, "web", "h1", "h2", 1)
	wantErr(t, err, ErrStaleTerm)
	lead(t, s, func(ctx context.Context, term uint64) {
		must[int64](t)(s.ChangePlacement(ctx, term, "web", func(p *heliotrope.Placement) { p.Incoming, p.Opened = "h2", true }))
		_, err := s.ChangePlacement(ctx, term, "web", func(p *heliotrope.Placement) { p.Epoch++ })
		if err == nil {
			t.Error("an epoch was changed without a commit")
		}
		for _, wrong := range []struct {
			from  heliotrope.HostID
			epoch uint64
		}{{"h3", 1}, {"h1", 2}} {
			_, err = s.ChangeOwner(ctx, term, "web", wrong.from, "h2", wrong.epoch)
			wantErr(t, err, ErrOwner)
		}
		done := must[int64](t)(s.ChangeOwner(ctx, term, "web", "h1", "h2", 1))
		if again := must[int64](t)(s.ChangeOwner(ctx, term, "web", "h1", "h2", 1)); again != done {
			t.Errorf("done again, a commit changed revision %d to %d", done, again)
		}
		places, _, err := s.Placements(ctx)
		want := heliotrope.Placement{VM: "web", Host: "h2", Epoch: 2, Previous: []heliotrope.HostID{"h1"}}
		if err != nil || !reflect.DeepEqual(places["web"].Value, want) || places["web"].Rev != done {
			t.Errorf("placement is %+v, %v", places["web"], err)
		}
		must[int64](t)(s.EndMove(ctx, term, "web", "m1", move{"Succeeded"}, rev))
	})
	if moving := must[map[heliotrope.VMID]heliotrope.MoveID](t)(s.Moving(ctx)); len(moving) != 0 {
		t.Errorf("still moving: %v", moving)
	}
	must[int64](t)(s.StartMove(ctx, "web", "m2", move{"Pending"}))
	moving := must[map[heliotrope.VMID]heliotrope.MoveID](t)(s.Moving(ctx))
	if moving["web"] != "m2" {
		t.Errorf("moving: %v", moving)
	}
}

// A VM that goes back and forth was before where it came from last; ended moves are trimmed.
func TestMovesBackAndForth(t *testing.T) {
	s := fresh(t)
	must[int64](t)(s.ApplyTopology(t.Context(), topology("a", "web"), Any))
	lead(t, s, func(ctx context.Context, term uint64) {
		hosts := []heliotrope.HostID{"h1", "h2", "h3", "h1", "h2"}
		for i := range hosts[1:] {
			id := heliotrope.MoveID(fmt.Sprint("m", i))
			rev := must[int64](t)(s.StartMove(ctx, "web", id, move{}))
			must[int64](t)(s.ChangeOwner(ctx, term, "web", hosts[i], hosts[i+1], uint64(i+1)))
			must[int64](t)(s.EndMove(ctx, term, "web", id, move{}, rev))
		}
		places, _, err := s.Placements(ctx)
		if got := fmt.Sprint(places["web"].Value.Previous); err != nil || got != "[h1]" {
			t.Errorf("previous are %s, %v", got, err)
		}
		if err := Trim(ctx, s, term, "moves/", 1, func(move) bool { return true }); err != nil {
			t.Error(err)
		}
		left, _, err := List[move](ctx, s, "moves/")
		if err != nil || len(left) != 1 || left[0].Name() != "m3" {
			t.Errorf("left %+v, %v", left, err)
		}
	})
}

// follow collects events until it has n.
func follow(t *testing.T, s *Store, after int64, n int) (numbers []int64, gone int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	enough := errors.New("enough")
	err := s.FollowEvents(ctx, after, func(last int64) error { gone = last; return nil }, func(e Event) error {
		if numbers = append(numbers, e.Number); len(numbers) == n {
			return enough
		}
		return nil
	})
	wantErr(t, err, enough)
	return numbers, gone
}

func TestEvents(t *testing.T) {
	s := fresh(t)
	var all []int64
	for i := range 30 {
		all = append(all, must[int64](t)(s.AppendEvent(t.Context(), i)))
		must[int64](t)(Put(t.Context(), s, "noise", i, Any))
	}
	page, _, err := s.Events(t.Context(), all[9], 5)
	if err != nil || len(page) != 5 || page[0].Number != all[25] || string(page[4].Value) != "29" {
		t.Errorf("page is %+v, %v", page, err)
	}
	for i := range all[1:] { // resume after every one of them
		if got, gone := follow(t, s, all[i], 29-i); !reflect.DeepEqual(got, all[i+1:]) || gone != 0 {
			t.Fatalf("after %d: got %v (gone %d), want %v", all[i], got, gone, all[i+1:])
		}
	}
	lead(t, s, func(ctx context.Context, term uint64) {
		if err := s.trimEvents(ctx, term, 10); err != nil {
			t.Error(err)
		}
	})
	if got, gone := follow(t, s, all[4], 10); !reflect.DeepEqual(got, all[20:]) || gone != all[19] {
		t.Errorf("after trimming: %v, gone %d; want %v, gone %d", got, gone, all[20:], all[19])
	}
	if got, gone := follow(t, s, 0, 10); !reflect.DeepEqual(got, all[20:]) || gone != 0 {
		t.Errorf("all that is kept: %v, gone %d", got, gone)
	}
}

// Events written while one follows arrive once each and in order, through compactions.
func TestFollowLive(t *testing.T) {
	s := fresh(t)
	first := must[int64](t)(s.AppendEvent(t.Context(), 0))
	written := make(chan []int64, 1)
	go func() {
		var all []int64
		for i := range 200 {
			rev, err := s.AppendEvent(t.Context(), i)
			if err == nil && i%50 == 0 {
				_, err = s.client.Compact(t.Context(), rev)
			}
			if err != nil {
				t.Error(err)
			}
			all = append(all, rev)
		}
		written <- all
	}()
	got, _ := follow(t, s, first, 200)
	if all := <-written; !reflect.DeepEqual(got, all) {
		t.Errorf("got %v\nwant %v", got, all)
	}
}

func TestIdempotency(t *testing.T) {
	s, ctx := fresh(t), t.Context()
	claim := func(key, hash string) string {
		t.Helper()
		state, answer, err := s.Claim(ctx, key, hash)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(state + " " + string(answer))
	}
	for _, step := range []struct{ got, want string }{
		{claim("k", "h1"), "claimed"},
		{claim("k", "h1"), "busy"},
		{claim("k", "h2"), "reused"},
	} {
		if step.got != step.want {
			t.Errorf("got %q, want %q", step.got, step.want)
		}
	}
	if err := s.Keep(ctx, "k", "h1", []byte("answer")); err != nil {
		t.Fatal(err)
	}
	if got := claim("k", "h1"); got != "kept answer" {
		t.Errorf("got %q", got)
	}
	if got := claim("k", "h2"); got != "reused" {
		t.Errorf("got %q", got)
	}
	if err := s.Release(ctx, "k", "h1"); err != nil {
		t.Fatal(err)
	}
	if got := claim("k", "h2"); got != "claimed" {
		t.Errorf("got %q", got)
	}
}

func TestClaimRace(t *testing.T) {
	s := fresh(t)
	var claimed, busy atomic.Int32
	var g errgroup.Group
	for range 50 {
		g.Go(func() error {
			state, _, err := s.Claim(t.Context(), "k", "h")
			switch state {
			case "claimed":
				claimed.Add(1)
			case "busy":
				busy.Add(1)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil || claimed.Load() != 1 || busy.Load() != 49 {
		t.Errorf("%d claimed, %d busy, %v", claimed.Load(), busy.Load(), err)
	}
}

type token struct{ Used bool }

func TestJoin(t *testing.T) {
	s, ctx, now := fresh(t), t.Context(), time.Now()
	rev := must[int64](t)(Put(ctx, s, TokenKey("t1"), token{}, 0))
	must[int64](t)(s.Join(ctx, "t1", rev, token{Used: true}, Host{Host: "h1", Serial: "aa", JoinedAt: now}))
	_, err := s.Join(ctx, "t1", rev, token{Used: true}, Host{Host: "h1", Serial: "bb", JoinedAt: now})
	wantErr(t, err, ErrConflict)
	if kv := must[KV[token]](t)(Get[token](ctx, s, TokenKey("t1"))); !kv.Value.Used {
		t.Error("the token was not used up")
	}

	must[int64](t)(s.ChangeHost(ctx, "h1", func(h *Host) { h.RevokedAt = now }))
	h := must[KV[Host]](t)(Get[Host](ctx, s, HostKey("h1")))
	if !h.Value.Revoked() || h.Value.Serial != "aa" {
		t.Errorf("host is %+v", h)
	}
	_, err = s.ChangeHost(ctx, "h2", func(*Host) {})
	wantErr(t, err, ErrNotFound)
}

func TestSecret(t *testing.T) {
	s := fresh(t)
	var g errgroup.Group
	values := make([]string, 10)
	for i := range values {
		g.Go(func() error {
			v, err := s.Secret(t.Context(), "ca", func() ([]byte, error) { return fmt.Append(nil, "made by ", i), nil })
			values[i] = string(v)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		if v != values[0] || v == "" {
			t.Errorf("got %q and %q", v, values[0])
		}
	}
	_, err := s.Secret(t.Context(), "other", func() ([]byte, error) { return nil, context.Canceled })
	wantErr(t, err, context.Canceled)
}
