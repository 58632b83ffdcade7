package assign

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"heliotrope/scheduler/anneal"
)

// Polishing never makes an assignment dearer, and keeps the room of bins, those that are
// closed, and the most that may be away.
func TestPolish(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := draw(t, 20, 4)
		f.MaxMoves = 0
		s := newState(f, f.Home)
		b := &Bins{Stir: make([]float64, len(f.Home)), At: slices.Clone(f.Home), MaxAway: rapid.IntRange(0, 3).Draw(t, "away")}
		for k := range f.Sites { // two bins a site, and all that is there in the first
			b.Site = append(b.Site, k)
			b.Closed = append(b.Closed, rapid.IntRange(0, 5).Draw(t, "closed") == 0)
			b.FreeVCPUs = append(b.FreeVCPUs, max(0, s.freeVCPUs[k]))
			b.FreeMiB = append(b.FreeMiB, max(0, s.freeMiB[k]))
		}
		for k := range f.Sites {
			b.Site, b.Closed = append(b.Site, k), append(b.Closed, false)
			b.FreeVCPUs, b.FreeMiB = append(b.FreeVCPUs, 10), append(b.FreeMiB, 8192)
		}
		for u := range b.Stir {
			b.Stir[u] = 0.1
		}
		b.Home = slices.Clone(b.At)
		free := slices.Clone(b.FreeVCPUs)
		before := s.USD
		s.Polish(b, 5*anneal.AtOnce, Options{Seed: 1, Iterations: rapid.IntRange(-1, 0).Draw(t, "iterations")})
		away := 0
		for u, n := range b.At {
			if s.At[u] != b.Site[n] {
				t.Fatalf("unit %d is at site %d and in a bin of %d", u, s.At[u], b.Site[n])
			}
			if n != b.Home[u] {
				away++
				if b.Closed[n] {
					t.Fatalf("unit %d went to bin %d, which is closed", u, n)
				}
			}
			free[n] -= f.VCPUs[u]
			free[b.Home[u]] += f.VCPUs[u]
		}
		if slices.Min(free) < -slack || s.USD > before+slack || b.MaxAway > 0 && away > b.MaxAway {
			t.Fatalf("free %v, USD %v from %v, %d away of %d", free, s.USD, before, away, b.MaxAway)
		}
	})
}
