package openflow

import (
	"context"
	"maps"
	"slices"
	"testing"
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
