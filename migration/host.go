package migration

import (
	"cmp"
	"heliotrope"
	"slices"
	"time"
)

// Role is a host's part in a move.
type Role string

const (
	Source      Role = "source"
	Destination Role = "destination"
)

// Step is how far a host is to take its part of a move. A host that has done a step
// answers a repeated order for it with the report it has.
type Step string

const (
	// Steps of the destination.
	StepPrepare  Step = "prepare"  // start QEMU paused, waiting for the stream; open the relay for this move
	StepActivate Step = "activate" // permit: run the vCPUs
	StepDiscard  Step = "discard"  // throw the incoming copy away; the VM never ran here

	// Steps of the source.
	StepBegin  Step = "begin"  // describe the domain for the destination
	StepCopy   Step = "copy"   // send memory and disks while it runs, then stop it and send the rest
	StepDrain  Step = "drain"  // send on the packets that were caught in the stopped VM's queue
	StepFinish Step = "finish" // the VM runs elsewhere: remove it here
	StepResume Step = "resume" // roll back: make it run here again
)

// Disk is a VM's disk that a move copies.
type Disk struct {
	Target string `json:"target"` // vda
	Bytes  int64  `json:"bytes"`
	Format string `json:"format"`
}

// HostState is what a host's part of a move has come to.
type HostState string

const (
	HostUnknown   HostState = "unknown"   // no such move here
	HostBegun     HostState = "begun"     // source: XML, Disks and Cookie are in the report
	HostPrepared  HostState = "prepared"  // destination: Cookie is in the report
	HostCopying   HostState = "copying"   // source
	HostPaused    HostState = "paused"    // source: the vCPUs have stopped, the rest is being sent
	HostReleased  HostState = "released"  // source: stopped, all sent; runs again only when told. Cookie is in the report
	HostDrained   HostState = "drained"   // source
	HostActive    HostState = "active"    // destination: the vCPUs run
	HostFinished  HostState = "finished"  // source: nothing is left
	HostResumed   HostState = "resumed"   // source: it runs here again, or Error says how it ended
	HostDiscarded HostState = "discarded" // destination: nothing is left
	HostFailed    HostState = "failed"    // Error says why; the source, if it was copying, runs again
)

// Report is a host's answer about its part of a move.
type Report struct {
	Rev   uint64            `json:"rev"` // grows with every change
	Move  heliotrope.MoveID `json:"move"`
	Role  Role              `json:"role"`
	State HostState         `json:"state"`
	Error string            `json:"error,omitempty"`

	XML      string   `json:"xml,omitempty"`
	Disks    []Disk   `json:"disks,omitempty"`
	Cookie   []byte   `json:"cookie,omitempty"`
	Progress Progress `json:"progress"`
	// DiskWrites are the stretches that this host saw of its part, the last as far as it has come.
	DiskWrites []DiskWrites `json:"disk_writes,omitempty"`

	PausedAt  time.Time `json:"paused_at,omitzero"`  // source: vCPUs stopped, by the host's clock
	ResumedAt time.Time `json:"resumed_at,omitzero"` // destination: vCPUs started, by the host's clock
	Rescued   int       `json:"rescued,omitempty"`   // source: packets that StepDrain sent on and the destination took
}

// Progress is the hypervisor's count of a running copy.
type Progress struct {
	TotalBytes     uint64        `json:"total_bytes"`
	DoneBytes      uint64        `json:"done_bytes"`
	RemainingBytes uint64        `json:"remaining_bytes"`
	Rounds         uint64        `json:"rounds"`
	BytesPerSecond uint64        `json:"bytes_per_second"`
	DirtyPerSecond uint64        `json:"dirty_per_second"`         // bytes
	Downtime       time.Duration `json:"downtime"`                 // as QEMU measured it, once it ended
	RelayBytes     uint64        `json:"relay_bytes"`              // sent to the other host, TLS records included
	DiskBytes      uint64        `json:"disk_bytes,omitempty"`     // of disks, written at the other host; what was written again counts again
	SparedBytes    uint64        `json:"spared_bytes,omitempty"`   // of disks, that the other host had
	Memory         []Encoded     `json:"memory,omitempty"`         // what the stream of memory consisted of; none: it was sent as it is
	Blocks         []Encoded     `json:"blocks,omitempty"`         // what the streams of disks consisted of; none: they were not encoded
	Codec          time.Duration `json:"codec,omitempty"`          // that a processor of the source took to encode both
	Slowed         int           `json:"slowed_percent,omitempty"` // of its vCPUs' time that the guest loses
	Passes         []Pass        `json:"passes,omitempty"`         // over the memory, that have ended; the first of them if there are very many
}

