package paths

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"heliotrope"
)

// All peers have their turn before one has another, ten at a time.
func TestTurns(t *testing.T) {
	for _, n := range []int{0, 1, 10, 11, 25, 100} {
		p := New(nil)
		peers := map[heliotrope.HostID]netip.Addr{}
		for i := range n {
			peers[heliotrope.HostID(fmt.Sprintf("h%03d", i))] = netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		}
		p.set(peers)
		for turn := range 3 {
			seen := map[heliotrope.HostID]int{}
			for range max(1, (n+pathsAtOnce-1)/pathsAtOnce) {
				some, at := p.next()
				if len(some) > pathsAtOnce || n > 0 && at != turn {
					t.Errorf("%d peers: %d in turn %d, want at most %d in turn %d", n, len(some), at, pathsAtOnce, turn)
				}
				for h := range some {
					seen[h]++
				}
			}
			if want := slices.Sorted(maps.Keys(peers)); !slices.Equal(slices.Sorted(maps.Keys(seen)), want) {
				t.Errorf("%d peers: turn %d had %v", n, turn, seen)
			}
			for h, times := range seen {
				if times != 1 {
					t.Errorf("%d peers: %s had %d turns", n, h, times)
				}
			}
		}
	}
}
