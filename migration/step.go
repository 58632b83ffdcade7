package migration

import (
	"cmp"
	"fmt"
	"heliotrope"
	"slices"
	"time"
)

// Event is what happened. Exactly one field is set.
type Event struct {
	Start   bool    // the driver took a Pending move up
	Restart bool    // the driver lost what it was doing
	Tick    bool    // time passed
	Abort   bool    // somebody wants it undone
	Done    Action  // a controller's own action is done
	Refused Refusal // an action is definitely impossible
	Report  *Report // a host's report, changed
}

// Refusal is an action that will never be done, and why.
type Refusal struct {
	Action Action
	Reason string
}

// Step returns the move after ev at now, and the actions that the driver must take up in
// addition to those it is at already. Actions that are not in Move.Open any more are to
// be given up.
func (m Move) Step(ev Event, now time.Time) (Move, []Action) {
	if m.Phase.Ended() {
		return m, nil
	}
	before := m.Open
	m.Open = slices.Clone(m.Open)
	m.Passed = slices.Clone(m.Passed)
	m = m.take(ev, now)
	if ev.Restart {
		return m, slices.Clone(m.Open)
	}
	var begun []Action
	for _, a := range m.Open {
		if !slices.Contains(before, a) {
			begun = append(begun, a)
		}
	}
	return m, begun
}

func (m Move) take(ev Event, now time.Time) Move {
	switch {
	case (ev.Start || ev.Restart) && m.Phase == Pending:
		return m.enter(Preflight, now)
	case ev.Abort:
		return m.abort(now)
	case ev.Tick:
		return m.tick(now)
	case ev.Done != "":
		return m.done(ev.Done, now)
	case ev.Refused.Action != "" && slices.Contains(m.Open, ev.Refused.Action):
		return m.refused(ev.Refused, now)
	case ev.Report != nil:
		return m.report(*ev.Report, now)
	}
	return m
}

// phase is the phase whose actions are open, also while held.
func (m Move) phase() Phase {
	if m.Phase == Held {
		return m.HeldIn
	}
	return m.Phase
}

func (m Move) enter(p Phase, now time.Time) Move {
	if m.Phase == Held {
		m.Error = "" // what it was held for has happened after all
	}
	m.Phase, m.HeldIn = p, ""
	m.Open = slices.Clone(actionsOf[p])
	m.Passed = append(m.Passed, Passed{p, now})
	switch p {
	case PreCopy:
		m.ProgressAt = now
	case Cleanup:
		m.GraceUntil = now.Add(StragglerGrace)
		if at, ok := m.EnteredAt(Activate); ok {
			m.Measured.Converged = heliotrope.Duration(now.Sub(at))
		}
	case Succeeded, RolledBack, Failed:
		m.Measured.Total = heliotrope.Duration(now.Sub(m.Passed[0].At))
	}
	return m
}

// done strikes a from the open actions and goes on when none is left.
func (m Move) done(a Action, now time.Time) Move {
	i := slices.Index(m.Open, a)
	if i < 0 {
		return m
	}
	m.Open = slices.Delete(m.Open, i, i+1)
	switch {
	case a == ActFlip:
		// Only now does nothing more get into the stopped VM's queue.
		m.Open = append(m.Open, ActDrain)
		return m
	case a == ActOpen:
		m.Opened = true
	case a == ActCopy && !m.Opened:
		// It goes on into Switchover, and is begun there if it was not before.
		m = m.enter(Switchover, now)
		m.Open = append(m.Open, ActOpen)
		return m
	}
	if len(m.Open) > 0 {
		return m
	}
	return m.enter(next[m.phase()], now)
}

// refused decides what an impossible action means for the move.
func (m Move) refused(r Refusal, now time.Time) Move {
	reason := fmt.Sprintf("%s: %s", r.Action, r.Reason)
	switch p := m.phase(); p {
	case Preflight:
		m.Error = reason
		return m.enter(Failed, now)
	case Activate:
		if r.Action == ActActivate {
			m.Error = reason
			return m.enter(Revert, now)
		}
		// The packets in the source's queue are lost with it; the VM is not.
		m.Warnings = append(slices.Clone(m.Warnings), reason)
		return m.done(r.Action, now)
	case Converge, Cleanup, Revert, Rollback:
		return m.hold(reason, now)
	default:
		return m.rollback(reason, now)
	}
}

func (m Move) rollback(reason string, now time.Time) Move {
	m.Error = cmp.Or(m.Error, reason)
	return m.enter(Rollback, now)
}

func (m Move) hold(reason string, now time.Time) Move {
	if m.Phase == Held {
		return m
	}
	m.HeldIn, m.Phase = m.Phase, Held
	m.Error = cmp.Or(m.Error, reason)
	m.Passed = append(m.Passed, Passed{Held, now})
	return m
}

