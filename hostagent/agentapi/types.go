package agentapi

import (
	"heliotrope"
	"heliotrope/migration"
	"net/netip"
	"time"
)

// RelayPort is where every host's relay listens (package migration/relay).
const RelayPort = 7444

// HostStatus is what an agent knows of its host.
type HostStatus struct {
	Host        heliotrope.HostID `json:"host"`
	Version     string            `json:"version"`
	Boot        string            `json:"boot"` // changes when the agent restarts
	CPUs        int               `json:"cpus"`
	MemoryMiB   int               `json:"memory_mib"`
	KVM         bool              `json:"kvm"` // a probe booted something under it, and soon
	QEMU        string            `json:"qemu"`
	Libvirt     string            `json:"libvirt"`
	GatewayMAC  heliotrope.MAC    `json:"gateway_mac"` // of the site's router as this host resolves it; zero while unknown
	UnderlayMTU int               `json:"underlay_mtu"`
	NoVMs       bool              `json:"no_vms,omitempty"` // the host has no hypervisor: it is asked for no VM
	VMs         []VMStatus        `json:"vms"`
	Paths       []Path            `json:"paths,omitempty"` // to the other hosts, as measured lately
	Warnings    []string          `json:"warnings,omitempty"`
	Revocation  *Revocation       `json:"revocation,omitempty"` // nil: nobody takes the host away
	Images      *ImageStatus      `json:"images,omitempty"`     // nil: no disk here is of an image store
}

// Revocation is a notice that the host is taken away.
type Revocation struct {
	At     time.Time `json:"at,omitzero"` // zero: nobody says when
	Reason string    `json:"reason,omitempty"`
}

// Path is the underlay between this host and another.
type Path struct {
	Peer  heliotrope.HostID `json:"peer"`
	RTT   time.Duration     `json:"rtt"`
	Loss  float64           `json:"loss"`            // share of probes lost, 0 to 1
	MTU   int               `json:"mtu,omitempty"`   // largest IP packet that passed whole; 0 while unknown
	Error string            `json:"error,omitempty"` // of a probe that was ordered
}

// ProbeOrder asks for one packet of Size bytes, IP header included, to each peer, not to
// be fragmented. The peers are those whose paths the host goes on measuring; Size 0 only
// says who they are.
type ProbeOrder struct {
	Size  int                              `json:"size"`
	Peers map[heliotrope.HostID]netip.Addr `json:"peers"`
}

// VMState is a VM's state on one host.
type VMState = heliotrope.VMState

const (
	VMAbsent   = heliotrope.VMAbsent
	VMRunning  = heliotrope.VMRunning
	VMPaused   = heliotrope.VMPaused
	VMShutOff  = heliotrope.VMShutOff
	VMIncoming = heliotrope.VMIncoming
	VMCrashed  = heliotrope.VMCrashed
)

// VMStatus is one domain of a host. A domain that Heliotrope did not define has Foreign
// set: it is reported and otherwise left alone.
type VMStatus struct {
	VM      heliotrope.VMID   `json:"vm"`
	UUID    string            `json:"uuid"`
	State   VMState           `json:"state"`
	Epoch   uint64            `json:"epoch"` // of the permit under which it was last started here
	Foreign bool              `json:"foreign,omitempty"`
	Move    heliotrope.MoveID `json:"move,omitempty"`
}

// VMOrder asks for a VM to run on this host, under the permit (VM, Epoch, this host).
// The agent defines and starts it, or adopts the one that runs; it never restarts a
// running one. An order with an older Term or Epoch than the agent has seen is refused
// with ErrStale.
type VMOrder struct {
	Term     uint64                                      `json:"term"`
	VM       heliotrope.VMID                             `json:"vm"`
	Epoch    uint64                                      `json:"epoch"`
	Spec     heliotrope.VM                               `json:"spec"`
	Networks map[heliotrope.NetworkID]heliotrope.Network `json:"networks"` // those its NICs are in
}

