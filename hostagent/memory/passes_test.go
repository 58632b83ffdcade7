package memory

import (
	"strings"
	"testing"
	"time"

	"heliotrope/hostagent/libvirt"
	"heliotrope/migration"
	"heliotrope/migration/wan"
)

// replay replays what a copy told, every 100 ms, and says after which look the guest was to be slowed down.
func replay(w *Passes, each []migration.Progress) (passes []migration.Pass, allowed []time.Duration, slow int) {
	at := time.Time{}.Add(time.Hour)
	for i, p := range each {
		var to libvirt.Course
		passes, to = w.Saw(p, at)
		allowed = append(allowed, to.Pause)
		if to.Slow && slow == 0 {
			slow = i + 1
		}
		at = at.Add(100 * time.Millisecond)
	}
	return passes, allowed, slow
}

func TestPasses(t *testing.T) {
	const mb = 1 << 20
	memory := func(stream, wire uint64) []migration.Encoded {
		return []migration.Encoded{{Kind: wan.Literal.String(), Stream: stream * mb, Wire: wire * mb}}
	}
	// A guest that rewrites 100 MB in the time that these take: it will never be still.
	busy := []migration.Progress{
		{}, // libvirt has nothing to say yet
		{Rounds: 1, RemainingBytes: 200 * mb, Memory: memory(0, 0)},
		{Rounds: 1, RemainingBytes: 100 * mb, Memory: memory(100, 40)},
		{Rounds: 2, RemainingBytes: 100 * mb, Memory: memory(200, 80)},
		{Rounds: 3, RemainingBytes: 100 * mb, Memory: memory(300, 120)},
		{Rounds: 4, RemainingBytes: 100 * mb, Memory: memory(400, 160)},
	}
	w := NewPasses(300 * time.Millisecond)
	passes, allowed, _ := replay(w, busy)
	var slow int
	for i, want := range []time.Duration{firstPause, firstPause, firstPause, firstPause, 300 * time.Millisecond, 300 * time.Millisecond} {
		if allowed[i] != want {
			t.Errorf("after %d looks a pause of %v may be, want %v", i+1, allowed[i], want)
		}
	}
	if len(passes) != 3 || passes[0].Sent != 200*mb || passes[0].Wire != 80*mb || passes[0].Dirty != 100*mb || passes[0].TookMs != 200 || passes[0].Stop || !passes[1].Stop {
		t.Errorf("passes %+v", passes)
	}
	// The same trace, where no pause of that length may be.
	if _, allowed, _ = replay(NewPasses(50*time.Millisecond), busy); allowed[len(allowed)-1] != firstPause {
		t.Errorf("a pause of %v may be, though it would be longer than 50 ms", allowed[len(allowed)-1])
	}
	// Sent as it is.
	plain := []migration.Progress{{Rounds: 1, DoneBytes: 0}, {Rounds: 2, DoneBytes: 90 * mb, RelayBytes: 91 * mb, RemainingBytes: mb}}
	if passes, _, _ = replay(NewPasses(time.Second), plain); len(passes) != 1 || passes[0].Sent != 90*mb || passes[0].Wire != 91*mb {
		t.Errorf("passes %+v", passes)
	}
	// For ever: what is remembered is bounded, and the last word holds.
	w = NewPasses(300 * time.Millisecond)
	var long []migration.Progress
	for i := range uint64(500) {
		long = append(long, migration.Progress{Rounds: i, RemainingBytes: 100 * mb, Memory: memory(100*i, 40*i)})
	}
	if passes, allowed, slow = replay(w, long); len(passes) != maxPasses || allowed[499] != 300*time.Millisecond || slow > 0 {
		t.Errorf("%d passes, a pause of %v may be, and it is slowed after look %d", len(passes), allowed[499], slow)
	}
	// A pause like that may not be: after five passes more that gain nothing it is slowed down, and stays so.
	if _, allowed, slow = replay(NewPasses(50*time.Millisecond), long); slow != 8 || allowed[6] != firstPause || allowed[499] != 50*time.Millisecond {
		t.Errorf("a pause of %v may be, and it is slowed after look %d", allowed[499], slow)
	}
	// What it then leaves is little enough, and the passes say why.
	for i := 8; i < 12; i++ {
		long[i].RemainingBytes, long[i].Slowed = 100*mb>>(i-7), 40
	}
	passes, allowed, slow = replay(NewPasses(50*time.Millisecond), long[:12])
	last := passes[len(passes)-1]
	if slow != 8 || allowed[11] != 50*time.Millisecond || last.Slowed != 40 || !last.Stop || !strings.Contains(last.Why, "lost 40 %") {
		t.Errorf("slowed after look %d, a pause of %v may be, the last of %+v", slow, allowed[11], passes)
	}
}
