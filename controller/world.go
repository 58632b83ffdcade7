package controller

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

// view is everything the controller knows at one moment: the store's nouns and what the
// hosts said last. A view is never changed; the loops decide on one.
type view struct {
	revision   int64  // of the store: this view has everything up to it
	fabric     uint64 // grows when topology or placements change, which is what flows are made of
	topology   heliotrope.Topology
	topologyAt int64 // the topology's own revision; 0 while there is none
	placements map[heliotrope.VMID]heliotrope.Placement
	recent     recently
	tombstones map[heliotrope.VMID]heliotrope.Placement // of VMs that the topology no longer has
	moves      map[heliotrope.MoveID]storedMove
	underway   map[heliotrope.VMID]heliotrope.MoveID // the moves that have not ended
	concerned  map[heliotrope.HostID]int64           // revision of the newest change of a placement or a move that a host has part in
	members    map[heliotrope.HostID]store.Host      // hosts that joined
	hosts      map[heliotrope.HostID]hostFacts
	routesAt   uint64 // the fabric from which the announced routes were made
}

type (
	move   = migration.Move
	moveID = heliotrope.MoveID
)

// storedMove is a Move with the revision of its record.
type storedMove struct {
	migration.Move
	revision int64
}

// hostFacts is what one host said, and what was done to it. It is gone when the controller
// restarts, and comes back when the host connects.
type hostFacts struct {
	agent    *agentapi.Agent // nil while its channel is down
	status   agentapi.HostStatus
	statusAt time.Time
	ovsdb    bool
	ports    []ovsdb.Port
	portsGen uint64 // grows when ports or the gateway's MAC change
	openflow bool
	applied  appliedFlows
	flows    *openflow.Conn    // nil while br-int is not connected
	trouble  map[string]string // of the loops of this host, by loop; empty when content
	lastSeen time.Time
}

// appliedFlows says from which state the flows in a host's switch were compiled.
type appliedFlows struct {
	fabric uint64
	ports  uint64
}

// world holds the current view. Readers wait on it for what they need to become true.
type world struct {
	mu      sync.Mutex
	now     *view
	changed chan struct{} // closed at the next change
}

func newWorld() *world {
	return &world{now: &view{}, changed: make(chan struct{})}
}

func (w *world) view() *view {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// update replaces the view by what edit makes of a copy. The copy shares its maps with the
// old view: edit replaces a map, it never writes into one.
func (w *world) update(edit func(v *view)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := *w.now
	edit(&next)
	w.now = &next
	close(w.changed)
	w.changed = make(chan struct{})
}

// updateHost changes one host's facts.
func (w *world) updateHost(h heliotrope.HostID, edit func(f *hostFacts)) {
	w.update(func(v *view) {
		f := v.hosts[h]
		edit(&f)
		v.hosts = with(v.hosts, h, f)
	})
}

// wait returns the first view for which ok is true, or ctx's cause.
func (w *world) wait(ctx context.Context, ok func(v *view) bool) (*view, error) {
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

// follow calls f with every view that differs from the one before in what key picks,
// beginning with the current one, until ctx ends. Views may be skipped, the last never is.
func follow[K comparable](ctx context.Context, w *world, key func(*view) K, f func(*view)) error {
	var last K
	for first := true; ; first = false {
		v, err := w.wait(ctx, func(v *view) bool { return first || key(v) != last })
		if err != nil {
			return err
		}
		last = key(v)
		f(v)
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

// moving returns the move of vm that has not ended.
func (v *view) moving(vm heliotrope.VMID) (storedMove, bool) {
	id, ok := v.underway[vm]
	return v.moves[id], ok
}

// flowsReached says whether the switch of h has flows compiled from fabric or later and
// from the ports that it has now.
func (v *view) flowsReached(h heliotrope.HostID, fabric uint64) bool {
	f := v.hosts[h]
	return f.openflow && f.applied.fabric >= fabric && f.applied.ports >= f.portsGen
}

// nicPorts returns the OpenFlow port numbers of vm's NICs at h; ok is false unless all are there.
func (v *view) nicPorts(h heliotrope.HostID, vm heliotrope.VMID) (ports map[int]uint32, ok bool) {
	ports = make(map[int]uint32)
	spec := v.topology.VMs[vm]
	for i := range spec.NICs {
		for _, p := range v.hosts[h].ports {
			if p.IfaceID == heliotrope.InterfaceID(vm, i) && p.Ofport > 0 {
				ports[i] = uint32(p.Ofport)
			}
		}
	}
	return ports, len(ports) == len(spec.NICs)
}