// RemoveOrder asks for a VM to be stopped and undefined here, its disk removed. It is
// given only for a VM that the topology no longer has.
type RemoveOrder struct {
	Term  uint64          `json:"term"`
	VM    heliotrope.VMID `json:"vm"`
	Epoch uint64          `json:"epoch"`
}

// What a host's part of a move is made of belongs to package migration, which decides on
// it; these are its names on the wire.
type (
	Role         = migration.Role
	Step         = migration.Step
	Disk         = migration.Disk
	MoveState    = migration.HostState
	MoveReport   = migration.Report
	MoveProgress = migration.Progress
)

const (
	Source      = migration.Source
	Destination = migration.Destination

	StepPrepare  = migration.StepPrepare
	StepActivate = migration.StepActivate
	StepDiscard  = migration.StepDiscard
	StepBegin    = migration.StepBegin
	StepCopy     = migration.StepCopy
	StepDrain    = migration.StepDrain
	StepFinish   = migration.StepFinish
	StepResume   = migration.StepResume

	MoveUnknown   = migration.HostUnknown
	MoveBegun     = migration.HostBegun
	MovePrepared  = migration.HostPrepared
	MoveCopying   = migration.HostCopying
	MovePaused    = migration.HostPaused
	MoveReleased  = migration.HostReleased
	MoveDrained   = migration.HostDrained
	MoveActive    = migration.HostActive
	MoveFinished  = migration.HostFinished
	MoveResumed   = migration.HostResumed
	MoveDiscarded = migration.HostDiscarded
	MoveFailed    = migration.HostFailed
)

// MoveOrder asks a host to take its part of a move to Step.
type MoveOrder struct {
	Term  uint64            `json:"term"`
	Move  heliotrope.MoveID `json:"move"`
	VM    heliotrope.VMID   `json:"vm"`
	Epoch uint64            `json:"epoch"` // StepActivate: the permit; else the epoch in which the move began
	Role  Role              `json:"role"`
	Step  Step              `json:"step"`

	Peer        heliotrope.HostID   `json:"peer"`                   // the other host
	Tenant      heliotrope.TenantID `json:"tenant,omitempty"`       // whose the VM is: nothing is shared with another's
	PeerRelay   netip.AddrPort      `json:"peer_relay,omitzero"`    // StepCopy: the destination's relay
	XML         string              `json:"xml,omitempty"`          // StepPrepare: from the source's StepBegin
	Disks       []Disk              `json:"disks,omitempty"`        // StepPrepare: from the source's StepBegin
	Cookie      []byte              `json:"cookie,omitempty"`       // the other side's last Cookie
	Order       *VMOrder            `json:"order,omitempty"`        // StepPrepare: what the VM is
	MaxDowntime heliotrope.Duration `json:"max_downtime,omitempty"` // StepCopy: pause that QEMU may take; zero: 300 ms
	MaxSlowdown int                 `json:"max_slowdown,omitempty"` // StepCopy: percent of its vCPUs' time that the VM may lose; zero: nothing
	MaxRate     heliotrope.BitRate  `json:"max_rate,omitempty"`     // StepCopy: zero: unlimited
	Together    *Together           `json:"together,omitempty"`     // StepCopy, between sites
}

// Together says with what other moves one sends pages that they have in common once: those of the same tenant from
// its site to the same other one.
type Together struct {
	Site heliotrope.SiteID `json:"site"` // the destination's
	Seed uint64            `json:"seed"` // of pages' hashes, in all these moves; a secret of who moves them
	// Sources are the relays of other hosts that such moves, which are under way, begin at.
	Sources map[heliotrope.HostID]netip.AddrPort `json:"sources,omitempty"`
}

// Event is a hint that something changed; the receiver looks at the thing itself.
type Event struct {
	Kind string            `json:"kind"` // "vm", "move", "host"
	VM   heliotrope.VMID   `json:"vm,omitempty"`
	Move heliotrope.MoveID `json:"move,omitempty"`
	At   time.Time         `json:"at"`
	What string            `json:"what,omitempty"`
}
