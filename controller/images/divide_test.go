package images

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"heliotrope"
)

const mbit = heliotrope.BitRate(1e6)

func TestDivide(t *testing.T) {
	on := func(rank int, most heliotrope.BitRate, links ...heliotrope.LinkID) flow {
		return flow{links, rank, most}
	}
	links := map[heliotrope.LinkID]heliotrope.BitRate{"wan": 90 * mbit, "far": 30 * mbit}
	for _, c := range []struct {
		name  string
		flows []flow
		want  []heliotrope.BitRate // Mbit/s
	}{
		{"nobody", nil, nil},
		{"one", []flow{on(1, 0, "wan")}, []heliotrope.BitRate{90}},
		{"equal parts", []flow{on(1, 0, "wan"), on(1, 0, "wan"), on(1, 0, "wan")}, []heliotrope.BitRate{30, 30, 30}},
		{"what one may not take the others have", []flow{on(1, 10*mbit, "wan"), on(1, 0, "wan"), on(1, 0, "wan")}, []heliotrope.BitRate{10, 40, 40}},
		{"a higher one has all", []flow{on(0, 0, "wan"), on(2, 0, "wan"), on(1, 0, "wan")}, []heliotrope.BitRate{0, 90, 0}},
		{"what a higher one may not take a lower one has", []flow{on(0, 0, "wan"), on(2, 60*mbit, "wan"), on(1, 20*mbit, "wan")}, []heliotrope.BitRate{10, 60, 20}},
		{"less than the part", []flow{on(1, 50*mbit, "wan")}, []heliotrope.BitRate{50}},
		{"two links, of which the narrower counts", []flow{on(1, 0, "wan", "far"), on(1, 0, "wan")}, []heliotrope.BitRate{30, 60}},
		{"a higher one on one link leaves the other", []flow{on(2, 0, "far"), on(1, 0, "wan"), on(1, 0, "wan", "far")}, []heliotrope.BitRate{30, 90, 0}},
		{"no shared link", []flow{on(1, 7*mbit, "lan"), on(1, 0, "wan")}, []heliotrope.BitRate{7, 90}},
	} {
		got := divide(links, c.flows)
		for k := range got {
			got[k] /= mbit
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %d Mbit/s, want %d", c.name, got, c.want)
		}
	}
}

// drawFlows draws links and flows over them.
func drawFlows(t *rapid.T) (map[heliotrope.LinkID]heliotrope.BitRate, []flow) {
	rate := func(what string) heliotrope.BitRate {
		return heliotrope.BitRate(rapid.OneOf(rapid.Uint64Range(64_000, 1e15), rapid.Uint64Range(64_000, 2e6)).Draw(t, what))
	}
	links, ids := map[heliotrope.LinkID]heliotrope.BitRate{}, []heliotrope.LinkID(nil)
	for k := range rapid.IntRange(1, 4).Draw(t, "links") {
		ids = append(ids, heliotrope.LinkID(fmt.Sprint("l", k)))
		links[ids[k]] = rate("link")
	}
	var flows []flow
	for range rapid.IntRange(0, 8).Draw(t, "flows") {
		f := flow{rank: rapid.IntRange(0, 2).Draw(t, "rank"), links: rapid.SliceOfNDistinct(rapid.SampledFrom(ids), 1, len(ids), rapid.ID[heliotrope.LinkID]).Draw(t, "way")}
		if rapid.Bool().Draw(t, "bounded") {
			f.most = rate("most")
		}
		flows = append(flows, f)
	}
	return links, flows
}

// Whatever comes: no link carries more than it may, no flow has more than its most, nothing is left that somebody could
// have, nobody of a lower rank has any of a link where one of a higher rank could have more, and
// whoever has less than another of his rank has his most, or a full link that carries nobody of the rank who has more.
func TestDivideIsFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		links, flows := drawFlows(t)
		rates := divide(links, flows)
		carried := map[heliotrope.LinkID]heliotrope.BitRate{}
		for k, f := range flows {
			for _, l := range f.links {
				carried[l] += rates[k]
			}
			if f.most > 0 && rates[k] > f.most {
				t.Fatalf("%+v has %d", f, rates[k])
			}
		}
		full := map[heliotrope.LinkID]bool{}
		for l, rate := range links {
			if carried[l] > rate {
				t.Fatalf("%s carries %d of %d", l, carried[l], rate)
			}
			full[l] = rate-carried[l] < leastPart
		}
		for k, f := range flows {
			if f.most > 0 && rates[k] == f.most {
				continue
			}
			bound := slices.ContainsFunc(f.links, func(l heliotrope.LinkID) bool { // a link that keeps it from more
				if !full[l] {
					return false
				}
				for o, other := range flows {
					if !slices.Contains(other.links, l) || o == k {
						continue
					}
					if other.rank < f.rank && rates[o] > 0 || other.rank == f.rank && rates[o] > rates[k] {
						return false
					}
				}
				return true
			})
			if !bound {
				t.Fatalf("%+v has %d of %v, and could have more: all have %d of %+v", f, rates[k], links, rates, flows)
			}
		}
	})
}

// What is foretold: those of a higher rank end first, and all together take as long as the link needs for them.
func TestEnds(t *testing.T) {
	links := map[heliotrope.LinkID]heliotrope.BitRate{"wan": 100 * mbit}
	wan := []heliotrope.LinkID{"wan"}
	got := ends(links, []flow{{wan, 1, 0}, {wan, 2, 0}, {wan, 1, 0}, {wan, 0, 10 * mbit}, {wan, 0, 0}}, []float64{1e9, 2e9, 3e9, 1e9, 0})
	for k, want := range []float64{40, 20, 60, 160, 0} { // the second alone, two together, one of them alone, the one with a bound
		if math.Abs(got[k]-want) > want/50 {
			t.Errorf("flow %d ends after %.1f s, want %.1f", k, got[k], want)
		}
	}
	if got := ends(map[heliotrope.LinkID]heliotrope.BitRate{"wan": 0}, []flow{{wan, 1, 0}}, []float64{1}); !math.IsInf(got[0], 1) {
		t.Errorf("over a link that carries nothing it ends after %v s", got)
	}
}

// The last flow over one link ends when all bits have crossed it, whatever the priorities.
func TestEndsWhenTheLinkIsDone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, flows := drawFlows(t)
		links, sum, last := map[heliotrope.LinkID]heliotrope.BitRate{"l0": mbit}, 0.0, 0.0
		lack := make([]float64, len(flows))
		for k := range flows {
			flows[k].links, flows[k].most = []heliotrope.LinkID{"l0"}, 0
			lack[k] = rapid.Float64Range(0, 1e9).Draw(t, "bits")
			sum += lack[k]
		}
		for _, s := range ends(links, flows, lack) {
			last = max(last, s)
		}
		if want := sum / 1e6; last > want*1.02+1 || last < want*0.98-1 {
			t.Fatalf("the last ends after %.1f s, want %.1f", last, want)
		}
	})
}
