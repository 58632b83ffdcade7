// Package migration is the move of one VM as a pure state machine.
//
// A Move is a value. Step takes it from one state to the next and says what is to be done;
// it does nothing itself and reads no clock. The driver (package controller) stores the new
// value before it carries the actions out, so a controller that restarts gives the machine
// Restarted and gets the open actions again; every action is safe to repeat.
//
//	Pending ─► Preflight ─► SyncImage ─► Prepare ─► PreCopy ─► Switchover ─► Commit ─► Activate ─► Converge ─► Cleanup ─► Succeeded
//	               │            │           │          │           │           │          │ it never ran there
//	               └────────────┴───────────┴──────────┴───────────┴───────────┘          ▼
//	                       error, abort or deadline: Rollback ◄──────────────────────── Revert
//	                                                    └─► RolledBack
//
// Commit is one transaction of the store: owner From→To, epoch N→N+1. Before it the source
// may run the VM again by itself; after it only the store decides. A phase after Commit is
// never undone by time: past its deadline the Move is Held, safe, for a person to look at,
// and goes on by itself when what it waited for happens after all.
//
// A phase is done when all of its actions are: Move.Open lists those that are not. The
// driver repeats an action until it is definitely done or definitely refused; that a host
// does not answer is no event, only time.
package migration

import (
	"fmt"
	"heliotrope"
	"slices"
	"time"
)

// Phase is where a Move stands.
type Phase string

const (
	Pending    Phase = "Pending"
	Preflight  Phase = "Preflight"  // can it work at all? nothing is changed yet
	SyncImage  Phase = "SyncImage"  // the source describes the VM and its disks
	Prepare    Phase = "Prepare"    // the destination has a paused QEMU, a port and disk files
	PreCopy    Phase = "PreCopy"    // memory and disks are copied while the VM runs
	Switchover Phase = "Switchover" // the vCPUs have stopped, the rest is being sent
	Commit     Phase = "Commit"     // everything is at the destination; the owner changes
	Activate   Phase = "Activate"   // the source forwards, the destination runs
	Converge   Phase = "Converge"   // all hosts and routers learn it
	Cleanup    Phase = "Cleanup"    // the source removes what is left
	Succeeded  Phase = "Succeeded"
	Revert     Phase = "Revert"   // the destination could not run it: the owner changes back
	Rollback   Phase = "Rollback" // the VM runs at the source again, the destination is cleaned
	RolledBack Phase = "RolledBack"
	Failed     Phase = "Failed" // nothing was begun
	Held       Phase = "Held"   // safe, but a person must look
)

// Ended says whether nothing more will happen by itself. A Held move has not ended: it
// goes on if what it waits for happens.
func (p Phase) Ended() bool { return p == Succeeded || p == RolledBack || p == Failed }

// Committed says whether the destination owns the VM in this phase.
func (p Phase) Committed() bool {
	return slices.Contains([]Phase{Activate, Converge, Cleanup, Succeeded, Revert}, p)
}

// Action is something the driver must get done.
type Action string

const (
	ActPreflight Action = "preflight" // check hosts, capacity, tunnel, image
	ActBegin     Action = "source begin"
	ActReceive   Action = "receive" // the placement names the destination; its switch has the flows
	ActPrepare   Action = "destination prepare"
	ActCopy      Action = "source copy"    // done once the source's vCPUs have stopped
	ActRelease   Action = "source release" // done once the source has sent everything
	ActOpen      Action = "open"           // the destination's port may send; its QEMU cannot run without the permit
	ActCommit    Action = "commit"
	ActFlip      Action = "flip" // the source's switch forwards to the destination
	ActActivate  Action = "destination activate"
	ActDrain     Action = "source drain"
	ActConverge  Action = "converge" // all switches and routers have it
	ActFinish    Action = "source finish"
	ActForget    Action = "forget" // nobody forwards stragglers any more; not before Move.GraceUntil
	ActRevert    Action = "revert"
	ActResume    Action = "source resume"
	ActDiscard   Action = "destination discard"
	ActClose     Action = "close" // the placement names no destination any more
)

// Step says which step of which host the action is; ok is false for the controller's own.
func (a Action) Step() (role Role, step Step, ok bool) {
	switch a {
	case ActBegin:
		return Source, StepBegin, true
	case ActPrepare:
		return Destination, StepPrepare, true
	case ActCopy, ActRelease:
		return Source, StepCopy, true
	case ActActivate:
		return Destination, StepActivate, true
	case ActDrain:
		return Source, StepDrain, true
	case ActFinish:
		return Source, StepFinish, true
	case ActResume:
		return Source, StepResume, true
	case ActDiscard:
		return Destination, StepDiscard, true
	}
	return "", "", false
}

// actionsOf are the actions with which each phase begins.
var actionsOf = map[Phase][]Action{
	Preflight:  {ActPreflight},
	SyncImage:  {ActBegin},
	Prepare:    {ActReceive, ActPrepare},
	PreCopy:    {ActCopy}, // ActOpen joins when the end is near
	Switchover: {ActRelease},
	Commit:     {ActCommit},
	Activate:   {ActFlip, ActActivate}, // ActDrain follows ActFlip
	Converge:   {ActConverge},
	Cleanup:    {ActFinish, ActForget},
	Revert:     {ActRevert},
	Rollback:   {ActResume, ActDiscard, ActClose},
}

// next is the phase after one whose actions are all done.
var next = map[Phase]Phase{
	Pending: Preflight, Preflight: SyncImage, SyncImage: Prepare, Prepare: PreCopy, PreCopy: Switchover,
	Switchover: Commit, Commit: Activate, Activate: Converge, Converge: Cleanup, Cleanup: Succeeded,
	Revert: Rollback, Rollback: RolledBack,
}

