package schedbench

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"time"

	"heliotrope/scheduler/forecast"
	"heliotrope/topologies/lab/claim"
)

const (
	requestFile = "nab_elb_requests_5min.csv"
	hour        = time.Hour

	coverage = 0.9
	warmUp   = 72 // hours that are learned from before anything is measured
)

// sample is one value of a series.
type sample struct {
	at    time.Time
	value float64
}

// requests are the real request counts, or two weeks with days, weekends, noise and bursts.
func requests(dir string) ([]sample, error) {
	if dir != "" {
		all, err := rows(filepath.Join(dir, requestFile))
		if !errors.Is(err, fs.ErrNotExist) {
			return parseRequests(all, err)
		}
	}
	r := rand.New(rand.NewPCG(1, 5))
	begin := time.Date(2014, 4, 10, 0, 0, 0, 0, time.UTC)
	var list []sample
	for i := range 14 * 288 {
		at := begin.Add(time.Duration(i) * 5 * time.Minute)
		v := 60 - 25*math.Cos(2*math.Pi*(at.Sub(begin).Hours()-3)/24)
		if d := at.Weekday(); d == time.Saturday || d == time.Sunday {
			v *= 0.7
		}
		v *= math.Exp(0.4 * r.NormFloat64())
		if r.IntN(100) == 0 {
			v *= 4
		}
		list = append(list, sample{at, v})
	}
	return list, nil
}

func parseRequests(all [][]string, err error) ([]sample, error) {
	var list []sample
	for _, row := range all {
		at, badTime := time.Parse(time.DateTime, row[0])
		v, badValue := strconv.ParseFloat(row[1], 64)
		if err := errors.Join(badTime, badValue); err != nil {
			return nil, err
		}
		list = append(list, sample{at, v})
	}
	return list, err
}

// accuracy is how good forecasts so many hours ahead were.
type accuracy struct {
	Hours     int     `json:"hours"`
	Forecasts int     `json:"forecasts"`
	Covered   float64 `json:"covered"`      // share inside the interval
	Unbounded int     `json:"unbounded"`    // intervals without an upper end
	Width     float64 `json:"width"`        // of the others, mean, over the mean value
	Error     float64 `json:"error"`        // mean absolute, over the mean value
	LastValue float64 `json:"naive_last"`   // the same of the last hour's value
	Yesterday float64 `json:"naive_season"` // the same of the same hour of the last day that is known
}

// forecasts measures the forecast on a series that it has not seen, hour by hour.
func forecasts(_ context.Context, b *Bench) ([]claim.Claim, any, error) {
	list, err := requests(b.Data)
	if err != nil {
		return nil, nil, err
	}
	hourly := map[int64]*[2]float64{} // sum, number
	for _, s := range list {
		k := s.at.Unix() / 3600
		if hourly[k] == nil {
			hourly[k] = &[2]float64{}
		}
		hourly[k][0] += s.value
		hourly[k][1]++
	}
	value := func(k int64) (float64, bool) {
		if h := hourly[k]; h != nil {
			return h[0] / h[1], true
		}
		return 0, false
	}
	var figures []accuracy
	for _, hours := range []int{1, 3, 6, 12, 24} {
		a, err := measureForecast(list, value, hours)
		if err != nil {
			return nil, nil, err
		}
		figures = append(figures, a)
		b.Say("%2d h ahead: %d forecasts, %.1f %% inside of %.0f %%, %d without an upper end, width of the others %.2f of the mean; mean error %.1f %%; last value %.1f %%, same hour of the last day %.1f %%",
			hours, a.Forecasts, 100*a.Covered, 100*coverage, a.Unbounded, a.Width, 100*a.Error, 100*a.LastValue, 100*a.Yesterday)
	}
	var worst, naive float64
	for _, a := range figures {
		worst = max(worst, math.Abs(a.Covered-coverage))
		naive = max(naive, a.Error/min(a.LastValue, a.Yesterday))
	}
	return []claim.Claim{
		claim.New("intervals of 90 %: share inside is off by at most", worst, "<=", 0.05),
		claim.New("forecast error over the better naive one's, worst distance", naive, "<=", 1),
	}, figures, nil
}

func measureForecast(list []sample, value func(int64) (float64, bool), hours int) (accuracy, error) {
	a := accuracy{Hours: hours}
	s, err := forecast.New(hour, coverage)
	if err != nil {
		return a, err
	}
	var mean float64
	first := list[0].at.Unix() / 3600
	done := int64(0)
	for _, x := range list {
		s.Observe(x.at, x.value)
		last := s.Closed
		if last == done || last < first+warmUp {
			continue
		}
		done = last
		target := last + int64(hours)
		truth, ok := value(target)
		before, known := value(target - int64(24*((hours-1)/24+1)))
		if !ok || !known {
			continue
		}
		p := s.Ahead(time.Unix((last+1)*3600, 0), hours)[hours-1]
		a.Forecasts++
		mean += truth
		if truth >= p.Low && truth <= p.High {
			a.Covered++
		}
		if p.High == forecast.NoBound {
			a.Unbounded++
		} else {
			a.Width += p.High - p.Low
		}
		a.Error += math.Abs(p.Mid - truth)
		a.LastValue += math.Abs(s.Last - truth)
		a.Yesterday += math.Abs(before - truth)
	}
	a.Width /= mean * (1 - float64(a.Unbounded)/float64(a.Forecasts))
	for _, v := range []*float64{&a.Error, &a.LastValue, &a.Yesterday} {
		*v /= mean
	}
	a.Covered /= float64(a.Forecasts)
	return a, nil
}