// Pass is one over what the guest dirtied in the one before; the first, over all of its memory.
type Pass struct {
	Sent    uint64  `json:"sent_bytes"`  // by the hypervisor
	Wire    uint64  `json:"wire_bytes"`  // that crossed for them
	Dirty   uint64  `json:"dirty_bytes"` // that the guest dirtied meanwhile: what the next pass has to send
	TookMs  float64 `json:"took_ms"`
	PauseMs float64 `json:"pause_ms"`                 // that stopping then would have made
	Slowed  int     `json:"slowed_percent,omitempty"` // of its vCPUs' time that the guest lost, so that it would come to an end
	Stop    bool    `json:"stop"`                     // it was to be the last
	Why     string  `json:"why"`
}

// IsZero says whether nothing is known of a copy.
func (p Progress) IsZero() bool { return p.TotalBytes == 0 && p.DoneBytes == 0 && p.RelayBytes == 0 }

// Encoded is a part of the hypervisor's stream of memory, or of its writes to disks (package migration/wan).
type Encoded struct {
	Kind   string `json:"kind"`         // zero, same, dup, image, site, peer, delta, literal, noise, verbatim; heads: what all of them cost beside
	Pages  uint64 `json:"pages"`        // of verbatim: pieces
	Stream uint64 `json:"stream_bytes"` // of the hypervisor's stream
	Wire   uint64 `json:"wire_bytes"`   // that it became
}

// Stretch is a part of a move as a VM sees it that writes to its disks. While its vCPUs are
// stopped it writes nothing.
type Stretch string

const (
	WritesBefore Stretch = "before" // nothing is copied yet
	WritesBulk   Stretch = "bulk"   // what is on the disks is copied, and what the VM writes there
	WritesMirror Stretch = "mirror" // the disks are alike, and each write goes over too, while memory is copied
	WritesAfter  Stretch = "after"  // at the destination
)

// stretches are in the order of time.
var stretches = []Stretch{WritesBefore, WritesBulk, WritesMirror, WritesAfter}

// DiskWrites is how long a VM's writes and flushes took in a stretch: from when the hypervisor
// got one from the guest until it answered, the mean over all of the VM's disks.
type DiskWrites struct {
	Stretch Stretch `json:"stretch" enum:"before,bulk,mirror,after"`
	Seconds float64 `json:"seconds" doc:"For how long it was watched."`
	Writes  uint64  `json:"writes"`
	WriteMs float64 `json:"write_ms,omitempty" doc:"The mean of a write, until the guest was answered."`
	Flushes uint64  `json:"flushes"`
	FlushMs float64 `json:"flush_ms,omitempty" doc:"The mean of a flush."`
}

// mergeWrites takes in the stretches that a host tells of.
func mergeWrites(have, news []DiskWrites) []DiskWrites {
	have = slices.Clone(have)
	for _, w := range news {
		at := func(o DiskWrites) bool { return o.Stretch == w.Stretch }
		if i := slices.IndexFunc(have, at); i >= 0 {
			have[i] = w
		} else {
			have = append(have, w)
		}
	}
	slices.SortStableFunc(have, func(a, b DiskWrites) int {
		return cmp.Compare(slices.Index(stretches, a.Stretch), slices.Index(stretches, b.Stretch))
	})
	return have
}