// Limits of time. They are generous for people's sake and finite for the VM's.
const (
	DefaultDeadline = 10 * time.Minute
	PhaseLimit      = 60 * time.Second // each phase but PreCopy
	StallLimit      = 30 * time.Second // PreCopy without one byte of progress
	StragglerGrace  = 2 * time.Second  // how long the source forwards after all have converged
)

// limitOf is how long a phase may last; PreCopy is bounded by Move.Deadline and StallLimit.
func (m Move) limitOf(p Phase) time.Duration {
	if p == PreCopy {
		return m.Deadline.Sub(m.since())
	}
	return PhaseLimit
}

// DefaultMaxSlowdown is how much of its vCPUs' time a VM may lose of which nobody said otherwise, in percent.
const DefaultMaxSlowdown = 80

// Move is one VM's move from a host to another.
type Move struct {
	ID          heliotrope.MoveID   `json:"id"`
	VM          heliotrope.VMID     `json:"vm"`
	From        heliotrope.HostID   `json:"from"`
	To          heliotrope.HostID   `json:"to"`
	Epoch       uint64              `json:"epoch"` // in which it began; the destination runs in Epoch+1
	MaxDowntime heliotrope.Duration `json:"max_downtime,omitempty"`
	MaxSlowdown int                 `json:"max_slowdown,omitempty"` // percent of its vCPUs' time that the VM may lose where nothing else ends the copy
	Deadline    time.Time           `json:"deadline"`

	Phase   Phase    `json:"phase"`
	HeldIn  Phase    `json:"held_in,omitempty"` // the phase that did not end in time
	Open    []Action `json:"open,omitempty"`    // actions of this phase that are not done
	Passed  []Passed `json:"passed"`            // every phase entered, in order
	Error   string   `json:"error,omitempty"`   // why it was rolled back, failed or is held
	Aborted bool     `json:"aborted,omitempty"`
	Opened  bool     `json:"opened,omitempty"` // ActOpen is done
	// Warnings are what went wrong without harm to the VM.
	Warnings []string `json:"warnings,omitempty"`

	Description       Report    `json:"description"`                  // the source's answer to StepBegin
	DestinationCookie []byte    `json:"destination_cookie,omitempty"` // from StepPrepare, for StepCopy
	SourceCookie      []byte    `json:"source_cookie,omitempty"`      // from StepCopy, for StepActivate
	ProgressAt        time.Time `json:"progress_at,omitzero"`         // when Measured.Copy last grew
	GraceUntil        time.Time `json:"grace_until,omitzero"`
	Measured          Measured  `json:"measured"`
}

// Passed is a phase and when it was entered.
type Passed struct {
	Phase Phase     `json:"phase"`
	At    time.Time `json:"at"`
}

// Measured is what was counted during a move.
type Measured struct {
	Copy      Progress  `json:"copy"`
	PausedAt  time.Time `json:"paused_at,omitzero"`
	ResumedAt time.Time `json:"resumed_at,omitzero"`
	// Pause is ResumedAt − PausedAt, each by its own host's clock.
	Pause heliotrope.Duration `json:"pause,omitempty"`
	// DiskWrites are the stretches that both hosts told of, in the order of time.
	DiskWrites []DiskWrites        `json:"disk_writes,omitempty"`
	Rescued    int                 `json:"rescued"`             // packets caught at the source and sent on
	Converged  heliotrope.Duration `json:"converged,omitempty"` // from Commit until every switch and router had it
	Total      heliotrope.Duration `json:"total,omitempty"`
}

// New returns a Move that has not begun.
func New(id heliotrope.MoveID, vm heliotrope.VMID, from, to heliotrope.HostID, epoch uint64, deadline, now time.Time) Move {
	return Move{ID: id, VM: vm, From: from, To: to, Epoch: epoch, Deadline: deadline, Phase: Pending,
		Passed: []Passed{{Pending, now}}}
}

// since is when the current phase was entered.
func (m Move) since() time.Time { return m.Passed[len(m.Passed)-1].At }

// EnteredAt returns when p was first entered; ok is false if it never was.
func (m Move) EnteredAt(p Phase) (at time.Time, ok bool) {
	for _, q := range m.Passed {
		if q.Phase == p {
			return q.At, true
		}
	}
	return time.Time{}, false
}

// Fraction is how much of the move is done, 0 to 1, for a progress bar. The copy is most of it.
func (m Move) Fraction() float64 {
	switch m.Phase {
	case Pending, Preflight, SyncImage, Prepare:
		return 0.05 * float64(slices.Index([]Phase{Pending, Preflight, SyncImage, Prepare}, m.Phase)) / 4
	case PreCopy:
		c := m.Measured.Copy
		if c.TotalBytes == 0 {
			return 0.05
		}
		return 0.05 + 0.80*(1-float64(min(c.RemainingBytes, c.TotalBytes))/float64(c.TotalBytes))
	case Switchover, Commit, Activate:
		return 0.90
	case Converge, Cleanup:
		return 0.95
	}
	return 1
}

// ETA estimates when the copy ends from its rate and the rate at which the guest dirties
// memory; ok is false where that cannot be said.
func (m Move) ETA(now time.Time) (at time.Time, ok bool) {
	c := m.Measured.Copy
	if m.Phase != PreCopy || c.BytesPerSecond <= c.DirtyPerSecond {
		return time.Time{}, false
	}
	return now.Add(time.Duration(float64(c.RemainingBytes) / float64(c.BytesPerSecond-c.DirtyPerSecond) * float64(time.Second))), true
}

func (m Move) String() string {
	return fmt.Sprintf("%s %s %s→%s %s", m.ID, m.VM, m.From, m.To, m.Phase)
}
