package topologies

import (
	"slices"
	"strings"
)

// maxCandidates bounds the search for a similar name in very large files.
const maxCandidates = 2000

// didYouMean is a hint about the unknown name got: the known name most like it, or what
// names there are. Plural says of what kind: "hosts".
func didYouMean(got, plural string, known []string) string {
	if len(known) == 0 {
		return "there are no " + plural
	}
	if best := closest(got, known); best != "" {
		return "did you mean " + quote(best) + "?"
	}
	if len(known) > 12 {
		return plural + " are: " + strings.Join(known[:12], ", ") + ", …"
	}
	return plural + " are: " + strings.Join(known, ", ")
}

// closest returns the known name with the fewest typing mistakes between it and got, or
// one that got begins, or nothing where none is near.
func closest(got string, known []string) string {
	if len(got) > 64 {
		return ""
	}
	best, fewest := "", 1+min(3, (len(got)+2)/3)
	for _, k := range known[:min(len(known), maxCandidates)] {
		if d := mistakes(strings.ToLower(got), k, fewest); d < fewest {
			best, fewest = k, d
		}
	}
	if best == "" && len(got) >= 2 {
		if i := slices.IndexFunc(known, func(k string) bool { return strings.HasPrefix(k, strings.ToLower(got)) }); i >= 0 {
			best = known[i]
		}
	}
	return best
}

// mistakes counts insertions, deletions, changes and swaps of neighbours between a and
// b, and gives up with limit where there are at least as many.
func mistakes(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	var before []int
	last, row := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, make([]int, len(b)+1)
	}
	return min(limit, last[len(b)])
}
