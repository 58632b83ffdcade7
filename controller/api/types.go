package api

import (
	"net/netip"
	"strconv"
	"time"

	"heliotrope"
	"heliotrope/migration"
)

// Times are RFC 3339 UTC, byte counts and rates are numbers, durations carry their unit
// in the field's name. A Revision is the store's: it grows with every change of anything.

// Media types.
const (
	MediaJSON = "application/json"
	MediaYAML = "application/yaml" // topologies
	MediaCSV  = "text/csv"         // matrices; RFC 4180, with a header
	MediaHTML = "text/html"
)

// What a request may ask for.
const (
	MaxBody   = 1 << 20 // bytes of a body
	PageLimit = 1000    // items of a page
)

// ETag is that of a topology with this revision.
func ETag(rev int64) string { return `"` + strconv.FormatInt(rev, 10) + `"` }

// List is a list as the wire has it.
type List[T any] struct {
	Items []T `json:"items" nullable:"false"`
}

// Version says what program answers.
type Version struct {
	Version string `json:"version" doc:"Release, or devel." example:"0.1.0"`
	Commit  string `json:"commit,omitempty" doc:"VCS revision of the build."`
	Go      string `json:"go" doc:"Go version of the build."`
}

// Check is one thing that was looked at, and how it was found.
type Check struct {
	Name   string `json:"name" doc:"What was looked at." example:"store"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty" doc:"What was found, in a sentence."`
}

// Status is the whole system on one screen.
type Status struct {
	Version       Version `json:"version"`
	Leader        string  `json:"leader,omitempty" doc:"The controller that runs the loops; empty while none does."`
	Term          int64   `json:"term,omitempty" doc:"The leader's fencing token."`
	Ready         bool    `json:"ready"`
	Checks        []Check `json:"checks"`
	Topology      string  `json:"topology,omitempty" doc:"Name of the applied topology."`
	Revision      int64   `json:"revision" doc:"Revision of the applied topology; 0 when there is none."`
	Sites         int     `json:"sites"`
	Hosts         int     `json:"hosts"`
	HostsUp       int     `json:"hosts_up"`
	VMs           int     `json:"vms"`
	VMsRunning    int     `json:"vms_running"`
	Moving        int     `json:"moving" doc:"Migrations that have not ended."`
	NeedAttention int     `json:"need_attention" doc:"Migrations that are held: safe, but a person must look."`
}

// ObjectChange is one difference between two topologies.
type ObjectChange struct {
	Op     string        `json:"op" enum:"create,update,delete"`
	Kind   string        `json:"kind" doc:"controller, site, link, host, network, vm, peer or client." example:"vm"`
	Name   string        `json:"name"`
	Fields []FieldChange `json:"fields,omitempty" doc:"What differs, where op is update."`
	Effect string        `json:"effect,omitempty" doc:"What it does to running traffic, in a sentence."`
}

