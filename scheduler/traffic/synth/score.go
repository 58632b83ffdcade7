package synth

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"heliotrope/scheduler/traffic/pattern"
)

// AdjustedRand is the adjusted Rand index of two labellings of the same things (Hubert and
// Arabie, 1985): 1 where they part them alike, about 0 where only by chance.
func AdjustedRand(a, b []int) float64 {
	cells, rows, columns := map[[2]int]float64{}, map[int]float64{}, map[int]float64{}
	for i := range a {
		cells[[2]int{a[i], b[i]}]++
		rows[a[i]]++
		columns[b[i]]++
	}
	both, inA, inB := pairs(cells), pairs(rows), pairs(columns)
	all := float64(len(a)) * float64(len(a)-1) / 2
	expected := inA * inB / max(all, 1)
	if most := (inA + inB) / 2; most != expected {
		return (both - expected) / (most - expected)
	}
	return 1
}

// pairs counts the pairs of things that are together.
func pairs[K comparable](sizes map[K]float64) (sum float64) {
	for _, n := range sizes {
		sum += n * (n - 1) / 2
	}
	return sum
}

// Homogeneity says how far each group that was said holds members of one true group only, from
// 0 to 1: 1 - H(truth | said) / H(truth). Homogeneity(said, truth) is the completeness
// (Rosenberg and Hirschberg, EMNLP 2007).
func Homogeneity(truth, said []int) float64 {
	cells, rows, columns := map[[2]int]float64{}, map[int]float64{}, map[int]float64{}
	for i := range truth {
		cells[[2]int{truth[i], said[i]}]++
		rows[truth[i]]++
		columns[said[i]]++
	}
	n, before, after := float64(len(truth)), 0.0, 0.0
	for _, c := range rows {
		before -= c / n * math.Log(c/n)
	}
	for k, c := range cells {
		after -= c / n * math.Log(c/columns[k[1]])
	}
	if before == 0 {
		return 1
	}
	return 1 - after/before
}

// Confusion counts, for each pattern that was, what was said of it.
type Confusion map[pattern.Kind]map[pattern.Kind]int

// Add counts n more.
func (c Confusion) Add(truth, said pattern.Kind, n int) {
	if c[truth] == nil {
		c[truth] = map[pattern.Kind]int{}
	}
	c[truth][said] += n
}

// Join adds another's counts.
func (c Confusion) Join(o Confusion) {
	for truth, row := range o {
		for said, n := range row {
			c.Add(truth, said, n)
		}
	}
}

// MacroF1 is the mean over the patterns that were of the harmonic mean of precision and
// recall.
func (c Confusion) MacroF1() float64 {
	sum := 0.0
	for k := range c {
		sum += c.F1(k)
	}
	return sum / max(float64(len(c)), 1)
}

// F1 is that of one pattern.
func (c Confusion) F1(k pattern.Kind) float64 {
	was, said := 0, 0
	for truth, row := range c {
		for s, n := range row {
			if truth == k {
				was += n
			}
			if s == k {
				said += n
			}
		}
	}
	return 2 * float64(c[k][k]) / max(float64(was+said), 1)
}

// Abstained is the share of which nothing was said.
func (c Confusion) Abstained() float64 {
	none, all := 0, 0
	for _, row := range c {
		for said, n := range row {
			all += n
			if said == pattern.Unknown {
				none += n
			}
		}
	}
	return float64(none) / max(float64(all), 1)
}

// String is a table: a row for each pattern that was, a column for each that was said.
func (c Confusion) String() string {
	said := map[pattern.Kind]bool{}
	for _, row := range c {
		for k := range row {
			said[k] = true
		}
	}
	columns := slices.Sorted(maps.Keys(said))
	var b strings.Builder
	fmt.Fprintf(&b, "%-14s", "")
	for _, k := range columns {
		fmt.Fprintf(&b, " %8.8s", k)
	}
	fmt.Fprintf(&b, " %8s\n", "F1")
	for _, k := range slices.Sorted(maps.Keys(c)) {
		fmt.Fprintf(&b, "%-14s", k)
		for _, s := range columns {
			fmt.Fprintf(&b, " %8s", strings.TrimSuffix(fmt.Sprint(c[k][s]), "0 "))
		}
		fmt.Fprintf(&b, " %8.3f\n", c.F1(k))
	}
	return b.String()
}
