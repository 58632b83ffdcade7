// Package world holds what a controller knows: one immutable View of the store's nouns,
// followed by a watch, and of what the hosts said last.
//
// Loops and the API read a View and decide on it; whoever needs something to become true
// waits for the View in which it is. Nothing else is remembered, so a controller that is
// killed loses nothing but time.
package world

import (
	"context"
	"maps"
	"sync"
	"time"

	"heliotrope"
	"heliotrope/controller/store"
	"heliotrope/flows/openflow"
	"heliotrope/hostagent/agentapi"
	"heliotrope/migration"
	"heliotrope/ovsdb"
)

// View is everything the controller knows at one moment: the store's nouns and what the
// hosts said last. A view is never changed; the loops decide on one.
type View struct {
	Revision   int64  // of the store: this view has everything up to it
	Fabric     uint64 // grows when topology or placements change, which is what flows are made of
	Topology   heliotrope.Topology
	TopologyAt int64 // the topology's own revision; 0 while there is none
	Placements map[heliotrope.VMID]heliotrope.Placement
	recent     recently
	Tombstones map[heliotrope.VMID]heliotrope.Placement // of VMs that the topology no longer has
	Moves      map[heliotrope.MoveID]Move
	Underway   map[heliotrope.VMID]heliotrope.MoveID // the moves that have not ended
	Concerned  map[heliotrope.HostID]int64           // revision of the newest change of a placement or a move that a host has part in
	Members    map[heliotrope.HostID]store.Host      // hosts that joined
	Hosts      map[heliotrope.HostID]Host
	RoutesAt   uint64 // the fabric from which the announced routes were made
}

// Move is a migration with the revision of its record.
type Move struct {
	migration.Move
	Revision int64
}

// Host is what one host said, and what was done to it. It is gone when the controller
// restarts, and comes back when the host connects.
type Host struct {
	Agent    *agentapi.Agent // nil while its channel is down
	Status   agentapi.HostStatus
	StatusAt time.Time
	OVSDB    bool
	Ports    []ovsdb.Port
	PortsGen uint64 // grows when ports or the gateway's MAC change
	OpenFlow bool
	Applied  Compiled
	Flows    *openflow.Conn    // nil while br-int is not connected
	Trouble  map[string]string // of the loops of this host, by loop; empty when content
	LastSeen time.Time
}

// Compiled says from which state the flows in a host's switch were compiled.
type Compiled struct {
	Fabric uint64
	Ports  uint64
}

// World holds the current view. Readers wait on it for what they need to become true.
type World struct {
	mu      sync.Mutex
	now     *View
	changed chan struct{} // closed at the next change
}

// New returns a world of which nothing is known yet.
func New() *World {
	return &World{now: &View{}, changed: make(chan struct{})}
}

// View is the current one.
func (w *World) View() *View {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// Update replaces the view by what edit makes of a copy. The copy shares its maps with the
// old view: edit replaces a map, it never writes into one.
func (w *World) Update(edit func(v *View)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := *w.now
	edit(&next)
	w.now = &next
	close(w.changed)
	w.changed = make(chan struct{})
}

// UpdateHost changes one host's facts.
func (w *World) UpdateHost(h heliotrope.HostID, edit func(f *Host)) {
	w.Update(func(v *View) {
		f := v.Hosts[h]
		edit(&f)
		v.Hosts = with(v.Hosts, h, f)
	})
}

// Wait returns the first view for which ok is true, or ctx's cause.
func (w *World) Wait(ctx context.Context, ok func(v *View) bool) (*View, error) {
	for {
		w.mu.Lock()
		v, changed := w.now, w.changed
		w.mu.Unlock()
		if ok(v) {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return v, context.Cause(ctx)
		}
	}
}

// Follow calls f with every view that differs from the one before in what key picks,
// beginning with the current one, until ctx ends. Views may be skipped, the last never is.
func Follow[K comparable](ctx context.Context, w *World, key func(*View) K, f func(*View)) error {
	var last K
	for first := true; ; first = false {
		v, err := w.Wait(ctx, func(v *View) bool { return first || key(v) != last })
		if err != nil {
			return err
		}
		last = key(v)
		f(v)
	}
}

// Trouble keeps what is wrong with a loop of a host where people look for it; empty: nothing is.
func (w *World) Trouble(h heliotrope.HostID, loop, trouble string) {
	if w.View().Hosts[h].Trouble[loop] != trouble {
		w.UpdateHost(h, func(f *Host) { f.Trouble = with(f.Trouble, loop, trouble) })
	}
}

// with returns a copy of m in which k is v.
func with[K comparable, V any](m map[K]V, k K, v V) map[K]V {
	m = maps.Clone(m)
	if m == nil {
		m = make(map[K]V)
	}
	m[k] = v
	return m
}
