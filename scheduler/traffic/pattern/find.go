package pattern

import (
	"slices"

	"heliotrope/scheduler/traffic"
)

// Find returns the group that is followed and is most like these members, or nil where none
// shares half of them.
func (t *Tracker) Find(members []traffic.End) *Tracked {
	const half = 0.5
	set := slices.SortedFunc(slices.Values(members), traffic.End.Compare)
	var best *Tracked
	most := half
	for _, x := range t.Live {
		common := 0
		for _, e := range x.Members {
			if _, ok := slices.BinarySearchFunc(set, e, traffic.End.Compare); ok {
				common++
			}
		}
		if alike := float64(common) / float64(len(set)+len(x.Members)-common); alike >= most {
			best, most = x, alike
		}
	}
	return best
}
