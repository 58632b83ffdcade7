package forecast

import (
	"errors"
	"math"
	"slices"
	"time"

	"heliotrope"
)

const (
	daysKept  = 10   // values of a slot of the day
	weeksKept = 6    // the same of the week
	devRate   = 0.02 // of smoothing the usual error
	offRate   = 0.4  // of smoothing how far the last slots were off
	fade      = 0.85 // of that, per slot ahead
	usual     = 3.0  // times the usual error, beyond which an error counts as that
	prior     = 2.0  // weeks after which the hour of the week counts half
	devPrior  = 3.0  // days after which a slot's own error does

	greatest = 1e15 // value that is taken

	day      = 24 * time.Hour
	weekDays = 7
)

// Series learns one quantity that is never negative: requests per second, USD per hour. Its
// fields are what it knows, for JSON; make one with New.
type Series struct {
	Slot     heliotrope.Duration `json:"slot"`     // width of what one value is said of
	Coverage float64             `json:"coverage"` // share of values that intervals should have

	Day    []Cell  `json:"day"`    // by slot of the day, UTC
	Week   []Cell  `json:"week"`   // by slot of the week, from Sunday
	Off    float64 `json:"off"`    // what the last slots were above their season
	Dev    float64 `json:"dev"`    // mean absolute error, one slot ahead, smoothed
	Errors int     `json:"errors"` // that it is of

	Open   Open      `json:"open"`
	Closed int64     `json:"closed"` // number of the last slot that is complete, since 1970; 0: none
	Last   float64   `json:"last"`   // its value
	Ways   []Horizon `json:"ways"`
}

// Cell is one slot of a season: its last values, the newest last.
type Cell struct {
	Values []float64 `json:"values,omitempty"`
}

// Open is the slot that is being filled.
type Open struct {
	Slot int64   `json:"slot"`
	N    int     `json:"n"`
	Sum  float64 `json:"sum"`
}

// Point is what is expected of one slot.
type Point struct {
	At   time.Time `json:"at"` // its beginning
	Mid  float64   `json:"mid"`
	Low  float64   `json:"low"`
	High float64   `json:"high"` // NoBound: nothing is known
}

// NoBound is the end of an interval that has none.
const NoBound = math.MaxFloat64

// New makes a series with values per slot, of which a day has a whole number, and intervals
// that should have a share of all values.
func New(slot time.Duration, coverage float64) (*Series, error) {
	if slot < time.Minute || day%slot != 0 {
		return nil, errors.New("make series: a day must be a whole number of slots, of a minute or more")
	}
	if !(coverage > 0 && coverage < 1) {
		return nil, errors.New("make series: coverage must be between 0 and 1")
	}
	n := int(day / slot)
	s := &Series{Slot: heliotrope.Duration(slot), Coverage: coverage, Day: make([]Cell, n), Week: make([]Cell, weekDays*n)}
	for _, slots := range ahead {
		s.Ways = append(s.Ways, Horizon{Slots: slots, Below: (1 - coverage) / 2, Above: (1 - coverage) / 2})
	}
	return s, nil
}

// Validate says whether a series that was stored can be used.
func (s *Series) Validate() error {
	fresh, err := New(time.Duration(s.Slot), s.Coverage)
	if err != nil {
		return err
	}
	if len(s.Day) != len(fresh.Day) || len(s.Week) != len(fresh.Week) || len(s.Ways) != len(fresh.Ways) {
		return errors.New("check series: it has other slots, or other distances, than it says")
	}
	for i, w := range s.Ways {
		if w.Slots != fresh.Ways[i].Slots || len(w.Off) > kept || w.Next < 0 || w.Next >= kept {
			return errors.New("check series: what it knows of its errors is out of order")
		}
	}
	if s.Closed < 0 || s.Closed > 1<<40 || s.Open.N < 0 {
		return errors.New("check series: its times are out of order")
	}
	return nil
}

func (s *Series) number(at time.Time) int64 {
	width := int64(time.Duration(s.Slot) / time.Millisecond)
	return at.UnixMilli() / width
}

func (s *Series) begin(slot int64) time.Time {
	return time.UnixMilli(slot * int64(time.Duration(s.Slot)/time.Millisecond)).UTC()
}

func (s *Series) cells(slot int64) (ofDay, ofWeek *Cell) {
	const thursday = 4 // 1 January 1970
	n := int64(len(s.Day))
	return &s.Day[slot%n], &s.Week[(slot+thursday*n)%(weekDays*n)]
}

