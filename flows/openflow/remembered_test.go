package openflow

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"heliotrope/flows"
	"heliotrope/internal/reconcile"
)

// table is a switch's flows by key.
type table map[string]flows.Flow

func (t table) Observe(context.Context) (map[string]flows.Flow, error) {
	return maps.Clone(t), nil
}

func (t table) Apply(_ context.Context, changes []reconcile.Change[string, flows.Flow]) error {
	for _, ch := range changes {
		if ch.Op == reconcile.Delete {
			delete(t, ch.Key)
		} else {
			t[ch.Key] = ch.Want
		}
	}
	return nil
}

// A controller that has just started adds flows, and takes none away before it has heard
// what they are made of.
func TestGrowingDeletesNothing(t *testing.T) {
	there := table{"old": {}, "kept": {}}
	target := Remember(there, time.Minute)
	loop := reconcile.New[string, flows.Flow](target, func(context.Context) (map[string]flows.Flow, error) {
		return map[string]flows.Flow{"kept": {}, "new": {}}, nil
	}, flows.Flow.Equal, reconcile.Options{})
	for _, step := range []struct {
		growing bool
		want    []string
	}{{true, []string{"kept", "new", "old"}}, {true, []string{"kept", "new", "old"}}, {false, []string{"kept", "new"}}} {
		target.Growing = step.growing
		if _, err := loop.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := slices.Sorted(maps.Keys(there)); !slices.Equal(got, step.want) {
			t.Errorf("growing %t: there is %v, want %v", step.growing, got, step.want)
		}
	}
}

// What others change is found in bounded time, whenever they do it, also while kicks for
// other reasons come in between.
func TestDamageIsFoundInTime(t *testing.T) {
	const every = 10 * time.Second
	for at := 100 * time.Millisecond; at < 25*time.Second; at += 700 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			there := table{}
			target := Remember(there, every)
			want := make(map[string]flows.Flow)
			for i := range 100 {
				want[strconv.Itoa(i)] = flows.Flow{}
			}
			loop := reconcile.New[string, flows.Flow](target, func(context.Context) (map[string]flows.Flow, error) {
				return target.Narrow(want, map[string]bool{}), nil
			}, flows.Flow.Equal, reconcile.Options{Resync: target.Resync()})
			ended := make(chan error)
			go func() { ended <- loop.Run(ctx) }()
			time.Sleep(at)
			synctest.Wait()
			delete(there, "7")
			loop.Kick()
			damaged := time.Now()
			for len(there) < len(want) && time.Since(damaged) < 3*every {
				time.Sleep(10 * time.Millisecond)
				synctest.Wait()
			}
			if took := time.Since(damaged); took > every*5/4+100*resyncEach {
				t.Errorf("damage %v after the start was found after %v", at, took)
			}
			cancel()
			<-ended
		})
	}
}
