package relay

import (
	"testing"
	"time"
)

// sized is a batch of so many bytes.
type sized int

func (s sized) Size() int                { return int(s) }
func (sized) SwapReferred([]byte) []byte { return nil }

// way is a source that has as much to send as it may, a wire, and a destination, each with its
// rate in bytes of the stream a second.
type way struct {
	trip          time.Duration
	wire, rebuild float64
	// busy is for how long the destination does nothing, four times a second.
	busy time.Duration
}

// run sends batches over the way and returns how much of its slower half was used, and how long
// batches lay at the destination, at most, in the second half of the time.
func (y way) run(t *testing.T, d time.Duration) (used float64, lag time.Duration) {
	t.Helper()
	type event struct {
		rebuilt uint64
		lag     time.Duration
		at      time.Duration
	}
	const size = batchBytes
	w := newWindow()
	var events []event // of acknowledgements under way
	var began time.Time
	var now, wireFree, rebuildFree time.Duration
	var sent uint64
	took := func(rate float64) time.Duration { return time.Duration(size / rate * float64(time.Second)) }
	for now < d {
		for wireFree <= now+took(y.wire) && w.tryEnter(sized(size), began.Add(now)) {
			sent++
			wireFree = max(wireFree, now) + took(y.wire)
			came := wireFree + y.trip/2
			rebuildFree = max(rebuildFree, came)
			if since := rebuildFree % (250 * time.Millisecond); since < y.busy {
				rebuildFree += y.busy - since
			}
			rebuildFree += took(y.rebuild)
			events = append(events, event{sent, rebuildFree - came, rebuildFree + y.trip/2})
			if rebuildFree > d/2 {
				lag = max(lag, rebuildFree-came)
			}
		}
		// The next that happens: the wire is free, or an acknowledgement comes.
		next := now + time.Millisecond
		if len(events) > 0 {
			next = min(next, events[0].at)
		}
		if wireFree > now {
			next = min(next, wireFree)
		}
		now = max(next, now+10*time.Microsecond)
		for len(events) > 0 && events[0].at <= now {
			if err := w.leave(events[0].rebuilt, events[0].lag, began.Add(now)); err != nil {
				t.Fatal(err)
			}
			events = events[1:]
		}
	}
	return float64(w.rebuilt) * size / (min(y.wire, y.rebuild) * d.Seconds()), lag
}

// TestWindow: what a way can carry is used, and where the destination is the slower, batches do
// not pile up there.
func TestWindow(t *testing.T) {
	for name, y := range map[string]way{
		"at once, slow destination":    {0, 2e9, 300e6, 0},
		"27 ms, slow destination":      {27 * time.Millisecond, 2e9, 300e6, 0},
		"180 ms, slow destination":     {180 * time.Millisecond, 2e9, 300e6, 0},
		"at once, very slow":           {0, 2e9, 60e6, 0},
		"27 ms, slow wire":             {27 * time.Millisecond, 60e6, 500e6, 0},
		"180 ms, slow wire":            {180 * time.Millisecond, 60e6, 500e6, 0},
		"27 ms, very slow wire":        {27 * time.Millisecond, 12e6, 500e6, 0},
		"180 ms, both about as slow":   {180 * time.Millisecond, 210e6, 200e6, 0},
		"at once, both about as slow":  {0, 210e6, 200e6, 0},
		"27 ms, very slow destination": {27 * time.Millisecond, 1e9, 40e6, 0},
	} {
		t.Run(name, func(t *testing.T) {
			used, lag := y.run(t, 10*time.Second)
			t.Logf("%.0f %% used, lag at most %s", used*100, lag)
			// One batch is rebuilt, another waits: that is the least.
			least := time.Duration(2 * batchBytes / y.rebuild * float64(time.Second))
			if used < 0.75 || lag > 3*lagAim+2*least {
				t.Errorf("%.0f %% used, lag at most %s", used*100, lag)
			}
		})
	}
}

// TestBusyDestination: that a host has something else to do now and then keeps no way from being used: of
// what it could carry in three seconds, a copy over a long way gets two thirds.
func TestBusyDestination(t *testing.T) {
	y := way{trip: 218 * time.Millisecond, wire: 130e6, rebuild: 400e6, busy: 40 * time.Millisecond}
	if used, lag := y.run(t, 3*time.Second); used < 0.66 || lag > 2*y.busy {
		t.Errorf("%.0f %% used, lag at most %s", used*100, lag)
	}
}

func TestWindowIsToldNonsense(t *testing.T) {
	w, now := newWindow(), time.Now()
	for range 3 {
		if !w.tryEnter(sized(1000), now) {
			t.Fatal("no room for 3000 bytes")
		}
	}
	if err := w.leave(4, 0, now); err == nil {
		t.Error("4 of 3 are rebuilt")
	}
	if err := w.leave(2, 0, now); err != nil {
		t.Error(err)
	}
	if err := w.leave(1, 0, now); err == nil {
		t.Error("1, after 2")
	}
	for _, batch := range []uint64{0, 2, 4, 1 << 63} {
		if _, err := w.referred(batch); err == nil {
			t.Errorf("batch %d is under way", batch)
		}
	}
	if _, err := w.referred(3); err != nil {
		t.Error(err)
	}
}
