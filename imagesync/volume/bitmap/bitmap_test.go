package bitmap

import (
	"testing"

	"pgregory.net/rapid"
)

// A Set is a set.
func TestSet(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const n = 3*pageBits + 100
		var sets [2]Set
		var want [2][n]bool
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			k := rapid.IntRange(0, 1).Draw(t, "which")
			from := rapid.Int64Range(0, n).Draw(t, "from")
			to := rapid.Int64Range(from, n).Draw(t, "to")
			if rapid.Bool().Draw(t, "pages") {
				from, to = from/pageBits*pageBits, to/pageBits*pageBits
			}
			switch op := rapid.IntRange(0, 4).Draw(t, "op"); op {
			case 0, 1:
				if op == 0 {
					sets[k].Add(from, to)
				} else {
					sets[k].Remove(from, to)
				}
				for i := from; i < to; i++ {
					want[k][i] = op == 0
				}
			case 2:
				sets[k].Union(&sets[1-k])
				for i, in := range want[1-k] {
					want[k][i] = want[k][i] || in
				}
			case 3:
				sets[k].Subtract(&sets[1-k])
				for i, in := range want[1-k] {
					want[k][i] = want[k][i] && !in
				}
			case 4:
				sets[k] = sets[1-k].Clone()
				want[k] = want[1-k]
			}
		}
		for k := range sets {
			count := int64(0)
			for i := range int64(n) {
				if sets[k].Has(i) != want[k][i] {
					t.Fatalf("set %d: %d is %t", k, i, !want[k][i])
				}
				if want[k][i] {
					count++
				}
			}
			if sets[k].Count() != count {
				t.Fatalf("set %d counts %d of %d", k, sets[k].Count(), count)
			}
			end := int64(-1)
			for from, to := range sets[k].Runs(0, n) {
				if from <= end || to <= from || !want[k][from] || !want[k][to-1] || to < n && want[k][to] {
					t.Fatalf("set %d: run %d to %d after %d", k, from, to, end)
				}
				end, count = to, count-(to-from)
			}
			if count != 0 {
				t.Fatalf("runs of set %d leave %d out", k, count)
			}
			next := int64(0)
			for from, to := range sets[k].Gaps(0, n) {
				for ; next < to; next++ {
					if want[k][next] != (next < from) {
						t.Fatalf("set %d: gap %d to %d, and %d is %t", k, from, to, next, want[k][next])
					}
				}
			}
			for ; next < n; next++ {
				if !want[k][next] {
					t.Fatalf("set %d: %d is in no gap", k, next)
				}
			}
		}
	})
}
