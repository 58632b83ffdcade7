package webreport

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"heliotrope"
	"heliotrope/controller/api"
	"heliotrope/scheduler"
	"heliotrope/scheduler/atlas"
)

// What crosses sites before and after adds up to what a map's places say; VMs of a group
// stand together; and what changes is told.
func TestPairsCross(t *testing.T) {
	m := samplePlan().Plan.Map
	p := drawPairs(m)
	var all, before, after float64
	for _, q := range m.Pairs {
		all += q.BytesPerSecond
		a, b := m.VMs[q.From], m.VMs[q.To]
		if a.Before != b.Before {
			before += q.BytesPerSecond
		}
		if a.After != b.After {
			after += q.BytesPerSecond
		}
	}
	if p.All != all || p.CrossedBefore != before || p.CrossedAfter != after || p.Rest != m.Rest {
		t.Errorf("%v of %v cross before, %v after; must be %v of %v, %v", p.CrossedBefore, p.All, p.CrossedAfter, before, all, after)
	}
	if frames := strings.Count(string(p.PairsBefore), `class="over"`); frames != 8 {
		t.Errorf("%d cells are framed before, must be 8", frames)
	}
	if len(p.PairRows) == 0 || p.PairRows[0].Rate != 9e5 || p.PairRows[0].Before != "eu → us" || p.PairRows[0].After != "within eu" {
		t.Errorf("what comes together: %+v", p.PairRows)
	}
	if text := inert(t, planText(t, samplePlan())); !strings.Contains(text, "Who talks to whom") || !strings.Contains(text, "group 1") {
		t.Error("the page does not say it")
	}
}

// Whatever a map has, a page is made of it.
func TestPairsOfAnyMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &atlas.Map{Sites: []atlas.SiteVMs{{ID: "a"}}}
		names := rapid.SampledFrom([]heliotrope.VMID{"", "a", "b", "<b>", "c", "d", "e"})
		site := rapid.SampledFrom([]heliotrope.SiteID{"", "a", "b", "'\""})
		for range rapid.IntRange(0, 60).Draw(t, "vms") {
			m.VMs = append(m.VMs, atlas.PlacedVM{ID: names.Draw(t, "vm"), Before: site.Draw(t, "before"), After: site.Draw(t, "after")})
		}
		end := rapid.IntRange(-1, 61)
		rate := rapid.OneOf(rapid.Float64(), rapid.Just(math.Inf(1)), rapid.Just(math.NaN()), rapid.Float64Range(0, 1e9))
		for range rapid.IntRange(0, 50).Draw(t, "pairs") {
			m.Pairs = append(m.Pairs, atlas.VMPair{From: end.Draw(t, "from"), To: end.Draw(t, "to"), BytesPerSecond: rate.Draw(t, "rate")})
		}
		var b strings.Builder
		if err := RenderPlan(&b, api.Plan{Plan: scheduler.Plan{Map: m}}); err != nil {
			t.Fatal(err)
		}
		if text := b.String(); strings.Contains(text, "NaN") || strings.Contains(text, "<b>") {
			t.Fatal("it has a number that is none, or markup of a name")
		}
	})
}
