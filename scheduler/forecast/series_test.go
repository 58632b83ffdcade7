package forecast

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func series(t testing.TB, slot time.Duration, coverage float64) *Series {
	t.Helper()
	s, err := New(slot, coverage)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// shape is a day with a peak, less at weekends.
func shape(at time.Time) float64 {
	v := 100 - 60*math.Cos(2*math.Pi*float64(at.Hour())/24)
	if d := at.Weekday(); d == time.Saturday || d == time.Sunday {
		v /= 2
	}
	return v
}

// Seasons are learned, and stay where they are though a value in forty is ten times too
// large and a day is missing.
func TestSeasonIsLearned(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	s := series(t, time.Hour, 0.9)
	now := begin
	for h := range 6 * 7 * 24 {
		now = begin.Add(time.Duration(h) * time.Hour)
		if v := shape(now); now.YearDay() != begin.YearDay()+30 {
			if v *= 1 + 0.05*r.NormFloat64(); r.IntN(40) == 0 {
				v *= 10
			}
			s.Observe(now, v)
		}
	}
	s.Advance(now.Add(time.Hour))
	for _, p := range s.Ahead(now.Add(time.Hour), 7*24) {
		if want := shape(p.At); math.Abs(p.Mid-want) > 0.25*want {
			t.Errorf("%s: %.0f, want %.0f", p.At.Format("Mon 15:04"), p.Mid, want)
		}
		if !(p.Low <= p.Mid && p.Mid <= p.High) || p.High == NoBound {
			t.Errorf("%s: %+v", p.At.Format("Mon 15:04"), p)
		}
	}
}

// Before a peak what is expected is above what is now, and after it below.
func TestPeakIsSeenBeforehand(t *testing.T) {
	s := series(t, time.Hour, 0.9)
	for h := range 4*7*24 + 6 {
		s.Observe(begin.Add(time.Duration(h)*time.Hour), shape(begin.Add(time.Duration(h)*time.Hour)))
	}
	morning := begin.Add((4*7*24 + 6) * time.Hour)
	s.Advance(morning)
	if mean, ok := s.Mean(morning, 6*time.Hour); !ok || mean < 1.3*s.Last {
		t.Errorf("at 6:00 %.0f is expected, and %.0f was", mean, s.Last)
	}
	half, _ := s.Mean(morning.Add(30*time.Minute), time.Hour)
	a, _ := s.Mean(morning, time.Hour)
	b, _ := s.Mean(morning.Add(time.Hour), time.Hour)
	if math.Abs(half-(a+b)/2) > 1e-6 {
		t.Errorf("across two hours %.1f, of which the first has %.1f and the second %.1f", half, a, b)
	}
	if _, ok := series(t, time.Hour, 0.9).Mean(morning, time.Hour); ok {
		t.Error("something is expected of nothing")
	}
}

// Whatever the series does, no more values are outside than was asked for, but for what
// steering needs to learn it.
func TestIntervalsCoverAnySeries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, err := New(time.Hour, 0.8)
		if err != nil {
			t.Fatal(err)
		}
		now := begin
		for range rapid.IntRange(100, 300).Draw(t, "hours") {
			now = now.Add(time.Hour * time.Duration(1+rapid.IntRange(0, 40).Draw(t, "gap")/40))
			s.Advance(now)
			v := rapid.Float64Range(0, 100).Draw(t, "value")
			// The adversary sees the interval that it is held against.
			if ahead := s.Ahead(now, 1); len(ahead) > 0 {
				switch rapid.IntRange(0, 3).Draw(t, "malice") {
				case 0:
					v = max(0, math.Nextafter(ahead[0].Low, -1))
				case 1:
					v = min(ahead[0].High*1.01+1, 1e9)
				}
			}
			s.Observe(now, v)
		}
		s.Advance(now.Add(time.Hour))
		for _, w := range s.Ways {
			share := (1 - s.Coverage) / 2
			if most := share*float64(w.Judged) + share/steer + float64(w.Slots); float64(w.Under) > most+1e-6 || float64(w.Over) > most+1e-6 {
				t.Fatalf("%d slots ahead: of %d, %d are below and %d above: at most %.1f may be", w.Slots, w.Judged, w.Under, w.Over, most)
			}
		}
	})
}

// It takes any values in any order, is the same after it was stored, and never expects what
// cannot be.
func TestSeriesTakesAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slot := rapid.SampledFrom([]time.Duration{5 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour}).Draw(t, "slot")
		s, err := New(slot, rapid.Float64Range(0.01, 0.99).Draw(t, "coverage"))
		if err != nil {
			t.Fatal(err)
		}
		odd := rapid.SampledFrom([]float64{math.NaN(), math.Inf(1), -1, 0, 1e-300, 1e300, math.MaxFloat64})
		now := begin
		for range rapid.IntRange(0, 100).Draw(t, "values") {
			now = now.Add(time.Duration(rapid.Int64Range(-int64(slot), 3*int64(slot)).Draw(t, "step")))
			v := rapid.Float64Range(0, 1000).Draw(t, "value")
			if rapid.IntRange(0, 9).Draw(t, "is odd") == 0 {
				v = odd.Draw(t, "odd")
			}
			s.Observe(now, v)
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again := new(Series)
		if err := json.Unmarshal(text, again); err != nil {
			t.Fatal(err)
		}
		points := s.Ahead(now, 30)
		if !reflect.DeepEqual(points, again.Ahead(now, 30)) {
			t.Fatal("it expects something else after it was stored")
		}
		for i, p := range points {
			if !(p.Low >= 0 && p.Low <= p.Mid && p.Mid <= p.High) || math.IsInf(p.Mid, 0) {
				t.Fatalf("%d slots ahead: %+v", i, p)
			}
			if p.At.Add(slot).Before(now) {
				t.Fatalf("%v is expected at %v", p, now)
			}
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		slot     time.Duration
		coverage float64
	}{{7 * time.Hour, 0.9}, {0, 0.9}, {time.Microsecond, 0.9}, {time.Hour, 1}, {time.Hour, math.NaN()}} {
		if _, err := New(c.slot, c.coverage); err == nil {
			t.Errorf("%v and %v are taken", c.slot, c.coverage)
		}
	}
}

// A series that was stored and can be read either says that it is broken or works.
func FuzzSeries(f *testing.F) {
	s, err := New(6*time.Hour, 0.9)
	if err != nil {
		f.Fatal(err)
	}
	for h := range 40 {
		s.Observe(begin.Add(time.Duration(h)*6*time.Hour), float64(h%4))
	}
	text, err := json.Marshal(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"slot":"24h0m0s","coverage":0.5,"closed":-1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var s Series
		if json.Unmarshal(text, &s) != nil || s.Validate() != nil {
			return
		}
		now := begin.Add(300 * time.Hour)
		for range 5 {
			s.Observe(now, 3)
			s.Ahead(now, 3)
			s.Mean(now, time.Hour)
			now = now.Add(time.Duration(s.Slot))
		}
	})
}
