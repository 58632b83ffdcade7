package api

import (
	"context"
	"net/http"
	"net/netip"

	"heliotrope"
	"heliotrope/scheduler"
	"heliotrope/scheduler/traffic"
	"heliotrope/scheduler/traffic/report"
)

// What the handler needs of the controller. An error that is a *Problem (NotFound,
// Conflict, Stale, Invalid, Unavailable make them) is answered as it is; any other is a
// 500 whose text goes to the log and not to the caller; an ended context, and one that says
// that it is Unavailable, are a 503.

// Topologies keeps the topology.
type Topologies interface {
	// Topology is the one in force and its revision; 0 and a zero Topology while there is none.
	Topology(ctx context.Context) (heliotrope.Topology, int64, error)
	// PlanTopology says what t would change against the one in force. It changes nothing.
	// The handler calls it with a topology that ParseTopology accepted.
	PlanTopology(ctx context.Context, t heliotrope.Topology) (TopologyPlan, error)
	// ApplyTopology puts t in force if the one in force has revision ifMatch (or any, when
	// ifMatch is -1; none yet, when it is 0) and says what changed; Stale when it has not.
	ApplyTopology(ctx context.Context, t heliotrope.Topology, ifMatch int64) (TopologyPlan, error)
}

// Inventory knows hosts and VMs as they are. Both lists are ordered by name.
type Inventory interface {
	Hosts(ctx context.Context) ([]Host, error)
	VMs(ctx context.Context) ([]VM, error)
}

// Membership lets hosts in and throws them out.
type Membership interface {
	// CreateToken makes a token with which host may join once within an hour.
	CreateToken(ctx context.Context, host heliotrope.HostID) (JoinToken, error)
	// RevokeHost refuses the host's certificate from now on and drops its connections.
	RevokeHost(ctx context.Context, host heliotrope.HostID) error
	// DrainHost has all VMs leave host, and lets none come.
	DrainHost(ctx context.Context, host heliotrope.HostID, r DrainRequest) error
	// UndrainHost lets VMs come again.
	UndrainHost(ctx context.Context, host heliotrope.HostID) error
}

// Migrations moves VMs.
type Migrations interface {
	// PreviewMigration checks and predicts, and changes nothing. Where r can never be
	// carried out (no such VM or target) it is a Problem; where it cannot now, OK is false.
	PreviewMigration(ctx context.Context, r MigrationRequest) (MigrationPreview, error)
	// StartMigration records a new migration under id and returns it. If there is one
	// under id already it returns that one and starts nothing: this is what makes an
	// Idempotency-Key hold across a crash. Conflict when the VM is already on the move.
	StartMigration(ctx context.Context, id heliotrope.MoveID, r MigrationRequest) (Migration, error)
	// Migrations are all that are kept, newest first.
	Migrations(ctx context.Context) ([]Migration, error)
	// WaitMigration returns the migration once its revision is above after, or as it is
	// when ctx ends first. With after < 0 it returns at once.
	WaitMigration(ctx context.Context, id heliotrope.MoveID, after int64) (Migration, error)
	// AbortMigration asks for a rollback; Conflict once it is committed or has ended.
	AbortMigration(ctx context.Context, id heliotrope.MoveID) (Migration, error)
}

// Routes explains the public routes.
type Routes interface {
	Routes(ctx context.Context) ([]Route, error)
	WhyRoute(ctx context.Context, a netip.Addr) (RouteWhy, error)
}

// Meshes looks at the overlay.
type Meshes interface {
	Mesh(ctx context.Context) (Mesh, error)
	VerifyMesh(ctx context.Context, packetSize int) (MeshVerification, error)
}

// Flows looks into a host's br-int.
type Flows interface {
	Flows(ctx context.Context, host heliotrope.HostID) (FlowList, error)
	FlowDiff(ctx context.Context, host heliotrope.HostID) (FlowDiff, error)
	// WaitFlows says which hosts lack flows made from the store at revision: once none
	// does, or when ctx ends.
	WaitFlows(ctx context.Context, revision int64) (FlowsReached, error)
}

// Events is the log of what happened.
type Events interface {
	// Events are the newest limit events with ID > after, oldest first, and the revision at
	// which that was true.
	Events(ctx context.Context, after int64, limit int) (EventPage, error)
	// FollowEvents calls send for each event with ID > after, in order, as it happens, until
	// ctx ends or send fails. Where some of them are no longer kept, it first sends one of
	// kind "gap" whose ID is that of the last one gone.
	FollowEvents(ctx context.Context, after int64, send func(Event) error) error
}

