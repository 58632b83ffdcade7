// Package trial tells a move that gains from one that chance speaks for: it holds it against each
// part of a window by itself.
package trial

// Tenths is how many parts of a window a move is held against, each by itself.
const Tenths = 10

// Trial counts in how many parts of its window a move would have gained, and lost; in the
// others nothing was there to gain.
type Trial struct{ Gained, Lost int }

// Add takes in what one part says.
func (t *Trial) Add(usdPerHour float64) {
	switch {
	case usdPerHour > 1e-9:
		t.Gained++
	case usdPerHour < -1e-9:
		t.Lost++
	}
}

// Steady says whether a move is no matter of chance: it lost in no part, and gained in half
// of them at least. If what speaks for a move is noise, and its better half is in another
// place in one part of four, all ten agree once in a million windows.
func (t Trial) Steady() bool { return t.Lost == 0 && 2*t.Gained >= Tenths }

// Confidence is the share of the parts with traffic in which the move gained.
func (t Trial) Confidence() float64 { return float64(t.Gained) / float64(max(1, t.Gained+t.Lost)) }