// FieldChange is one field that differs.
type FieldChange struct {
	Path string `json:"path" example:"nics[0].address"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// TopologyPlan says what applying a topology would do, or has done.
type TopologyPlan struct {
	Name     string         `json:"name"`
	Revision int64          `json:"revision" doc:"Of the topology that is in force: before a plan, after an apply."`
	Applied  bool           `json:"applied"`
	Changes  []ObjectChange `json:"changes"`
	Warnings []string       `json:"warnings,omitempty"`
}

// TopologyCheck is the answer to a valid topology.
type TopologyCheck struct {
	Valid    bool   `json:"valid"`
	Name     string `json:"name"`
	Sites    int    `json:"sites"`
	Hosts    int    `json:"hosts"`
	Networks int    `json:"networks"`
	VMs      int    `json:"vms"`
}

// Site is a site of the topology with what stands in it.
type Site struct {
	Name heliotrope.SiteID `json:"name"`
	heliotrope.Site
	Hosts []heliotrope.HostID `json:"hosts"`
	VMs   []heliotrope.VMID   `json:"vms" doc:"Those whose owner is a host of this site."`
}

// Demand is what clients of a region ask, and what that is now.
type Demand struct {
	Region heliotrope.RegionID `json:"region"`
	heliotrope.Demand
	LocalTime time.Time                            `json:"local_time" doc:"By the region's clocks."`
	Now       map[heliotrope.VMID]heliotrope.Asked `json:"now" doc:"What each VM is asked in this hour, where nothing is counted."`
}

// HostState is what the controller knows of a host.
type HostState string

const (
	HostExpected HostState = "expected" // in the topology, has not joined
	HostJoined   HostState = "joined"   // has a certificate, never connected
	HostUp       HostState = "up"       // all its channels are connected
	HostDegraded HostState = "degraded" // some channels are
	HostLost     HostState = "lost"     // was connected, none is
	HostRevoked  HostState = "revoked"  // its certificate is refused
)

// Host is a host of the topology, or one that joined and is in none any more.
type Host struct {
	Name        heliotrope.HostID `json:"name"`
	Site        heliotrope.SiteID `json:"site,omitempty"`
	Address     netip.Addr        `json:"address,omitzero"`
	Public      netip.Addr        `json:"public,omitzero"`
	State       HostState         `json:"state" enum:"expected,joined,up,degraded,lost,revoked"`
	JoinedAt    time.Time         `json:"joined_at,omitzero"`
	LastSeen    time.Time         `json:"last_seen,omitzero"`
	RPC         bool              `json:"rpc" doc:"The agent's channel is connected."`
	OVSDB       bool              `json:"ovsdb" doc:"Open vSwitch's database is connected."`
	OpenFlow    bool              `json:"openflow" doc:"br-int is connected."`
	Agent       string            `json:"agent,omitempty" doc:"Version of the agent."`
	CPUs        int               `json:"cpus,omitempty"`
	MemoryMiB   int               `json:"memory_mib,omitempty"`
	KVM         bool              `json:"kvm"`
	QEMU        string            `json:"qemu,omitempty"`
	Libvirt     string            `json:"libvirt,omitempty"`
	UnderlayMTU int               `json:"underlay_mtu,omitempty"`
	VMs         []heliotrope.VMID `json:"vms" doc:"Those it owns."`
	Unmanaged   []string          `json:"unmanaged,omitempty" doc:"What was found there and is not ours: reported and left alone."`
	Warnings    []string          `json:"warnings,omitempty"`
	DrainedAt   time.Time         `json:"drained_at,omitzero" doc:"Since when no VM may be there."`
	DrainedBy   time.Time         `json:"drained_by,omitzero" doc:"When it goes away."`
	DrainReason string            `json:"drain_reason,omitempty"`
}

// DrainRequest says why a host is emptied, and how soon it must be.
type DrainRequest struct {
	Reason    string  `json:"reason,omitempty" maxLength:"200" doc:"Told with the event." example:"revoked by the provider"`
	DeadlineS float64 `json:"deadline_s,omitempty" minimum:"0" doc:"Seconds until the host goes away; 0: it does not by itself."`
}

// JoinToken lets one host join, once.
type JoinToken struct {
	Host      heliotrope.HostID `json:"host"`
	Token     string            `json:"token" doc:"Give it to the agent: heliotrope-agent join --controller HOST:7443 --token TOKEN. Shown once."`
	ExpiresAt time.Time         `json:"expires_at"`
}

// Network is a network of the topology with the VMs in it.
type Network struct {
	Name heliotrope.NetworkID `json:"name"`
	heliotrope.Network
	VMs []heliotrope.VMID `json:"vms"`
}

// VM is a VM with where it is and how it does.
type VM struct {
	Name      heliotrope.VMID     `json:"name"`
	State     string              `json:"state" doc:"running, paused, shutoff, incoming, crashed or absent, as its owner says; unknown while the owner is away." example:"running"`
	Host      heliotrope.HostID   `json:"host" doc:"Its owner."`
	Site      heliotrope.SiteID   `json:"site"`
	Epoch     uint64              `json:"epoch" doc:"Grows by one with each change of owner."`
	Home      heliotrope.HostID   `json:"home" doc:"Where the topology starts it."`
	Image     string              `json:"image"`
	CPUs      int                 `json:"cpus,omitempty"`
	MemoryMiB int                 `json:"memory_mib,omitempty"`
	Tenant    heliotrope.TenantID `json:"tenant,omitempty" doc:"Whose it is: what moves remember of memory is not shared between two."`
	NICs      []heliotrope.NIC    `json:"nics"`
	Migration heliotrope.MoveID   `json:"migration,omitempty" doc:"The one that has not ended."`
	Warnings  []string            `json:"warnings,omitempty" doc:"What is wrong with it, and why it does not run."`
}

// MigrationRequest asks for a VM to move.
type MigrationRequest struct {
	VM            heliotrope.VMID `json:"vm" minLength:"1" doc:"The VM." example:"web"`
	To            string          `json:"to" minLength:"1" doc:"A host, or a site, whose roomiest host is then taken." example:"eu"`
	MaxDowntimeMs int             `json:"max_downtime_ms,omitempty" minimum:"1" maximum:"60000" doc:"Longest pause that the hypervisor may plan; default 300."`
	MaxSlowdown   *int            `json:"max_slowdown_percent,omitempty" minimum:"0" maximum:"99" doc:"How much of its processors' time the VM may lose where it changes its memory faster than it is copied, and no pause of max_downtime_ms would do; 0: none. Default 80."`
	DeadlineS     int             `json:"deadline_s,omitempty" minimum:"1" maximum:"86400" doc:"The move has ended by then, rolled back if need be; default 600."`
	DryRun        bool            `json:"dry_run,omitempty" doc:"Check and predict, move nothing; answers 200 with a MigrationPreview."`
}

// MigrationPreview says what a move would be like.
type MigrationPreview struct {
	VM      heliotrope.VMID   `json:"vm"`
	From    heliotrope.HostID `json:"from"`
	To      heliotrope.HostID `json:"to"`
	OK      bool              `json:"ok" doc:"All checks are."`
	Checks  []Check           `json:"checks"`
	ETAS    float64           `json:"eta_s,omitempty" doc:"Seconds it would take; 0 when unknown."`
	PauseMs float64           `json:"pause_ms,omitempty" doc:"Pause of the guest, predicted; 0 when unknown."`
	Bytes   uint64            `json:"bytes,omitempty" doc:"Over the WAN, predicted; 0 when unknown."`
	CostUSD float64           `json:"cost_usd,omitempty" doc:"What those bytes cost by the links' prices."`

	// Of a disk that stands on an image of the store.
	DiskBytes  uint64 `json:"disk_bytes,omitempty" doc:"What was written to the VM's disk over an image of the store: so much of it is sent at most, and on a way back what was written since."`
	ImageBytes uint64 `json:"image_bytes,omitempty" doc:"What the destination lacks of that image, compressed: it comes from the store, after the move, as the VM reads it or before."`
}

// The phases of a migration that last: it has ended, or waits for a person.
const (
	PhaseSucceeded  = "Succeeded"
	PhaseRolledBack = "RolledBack"
	PhaseFailed     = "Failed"
	PhaseHeld       = "Held"
)

// Migration is one move of one VM: an operation that one can watch.
type Migration struct {
	ID       heliotrope.MoveID `json:"id"`
	VM       heliotrope.VMID   `json:"vm"`
	From     heliotrope.HostID `json:"from"`
	To       heliotrope.HostID `json:"to"`
	Phase    string            `json:"phase" doc:"Pending, Preflight, SyncImage, Prepare, PreCopy, Switchover, Commit, Activate, Converge, Cleanup, Succeeded, RolledBack, Failed or Held." example:"PreCopy"`
	Phases   []PhaseTime       `json:"phases" doc:"Those entered, in order."`
	Progress float64           `json:"progress" minimum:"0" maximum:"1"`
	ETAS     float64           `json:"eta_s,omitempty" doc:"Seconds until it ends, estimated; 0 when unknown or ended."`

	Epoch      uint64    `json:"epoch" doc:"In which the move began."`
	Revision   int64     `json:"revision" doc:"Of this record; wait for a newer one with ?wait=true&after=REVISION."`
	CreatedAt  time.Time `json:"created_at"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	Deadline   time.Time `json:"deadline,omitzero"`
	CanAbort   bool      `json:"can_abort" doc:"False once committed: from there it runs forward."`
	Error      string    `json:"error,omitempty"`
	Warnings   []string  `json:"warnings,omitempty" doc:"What went wrong without harm to the VM."`
	Measured   Measured  `json:"measured"`
}

