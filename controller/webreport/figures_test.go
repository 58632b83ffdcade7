package webreport

import (
	"math"
	"strings"
	"testing"
	"time"

	"heliotrope/scheduler/traffic/report"

	"pgregory.net/rapid"
)

func TestScaleIsMonotone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Float64Range(0, 1e12), 2, 20).Draw(t, "rates")
		s := scaleOf([][]float64{all})
		for _, a := range all {
			class := s.class(a)
			if (class == "") != (a <= 0) || len(class) > 2 {
				t.Fatalf("%v has class %q", a, class)
			}
			for _, b := range all {
				if a < b && class > s.class(b) {
					t.Fatalf("%v is %s, %v is %s", a, class, b, s.class(b))
				}
			}
		}
	})
}

// A rate at the ends of what a number can be has no power of ten above or below it: the
// legend's ticks never ended.
func TestScaleEnds(t *testing.T) {
	for _, v := range []float64{math.MaxFloat64, math.SmallestNonzeroFloat64} {
		s := scaleOf([][]float64{{v}})
		if decades := math.Log10(s.high / s.low); !(decades > 0.5 && decades < 8) {
			t.Fatalf("the scale of %v goes from %v to %v", v, s.low, s.high)
		}
		if ticks := strings.Count(string(drawScale(s)), `class="tick"`); ticks == 0 || ticks > 20 {
			t.Errorf("the scale of %v has %d ticks", v, ticks)
		}
		if s.class(v) == "" {
			t.Errorf("%v has no class", v)
		}
	}
}

func TestTimelineBreaksWhereNothingIsKnown(t *testing.T) {
	var history []report.Volume
	for i := range 3000 {
		v := 1e6
		if i == 1501 {
			v = 9e6 // one second's peak
		}
		if i < 500 || i > 700 {
			history = append(history, report.Volume{At: noon.Add(time.Duration(i) * time.Second), Rate: v})
		}
	}
	events := []report.Event{{At: noon.Add(time.Minute), What: "b"}, {At: noon, What: "a"}, {At: noon.Add(-time.Hour), What: "before"}}
	html, marks := drawTimeline(history, events)
	svg := string(html)
	if n := strings.Count(svg, `class="volume"`); n != 2 {
		t.Errorf("%d lines, want two with a gap between them", n)
	}
	if n := strings.Count(svg, `class="eventdot"`); n != 2 || len(marks) != 3 || marks[0].What != "before" || marks[2].Number != 3 {
		t.Errorf("%d dots, marks %v", n, marks)
	}
	if !strings.Contains(svg, "10 MB/s") && !strings.Contains(svg, "10\u00a0MB/s") {
		t.Error("the peak got lost")
	}
	if len(svg) > 30_000 {
		t.Errorf("%d bytes", len(svg))
	}
}

func TestFigures(t *testing.T) {
	for _, c := range []struct{ have, want string }{
		{rate(0), "0 B/s"}, {rate(999.4), "999 B/s"}, {rate(999.6), "1.00 kB/s"}, {rate(12345), "12.3 kB/s"}, {rate(9.999e8), "1.00 GB/s"},
		{rate(math.NaN()), "0 B/s"}, {rate(math.Inf(1)), "0 B/s"}, {rate(2e24), "2000000 EB/s"}, {roundRate(2e6), "2 MB/s"}, {roundRate(100), "100 B/s"},
		{percent(0), "0 %"}, {percent(0.0001), "< 0.1 %"}, {percent(0.05), "5 %"}, {percent(0.0123), "1.2 %"}, {percent(0.9999), "99 %"}, {percent(1), "100 %"},
		{usd(0), "0.00 USD"}, {usd(0.001), "< 0.01 USD"}, {usd(12.345), "12.35 USD"}, {usd(12345.6), "12346 USD"},
		{span(90 * time.Second), "90 s"}, {span(5 * time.Minute), "5 min"}, {span(26*time.Hour + time.Minute), "1 d 2 h 1 min"},
		{whole(7), "7"}, {whole(uint64(1234567)), "1 234 567"}, {plural(1, "VM"), "1 VM"}, {clip("abcdef", 4), "abc…"}, {clip("abcd", 4), "abcd"},
	} {
		if have := strings.ReplaceAll(c.have, "\u00a0", " "); have != c.want {
			t.Errorf("got %q, want %q", have, c.want)
		}
	}
}
