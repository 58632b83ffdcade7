package reconcile

import (
	"cmp"
	"context"
)

// InTurn is a target whose large changes wait for their turn.
type InTurn[K cmp.Ordered, V any] struct {
	Target[K, V]
	Many  int           // changes, from which on they are many
	Turns chan struct{} // as many at a time as it holds
}

// Apply waits for a turn if there are many changes.
func (t InTurn[K, V]) Apply(ctx context.Context, changes []Change[K, V]) error {
	if len(changes) >= t.Many {
		select {
		case t.Turns <- struct{}{}:
			defer func() { <-t.Turns }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return t.Target.Apply(ctx, changes)
}