// Ended says whether nothing more will happen to m by itself.
func (m Migration) Ended() bool {
	switch m.Phase {
	case PhaseSucceeded, PhaseRolledBack, PhaseFailed, PhaseHeld:
		return true
	}
	return false
}

// PhaseTime is one phase that a migration was in.
type PhaseTime struct {
	Phase string    `json:"phase"`
	At    time.Time `json:"at" doc:"When it was entered."`
	TookS float64   `json:"took_s" doc:"Seconds in it; 0 for the current one."`
}

// Measured are the numbers of a migration, zero while not yet known.
type Measured struct {
	PauseMs        float64 `json:"pause_ms" doc:"The hypervisor's: vCPUs stopped until they ran again."`
	Bytes          uint64  `json:"bytes" doc:"Sent over the relay, TLS included."`
	MemoryBytes    uint64  `json:"memory_bytes" doc:"Of the guest's memory and disks, resent pages counted again."`
	TotalBytes     uint64  `json:"total_bytes" doc:"Size of what is to be copied."`
	DiskBytes      uint64  `json:"disk_bytes,omitempty" doc:"Of disks, written at the other host; what was written again counts again."`
	SparedBytes    uint64  `json:"spared_bytes,omitempty" doc:"Of disks: what the other host had, and was not copied."`
	Rounds         uint64  `json:"rounds" doc:"Of pre-copy."`
	BytesPerSecond uint64  `json:"bytes_per_second"`
	DirtyPerSecond uint64  `json:"dirty_per_second" doc:"Bytes that the guest changes per second."`
	RescuedPackets int     `json:"rescued_packets" doc:"Caught in the stopped VM's queue and sent on."`
	ConvergedMs    float64 `json:"converged_ms" doc:"From the commit until every connected switch had the new flows and every BGP peer was told."`

	CodecMs float64 `json:"codec_ms,omitempty" doc:"Milliseconds of a processor that the source took to encode memory and disks, TLS and sockets not included."`

	Memory []migration.Encoded `json:"memory,omitempty" doc:"What the hypervisor's stream of memory consisted of, and what became of it on the wire; none: it was sent as it is."`
	Blocks []migration.Encoded `json:"blocks,omitempty" doc:"What the hypervisor's writes to disks consisted of, and what became of it on the wire; none: they were not encoded."`
	Passes []migration.Pass    `json:"passes,omitempty" doc:"Over the memory, while the guest ran; the first of them if there are very many."`

	DiskWrites []migration.DiskWrites `json:"disk_writes,omitempty" doc:"How long the guest's writes to its disks took in each stretch of the move, by the hypervisors' counters; none: it has no disk."`
}

