package migration

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "write what the machine does into testdata")

// TestScripts runs testdata/*.txt: each line that begins with ">" is an event, the lines
// after it are what the machine made of it. Run with -rewrite, then read the difference.
func TestScripts(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txt")
	if len(files) == 0 {
		t.Fatal("no scripts in testdata")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, script)
			if *rewrite {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if !bytes.Equal(got, script) {
				t.Errorf("%s differs; got:\n%s", file, got)
			}
		})
	}
}

// play runs a script and returns it with the machine's answers.
func play(t *testing.T, script []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	s := newSession()
	lines := bufio.NewScanner(bytes.NewReader(script))
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "#"), line == "":
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "> "):
			fmt.Fprintln(&out, line)
			if err := s.do(line[2:]); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			fmt.Fprint(&out, s.answer)
		}
	}
	return out.Bytes()
}

// session is a machine under a script.
type session struct {
	move   Move
	now    time.Time
	answer string
}

func newSession() *session {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	return &session{move: New("m1", "web", "us-1", "eu-1", 7, now.Add(DefaultDeadline), now), now: now}
}

// do takes one event in words: start, restart, abort, tick DURATION, done ACTION,
// refuse ACTION: REASON, source STATE [done=BYTES [rounds=N]] [error=WORDS], destination the same,
// run PHASE (everything goes well until PHASE is entered).
func (s *session) do(line string) error {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "start":
		s.step(Event{Start: true})
	case "restart":
		s.step(Event{Restart: true})
	case "abort":
		s.step(Event{Abort: true})
	case "tick":
		d, err := time.ParseDuration(rest)
		if err != nil {
			return err
		}
		s.now = s.now.Add(d)
		s.step(Event{Tick: true})
	case "done":
		s.step(Event{Done: Action(rest)})
	case "refuse":
		a, reason, _ := strings.Cut(rest, ": ")
		s.step(Event{Refused: Refusal{Action(a), reason}})
	case "source", "destination":
		s.step(Event{Report: parseReport(Role(verb), rest)})
	case "run":
		return s.runTo(Phase(rest))
	default:
		return fmt.Errorf("no such event")
	}
	return nil
}

func (s *session) step(ev Event) {
	next, begin := s.move.Step(ev, s.now)
	s.move = next
	s.answer = fmt.Sprintf("  %s open=%v begin=%v", next.Phase, next.Open, begin)
	if next.Phase == Held {
		s.answer += " in " + string(next.HeldIn)
	}
	if next.Error != "" {
		s.answer += " error=" + fmt.Sprintf("%q", next.Error)
	}
	s.answer += "\n"
}

// runTo gets every open action done until the move enters p.
func (s *session) runTo(p Phase) error {
	if s.move.Phase == Pending {
		s.step(Event{Start: true})
	}
	for i := 0; s.move.Phase != p; i++ {
		if i > 100 || len(s.move.Open) == 0 {
			return fmt.Errorf("%s does not lead to %s", s.move.Phase, p)
		}
		s.step(success(s.move.Open[0]))
	}
	return nil
}

// success is the event by which an action is known to be done.
func success(a Action) Event {
	state, ok := map[Action]HostState{
		ActBegin: HostBegun, ActPrepare: HostPrepared, ActCopy: HostPaused, ActRelease: HostReleased, ActDrain: HostDrained,
		ActFinish: HostFinished, ActResume: HostResumed, ActDiscard: HostDiscarded, ActActivate: HostActive,
	}[a]
	if !ok {
		return Event{Done: a}
	}
	role, _, _ := a.Step()
	return Event{Report: &Report{Role: role, State: state}}
}

func parseReport(role Role, words string) *Report {
	r := &Report{Role: role}
	words, failure, _ := strings.Cut(words, " error=")
	r.Error = failure
	state, rest, _ := strings.Cut(words, " ")
	r.State = HostState(state)
	fmt.Sscanf(rest, "done=%d rounds=%d", &r.Progress.DoneBytes, &r.Progress.Rounds)
	return r
}

// TestMatrix plays every phase with every kind of ending and keeps the result in
// testdata/matrix.golden.
func TestMatrix(t *testing.T) {
	var out bytes.Buffer
	for _, p := range []Phase{Pending, Preflight, SyncImage, Prepare, PreCopy, Switchover, Commit, Activate, Converge, Cleanup} {
		fmt.Fprintf(&out, "%s\n", p)
		endings := []struct {
			name   string
			events func(Move) []Event
		}{
			{"success", func(m Move) (evs []Event) {
				for _, a := range m.Open {
					evs = append(evs, success(a))
				}
				return evs
			}},
			{"timeout", func(Move) []Event { return []Event{{Tick: true}} }},
			{"error", func(m Move) (evs []Event) {
				if len(m.Open) > 0 {
					evs = []Event{{Refused: Refusal{m.Open[len(m.Open)-1], "it cannot be"}}}
				}
				return evs
			}},
			{"abort", func(Move) []Event { return []Event{{Abort: true}} }},
			{"restart", func(Move) []Event { return []Event{{Restart: true}} }},
		}
		for _, e := range endings {
			s := newSession()
			if p != Pending {
				if err := s.runTo(p); err != nil {
					t.Fatal(err)
				}
			}
			if e.name == "timeout" {
				s.now = s.now.Add(DefaultDeadline + time.Second)
			}
			s.answer = "  -\n"
			for _, ev := range e.events(s.move) {
				s.step(ev)
			}
			fmt.Fprintf(&out, "  %-8s%s", e.name, s.answer)
		}
	}
	const file = "testdata/matrix.golden"
	if *rewrite {
		if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("matrix differs; got:\n%s", &out)
	}
}
