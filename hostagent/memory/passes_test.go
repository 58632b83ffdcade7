package memory

import (
	"testing"
	"time"

	"heliotrope/migration"
	"heliotrope/migration/wan"
)

// replay replays what a copy told, every 100 ms.
func replay(w *Passes, each []migration.Progress) (passes []migration.Pass, allowed []time.Duration) {
	at := time.Time{}.Add(time.Hour)
	for _, p := range each {
		var a time.Duration
		passes, a = w.Saw(p, at)
		allowed = append(allowed, a)
		at = at.Add(100 * time.Millisecond)
	}
	return passes, allowed
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
	passes, allowed := replay(w, busy)
	for i, want := range []time.Duration{firstPause, firstPause, firstPause, firstPause, 300 * time.Millisecond, 300 * time.Millisecond} {
		if allowed[i] != want {
			t.Errorf("after %d looks a pause of %v may be, want %v", i+1, allowed[i], want)
		}
	}
	if len(passes) != 3 || passes[0].Sent != 200*mb || passes[0].Wire != 80*mb || passes[0].Dirty != 100*mb || passes[0].TookMs != 200 || passes[0].Stop || !passes[1].Stop {
		t.Errorf("passes %+v", passes)
	}
	// The same trace, where no pause of that length may be.
	if _, allowed = replay(NewPasses(50*time.Millisecond), busy); allowed[len(allowed)-1] != firstPause {
		t.Errorf("a pause of %v may be, though it would be longer than 50 ms", allowed[len(allowed)-1])
	}
	// Sent as it is.
	plain := []migration.Progress{{Rounds: 1, DoneBytes: 0}, {Rounds: 2, DoneBytes: 90 * mb, RelayBytes: 91 * mb, RemainingBytes: mb}}
	if passes, _ = replay(NewPasses(time.Second), plain); len(passes) != 1 || passes[0].Sent != 90*mb || passes[0].Wire != 91*mb {
		t.Errorf("passes %+v", passes)
	}
	// For ever: what is remembered is bounded, and the last word holds.
	w = NewPasses(300 * time.Millisecond)
	var long []migration.Progress
	for i := range uint64(500) {
		long = append(long, migration.Progress{Rounds: i, RemainingBytes: 100 * mb, Memory: memory(100*i, 40*i)})
	}
	if passes, allowed = replay(w, long); len(passes) != maxPasses || allowed[499] != 300*time.Millisecond {
		t.Errorf("%d passes, and a pause of %v may be", len(passes), allowed[499])
	}
}
