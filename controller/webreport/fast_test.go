//go:build !race

package webreport

import (
	"testing"
	"time"
)

// The race detector makes this thirty times slower, so it is not asked.
func TestRendersInASecond(t *testing.T) {
	r, m := crowd(1000, 200)
	best := time.Hour // of five: other work on this machine is not ours
	for range 5 {
		start := time.Now()
		render(t, r, m)
		best = min(best, time.Since(start))
	}
	if best > time.Second {
		t.Errorf("a matrix of 1000 VMs and %d cells took %v", len(m.Cells), best)
	}
}