// abort undoes a move that is not committed. Past Commit it is too late: the driver
// answers the caller from Move.Phase.
func (m Move) abort(now time.Time) Move {
	switch m.phase() {
	case Pending, Preflight:
		m.Aborted, m.Error = true, "aborted on request"
		return m.enter(Failed, now)
	case SyncImage, Prepare, PreCopy, Switchover:
		m.Aborted = true
		return m.rollback("aborted on request", now)
	}
	return m
}

func (m Move) tick(now time.Time) Move {
	if m.Phase == Held || m.Phase == Pending {
		return m
	}
	stalled := m.Phase == PreCopy && now.Sub(m.ProgressAt) > StallLimit
	if !stalled && now.Sub(m.since()) <= m.limitOf(m.Phase) {
		return m
	}
	reason := fmt.Sprintf("%s did not end within %s; still open: %v", m.Phase, m.limitOf(m.Phase).Round(time.Second), m.Open)
	if stalled {
		reason = fmt.Sprintf("the copy made no progress for %s", StallLimit)
	}
	switch m.Phase {
	case Preflight:
		m.Error = reason
		return m.enter(Failed, now)
	case SyncImage, Prepare, PreCopy, Switchover:
		return m.rollback(reason, now)
	default:
		// Commit too: only the store knows whether it happened.
		return m.hold(reason, now)
	}
}

// report takes in what a host says of its part.
func (m Move) report(r Report, now time.Time) Move {
	m = m.measure(r, now)
	if r.Role == Source {
		return m.fromSource(r, now)
	}
	return m.fromDestination(r, now)
}

func (m Move) measure(r Report, now time.Time) Move {
	if len(r.DiskWrites) > 0 {
		m.Measured.DiskWrites = mergeWrites(m.Measured.DiskWrites, r.DiskWrites)
	}
	if r.Role == Destination {
		if !r.ResumedAt.IsZero() {
			m.Measured.ResumedAt = r.ResumedAt
		}
	} else {
		if r.Progress.DoneBytes > m.Measured.Copy.DoneBytes {
			m.ProgressAt = now
		}
		if r.Progress.DoneBytes >= m.Measured.Copy.DoneBytes && !r.Progress.IsZero() {
			m.Measured.Copy = r.Progress
		}
		m.Measured.Rescued = max(m.Measured.Rescued, r.Rescued)
		if !r.PausedAt.IsZero() {
			m.Measured.PausedAt = r.PausedAt
		}
	}
	if d := m.Measured.ResumedAt.Sub(m.Measured.PausedAt); !m.Measured.ResumedAt.IsZero() && !m.Measured.PausedAt.IsZero() && d > 0 {
		m.Measured.Pause = heliotrope.Duration(d)
	}
	return m
}

func (m Move) fromSource(r Report, now time.Time) Move {
	switch r.State {
	case HostBegun:
		m.Description = r
		return m.done(ActBegin, now)
	case HostCopying:
		// Once everything has been sent once, the end may come at any time: open the
		// destination's port now, and the pause does not have to wait for it.
		if m.Phase == PreCopy && r.Progress.Rounds > 1 && !m.Opened && !slices.Contains(m.Open, ActOpen) {
			m.Open = append(m.Open, ActOpen)
		}
	case HostPaused:
		return m.done(ActCopy, now)
	case HostReleased:
		m.SourceCookie = r.Cookie
		// The pause may have gone unseen.
		return m.done(ActCopy, now).done(ActRelease, now)
	case HostDrained:
		return m.done(ActDrain, now)
	case HostFinished:
		return m.done(ActFinish, now)
	case HostResumed:
		if r.Error != "" && slices.Contains(m.Open, ActResume) {
			m.Warnings = append(slices.Clone(m.Warnings), r.Error)
		}
		return m.done(ActResume, now)
	case HostFailed:
		return m.failedStep(r, now, ActBegin, ActCopy, ActRelease, ActDrain)
	}
	return m
}

func (m Move) fromDestination(r Report, now time.Time) Move {
	switch r.State {
	case HostPrepared:
		m.DestinationCookie = r.Cookie
		return m.done(ActPrepare, now)
	case HostActive:
		return m.done(ActActivate, now)
	case HostDiscarded:
		return m.done(ActDiscard, now)
	case HostFailed:
		return m.failedStep(r, now, ActPrepare, ActActivate)
	}
	return m
}

// failedStep refuses the one of steps that is open. A failure of a step that is not open
// is old news.
func (m Move) failedStep(r Report, now time.Time, steps ...Action) Move {
	for _, a := range steps {
		if slices.Contains(m.Open, a) {
			return m.refused(Refusal{Action: a, Reason: r.Error}, now)
		}
	}
	return m
}
