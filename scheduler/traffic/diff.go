package traffic

import (
	"cmp"
	"math"
	"slices"
)

// ChangeKind says how a cell changed.
type ChangeKind string

// The kinds of change.
const (
	New    ChangeKind = "new"
	Gone   ChangeKind = "gone"
	Grown  ChangeKind = "grown"
	Shrunk ChangeKind = "shrunk"
)

// Change is a pair whose rate in one window is not that in another.
type Change struct {
	Kind   ChangeKind `json:"kind"`
	Src    End        `json:"src"`
	Dst    End        `json:"dst"`
	Before float64    `json:"before_bytes_per_second"`
	After  float64    `json:"after_bytes_per_second"`

	// The rate changed by at least so much, with 95 % confidence in each window.
	Least float64 `json:"least_bytes_per_second"`
}

// leastChange is the share of the larger rate that a change has to have: less is how any
// traffic fluctuates, also where it was counted exactly.
const leastChange = 0.2

// Diff returns how rates changed from a to b, the largest changes first. A change that the
// windows' intervals leave open is not told: a cell that is only in one window counts as
// up to Unseen in the other.
func Diff(a, b Matrix) []Change {
	var changes []Change
	tell := func(kind ChangeKind, before, after Cell) {
		c := Change{Kind: kind, Src: before.Src, Dst: before.Dst, Before: before.Bytes / a.seconds(), After: after.Bytes / b.seconds()}
		up := after.Low/b.seconds() - before.High/a.seconds()
		down := before.Low/a.seconds() - after.High/b.seconds()
		c.Least = max(up, down)
		if kind == Grown && down > up {
			c.Kind = Shrunk
		}
		if c.Least > 0 && math.Abs(c.After-c.Before) >= leastChange*max(c.After, c.Before) {
			changes = append(changes, c)
		}
	}
	x, y := a.Cells, b.Cells
	for len(x) > 0 || len(y) > 0 {
		switch order := ahead(x, y); {
		case order < 0:
			tell(Gone, x[0], Cell{High: b.Unseen})
			x = x[1:]
		case order > 0:
			tell(New, Cell{Src: y[0].Src, Dst: y[0].Dst, High: a.Unseen}, y[0])
			y = y[1:]
		default:
			tell(Grown, x[0], y[0])
			x, y = x[1:], y[1:]
		}
	}
	slices.SortStableFunc(changes, func(c, d Change) int {
		return cmp.Compare(math.Abs(d.After-d.Before), math.Abs(c.After-c.Before))
	})
	return changes
}

// ahead compares the first cells of two ordered lists; an empty list comes last.
func ahead(x, y []Cell) int {
	switch {
	case len(y) == 0:
		return -1
	case len(x) == 0:
		return 1
	}
	return cmp.Or(x[0].Src.Compare(y[0].Src), x[0].Dst.Compare(y[0].Dst))
}
