package openflow

import (
	"context"
	"fmt"
	"sync/atomic"

	"antrea.io/libOpenflow/openflow15"

	"heliotrope/flows"
	"heliotrope/internal/reconcile"
)

// Target is a switch's flow tables as something to reconcile, by flows.Flow.Key.
type Target struct {
	conn    *Conn
	foreign atomic.Int64
	// unreadable has the matches of flows that bear our mark but that another version of
	// us wrote, by the key that Observe gave them, so that they can be removed.
	unreadable map[string][]byte
}

var _ reconcile.Target[string, flows.Flow] = (*Target)(nil)

// NewTarget returns the flow tables of c's switch. Observe and Apply must not run at once.
func NewTarget(c *Conn) *Target { return &Target{conn: c} }

// Foreign is how many flows the last Observe found that are not ours. They are left alone.
func (t *Target) Foreign() int { return int(t.foreign.Load()) }

// Observe returns the switch's flows that are ours.
func (t *Target) Observe(ctx context.Context) (map[string]flows.Flow, error) {
	entries, err := t.conn.dump(ctx)
	if err != nil {
		return nil, err
	}
	have, foreign := make(map[string]flows.Flow, len(entries)), 0
	t.unreadable = map[string][]byte{}
	for _, e := range entries {
		switch {
		case !flows.Owned(e.flow.Cookie):
			foreign++
		case e.bad != nil:
			key := fmt.Sprintf("unreadable,table=%d,priority=%d,%x", e.flow.Table, e.flow.Priority, e.raw)
			have[key], t.unreadable[key] = e.flow, e.raw
		default:
			have[e.flow.Key()] = e.flow
		}
	}
	t.foreign.Store(int64(foreign))
	return have, nil
}

// Apply carries out all changes at once or none.
func (t *Target) Apply(ctx context.Context, changes []reconcile.Change[string, flows.Flow]) error {
	mods := make([]flowMod, 0, len(changes))
	for _, c := range changes {
		if c.Op == reconcile.Delete {
			mods = append(mods, flowMod{command: openflow15.FC_DELETE_STRICT, flow: c.Have, raw: t.unreadable[c.Key]})
		} else {
			mods = append(mods, flowMod{command: openflow15.FC_ADD, flow: c.Want})
		}
	}
	return t.conn.apply(ctx, mods)
}