// Route is one public prefix that the controller announces.
type Route struct {
	Prefix    netip.Prefix      `json:"prefix"`
	VM        heliotrope.VMID   `json:"vm"`
	Private   netip.Addr        `json:"private" doc:"Mapped one to one."`
	Host      heliotrope.HostID `json:"host"`
	Site      heliotrope.SiteID `json:"site"`
	NextHop   netip.Addr        `json:"next_hop" doc:"As announced; invalid while it is not."`
	Announced bool              `json:"announced"`
	Peers     int               `json:"peers" doc:"Established peers that were told."`
}

// RouteWhy explains where an address goes, and who believes what.
type RouteWhy struct {
	Address     netip.Addr           `json:"address"`
	Verdict     string               `json:"verdict" doc:"ok, moving, missing, ghost, wrong-next-hop or unknown-address." example:"ok"`
	VM          heliotrope.VMID      `json:"vm,omitempty"`
	Network     heliotrope.NetworkID `json:"network,omitempty"`
	Private     netip.Addr           `json:"private,omitzero"`
	Public      netip.Addr           `json:"public,omitzero"`
	Host        heliotrope.HostID    `json:"host,omitempty" doc:"The VM's owner."`
	Site        heliotrope.SiteID    `json:"site,omitempty"`
	Epoch       uint64               `json:"epoch,omitempty"`
	NextHop     netip.Addr           `json:"next_hop,omitzero" doc:"What every router should believe."`
	Peers       []RouteAtPeer        `json:"peers"`
	Explanation []string             `json:"explanation" doc:"The same as a story, a sentence a line."`
}

// RouteAtPeer is one BGP neighbour's part in a route.
type RouteAtPeer struct {
	Peer        heliotrope.PeerID `json:"peer"`
	Site        heliotrope.SiteID `json:"site"`
	Session     string            `json:"session" doc:"BGP state." example:"established"`
	Told        bool              `json:"told" doc:"Whether we announce the prefix to it."`
	NextHop     netip.Addr        `json:"next_hop,omitzero" doc:"The one we told it."`
	Heard       netip.Addr        `json:"heard,omitzero" doc:"Next hop of the same prefix that it tells us: a ghost, unless its own."`
	AgeS        float64           `json:"age_s,omitempty" doc:"Seconds since it was told."`
	Explanation string            `json:"explanation,omitempty"`
}

