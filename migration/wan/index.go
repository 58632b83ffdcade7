package wan

// index finds slots by the hash of what they held when it was added; what they hold now is
// to be compared. It forgets: a place has one entry.
type index struct {
	entries []entry // a power of two
	max     int
	added   int
}

type entry struct {
	hash uint64
	slot uint32 // plus 1
}

const firstEntries = 1 << 12

func newIndex(maxPages int) *index { return &index{max: maxPages} }

func (x *index) find(hash uint64) (slot uint32, ok bool) {
	if len(x.entries) == 0 {
		return 0, false
	}
	e := &x.entries[hash&uint64(len(x.entries)-1)]
	return e.slot - 1, e.slot != 0 && e.hash == hash
}

func (x *index) add(hash uint64, slot uint32) {
	if x.added >= len(x.entries)/2 && len(x.entries) < x.max {
		old := x.entries
		x.entries = make([]entry, max(firstEntries, 2*len(old)))
		for _, e := range old {
			if e.slot != 0 {
				x.entries[e.hash&uint64(len(x.entries)-1)] = e
			}
		}
	}
	if len(x.entries) == 0 {
		return
	}
	x.entries[hash&uint64(len(x.entries)-1)] = entry{hash, slot + 1}
	x.added++
}
