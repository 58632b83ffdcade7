package wan

import (
	"fmt"
	"time"
)

// Round is one pass of a migration over what the guest has dirtied.
type Round struct {
	Sent  uint64 // bytes of pages that the hypervisor sent in it
	Wire  uint64 // bytes that crossed for them
	Dirty uint64 // bytes of pages that the guest dirtied meanwhile: what the next round has to send
	Took  time.Duration
}

// StopRule says when to stop a guest that dirties its memory while it is copied. CloudNet's
// rule (Wood et al., VEE 2011): go on while a round sends more than the guest dirties
// meanwhile, since the next one is then shorter; once it does not, rounds only repeat
// themselves, and the best that can be had is to stop when the guest has just dirtied less
// than in the rounds before. What is compared is what the wire will carry: a guest that
// rewrites many pages by a few bytes each has little left to send.
type StopRule struct {
	MaxPause time.Duration // never stop where the pause would be longer; 0: however long
	Enough   time.Duration // a pause that short is not worth another round; default 20 ms
	Fixed    time.Duration // of every pause: devices, the last round trips
	Window   int           // rounds that a local minimum is one of; default 5
	Rounds   int           // after so many, any that keeps to MaxPause will do; default 30
}

// Verdict is what a StopRule says after a round.
type Verdict struct {
	Stop  bool
	Pause time.Duration // that stopping now would make; the guess of it, if Stop is false
	// Stalled is true where no round will ever leave little enough: for as many rounds as the window has, and while as
	// much was sent as what is left by so many, it has not become less, and would make a pause that is longer than
	// MaxPause. Only a guest that does less will be done then.
	Stalled bool
	Why     string
}

// After judges the rounds so far, of which there is one at least.
func (r StopRule) After(rounds []Round) Verdict {
	if len(rounds) == 0 {
		return Verdict{Why: "nothing has been sent"}
	}
	enough, window, most := r.Enough, r.Window, r.Rounds
	if enough == 0 {
		enough = 20 * time.Millisecond
	}
	if window == 0 {
		window = 5
	}
	if most == 0 {
		most = 30
	}
	last := len(rounds) - 1
	v := Verdict{Pause: r.Fixed + pauseAfter(rounds)}
	switch {
	case r.MaxPause > 0 && v.Pause > r.MaxPause:
		v.Stalled = stalled(rounds, window)
		v.Why = fmt.Sprintf("the pause would be %s, longer than %s", v.Pause.Round(time.Millisecond), r.MaxPause)
	case v.Pause <= r.Fixed+enough:
		v.Stop, v.Why = true, "the rest takes no time"
	case !turned(rounds):
		v.Why = "rounds are getting shorter"
	case len(rounds) >= most:
		v.Stop, v.Why = true, fmt.Sprintf("%d rounds have gained nothing more", len(rounds))
	case last == 0 || !lowest(rounds, window):
		v.Why = "the guest has dirtied less in a round before"
	default:
		v.Stop, v.Why = true, "rounds no longer get shorter, and this one left the least"
	}
	return v
}

// cost is how many bytes the wire will carry for what was dirty after round i: pages that
// are sent again, of which the last rounds say how well they compress. Before there is such
// a round, they are taken to compress as the first one.
func cost(rounds []Round, i int) float64 {
	ratio := 1.0
	if s := rounds[i]; s.Sent > 0 {
		ratio = float64(s.Wire) / float64(s.Sent)
	}
	return float64(rounds[i].Dirty) * min(ratio, 1)
}

// pauseAfter is how long the wire takes for what is dirty now, at the rate that it had of late.
func pauseAfter(rounds []Round) time.Duration {
	var wire uint64
	var took time.Duration
	for i := len(rounds) - 1; i >= 0 && took < time.Second; i-- {
		wire, took = wire+rounds[i].Wire, took+rounds[i].Took
	}
	if wire == 0 || took <= 0 {
		return 0
	}
	seconds := cost(rounds, len(rounds)-1) / float64(wire) * took.Seconds()
	return time.Duration(min(seconds, 1e6) * float64(time.Second))
}

// What differs by less is the same: a round that is by so little shorter gains nothing, and
// a minimum that is missed by so little is one.
const (
	hardlyShorter = 0.95
	hardlyMore    = 1.02
)

// turned says whether there was a round that sent no more than was dirtied meanwhile.
func turned(rounds []Round) bool {
	for i, s := range rounds {
		if cost(rounds, i) >= hardlyShorter*float64(s.Wire) {
			return true
		}
	}
	return false
}

// stalled says whether for a window's rounds, since one that gained nothing, nothing was gained. What counts is how
// often what is left was sent: a hypervisor may cut a pass into several.
func stalled(rounds []Round, window int) bool {
	last := len(rounds) - 1
	left, sent := hardlyShorter*cost(rounds, last), 0.0
	for i := last; i >= 0; i-- {
		if i <= last-window && sent >= float64(window)*left && left >= hardlyShorter*hardlyShorter*cost(rounds, i) && turned(rounds[:i+1]) {
			return true
		}
		sent += float64(rounds[i].Wire)
	}
	return false
}

// lowest says whether the last round left no more than those before it in the window.
func lowest(rounds []Round, window int) bool {
	last := len(rounds) - 1
	for i := max(last-window, 0); i < last; i++ {
		if cost(rounds, i)*hardlyMore < cost(rounds, last) {
			return false
		}
	}
	return true
}