// Mesh is the overlay between all hosts, each link seen from both ends.
type Mesh struct {
	Hosts []heliotrope.HostID `json:"hosts"`
	Links []MeshLink          `json:"links" doc:"Ordered by from, then to."`
}

// MeshLink is the tunnel from one host to another, as From sees it.
type MeshLink struct {
	From    heliotrope.HostID `json:"from"`
	To      heliotrope.HostID `json:"to"`
	State   string            `json:"state" enum:"up,down,missing,unknown"`
	BFD     string            `json:"bfd,omitempty" doc:"BFD's own word." example:"up"`
	RTTMs   float64           `json:"rtt_ms,omitempty" doc:"0 when unknown."`
	Loss    float64           `json:"loss" doc:"Share of probes lost, 0 to 1."`
	MTU     int               `json:"mtu,omitempty" doc:"Largest inner packet proven; 0 when not measured."`
	RxBytes uint64            `json:"rx_bytes"`
	TxBytes uint64            `json:"tx_bytes"`
	Error   string            `json:"error,omitempty"`
}

// MeshVerifyRequest asks for proof that packets of a size pass everywhere.
type MeshVerifyRequest struct {
	PacketSize int `json:"packet_size" minimum:"68" maximum:"9216" doc:"Bytes of the inner IP packet, don't-fragment set." example:"1450"`
}

// MeshVerification is that proof.
type MeshVerification struct {
	PacketSize int         `json:"packet_size"`
	OK         bool        `json:"ok"`
	Links      []MeshProbe `json:"links"`
}

// MeshProbe is the proof for one direction of one link.
type MeshProbe struct {
	From  heliotrope.HostID `json:"from"`
	To    heliotrope.HostID `json:"to"`
	OK    bool              `json:"ok"`
	RTTMs float64           `json:"rtt_ms,omitempty"`
	Error string            `json:"error,omitempty"`
}

// Flow is one flow of a host's br-int in words.
type Flow struct {
	Table    string `json:"table" example:"guard"`
	Priority int    `json:"priority"`
	Match    string `json:"match"`
	Actions  string `json:"actions"`
	Cookie   string `json:"cookie,omitempty"`
	Packets  uint64 `json:"packets"`
	Bytes    uint64 `json:"bytes"`
}

// FlowList is what a host's br-int holds.
type FlowList struct {
	Host  heliotrope.HostID `json:"host"`
	Flows []Flow            `json:"flows"`
}

// FlowDiff is what is wanted minus what is installed; empty when all is well.
type FlowDiff struct {
	Host    heliotrope.HostID `json:"host"`
	Missing []Flow            `json:"missing" doc:"Wanted, not there."`
	Extra   []Flow            `json:"extra" doc:"There, ours, not wanted."`
	Foreign []Flow            `json:"foreign" doc:"There, not ours: left alone."`
}

// FlowsReached says which hosts' switches know of a revision of the store.
type FlowsReached struct {
	Revision int64               `json:"revision" doc:"The one that was asked about."`
	Reached  bool                `json:"reached" doc:"All of them do."`
	Hosts    int                 `json:"hosts" doc:"Hosts of the topology."`
	Behind   []heliotrope.HostID `json:"behind" doc:"Those whose switch has older flows, or is not connected."`
}

// Event is something that happened. ID is the store's revision at which it was written.
type Event struct {
	ID      int64             `json:"id" minimum:"1"`
	At      time.Time         `json:"at"`
	Kind    string            `json:"kind" doc:"topology, host, vm, migration, route, mesh, plan, pool, stub, controller; gap says that older events are gone." example:"migration"`
	Subject string            `json:"subject,omitempty" doc:"Name of the thing it is about."`
	Message string            `json:"message" doc:"A sentence."`
	Fields  map[string]string `json:"fields,omitempty"`
}

// EventPage are kept events, oldest first.
type EventPage struct {
	Events   []Event `json:"events"`
	Revision int64   `json:"revision" doc:"Follow from here to miss nothing."`
}