// Observe takes a value. A slot's is the mean of its values; slots without are gaps. What is
// older than the slot being filled, negative, above 10^15, or no number is left out.
func (s *Series) Observe(at time.Time, value float64) {
	slot := s.number(at)
	if !(value >= 0 && value <= greatest) || slot <= s.Closed || slot < s.Open.Slot {
		return
	}
	s.Advance(at)
	s.Open.Slot = slot
	s.Open.N++
	s.Open.Sum += (value - s.Open.Sum) / float64(s.Open.N)
}

// Advance tells what time it is: a slot that is over is learned.
func (s *Series) Advance(now time.Time) {
	if slot := s.number(now); s.Open.N > 0 && slot > s.Open.Slot {
		o := s.Open
		s.Open = Open{Slot: slot}
		s.learn(o.Slot, o.Sum)
	}
}

func (s *Series) learn(slot int64, value float64) {
	if s.Closed > 0 {
		s.Off *= math.Pow(fade, float64(slot-s.Closed-1))
	}
	s.judge(slot, value)
	if season, known := s.season(slot); known {
		limit := usual * s.scale(slot)
		if limit == 0 {
			limit = math.Inf(1)
		}
		s.Errors++
		s.Dev += max(devRate, 1/float64(s.Errors)) * (min(math.Abs(value-season-s.Off), limit) - s.Dev)
		s.Off += offRate * (max(-limit, min(limit, value-season)) - s.Off)
	}
	ofDay, ofWeek := s.cells(slot)
	ofDay.learn(value, daysKept)
	ofWeek.learn(value, weeksKept)
	s.Closed, s.Last = slot, value
	s.expect()
}

func (c *Cell) learn(value float64, keep int) {
	c.Values = append(c.Values, value)
	if len(c.Values) > keep {
		c.Values = c.Values[1:]
	}
}

// dev is how far the values of a slot of the day are from their midmean.
func (c *Cell) dev() float64 {
	center := midmean(c.Values)
	far := make([]float64, len(c.Values))
	for i, v := range c.Values {
		far[i] = math.Abs(v - center)
	}
	return midmean(far)
}

// midmean is the mean of the middle half.
func midmean(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	cut := (len(sorted) + 1) / 4
	var sum float64
	for _, v := range sorted[cut : len(sorted)-cut] {
		sum += v
	}
	return sum / float64(len(sorted)-2*cut)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// season is what a slot usually has.
func (s *Series) season(slot int64) (float64, bool) {
	ofDay, ofWeek := s.cells(slot)
	if len(ofDay.Values) == 0 {
		return s.Last, s.Closed > 0 // of the first day no more is known
	}
	mid := midmean(ofDay.Values)
	if n := float64(len(ofWeek.Values)); n > 0 {
		mid += n / (n + prior) * (median(ofWeek.Values) - mid)
	}
	return mid, true
}

// scale is how far a slot's forecasts usually are off.
func (s *Series) scale(slot int64) float64 {
	ofDay, _ := s.cells(slot)
	n := float64(max(len(ofDay.Values)-1, 0))
	if n == 0 {
		return s.Dev
	}
	return (devPrior*s.Dev + n*ofDay.dev()) / (devPrior + n)
}

// guess is what a slot is expected to have, seen from the last that is complete.
func (s *Series) guess(slot int64) float64 {
	season, _ := s.season(slot)
	return max(0, season+s.Off*math.Pow(fade, float64(slot-s.Closed)))
}

// Ahead tells what is expected of so many slots, from the one that now is in. It is empty as
// long as nothing is known.
func (s *Series) Ahead(now time.Time, slots int) []Point {
	if s.Closed == 0 {
		return nil
	}
	var list []Point
	for slot := max(s.number(now), s.Closed+1); len(list) < slots; slot++ {
		p := s.point(slot)
		p.At = s.begin(slot)
		list = append(list, p)
	}
	return list
}

// Mean is what is expected from now on over a horizon: who plans with it instead of with the
// value of now acts before a peak that is to come. It fails as long as nothing is known.
func (s *Series) Mean(now time.Time, horizon time.Duration) (float64, bool) {
	if s.Closed == 0 || horizon <= 0 {
		return s.Last, s.Closed > 0
	}
	var sum float64
	end := now.Add(horizon)
	for slot := s.number(now); s.begin(slot).Before(end); slot++ {
		from, to := s.begin(slot), s.begin(slot+1)
		if from.Before(now) {
			from = now
		}
		if to.After(end) {
			to = end
		}
		sum += s.guess(max(slot, s.Closed+1)) * to.Sub(from).Seconds()
	}
	return sum / horizon.Seconds(), true
}