// Health says how the controller is.
type Health interface {
	// Checks are what /readyz looks at: the store, the leader, the loops. It must answer
	// within ctx also when the store does not.
	Checks(ctx context.Context) []Check
	// Leader is the name and term of the controller that runs the loops, or empty.
	Leader(ctx context.Context) (name string, term int64)
}

// Traffic knows who talks to whom. Window and Top of the queries are set and within their
// limits, and what the filters name is in the topology in force.
type Traffic interface {
	// Report is what was seen in the window of q, with q.Top ends, pairs and services.
	Report(ctx context.Context, q TrafficQuery) (report.Report, error)
	// Matrix is all that was counted in the window of q; q.Top does not matter.
	Matrix(ctx context.Context, q TrafficQuery) (traffic.Matrix, error)
	// Diff says what changed from one window to the other, with after.Top changes;
	// CompareTraffic makes it.
	Diff(ctx context.Context, before, after TrafficQuery) (TrafficDiff, error)
	// Page is the report as an HTML page that loads nothing else.
	Page(ctx context.Context, q TrafficQuery) ([]byte, error)
}

// Plans says where VMs ought to be, and brings them there.
type Plans interface {
	// SimulatePlan makes a plan and keeps nothing. The pool, the policy and the sites of r
	// are known, where they are given.
	SimulatePlan(ctx context.Context, r PlanRequest) (scheduler.Plan, error)
	// CreatePlan makes a plan and keeps it under id. If there is one under id already it
	// returns that one and makes none.
	CreatePlan(ctx context.Context, id heliotrope.PlanID, r PlanRequest) (Plan, error)
	// Plans are those that are kept, newest first.
	Plans(ctx context.Context) ([]Plan, error)
	// WaitPlan returns the plan once its revision is above after, or as it is when ctx ends
	// first. With after < 0 it returns at once.
	WaitPlan(ctx context.Context, id heliotrope.PlanID, after int64) (Plan, error)
	// ApplyPlan begins a plan's moves; Conflict where it does not hold any more. Applying
	// again is no error.
	ApplyPlan(ctx context.Context, id heliotrope.PlanID) (Plan, error)
	// AbortPlan begins no more moves and undoes those that can be; Conflict once it has ended.
	AbortPlan(ctx context.Context, id heliotrope.PlanID) (Plan, error)
	// Pools are those of the topology, by name.
	Pools(ctx context.Context) ([]Pool, error)
	// Pool is one of them, with what it would do now.
	Pool(ctx context.Context, name heliotrope.PoolID) (Pool, error)
	// Stubs are those of the topology, by name, and who uses them.
	Stubs(ctx context.Context) ([]Stub, error)
	// Stub is one of them.
	Stub(ctx context.Context, name heliotrope.StubID) (Stub, error)
}

// Answer is a response kept for an Idempotency-Key.
type Answer struct {
	Status  int         `json:"status"`
	Headers http.Header `json:"headers,omitempty"` // Content-Type, Location, ETag
	Body    []byte      `json:"body,omitempty"`
}

// What Answers.Claim finds.
const (
	Claimed = "claimed"
	Kept    = "kept"
	Busy    = "busy"
	Reused  = "reused"
)

// Answers keeps the answers given to Idempotency-Keys for a day. controller/store has it.
type Answers interface {
	// Claim takes key for a request whose content has this hash. state is Claimed for the
	// first; Kept with its answer later; Reused when the hash is another; Busy while the
	// first has no answer (for at most two minutes: a controller may have died over it).
	Claim(ctx context.Context, key, hash string) (state string, answer []byte, err error)
	// Keep stores the answer of a claimed key.
	Keep(ctx context.Context, key, hash string, answer []byte) error
	// Release gives a claimed key back: its request had no effect.
	Release(ctx context.Context, key, hash string) error
}

// Backend is all of the above. Metrics may be nil, Traffic and Plans where none is counted, and
// Images and Snapshots where there is no store.
type Backend struct {
	Topologies Topologies
	Inventory  Inventory
	Membership Membership
	Migrations Migrations
	Routes     Routes
	Meshes     Meshes
	Flows      Flows
	Events     Events
	Health     Health
	Answers    Answers
	Traffic    Traffic
	Plans      Plans
	Benchmarks Benchmarks
	Images     Images
	Snapshots  Snapshots
	Metrics    http.Handler

	// ParseTopology reads a topology in YAML or JSON and returns every problem it has.
	// contentType is application/yaml or application/json.
	ParseTopology func(data []byte, contentType string) (heliotrope.Topology, []FieldProblem)
	// FormatTopology writes a topology as YAML.
	FormatTopology func(t heliotrope.Topology) ([]byte, error)
}
