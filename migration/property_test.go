package migration

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestInvariants plays random histories against the machine: whatever happens in whatever
// order, what must hold of a move holds, and time alone brings every move to rest.
func TestInvariants(t *testing.T) {
	allActions := []Action{ActPreflight, ActBegin, ActReceive, ActPrepare, ActCopy, ActRelease, ActOpen, ActCommit, ActFlip,
		ActActivate, ActDrain, ActConverge, ActFinish, ActForget, ActRevert, ActResume, ActDiscard, ActClose}
	allStates := []HostState{HostUnknown, HostBegun, HostPrepared, HostCopying, HostPaused, HostReleased, HostDrained,
		HostActive, HostFinished, HostResumed, HostDiscarded, HostFailed}
	rapid.Check(t, func(t *rapid.T) {
		s := newSession()
		committed, reverted := false, false
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			var ev Event
			switch rapid.SampledFrom([]string{"success", "success", "success", "start", "tick", "abort", "restart", "done", "refuse", "report"}).Draw(t, "kind") {
			case "success":
				if len(s.move.Open) == 0 {
					ev = Event{Start: true}
				} else {
					ev = success(rapid.SampledFrom(s.move.Open).Draw(t, "open"))
				}
			case "start":
				ev = Event{Start: true}
			case "tick":
				s.now = s.now.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second)
				ev = Event{Tick: true}
			case "abort":
				ev = Event{Abort: true}
			case "restart":
				ev = Event{Restart: true}
			case "done":
				ev = Event{Done: rapid.SampledFrom(allActions).Draw(t, "action")}
			case "refuse":
				ev = Event{Refused: Refusal{rapid.SampledFrom(allActions).Draw(t, "action"), "no"}}
			case "report":
				ev = Event{Report: &Report{Role: rapid.SampledFrom([]Role{Source, Destination}).Draw(t, "role"),
					State: rapid.SampledFrom(allStates).Draw(t, "state")}}
			}
			before := s.move
			next, begin := before.Step(ev, s.now)
			s.move = next
			if ev.Done == ActCommit && slices.Contains(before.Open, ActCommit) {
				committed = true
			}
			if ev.Done == ActRevert && slices.Contains(before.Open, ActRevert) {
				reverted = true
			}
			if slices.Contains(begin, ActActivate) && !committed {
				t.Fatalf("%v: the destination may run before the commit", ev)
			}
			if (slices.Contains(begin, ActResume) || slices.Contains(begin, ActDiscard)) && committed && !reverted {
				t.Fatalf("%v: the source may run again although the destination owns the VM", ev)
			}
			if slices.Contains(begin, ActFinish) && !committed {
				t.Fatalf("%v: the source is removed before the commit", ev)
			}
			if before.Phase == Commit && next.Phase == Rollback && ev.Refused.Action != ActCommit {
				t.Fatalf("%v: a commit of unknown outcome was rolled back", ev)
			}
			if before.Phase.Ended() && next.Phase != before.Phase {
				t.Fatalf("%v: %s was left for %s", ev, before.Phase, next.Phase)
			}
			if ev.Restart && before.Phase != Pending && !slices.Equal(begin, next.Open) && !next.Phase.Ended() {
				t.Fatalf("restart begins %v of %v", begin, next.Open)
			}
		}
		if s.move.Phase == Pending {
			return
		}
		for range 40 {
			s.now = s.now.Add(DefaultDeadline)
			s.move, _ = s.move.Step(Event{Tick: true}, s.now)
		}
		if !s.move.Phase.Ended() && s.move.Phase != Held {
			t.Fatalf("%s lasts for ever", s.move.Phase)
		}
	})
}

// Each host tells of its own stretches, again and again; what is kept has each once, the last word of
// it, in the order of time, and a report without any changes nothing.
func TestDiskWrites(t *testing.T) {
	s := newSession()
	tell := func(role Role, all ...DiskWrites) { s.step(Event{Report: &Report{Role: role, DiskWrites: all}}) }
	s.step(Event{Start: true})
	tell(Source, DiskWrites{Stretch: WritesBefore, Writes: 1})
	tell(Source, DiskWrites{Stretch: WritesBefore, Writes: 2}, DiskWrites{Stretch: WritesBulk, Writes: 3})
	before := s.move.Measured.DiskWrites
	tell(Destination, DiskWrites{Stretch: WritesAfter, Writes: 9})
	tell(Source, DiskWrites{Stretch: WritesBefore, Writes: 2}, DiskWrites{Stretch: WritesBulk, Writes: 4}, DiskWrites{Stretch: WritesMirror, Writes: 5})
	tell(Source)
	want := []DiskWrites{{Stretch: WritesBefore, Writes: 2}, {Stretch: WritesBulk, Writes: 4}, {Stretch: WritesMirror, Writes: 5}, {Stretch: WritesAfter, Writes: 9}}
	if got := s.move.Measured.DiskWrites; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if len(before) != 2 || before[1].Writes != 3 {
		t.Errorf("a move that was stored is another one now: %+v", before)
	}
}
