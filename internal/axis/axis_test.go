package axis

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Rules are round, not too many, and none of the values is above the highest.
func TestScale(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most, parts := rapid.Float64Range(0, 1e12).Draw(t, "most"), rapid.IntRange(1, 9).Draw(t, "parts")
		step, top := Scale(most, parts)
		if top < most*0.9999 || top/step > float64(parts)+1 || step <= 0 {
			t.Fatalf("%v in %d parts: rules each %v up to %v", most, parts, step, top)
		}
		digit := step / math.Pow(10, math.Floor(math.Log10(step)*1.0000001))
		if r := math.Round(digit); math.Abs(digit-r) > 1e-6 || r != 1 && r != 2 && r != 5 && r != 10 {
			t.Fatalf("a step of %v", step)
		}
	})
}

// Rules that are added up pass the highest after a few, also at the ends of what a number can be.
func TestScaleEnds(t *testing.T) {
	for _, most := range []float64{0, math.SmallestNonzeroFloat64, math.MaxFloat64, math.Inf(1)} {
		step, top := Scale(most, 4)
		rules := 0
		for v := 0.0; v <= top*1.001 && rules < 100; v += step {
			rules++
		}
		if rules > 6 {
			t.Errorf("more than %d rules up to %v", rules, most)
		}
	}
}

func TestScaleOfNoNumber(t *testing.T) {
	for _, v := range []float64{math.NaN(), math.Inf(1), -1} {
		if step := Step(v); step != 1 {
			t.Errorf("%v has a step of %v", v, step)
		}
	}
}

// However long a time is, its ticks are in it, in order, not too many, and none is written
// as another.
func TestTimes(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		from := begin.Add(time.Duration(rapid.Int64Range(0, int64(1000*day)).Draw(t, "from")))
		span := time.Duration(math.Exp(rapid.Float64Range(math.Log(float64(3*time.Second)), math.Log(float64(20*365*day))).Draw(t, "span")))
		to := from.Add(span)
		ticks, layout := Times(from, to)
		if len(ticks) == 0 || len(ticks) > most {
			t.Fatalf("%d ticks in %v", len(ticks), span)
		}
		said := map[string]bool{}
		for i, at := range ticks {
			if at.Before(from) || at.After(to) || i > 0 && !ticks[i-1].Before(at) || said[at.Format(layout)] {
				t.Fatalf("%v from %v to %v", ticks, from, to)
			}
			said[at.Format(layout)] = true
		}
	})
	if ticks, _ := Times(begin, begin); ticks != nil {
		t.Errorf("%v in no time", ticks)
	}
}
