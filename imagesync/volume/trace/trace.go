// Package trace remembers the order in which chunks of a disk were first asked for: what a boot
// reads, in its order, is what the next one needs first.
package trace

import (
	"slices"
	"sync"

	"heliotrope/imagesync/volume/bitmap"
)

// limit is how many chunks are remembered unless it is said: 1 GiB, four times what a server's boot
// reads.
const limit = 16 << 10

// Trace is such an order. Its methods may be called from several goroutines.
type Trace struct {
	limit int

	mu    sync.Mutex
	seen  bitmap.Set
	order []int
}

// New is a Trace of at most so many chunks; 0 for 16,384.
func New(most int) *Trace {
	if most == 0 {
		most = limit
	}
	return &Trace{limit: most}
}

// Touch says that chunks were asked for.
func (t *Trace) Touch(chunks ...int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range chunks {
		if len(t.order) < t.limit && !t.seen.Has(c) {
			t.seen.Add(c, c+1)
			t.order = append(t.order, int(c))
		}
	}
}

// Chunks are those that were asked for, in their order.
func (t *Trace) Chunks() []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.order)
}
